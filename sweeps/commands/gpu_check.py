"""``sweeps gpu-check``: what this project claims about GPUs, measured on this machine's first one.

Right, fast, packed, resumable, or not: one table, each row with its criterion. Without CUDA it says what it would do,
and exits with 4.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps.errors import EXIT_DONE, EXIT_SOME_FAILED, NoDeviceError, WorldError

if TYPE_CHECKING:
    from rich.table import Table

    from moe.gpu_criteria import Row
    from sweeps.gpu_check.experiments import GpuCheck

Experiment = Callable[["GpuCheck"], "Iterator[Row]"]

EXPERIMENTS: Mapping[str, Experiment] = {
    "train every arm of tutorial, published and matched, and their first arms in every precision": (
        lambda check: check.training()
    ),
    "measure context and reserved memory": lambda check: check.memory(),
    "profile a step: launches, host reads, attention": lambda check: check.profiles(),
    "pack 1, 2, 4 and 8 trials on the GPU": lambda check: check.packing(with_mps=False),
    "kill a worker -9 and resume its cell": lambda check: check.kill_and_resume(),
    "train with too little memory": lambda check: check.shortage(),
    "overflow in fp16": lambda check: check.overflow(),
    "time steps without deterministic algorithms": lambda check: check.determinism(),
    "time steps beside transformers": lambda check: check.contests(),
    "time steps under torch.compile and with graphs": lambda check: check.compilation(),
}
WITH_MPS = "pack 1, 2, 4 and 8 trials with MPS"


def gpu_check(out: Path, say: Callable[[str], None], show: Callable[[Table], None]) -> int:
    """Run every experiment on this machine's first GPU; write ``out`` and, beside it, the table in Markdown.

    Returns the exit code: 0 where every criterion held, 3 where some did not.

    Raises:
        NoDeviceError: torch sees no CUDA device here.
    """
    import torch

    if not torch.cuda.is_available():
        say("With a CUDA device gpu-check would, in about ten minutes:")
        for name in (*EXPERIMENTS, WITH_MPS):
            say(f"  {name}")
        raise NoDeviceError(
            "gpu-check measures a GPU and torch sees no CUDA device here; run it on a machine with a GPU and a CUDA "
            "build of torch (`sweeps doctor` says what is missing)"
        )
    from moe.gpu_experiments import occupied_gib
    from sweeps.cluster.machines import local_machine
    from sweeps.gpu_check.experiments import GpuCheck, Target, presets_to_check
    from sweeps.gpu_check.segments import Laboratory

    machines = local_machine()
    target = Target(
        device=machines.device,
        gpu_gib=machines.gpu_gib,
        occupied_gib=occupied_gib(),
        cpus=machines.most_cpus,
    )
    say(f"checking {target.device.name}: about ten minutes, and longer on an older GPU")
    with tempfile.TemporaryDirectory(prefix="moe-sweeps-gpu-check-") as folder:
        check = GpuCheck(target=target, laboratory=Laboratory(folder=Path(folder)), presets=presets_to_check())
        rows, took_s = run_check(check, say)
    write_report(out, check, rows, took_s)
    show(render(rows))
    say(f"written to {out} and {markdown_beside(out)}")
    return EXIT_DONE if all(row.held is not False for row in rows) else EXIT_SOME_FAILED


def run_check(check: GpuCheck, say: Callable[[str], None]) -> tuple[list[Row], dict[str, float]]:
    """The rows of all experiments and the seconds of each, one after another, on a Ray of this machine."""
    from sweeps.cluster.connection import local_ray

    rows: list[Row] = []
    took_s: dict[str, float] = {}

    def run(name: str, experiment: Experiment) -> None:
        say(f"[{len(took_s) + 1}/{len(EXPERIMENTS) + 1}] {name}")
        started_s = time.monotonic()
        rows.extend(rows_of(name, experiment, check))
        took_s[name] = time.monotonic() - started_s

    # one GPU, so that trials that are packed share it
    gpus = None if check.target.gpu_gib is None else 1
    with local_ray(cpus=check.target.cpus, declared_gpus=gpus):
        for name, experiment in EXPERIMENTS.items():
            run(name, experiment)
    run(WITH_MPS, packed_with_mps)
    return rows, took_s


def rows_of(name: str, experiment: Experiment, check: GpuCheck) -> Iterator[Row]:
    """The rows of an experiment; where it fails the last one says so, and the next experiment begins."""
    from moe.gpu_criteria import Row

    try:
        yield from experiment(check)
    except Exception as error:  # noqa: BLE001 - whatever a GPU answers belongs in the table
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        yield Row(what=name, found=reason, criterion="the experiment comes to its end", held=False)


def packed_with_mps(check: GpuCheck) -> Iterator[Row]:
    """Packing on a Ray whose workers are clients of an MPS daemon."""
    from moe.gpu_criteria import not_measured
    from sweeps.cluster.connection import local_ray
    from sweeps.gpu_check.mps import mps_daemon, why_no_mps

    reason = why_no_mps()
    if reason is not None:
        yield not_measured("packing with MPS", reason)
        return
    gpus = None if check.target.gpu_gib is None else 1
    with mps_daemon(check.laboratory.scratch()), local_ray(cpus=check.target.cpus, declared_gpus=gpus):
        yield from check.packing(with_mps=True)


def write_report(out: Path, check: GpuCheck, rows: Sequence[Row], took_s: Mapping[str, float]) -> None:
    """Everything measured as JSON, and the table in Markdown beside it; each moved into place whole."""
    from sweeps.ledger.provenance import git_state, hardware, versions

    report: Mapping[str, Any] = {
        "schema": 1,
        "created_s": time.time(),
        "device": check.target.device.name,
        "held": all(row.held is not False for row in rows),
        "versions": versions(),
        "hardware": hardware(),
        "git": git_state(),
        "checks": [asdict(row) for row in rows],
        "trials": [asdict(facts) for facts in check.trials],
        "measured": {name: [asdict(facts) for facts in found] for name, found in check.measured.items()},
        "took_s": dict(took_s),
    }
    _write_whole(out, json.dumps(report, indent=1) + "\n")
    _write_whole(markdown_beside(out), markdown(report["device"], report["versions"], rows))


def markdown_beside(out: Path) -> Path:
    """Where the table in Markdown is: ``gpu-check.md`` beside ``gpu-check.json``."""
    return out.with_suffix(".md")


def markdown(device: str, versions: Mapping[str, str], rows: Sequence[Row]) -> str:
    """The table as docs/performance.md takes it."""
    marks = {True: "held", False: "**failed**", None: ""}
    lines = [
        f"Measured on one {device} with torch {versions['torch']}, ray {versions['ray']}, "
        f"transformers {versions['transformers']} (`sweeps gpu-check`):",
        "",
        "| what | found | criterion | |",
        "|---|---|---|---|",
        *(
            f"| {' | '.join(_cell(text) for text in (row.what, row.found, row.criterion))} | {marks[row.held]} |"
            for row in rows
        ),
    ]
    return "\n".join(lines) + "\n"


def render(rows: Sequence[Row]) -> Table:
    """The table for a rich console."""
    from rich.table import Table
    from rich.text import Text

    marks = {True: Text("held", "green"), False: Text("failed", "red"), None: Text("-", "dim")}
    table = Table(title="GPU check", title_justify="left")
    for column in ("what", "found", "criterion", ""):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(row.what, Text(row.found), Text(row.criterion, "dim"), marks[row.held])
    return table


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _write_whole(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise WorldError(f"{path} cannot be written: {error.strerror}; choose another folder") from error
