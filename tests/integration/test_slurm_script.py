"""deploy/slurm.sbatch without Slurm and Ray: what it starts, and when it puts itself into the queue again."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.programs import needs

SCRIPT = Path(__file__).parents[2] / "deploy" / "slurm.sbatch"

# Each notes its words. `srun` is Ray, which lives until it is told to end; `sweeps` ends with the code of the test.
STAND_INS = {
    "python": 'case "$2" in *get_node_ip_address*) echo 127.0.0.1 ;; esac',
    "srun": 'echo "srun $*" >> said; trap "exit 0" USR1; while [ ! -e no-ray ]; do sleep 0.05; done',
    "scontrol": 'echo "scontrol $*" >> said',
    "sweeps": (
        'case "$1" in status) [ -e exists ]; exit ;; esac; trap "exit 130" TERM\n'
        'echo "sweeps $*" >> said; echo "$RAY_AUTH_MODE $RAY_AUTH_TOKEN $RAY_ADDRESS $SWEEPS_RUNS_DIR" > known\n'
        '[ ! -e waits ] || while :; do sleep 0.05; done; exit "$CODE"'
    ),
}


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """A folder with stand-ins for the programs, and a port that answers as Ray's head would."""

    folder: Path
    environment: dict[str, str]

    def start(self, *words: str, code: int = 0, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(SCRIPT), *words],
            cwd=self.folder,
            env={**self.environment, "CODE": str(code), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *words: str, code: int = 0, **variables: str) -> list[str]:
        """What was called, in order, by a job whose sweep ends with this code, and which ends with it, too."""
        process = self.start(*words, code=code, **variables)
        printed, _ = process.communicate()
        assert process.returncode == code, printed
        return self.called

    @property
    def called(self) -> list[str]:
        return (self.folder / "said").read_text().splitlines()

    def mark(self, name: str) -> None:
        (self.folder / name).touch()

    def wait_for(self, name: str) -> None:
        while not (self.folder / name).exists():
            time.sleep(0.05)


@pytest.fixture
def allocation(tmp_path: Path) -> Iterator[Allocation]:
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, body in STAND_INS.items():
        (programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (programs / name).chmod(0o755)
    with socket.socket() as head:
        job = next(number for number in range(2500) if is_bound(head, 20000 + 4 * number))
        head.listen()
        slurm = {"SLURM_JOB_ID": str(job), "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "8"}
        yield Allocation(folder=tmp_path, environment={"PATH": os.environ["PATH"], **slurm})


def is_bound(listener: socket.socket, port: int) -> bool:
    try:
        listener.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True


def requeued(called: list[str]) -> bool:
    return called[-1].startswith("scontrol requeue")


def test_bash_parses_it_and_slurm_reads_its_options() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    head, _, _ = SCRIPT.read_text().partition("\nset -euo pipefail\n")
    lines = head.splitlines()
    assert lines[0] == "#!/bin/bash"
    assert all(line.startswith("#") for line in lines), "Slurm reads no option below the first command"
    assert {"--requeue", "--open-mode=append", "--signal=B:USR1@120", "--ntasks-per-node=1"} <= {
        line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")
    }


@needs("shellcheck")
def test_shellcheck_finds_nothing() -> None:
    found = subprocess.run([shutil.which("shellcheck") or "", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert found.stdout == ""


def test_a_first_start_runs_the_sweep_that_the_words_name(allocation: Allocation) -> None:
    ray, sweep = allocation.run("--preset", "matched", "--name", "first", "--runs-dir", "/shared/my runs")
    assert ray.startswith("srun --ntasks=2 --ntasks-per-node=1 --cpus-per-task=8 ")
    assert sweep == "sweeps run --preset matched --name first --runs-dir /shared/my runs --name first"


def test_a_sweep_without_a_name_gets_that_of_its_job(allocation: Allocation) -> None:
    assert allocation.run("--preset", "smoke")[1].endswith(f"--name slurm-{allocation.environment['SLURM_JOB_ID']}")


@pytest.mark.parametrize(
    "words", [("--name", "first", "--runs-dir", "/shared"), ("--name=first", "--runs-dir=/shared")]
)
def test_a_later_start_resumes_it(allocation: Allocation, words: tuple[str, ...]) -> None:
    allocation.mark("exists")
    assert allocation.run("--preset", "matched", *words, "--exclusive")[1] == "sweeps resume first --exclusive"
    assert (allocation.folder / "known").read_text().split()[-1] == "/shared"


def test_the_sweep_has_a_new_token_and_no_command_line_has_it(allocation: Allocation) -> None:
    called, tokens = [], set()
    for _ in range(2):
        called += allocation.run("--preset", "smoke")
        mode, token, _ = (allocation.folder / "known").read_text().split(maxsplit=2)
        assert mode == "token"
        assert re.fullmatch("[0-9a-f]{64}", token)
        tokens.add(token)
    assert len(tokens) == 2
    assert not any(token in line for token in tokens for line in called)


@pytest.mark.parametrize(("code", "again"), [(0, False), (1, False), (2, False), (3, False), (130, True)])
def test_only_a_sweep_that_can_be_resumed_is_requeued(allocation: Allocation, code: int, again: bool) -> None:
    assert requeued(allocation.run("--preset", "smoke", code=code)) is again


@pytest.mark.parametrize(("code", "again"), [(0, False), (1, True), (2, False), (3, False), (130, True)])
def test_a_crash_after_a_while_is_worth_another_start(allocation: Allocation, code: int, again: bool) -> None:
    assert requeued(allocation.run("--preset", "smoke", code=code, SECONDS="601")) is again


def test_a_job_is_not_requeued_for_ever(allocation: Allocation) -> None:
    assert requeued(allocation.run("--preset", "smoke", code=130, SLURM_RESTART_COUNT="49"))
    job = allocation.start("--preset", "smoke", code=130, SLURM_RESTART_COUNT="50")
    printed, _ = job.communicate()
    assert "not requeued: this was start 51 of the job" in printed
    assert len([line for line in allocation.called if line.startswith("scontrol")]) == 1


def test_near_the_time_limit_the_sweep_is_told_once_and_the_job_requeued(allocation: Allocation) -> None:
    allocation.mark("waits")
    job = allocation.start("--preset", "smoke")
    allocation.wait_for("known")
    job.send_signal(signal.SIGUSR1)
    job.communicate()
    assert job.returncode == 130
    assert requeued(allocation.called)


def test_what_slurm_ends_is_left_to_slurm(allocation: Allocation) -> None:
    allocation.mark("waits")
    job = allocation.start("--preset", "smoke")
    allocation.wait_for("known")
    os.killpg(job.pid, signal.SIGTERM)
    job.communicate()
    assert job.returncode == 130
    assert not requeued(allocation.called)


def test_a_job_whose_ray_was_ended_under_it_is_requeued(allocation: Allocation) -> None:
    allocation.mark("no-ray")
    allocation.mark("exists")
    assert requeued(allocation.run("--name", "first", code=1))
