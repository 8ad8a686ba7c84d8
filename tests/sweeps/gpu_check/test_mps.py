"""NVIDIA's daemon, played by a script that notes how it was called."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from sweeps.gpu_check.mps import CONTROL, LOGS, PIPES, mps_daemon, why_no_mps


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without the daemon; returns the folder that its programs are in."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    for name in (PIPES, LOGS, "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    return programs


@pytest.fixture
def notes(bare: Path, tmp_path: Path) -> Path:
    """The file into which the daemon of this machine writes how it was called."""
    calls = tmp_path / "calls"
    program = bare / CONTROL
    started, told = f'echo "start in ${PIPES}" >> {calls}', f'read word; echo "$word" >> {calls}'
    program.write_text(f'#!/bin/sh\nif [ "$1" = -d ]; then {started}\nelse {told}\nfi\n')
    program.chmod(0o755)
    return calls


def test_a_machine_without_the_daemon_says_so(bare: Path) -> None:
    assert why_no_mps() == "there is no nvidia-cuda-mps-control on this machine"


def test_a_daemon_that_runs_already_and_a_chosen_gpu_are_named(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_no_mps() is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert "run on GPU 0" in str(why_no_mps())
    monkeypatch.setenv(PIPES, "/tmp/nvidia-mps")
    assert "MPS is on already" in str(why_no_mps())


def test_the_daemon_starts_in_folders_of_its_own_and_ends_whatever_happens(notes: Path, tmp_path: Path) -> None:
    def fail_inside() -> None:
        with mps_daemon(tmp_path):
            assert os.environ[PIPES] == str(tmp_path / "pipes")
            assert Path(os.environ[LOGS]).is_dir()
            raise RuntimeError("a trial failed")

    with pytest.raises(RuntimeError, match="a trial failed"):
        fail_inside()
    assert notes.read_text().splitlines() == [f"start in {tmp_path / 'pipes'}", "quit"]
    assert PIPES not in os.environ


def test_a_daemon_that_does_not_start_is_an_error_and_leaves_no_variable(
    notes: Path, bare: Path, tmp_path: Path
) -> None:
    (bare / CONTROL).write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(subprocess.CalledProcessError), mps_daemon(tmp_path):
        pytest.fail("it did not start")
    assert PIPES not in os.environ
