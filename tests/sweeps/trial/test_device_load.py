"""How many trials train on a device: counted, whoever they are, and a dead one is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sweeps.trial.device_load import CPU, device_name, running_trial

TRIAL = """
import sys, time
from pathlib import Path
from sweeps.trial.device_load import running_trial
with running_trial(Path(sys.argv[1]), sys.argv[2]):
    print("trains", flush=True)
    time.sleep(600)
"""


def test_trials_on_one_device_count_each_other_while_they_run(tmp_path: Path) -> None:
    with running_trial(tmp_path, CPU) as first:
        assert first() == 1
        with running_trial(tmp_path, CPU) as second, running_trial(tmp_path, "gpu 0") as elsewhere:
            assert (first(), second(), elsewhere()) == (2, 2, 1)
        assert first() == 1


def test_a_trial_of_another_process_counts_until_it_is_killed_and_leaves_nothing(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", TRIAL, str(tmp_path), CPU], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "trains\n"
        with running_trial(tmp_path, CPU) as count:
            assert count() == 2
            other.kill()
            other.wait()
            assert count() == 1
    finally:
        other.kill()
        other.wait()
        if other.stdout is not None:
            other.stdout.close()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_trial_shares_the_gpu_that_it_was_given_and_else_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-GPU-1/2/0")
    assert device_name(0.5) == "gpu MIG-GPU-1/2/0"
    assert device_name(0.0) == CPU


def test_a_device_of_any_name_has_a_folder(tmp_path: Path) -> None:
    with running_trial(tmp_path, "gpu MIG-GPU-1/2/0") as count:
        assert count() == 1


def test_where_nothing_can_be_written_nobody_is_counted_and_the_trial_goes_on(tmp_path: Path) -> None:
    (tmp_path / "trials").write_text("a file where the folder should be")
    with running_trial(tmp_path, CPU) as count:
        assert count() is None
