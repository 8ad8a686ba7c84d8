"""deploy/slurm.sbatch on a real Slurm: jobs that are requeued go on where they stopped, and end as if undisturbed."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.integration.machines import PROGRAMS as FOR_MACHINES
from tests.integration.ray_cluster import REPOSITORY, needs_namespaces
from tests.integration.slurm_cluster import PROGRAMS, Job, SlurmCluster, slurm_cluster
from tests.integration.sweeping import PATIENCE_S, Sweeps, clean_environment, decided, holders, how_it_ends, losses
from tests.programs import needs

pytestmark = [pytest.mark.slow, pytest.mark.faults, needs_namespaces, needs(*PROGRAMS, *FOR_MACHINES)]

SCRIPT = REPOSITORY / "deploy" / "slurm.sbatch"
NODES = 2


def wait_for(condition: Callable[[], bool], what: str, job: Submitted) -> None:
    """As ``sweeping.wait_for``, but it asks Slurm not twenty times a second."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, f"{what} did not come about: {job.now}\n{job.log}"
        time.sleep(1.0)


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """A job that runs the sweep of ``undisturbed`` under another Slurm."""

    cluster: SlurmCluster
    number: int
    runs: Path

    @property
    def now(self) -> Job:
        return self.cluster.job(self.number)

    @property
    def log(self) -> str:
        return Path(f"{self.runs}.log").read_text()

    def wait_until_a_cell_has_ended(self) -> None:
        """Not the last one: the sweep is in its midst."""
        before = len(losses(str(self.runs), "first"))
        wait_for(
            lambda: len(losses(str(self.runs), "first")) > before and bool(holders(str(self.runs), "first")),
            "a cell that has ended and one that runs",
            self,
        )

    def wait_for_restart(self, number: int) -> None:
        wait_for(
            lambda: (self.now.restarts, self.now.state) == (number, "RUNNING"), f"start {number + 1} of the job", self
        )

    def wait_for_end(self) -> Job:
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        wait_for(lambda: self.now.state in ended, "the job's end", self)
        return self.now


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, token_cache: Path) -> Iterator[SlurmCluster]:
    """Three nodes, of which one is lost in the last test."""
    environment = clean_environment(
        PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        PYTHONPATH=str(REPOSITORY),
        SWEEPS_CACHE_DIR=str(token_cache),
        OMP_NUM_THREADS="1",
        COLUMNS="200",
    )
    with slurm_cluster(tmp_path_factory.mktemp("slurm"), nodes=NODES + 1, cpus=2, environment=environment) as made:
        yield made


@pytest.fixture(autouse=True)
def _no_job_is_left(cluster: SlurmCluster) -> Iterator[None]:
    yield
    cluster.run("scancel", "--user=root")


def submit(cluster: SlurmCluster, undisturbed: Sweeps, runs: str, *more: str) -> Submitted:
    """As a user does, with the lines changed that nodes without GPUs need."""
    changed = ["--cpus-per-task=1", "--gpus-per-node=0", f"--nodes={NODES}"]
    changed += [f"--chdir={cluster.folder}", f"--output={runs}.log"]
    sweep = ["--space", str(undisturbed.folder / "space.toml"), "--name", "first", *more]
    number = cluster.submit(*changed, str(SCRIPT), *sweep, "--runs-dir", str(cluster.folder / runs))
    return Submitted(cluster=cluster, number=number, runs=cluster.folder / runs)


def started_by(job: Submitted) -> list[psutil.Process]:
    """Ray's own processes of the job, on all machines."""
    mark = f"/tmp/ray-{job.number}-"
    return [process for process in psutil.process_iter() if mark in " ".join(command_line(process))]


def command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def content(path: Path) -> bytes:
    """What a file holds that a running sweep may delete at any time."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def require_same_end(job: Submitted, undisturbed: Sweeps) -> None:
    assert how_it_ends(str(job.runs), "first") == undisturbed.end_of("first")
    assert decided(str(job.runs), "first") == decided(str(undisturbed.runs), "first")


def test_a_job_near_its_time_limit_saves_and_a_preempted_one_goes_on(
    cluster: SlurmCluster, undisturbed: Sweeps
) -> None:
    job = submit(cluster, undisturbed, "limit")
    job.wait_until_a_cell_has_ended()
    cluster.run("scancel", "--batch", "--signal=USR1", str(job.number))  # what Slurm sends before the time limit
    job.wait_for_restart(1)
    assert "interrupted; finished work is kept" in job.log
    assert "ended at once" not in job.log
    job.wait_until_a_cell_has_ended()
    urgent = cluster.submit("--partition=urgent", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    job.wait_for_restart(2)
    assert cluster.job(urgent).state == "COMPLETED"
    assert (job.wait_for_end().state, job.now.exit_code) == ("COMPLETED", 0), job.log
    require_same_end(job, undisturbed)
    assert started_by(job) == []
    assert list(Path("/tmp").glob(f"ray-{job.number}-*")) == []


def test_no_file_and_no_command_line_holds_the_token(cluster: SlurmCluster, undisturbed: Sweeps) -> None:
    job = submit(cluster, undisturbed, "token", "--set", "seeds.confirm=40")
    job.wait_until_a_cell_has_ended()
    processes = started_by(job)
    [token] = {process.environ()["RAY_AUTH_TOKEN"] for process in processes if process.name() == "raylet"}
    assert len(token) == 64
    assert not any(token in " ".join(command_line(process)) for process in psutil.process_iter())
    folders = [*Path("/tmp").glob(f"ray-{job.number}-*"), cluster.folder]
    assert len(folders) == NODES + 1
    assert all(folder.stat().st_mode & 0o077 == 0 for folder in folders)
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert not any(token.encode() in content(path) for path in files)
    cluster.run("scancel", str(job.number))
    assert job.wait_for_end().state == "CANCELLED"
    wait_for(lambda: not started_by(job), "the end of Ray", job)
    assert job.now.restarts == 0, "who cancels a job does not want it back"


def test_bad_input_ends_the_job_for_good(cluster: SlurmCluster, undisturbed: Sweeps) -> None:
    job = submit(cluster, undisturbed, "bad", "--set", "seeds.confirm=0")
    ended = job.wait_for_end()
    assert (ended.state, ended.exit_code, ended.restarts) == ("FAILED", 2, 0), job.log


def test_a_job_that_loses_a_node_goes_on_with_others_and_ends_as_if_nothing_had_happened(
    cluster: SlurmCluster, undisturbed: Sweeps
) -> None:
    job = submit(cluster, undisturbed, "lost")
    job.wait_until_a_cell_has_ended()
    assert job.now.nodes == "machine-[2-3]"
    cluster.nodes[0].power_off()  # the first one: script, driver and Ray's head are lost with it
    job.wait_for_restart(1)
    before = losses(str(job.runs), "first")
    assert job.now.nodes == "machine-[3-4]"
    assert (job.wait_for_end().state, job.now.exit_code) == ("COMPLETED", 0), job.log
    assert len(before) < len(losses(str(job.runs), "first")), "the node was lost in the middle"
    require_same_end(job, undisturbed)
