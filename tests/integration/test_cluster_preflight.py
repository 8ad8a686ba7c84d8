"""Preflight against real nodes: three `ray start`, one of them with another torch and a storage of its own."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.ray_cluster import (
    REPOSITORY,
    RayCluster,
    needs_namespaces,
    on_path,
    python_without_project,
    ray_cluster,
)
from tests.programs import needs

pytestmark = [pytest.mark.slow, pytest.mark.faults]

ASK = """
import json, sys
from dataclasses import asdict
from sweeps.cluster.machines import machines_at_hand
from sweeps.cluster.preflight import preflight
storage, tracking = sys.argv[1:]
with machines_at_hand() as machines:
    result = preflight(storage_uri=storage, tracking_uri=tracking or None)
print(json.dumps({"answers": [asdict(answer) for answer in result.answers], "problems": result.problems,
                  "warnings": result.warnings, "cpus": [node.cpus for node in machines.nodes], "gpus": machines.gpus,
                  "growth": len(machines.growth)}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cluster")


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[RayCluster]:
    """The second node has a declared GPU and no copy of the project; the third another torch, and where namespaces can
    be made an unshared folder for runs.
    """
    other_torch = folder / "packages" / "torch-9.9.9.dist-info"
    other_torch.mkdir(parents=True)
    (other_torch / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 9.9.9\n")
    (folder / "unshared").mkdir()
    with ray_cluster(folder) as started:
        started.start()
        bare = python_without_project(folder / "python")
        started.start(num_gpus=1, environment=on_path(bare), python=bare)
        packages = f"{folder / 'packages'}{os.pathsep}{REPOSITORY}"
        private = folder / "unshared" if started.uses_namespaces and shutil.which("unshare") else None
        started.start(num_cpus=2, private_folder=private, environment={"PYTHONPATH": packages})
        started.wait_for(3)
        yield started


def asked(cluster: RayCluster, storage: Path, tracking: str = "") -> dict[str, Any]:
    done = cluster.run([sys.executable, "-c", ASK, str(storage), tracking])
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_every_node_answers_for_itself_and_a_torch_that_differs_is_named(cluster: RayCluster, folder: Path) -> None:
    said = asked(cluster, folder / "runs")
    addresses = [node.address for node in cluster.nodes]
    assert [answer["address"] for answer in said["answers"]] == addresses
    assert [answer["is_driver"] for answer in said["answers"]] == [True, False, False]
    assert [answer["storage"] for answer in said["answers"]] == ["ok"] * 3
    assert len({answer["code"] for answer in said["answers"]}) == 1
    [problem] = said["problems"]
    assert problem.startswith(f"node {addresses[2]}: torch is 9.9.9 and on {addresses[0]} it is ")
    [warning] = said["warnings"]
    assert warning.startswith(f"node {addresses[1]}: Ray counts 1 GPU there and nvidia-smi shows none")
    assert sorted(said["cpus"]) == [1, 1, 2]
    assert said["gpus"] == 1
    assert said["growth"] == 0
    assert not (folder / "runs" / "preflight").exists()


@needs("unshare", "mount")
@needs_namespaces
def test_storage_that_one_node_does_not_share_and_a_server_that_is_down_are_named_with_the_rest(
    cluster: RayCluster, folder: Path
) -> None:
    said = asked(cluster, folder / "unshared", "http://127.0.0.1:9")
    third = cluster.nodes[2].address
    assert [problem.partition(" is ")[0] for problem in said["problems"]] == [
        f"node {third}: torch",
        f"node {third}: storage {folder}/unshared: what the driver wrote",
    ]
    assert "so it is not shared; give --runs-dir" in said["problems"][1]
    assert said["warnings"][-1].startswith("tracking server http://127.0.0.1:9 does not answer")


def test_a_sweep_is_refused_before_it_costs_anything_with_what_nodes_lack_and_what_nobody_has(
    cluster: RayCluster, folder: Path
) -> None:
    wishes = ["--set", "resources.threads_per_trial=2", "--set", "resources.gpu_per_trial=0.5"]
    words = [sys.executable, "-m", "sweeps", "run", "--preset", "smoke", "--name", "x", *wishes]
    done = cluster.run(words, {"SWEEPS_RUNS_DIR": str(folder / "runs"), "COLUMNS": "200"})
    assert done.returncode == 2, done.stdout + done.stderr
    assert all(node.address in done.stdout for node in cluster.nodes)
    assert f"node {cluster.nodes[2].address}: torch is 9.9.9" in done.stderr
    assert "needs 2 CPU and 0.5 GPU, and the largest node has 2 CPU and 1 GPU" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_plan_is_for_the_nodes_of_the_cluster_and_asks_them_for_their_gpus(cluster: RayCluster, folder: Path) -> None:
    words = [sys.executable, "-m", "sweeps", "plan", "--preset", "smoke", "--json"]
    done = cluster.run(words, {"SWEEPS_CACHE_DIR": str(folder / "cache")})
    assert done.returncode == 0, done.stdout + done.stderr
    plan = json.loads(done.stdout)
    assert {arm["gpu_fraction"] for arm in plan["arms"]} == {1.0}
    assert plan["workers"] == 1, "the cluster has one GPU"
    assert plan["hours"] > 0, "steps of each arm are timed on the node that has it"
    assert any(warning.startswith("the memory of the GPUs is unknown") for warning in plan["warnings"])
