"""A sweep as a Ray job, by a real job server: shipped, followed, detached from, attached to, stopped and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.ray_cluster import RayCluster, on_path, python_without_project, ray_cluster

pytestmark = [pytest.mark.slow, pytest.mark.faults]

DEADLINE_S = 240.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("job")


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[RayCluster]:
    """One node that has no copy of the project: what runs there was shipped."""
    with ray_cluster(folder) as started:
        python = python_without_project(folder / "python")
        variables = {**on_path(python), "SWEEPS_CACHE_DIR": str(folder)}
        started.start(num_cpus=2, with_dashboard=True, environment=variables, python=python)
        started.wait_for(1)
        yield started


def sweeps(cluster: RayCluster, *words: str) -> list[str]:
    return [sys.executable, "-m", "sweeps", *words]


def submitting(cluster: RayCluster) -> dict[str, str]:
    return {"RAY_ADDRESS": cluster.dashboard, "PYTHONPATH": str(Path(__file__).parents[2])}


def states(cluster: RayCluster) -> list[str]:
    script = (
        "from ray.job_submission import JobSubmissionClient as C; import json, os;"
        "print(json.dumps([str(j.status.value) for j in C(os.environ['RAY_ADDRESS']).list_jobs() if j.submission_id]))"
    )
    listed: list[str] = json.loads(cluster.run([sys.executable, "-c", script], submitting(cluster)).stdout)
    return listed


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """Read the process's output up to a line with these words; the test's own limit ends a silent one."""
    assert process.stdout is not None
    seen = ""
    deadline_s = time.monotonic() + DEADLINE_S
    for line in process.stdout:
        seen += line
        if words in line:
            return seen
        assert time.monotonic() < deadline_s, seen
    raise AssertionError(f"no line with {words!r} in:\n{seen}")


def test_a_job_is_shipped_followed_detached_attached_stopped_and_resumed(cluster: RayCluster, folder: Path) -> None:
    runs = folder / "runs"
    run = sweeps(cluster, "run", "--preset", "smoke", "--name", "first", "--runs-dir", str(runs))
    resume = sweeps(cluster, "resume", "first", "--runs-dir", str(runs))

    following = cluster.popen(run, submitting(cluster))
    said = read_until(following, "trials at once")
    assert "submitted job raysubmit_" in said
    following.send_signal(signal.SIGINT)
    rest, _ = following.communicate(timeout=30)
    assert following.returncode == 130
    assert f"ray job logs --address {cluster.dashboard} --follow raysubmit_" in rest
    assert f"ray job stop --address {cluster.dashboard} raysubmit_" in rest
    assert states(cluster) == ["RUNNING"], "detaching leaves the job alone"

    attached = cluster.popen(resume, submitting(cluster))
    again = read_until(attached, "trials at once")
    assert "of this sweep is running already: following it from its start" in again
    job_id = again.split("job ", 1)[1].split(" ", 1)[0]
    stop = [sys.executable, "-m", "ray.scripts.scripts", "job", "stop", "--address", cluster.dashboard, job_id]
    assert cluster.run(stop, submitting(cluster)).returncode == 0
    rest, _ = attached.communicate(timeout=60)
    assert attached.returncode == 130
    assert "sweeps resume first" in rest
    assert states(cluster) == ["STOPPED"]

    finished = cluster.run(resume, submitting(cluster), timeout_s=DEADLINE_S)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert json.loads((runs / "first" / "verdict.json").read_text())["outcome"] == "exploratory"
    assert os.path.commonpath([runs, *runs.rglob("outcome.json")]) == str(runs)
