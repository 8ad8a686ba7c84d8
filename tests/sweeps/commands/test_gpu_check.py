"""The command ``sweeps gpu-check``: its order, its files, its exit code. What it measures is played here.

The experiments are rehearsed in ``tests/sweeps/gpu_check``.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from moe.device import Device
from moe.gpu_criteria import ResumeFacts, Row, StepFacts
from sweeps.cluster.machines import Machines, Node
from sweeps.commands import gpu_check as command
from sweeps.commands.gpu_check import EXPERIMENTS, WITH_MPS, gpu_check, markdown, packed_with_mps, rows_of, run_check
from sweeps.errors import NoDeviceError
from sweeps.gpu_check.experiments import GpuCheck, Target
from sweeps.gpu_check.segments import Laboratory

HELD = Row(what="loss", found="9.0 to 8.0 | fine", criterion="it falls", held=True)
ABSENT = Row(what="MPS", found="not measured: there is no daemon")
FAILED = Row(what="peak", found="off by 30%", criterion="within 10%", held=False)
GPU = Machines(nodes=(Node(cpus=16, gpus=1, gpu_gib=139.0),), gpu_name="NVIDIA H200", compute_capability=(9, 0))


@pytest.fixture
def check(tmp_path: Path) -> GpuCheck:
    target = Target(device=Device(kind="cuda", name="NVIDIA H200"), gpu_gib=139.0, occupied_gib=0.5, cpus=16)
    return GpuCheck(target=target, laboratory=Laboratory(folder=tmp_path / "scratch"), presets={})


@pytest.fixture
def rays(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The Rays that were started, none of them real."""
    started: list[dict[str, Any]] = []

    @contextmanager
    def pretended(**options: Any) -> Iterator[None]:
        started.append(options)
        yield

    monkeypatch.setattr("sweeps.cluster.connection.local_ray", pretended)
    return started


def test_without_cuda_it_says_what_it_would_do_measures_nothing_and_claims_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    said: list[str] = []
    with pytest.raises(NoDeviceError, match="torch sees no CUDA device here; run it on a machine with a GPU") as error:
        gpu_check(tmp_path / "gpu-check.json", said.append, lambda table: None)
    assert error.value.exit_code == 4
    assert said == [
        "With a CUDA device gpu-check would, in about ten minutes:",
        *(f"  {name}" for name in (*EXPERIMENTS, WITH_MPS)),
    ]
    assert list(tmp_path.iterdir()) == []


def test_every_experiment_runs_on_one_gpu_and_packing_with_mps_on_a_ray_of_its_own(
    check: GpuCheck, rays: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def played(name: str) -> Any:
        def experiment(_check: GpuCheck, *, with_mps: bool | None = None) -> Iterator[Row]:
            ran.append(name if with_mps is None else f"{name} {'with' if with_mps else 'without'} MPS")
            yield HELD

        return experiment

    @contextmanager
    def daemon(folder: Path) -> Iterator[None]:
        ran.append("daemon starts")
        yield
        ran.append("daemon ends")

    names = ["training", "memory", "profiles", "packing", "kill_and_resume", "shortage", "overflow", "determinism"]
    names += ["contests", "compilation"]
    for name in names:
        monkeypatch.setattr(GpuCheck, name, played(name))
    monkeypatch.setattr("sweeps.gpu_check.mps.mps_daemon", daemon)
    monkeypatch.setattr("sweeps.gpu_check.mps.why_no_mps", lambda: None)
    said: list[str] = []
    rows, took_s = run_check(check, said.append)
    expected = [name if name != "packing" else "packing without MPS" for name in names]
    assert ran == [*expected, "daemon starts", "packing with MPS", "daemon ends"]
    assert rays == [{"cpus": 16, "declared_gpus": 1}] * 2, "one GPU, whatever the machine has: packed trials share it"
    assert rows == [HELD] * 11
    assert list(took_s) == [*EXPERIMENTS, WITH_MPS]
    assert said[0].startswith("[1/11] train every arm")


def test_where_there_is_no_mps_the_row_says_why(check: GpuCheck, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.gpu_check.mps.why_no_mps", lambda: "there is no daemon")
    [row] = packed_with_mps(check)
    assert (row.found, row.held) == ("not measured: there is no daemon", None)


def test_an_experiment_that_fails_is_a_row_that_fails_after_those_that_it_gave(check: GpuCheck) -> None:
    def broken(_check: GpuCheck) -> Iterator[Row]:
        yield HELD
        raise RuntimeError("ray::train\nCUDA error: an illegal memory access was encountered")

    held, failed = rows_of("overflow", broken, check)
    assert held == HELD
    assert (failed.what, failed.held) == ("overflow", False)
    assert failed.found == "CUDA error: an illegal memory access was encountered"


@pytest.mark.parametrize(("rows", "code"), [([HELD, ABSENT], 0), ([HELD, FAILED], 3)])
def test_with_a_gpu_everything_is_written_and_a_failed_criterion_is_exit_code_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[Row], code: int
) -> None:
    def measured(check: GpuCheck, _say: object) -> tuple[list[Row], dict[str, float]]:
        check.trials.append(StepFacts(arm="matched balanced", precision="bf16", losses=(9.0, 8.0), peak_gib=3.0))
        check.measured["kill and resume"] = [ResumeFacts(arm="matched balanced", differences=("losses",))]
        return rows, {"training": 100.0}

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("moe.gpu_experiments.occupied_gib", lambda: 0.5)
    monkeypatch.setattr("sweeps.cluster.machines.local_machine", lambda: GPU)
    monkeypatch.setattr("sweeps.ledger.provenance.hardware", lambda: {"gpus": ["NVIDIA H200"]})
    monkeypatch.setattr(command, "run_check", measured)
    out = tmp_path / "deep" / "gpu-check.json"
    console = Console(record=True, width=160, file=io.StringIO())
    assert gpu_check(out, console.print, console.print) == code
    report = json.loads(out.read_text())
    assert (report["schema"], report["device"], report["held"]) == (1, "NVIDIA H200", code == 0)
    assert report["checks"][0] == {
        "what": "loss",
        "found": "9.0 to 8.0 | fine",
        "criterion": "it falls",
        "held": True,
    }
    assert report["trials"][0]["losses"] == [9.0, 8.0]
    assert report["measured"]["kill and resume"][0]["differences"] == ["losses"]
    assert report["took_s"] == {"training": 100.0}
    assert sorted(path.name for path in out.parent.iterdir()) == ["gpu-check.json", "gpu-check.md"]
    shown = console.export_text()
    assert "it falls" in shown
    assert "written to" in shown


def test_the_table_in_markdown_has_a_line_for_each_row() -> None:
    versions = {"torch": "2.13", "ray": "2.60", "transformers": "5.23"}
    lines = markdown("NVIDIA H200", versions, [HELD, ABSENT, FAILED]).splitlines()
    assert lines[0].startswith("Measured on one NVIDIA H200 with torch 2.13, ray 2.60, transformers 5.23")
    assert lines[4:] == [
        "| loss | 9.0 to 8.0 \\| fine | it falls | held |",
        "| MPS | not measured: there is no daemon |  |  |",
        "| peak | off by 30% | within 10% | **failed** |",
    ]


def test_a_folder_that_cannot_be_written_is_named(check: GpuCheck, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Exception, match=r"cannot be written: .*; choose another folder"):
        command._write_whole(tmp_path / "file" / "gpu-check.json", "{}")


def test_the_first_gpu_of_this_machine_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[GpuCheck] = []

    def remember(check: GpuCheck, _say: object) -> tuple[list[Row], dict[str, float]]:
        found.append(check)
        return [HELD], {}

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("moe.gpu_experiments.occupied_gib", lambda: 0.5)
    monkeypatch.setattr("sweeps.cluster.machines.local_machine", lambda: GPU)
    monkeypatch.setattr(command, "run_check", remember)
    monkeypatch.setattr(command, "write_report", lambda *_: None)
    gpu_check(tmp_path / "gpu-check.json", lambda line: None, lambda table: None)
    [check] = found
    assert check.target == Target(device=GPU.device, gpu_gib=139.0, occupied_gib=0.5, cpus=16)
    assert list(check.presets) == ["tutorial", "published", "matched"]
    assert check.target.device.memory_bytes == 139 * 2**30
