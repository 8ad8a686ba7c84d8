"""A sweep as a Ray job, by a real job server: shipped, followed, detached from, attached to, stopped and resumed.

And a job whose packages the cluster lacks: Ray makes the environment by constraints.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest

from tests.integration.ray_cluster import REPOSITORY, RayCluster, on_path, python_without_project, ray_cluster
from tests.integration.sweeping import Sweeps, command, how_it_ends

pytestmark = [pytest.mark.slow, pytest.mark.faults]

PACKAGE = "filelock"
"""One that the project names and that needs no other."""

SUBMIT_DOCTOR = """
import os, sys
from sweeps.cluster.job import JobRequest, run_as_job
sys.exit(run_as_job(os.environ["RAY_ADDRESS"], JobRequest(arguments=("doctor",), runs_uri=sys.argv[1])))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("job")


def wheel_of_another_version(folder: Path, number: str) -> None:
    """The installed package as a wheel that calls itself ``number``."""
    files = [path for path in distribution(PACKAGE).files or () if path.parts[0] == PACKAGE and path.suffix == ".py"]
    meta = f"{PACKAGE}-{number}.dist-info"
    with zipfile.ZipFile(folder / f"{PACKAGE}-{number}-py3-none-any.whl", "w") as wheel:
        for path in files:
            wheel.write(path.locate(), str(path))
        wheel.writestr(f"{meta}/METADATA", f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {number}\n")
        wheel.writestr(
            f"{meta}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{meta}/RECORD", "")


@pytest.fixture(scope="module")
def cluster(folder: Path, token_cache: Path) -> Iterator[RayCluster]:
    """One node that has no copy of the project, so that what runs there was shipped; its package index is a folder."""
    wheels = folder / "wheels"
    wheels.mkdir()
    wheel_of_another_version(wheels, "99.0.0")
    with ray_cluster(folder) as started:
        python = python_without_project(folder / "python")
        variables = {
            **on_path(python),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(wheels),
            "SWEEPS_CACHE_DIR": str(token_cache),
        }
        started.start(num_cpus=2, with_dashboard=True, environment=variables, python=python)
        started.wait_for(1)
        yield started


def submitting(cluster: RayCluster) -> dict[str, str]:
    return {"RAY_ADDRESS": cluster.dashboard, "PYTHONPATH": str(REPOSITORY)}


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
    for line in process.stdout:
        seen += line
        if words in line:
            return seen
    raise AssertionError(f"no line with {words!r} in:\n{seen}")


def test_a_job_is_shipped_followed_detached_attached_stopped_and_resumed(
    cluster: RayCluster, folder: Path, undisturbed: Sweeps
) -> None:
    runs = folder / "runs"
    space = str(undisturbed.folder / "space.toml")
    run = command("run", "--space", space, "--name", "first", "--runs-dir", str(runs))
    resume = command("resume", "first", "--runs-dir", str(runs))

    following = cluster.popen(run, submitting(cluster))
    said = read_until(following, "trials at once")
    assert "submitted job raysubmit_" in said
    following.send_signal(signal.SIGINT)
    rest, _ = following.communicate()
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
    rest, _ = attached.communicate()
    assert attached.returncode == 130
    assert "sweeps resume first" in rest
    assert states(cluster) == ["STOPPED"]

    finished = cluster.run(resume, submitting(cluster))
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert how_it_ends(str(runs), "first") == undisturbed.end_of("first")


def test_a_package_that_the_cluster_lacks_is_installed_for_the_job_in_the_pinned_version(
    cluster: RayCluster, tmp_path: Path
) -> None:
    (tmp_path / "constraints.txt").write_text(f"{PACKAGE}==99.0.0\n")
    variables = submitting(cluster) | {"COLUMNS": "200", "SWEEPS_JOB_ENV": "COLUMNS"}  # a row of the table is one line
    submit = [sys.executable, "-c", SUBMIT_DOCTOR, str(tmp_path / "runs")]
    done = cluster.run(submit, variables, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"the cluster lacks {PACKAGE}==99.0.0: Ray installs what constraints.txt pins first" in done.stdout
    assert "as pinned in constraints.txt (1 packages)" in done.stdout, done.stdout
