"""``sweeps gpu-check``: what this project claims about GPUs, measured on this machine's.

Prediction against measured peak, both 16-bit precisions, four trials packed on one GPU against one alone, an injected
out-of-memory, a kill and a resume. Without CUDA it exits with 4.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_spaces import Space, load_space
from sweeps.errors import EXIT_DONE, EXIT_SOME_FAILED, NoDeviceError, WorldError
from sweeps.trial.gpu_experiments import (
    PACKED_TRIALS,
    Check,
    Laboratory,
    arm_checks,
    kill_and_resume,
    memory_shortage,
    packing,
)
from sweeps.trial.gpu_trial import TrialFacts, TrialOrder

if TYPE_CHECKING:
    from rich.table import Table

    from moe.config import PrecisionName

STEPS = 20
LEARNING_RATE = 0.01


def gpu_check(out: Path, say: Callable[[str], None], show: Callable[[Table], None]) -> int:
    """Run every check on this machine's first GPU and write ``out``.

    Returns the exit code: 0 where all held, 3 where some did not.

    Raises:
        NoDeviceError: torch sees no CUDA device here.
    """
    import torch

    from moe.device import Device

    if not torch.cuda.is_available():
        raise NoDeviceError(
            "gpu-check measures a GPU and torch sees no CUDA device here; run it on a machine with a GPU and a CUDA "
            "build of torch (`sweeps doctor` says what is missing)"
        )
    device = Device.resolve("cuda")
    precisions: list[PrecisionName] = ["fp16", "bf16"] if device.has_fast_bf16 else ["fp16"]
    space = load_space(preset="matched", path=None, overrides=[])
    with tempfile.TemporaryDirectory(prefix="moe-sweeps-gpu-check-") as folder:
        trials, checks = run_checks(Laboratory(Path(folder)), space, precisions, say)
    if not device.has_fast_bf16:
        checks = [*checks, Check(what="bf16", found=f"{device.name} has no bf16 units: not measured", held=None)]
    write_report(out, device.name, trials, checks)
    show(render(checks))
    say(f"written to {out}")
    return EXIT_DONE if all(check.held is not False for check in checks) else EXIT_SOME_FAILED


def run_checks(
    laboratory: Laboratory,
    space: Space,
    precisions: Sequence[PrecisionName],
    say: Callable[[str], None],
    *,
    steps: int = STEPS,
) -> tuple[list[TrialFacts], list[Check]]:
    """All experiments, one after another, and what they show."""
    resolved = space.resolved()
    trials: list[TrialFacts] = []
    checks: list[Check] = []
    for precision in precisions:
        for arm in space.strategies:
            say(f"{arm.name} in {precision}, {steps} steps")
            order = TrialOrder(space=resolved, arm=arm.name, precision=precision, steps=steps, lr=LEARNING_RATE)
            [facts] = laboratory.run([order])
            trials.append(facts)
            checks += arm_checks(facts)
    measured = [facts for facts in trials if facts.error is None and facts.precision == precisions[-1]]
    if not measured:
        return trials, [*checks, Check(what="packing, out of memory, resume", found="no trial ran alone", held=None)]
    # the arm that needs the least memory packs best, the one that needs the most runs out of memory first
    light = min(measured, key=lambda facts: facts.peak_gib)
    heavy = max(measured, key=lambda facts: facts.peak_gib)
    light_order, heavy_order = (
        TrialOrder(space=resolved, arm=facts.arm, precision=precisions[-1], steps=steps, lr=LEARNING_RATE)
        for facts in (light, heavy)
    )
    experiments = (
        (f"{PACKED_TRIALS} trials of {light.arm} packed", packing, light_order, light),
        (f"{heavy.arm} with too little memory", memory_shortage, heavy_order, heavy),
        (f"{light.arm} killed and resumed", kill_and_resume, light_order, light),
    )
    for name, experiment, order, alone in experiments:
        say(name)
        more_trials, more_checks = experiment(laboratory, order, alone)
        trials += more_trials
        checks += more_checks
    return trials, checks


def write_report(out: Path, device: str, trials: Sequence[TrialFacts], checks: Sequence[Check]) -> None:
    """Everything measured, as JSON, moved into place whole."""
    from sweeps.ledger.provenance import versions

    report: Mapping[str, Any] = {
        "schema": 1,
        "created_s": time.time(),
        "device": device,
        "versions": versions(),
        "checks": [asdict(check) for check in checks],
        "trials": [asdict(facts) for facts in trials],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}-{os.getpid()}")
    try:
        temporary.write_text(json.dumps(report, indent=1) + "\n")
        temporary.replace(out)
    except OSError as error:
        raise WorldError(f"{out} cannot be written: {error.strerror}; choose another folder") from error


def render(checks: Sequence[Check]) -> Table:
    """The checks for a rich console."""
    from rich.table import Table
    from rich.text import Text

    marks = {True: Text("held", "green"), False: Text("failed", "red"), None: Text("-", "dim")}
    table = Table(title="GPU check", title_justify="left")
    for column in ("what", "found", ""):
        table.add_column(column, overflow="fold")
    for check in checks:
        table.add_row(check.what, Text(check.found), marks[check.held])
    return table
