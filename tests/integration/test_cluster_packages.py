"""A job on a cluster that lacks a pinned package: Ray makes the environment by constraints, on a real job server."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest

from tests.integration.ray_cluster import REPOSITORY, RayCluster, on_path, python_without_project, ray_cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PACKAGE = "tenacity"
"""One that the project names and that needs no other."""

SUBMIT_DOCTOR = """
import os, sys
from sweeps.cluster.job import JobRequest, run_as_job
sys.exit(run_as_job(os.environ["RAY_ADDRESS"], JobRequest(arguments=("doctor",), runs_uri=sys.argv[1])))
"""


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


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[RayCluster]:
    """One node with an environment of its own, which Ray may copy, and a folder of wheels for its package index."""
    python = python_without_project(tmp_path / "node")
    wheel_of_another_version(tmp_path, "99.0.0")
    variables = {
        **on_path(python),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path),
        "SWEEPS_CACHE_DIR": str(tmp_path / "cache"),
    }
    with ray_cluster(tmp_path) as started:
        started.start(with_dashboard=True, environment=variables, python=python)
        started.wait_for(1)
        yield started


def test_a_package_that_the_cluster_lacks_is_installed_for_the_job_in_the_pinned_version(
    cluster: RayCluster, tmp_path: Path
) -> None:
    (tmp_path / "constraints.txt").write_text(f"{PACKAGE}==99.0.0\n")
    variables = {"RAY_ADDRESS": cluster.dashboard, "PYTHONPATH": str(REPOSITORY)}
    variables |= {"COLUMNS": "200", "SWEEPS_JOB_ENV": "COLUMNS"}  # rows of the table in one line each
    done = cluster.run([sys.executable, "-c", SUBMIT_DOCTOR, str(tmp_path / "runs")], variables, timeout_s=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"the cluster lacks {PACKAGE}==99.0.0: Ray installs what constraints.txt pins first" in done.stdout
    assert "as pinned in constraints.txt (1 packages)" in done.stdout, done.stdout
