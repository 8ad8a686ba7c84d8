"""A whole sweep on three real nodes: undisturbed, with a worker node lost, and with the head lost."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.ray_cluster import REPOSITORY, Node, RayCluster, ray_cluster
from tests.integration.sweeping import PATIENCE_S, command, curves, decided, holders, losses, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(900)]

RUN = ("run", "--preset", "smoke")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> Path:
    """The same sweep on this machine alone: what every other way must agree with to the last bit."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        command(*RUN, "--name", "first", "--runs-dir", str(folder / "alone")),
        env={**environment, "PYTHONPATH": str(REPOSITORY), "SWEEPS_CACHE_DIR": str(folder / "cache")},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "alone"


@pytest.fixture
def cluster(folder: Path) -> Iterator[RayCluster]:
    with ray_cluster(folder) as started:
        start_three(started, folder)
        yield started


def start_three(cluster: RayCluster, folder: Path) -> None:
    for _ in range(3):
        cluster.start(environment={"SWEEPS_CACHE_DIR": str(folder / "cache")})
    cluster.wait_for(3)


def works(node: Node, runs: Path) -> bool:
    """Whether a process of the node holds a cell now."""
    return bool({process.pid for process in node.processes()} & holders(str(runs), "first").keys())


def test_a_sweep_uses_every_node_survives_the_loss_of_one_and_ends_as_if_nothing_had_happened(
    cluster: RayCluster, folder: Path, undisturbed: Path
) -> None:
    runs = folder / "node-lost"
    sweep = cluster.popen(
        command(*RUN, "--name", "first", "--runs-dir", str(runs)), {"SWEEPS_CACHE_DIR": str(folder / "cache")}
    )
    seen: set[str] = set()

    def all_have_worked() -> bool:
        seen.update(node.name for node in cluster.nodes if works(node, runs))
        return len(seen) == 3

    wait_for(all_have_worked, "work on every node", sweep)
    wait_for(lambda: works(cluster.nodes[2], runs), "work on the third node", sweep)
    cluster.nodes[2].kill()
    said, _ = sweep.communicate(timeout=PATIENCE_S)
    assert sweep.returncode == 0, said
    assert losses(str(runs), "first") == losses(str(undisturbed), "first")
    assert curves(str(runs), "first") == curves(str(undisturbed), "first")
    assert decided(str(runs), "first") == decided(str(undisturbed), "first")


def test_a_sweep_whose_head_was_lost_is_resumed_on_a_new_cluster(
    cluster: RayCluster, folder: Path, undisturbed: Path
) -> None:
    runs = folder / "head-lost"
    sweep = cluster.popen(
        command(*RUN, "--name", "first", "--runs-dir", str(runs)), {"SWEEPS_CACHE_DIR": str(folder / "cache")}
    )
    wait_for(lambda: len(losses(str(runs), "first")) >= 2, "two cells with an outcome", sweep)
    sweep.kill()  # the driver runs on the head's machine, and goes with it
    sweep.communicate()
    cluster.close()
    before = losses(str(runs), "first")
    with ray_cluster(folder) as fresh:
        start_three(fresh, folder)
        resumed = fresh.run(
            command("resume", "first", "--runs-dir", str(runs)),
            {"SWEEPS_CACHE_DIR": str(folder / "cache")},
            timeout_s=PATIENCE_S,
        )
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    after = losses(str(runs), "first")
    assert after == losses(str(undisturbed), "first")
    assert before.items() <= after.items(), "what had an outcome was not run again"
    assert json.loads((runs / "first" / "verdict.json").read_text())["outcome"] == "exploratory"
