"""deploy/slurm.sh with stand-ins for ``sweeps`` and ``scontrol``: begin, resume, requeue at the time limit."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.integration.tracked_files import ROOT
from tests.programs import needs

pytestmark = [needs("bash")]

SWEEPS = """#!/bin/bash
echo "$@" >> typed
case $1 in
  status) test -e begun; exit ;;
  run) touch begun ;;
esac
trap 'sleep 0.3; echo saved >> typed; exit 130' TERM
touch ready
for _ in $(seq 600); do test -e finished && exit 0; sleep 0.05; done
"""
SCONTROL = """#!/bin/bash
echo "scontrol $@" >> typed
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project's folder with both programs."""
    for path, text in ((".venv/bin/sweeps", SWEEPS), ("bin/scontrol", SCONTROL)):
        program = tmp_path / path
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(text)
        program.chmod(0o755)
    return tmp_path


def submitted(folder: Path) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(folder),
        "SLURM_JOB_ID": "41",
    }
    job = subprocess.Popen(["bash", ROOT / "deploy" / "slurm.sh", "first", "--preset", "matched"], env=environment)
    while not (folder / "ready").exists():
        assert job.poll() is None, "the job ended before its sweep ran"
        time.sleep(0.02)
    (folder / "ready").unlink()
    return job


def typed(folder: Path) -> list[str]:
    return (folder / "typed").read_text().splitlines()


def test_at_its_time_limit_the_sweep_is_saved_and_the_job_requeued_where_it_resumes(folder: Path) -> None:
    job = submitted(folder)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(30) == 130
    assert typed(folder) == ["status first --json", "run --name first --preset matched", "saved", "scontrol requeue 41"]
    (folder / "typed").unlink()
    again = submitted(folder)
    (folder / "finished").touch()
    assert again.wait(30) == 0
    assert typed(folder) == ["status first --json", "resume first"]


def test_a_job_that_is_cancelled_or_preempted_saves_and_does_not_requeue_itself(folder: Path) -> None:
    job = submitted(folder)
    job.send_signal(signal.SIGTERM)
    assert job.wait(30) == 130
    assert typed(folder)[-1] == "saved"
