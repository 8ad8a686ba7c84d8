"""The experiments of ``sweeps gpu-check``: trials in processes of their own, and what their numbers show."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sweeps.packing.shares import CUDA_CONTEXT_GIB, allocator_share
from sweeps.trial.gpu_trial import TrialFacts, TrialOrder

PACKED_TRIALS = 4
TRIAL_DEADLINE_S = 900.0

PREDICTION_TOLERANCE = 0.10
"""Shares are rounded up with a margin of ten percent (``shares.FRAGMENTATION``): a larger error could fill a GPU."""

LOSS_TOLERANCE = 5e-3
"""Nats. Atomic additions order sums differently from run to run, and 20 steps in 16 bits amplify that; a wrong seed,
batch or restored state shows as 0.05 and more."""

SHORTAGE = 0.75
"""Of the peak that the trial had alone. Not of what was reserved then, which may exceed the peak so far that nothing
would have to be split."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One comparison: what was compared, what was found, and whether it held (None where it was not measured)."""

    what: str
    found: str
    held: bool | None


class Laboratory:
    """Runs orders as processes. ``folder`` takes their files; every process is ended when its time is up."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def run(self, orders: Sequence[TrialOrder]) -> list[TrialFacts]:
        """Run all orders at the same time and return their facts in order; an error is in the facts."""
        started = [self._start(order) for order in orders]
        return [self._facts(order, *process) for order, process in zip(orders, started, strict=True)]

    def run_and_kill(self, order: TrialOrder) -> bool:
        """Start an order, kill it -9 once its checkpoint is whole; returns whether it came so far."""
        assert order.checkpoint_dir is not None, "only an order that saves can be killed after it saved"
        process, _, log = self._start(order)
        saved = Path(order.checkpoint_dir) / "saved"
        deadline_s = time.monotonic() + TRIAL_DEADLINE_S
        while process.poll() is None and not saved.exists() and time.monotonic() < deadline_s:
            time.sleep(0.05)
        process.kill()
        process.wait()
        log.unlink()
        return saved.exists()

    def scratch(self, name: str) -> str:
        """A fresh folder for checkpoints."""
        folder = self._folder / name
        folder.mkdir()
        return str(folder)

    def _start(self, order: TrialOrder) -> tuple[subprocess.Popen[bytes], Path, Path]:
        self._count += 1
        order_file = self._folder / f"order-{self._count}.json"
        facts_file, log = order_file.with_name(f"facts-{self._count}.json"), order_file.with_suffix(".log")
        order_file.write_text(json.dumps(asdict(order)))
        with log.open("wb") as sink:
            words = [sys.executable, "-m", "sweeps.trial.gpu_trial", str(order_file), str(facts_file)]
            process = subprocess.Popen(words, stdout=sink, stderr=sink)  # noqa: S603 - this very Python
        return process, facts_file, log

    def _facts(self, order: TrialOrder, process: subprocess.Popen[bytes], facts_file: Path, log: Path) -> TrialFacts:
        try:
            process.wait(timeout=TRIAL_DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if facts_file.is_file():
            said = json.loads(facts_file.read_text())
            return TrialFacts(**{**said, "losses": tuple(said["losses"])})
        lines = log.read_text(errors="replace").strip().splitlines()
        return _no_facts(order, lines[-1] if lines else f"ended with code {process.returncode} and no message")


def arm_checks(facts: TrialFacts) -> list[Check]:
    """One trial alone: did it learn, and was its peak predicted."""
    name = f"{facts.arm} {facts.precision}"
    if facts.error is not None:
        return [Check(what=name, found=facts.error, held=False)]
    off = facts.predicted_peak_gib / facts.peak_gib - 1
    found = f"predicted {facts.predicted_peak_gib:.2f} GiB, measured {facts.peak_gib:.2f} ({off:+.1%})"
    learned = facts.losses[-1] < facts.losses[0]
    went = f"{facts.losses[0]:.3f} to {facts.losses[-1]:.3f}, {facts.tokens_per_s:,.0f} tokens/s"
    checks = [
        Check(what=f"{name}: loss falls", found=went, held=learned),
        Check(what=f"{name}: peak memory", found=found, held=abs(off) <= PREDICTION_TOLERANCE),
    ]
    if facts.context_gib is not None:
        context = f"{facts.context_gib:.2f} GiB beyond the allocator, {CUDA_CONTEXT_GIB} assumed"
        checks.append(Check(what=f"{name}: context", found=context, held=facts.context_gib <= CUDA_CONTEXT_GIB))
    return checks


def packing(laboratory: Laboratory, order: TrialOrder, alone: TrialFacts) -> tuple[list[TrialFacts], list[Check]]:
    """Four equal trials at once on one GPU: the same losses, and how much faster than one after another."""
    share = 1 / PACKED_TRIALS
    limit = allocator_share(share, alone.gpu_gib) if alone.gpu_gib is not None else None
    gated = replace(order, gpu_share=limit, gate_dir=laboratory.scratch("gate"), gate_count=PACKED_TRIALS)
    packed = laboratory.run([gated] * PACKED_TRIALS)
    what = f"{PACKED_TRIALS} x {order.arm} packed"
    errors = [facts.error for facts in packed if facts.error is not None]
    if errors:
        return packed, [Check(what=what, found=f"{len(errors)} failed: {errors[0]}", held=False)]
    together = sum(facts.tokens_per_s for facts in packed)
    found = f"{together:,.0f} tokens/s together, {alone.tokens_per_s:,.0f} alone ({together / alone.tokens_per_s:.2f}x)"
    apart = max(_largest_difference(facts.losses, alone.losses) for facts in packed)
    checks = [
        Check(what=f"{what}: throughput", found=found, held=None),
        Check(what=f"{what}: losses as alone", found=f"differ by {apart:.2g} at most", held=apart <= LOSS_TOLERANCE),
    ]
    slowest, fastest = (pick(facts.tokens_per_s for facts in packed) for pick in (min, max))
    spread = f"{slowest:,.0f} to {fastest:,.0f} tokens/s"
    return packed, [*checks, Check(what=f"{what}: evenly shared", found=spread, held=None)]


def memory_shortage(
    laboratory: Laboratory, order: TrialOrder, alone: TrialFacts
) -> tuple[list[TrialFacts], list[Check]]:
    """A limit below the peak: the trial must split its micro-batches until they fit, and continue with equal losses."""
    what = f"{order.arm} short of memory"
    if alone.gpu_gib is None:
        return [], [Check(what=what, found="no allocator that can be limited: not measured", held=None)]
    [facts] = laboratory.run([replace(order, gpu_share=SHORTAGE * alone.peak_gib / alone.gpu_gib)])
    if facts.error is not None:
        return [facts], [Check(what=what, found=facts.error, held=False)]
    apart = _largest_difference(facts.losses, alone.losses)
    return [facts], [
        Check(
            what=what, found=f"micro-batch split {facts.micro_batch_splits} times", held=facts.micro_batch_splits > 0
        ),
        Check(what=f"{what}: losses", found=f"differ by {apart:.2g} at most", held=apart <= LOSS_TOLERANCE),
    ]


def kill_and_resume(
    laboratory: Laboratory, order: TrialOrder, alone: TrialFacts
) -> tuple[list[TrialFacts], list[Check]]:
    """Kill -9 after a checkpoint half-way; a new process resumes from it and must end with the same losses."""
    half = order.steps // 2
    saving = replace(order, checkpoint_dir=laboratory.scratch("resume"), save_at_step=half, step_pause_s=0.2)
    what = f"{order.arm} killed at step {half} and resumed"
    if not laboratory.run_and_kill(saving):
        return [], [Check(what=what, found="it ended before its checkpoint was whole", held=False)]
    [facts] = laboratory.run([replace(saving, resumes=True, save_at_step=None, step_pause_s=0.0)])
    if facts.error is not None:
        return [facts], [Check(what=what, found=facts.error, held=False)]
    apart = _largest_difference(facts.losses, alone.losses[half:])
    found = f"{len(facts.losses)} steps after it, losses differ by {apart:.2g} at most"
    return [facts], [Check(what=what, found=found, held=apart <= LOSS_TOLERANCE)]


def _largest_difference(losses: Sequence[float], others: Sequence[float]) -> float:
    return max(abs(loss - other) for loss, other in zip(losses, others, strict=True))


def _no_facts(order: TrialOrder, error: str) -> TrialFacts:
    return TrialFacts(arm=order.arm, precision=order.precision, error=error)
