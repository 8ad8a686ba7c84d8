"""The criteria of what only a sweep has: shares of a GPU, packing, the exam. The others are in ``moe.gpu_criteria``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moe.gpu_criteria import WARM_UP_STEPS, Row, StepFacts, not_measured
from sweeps.packing.shares import CUDA_CONTEXT_GIB, CUDA_WORKSPACE_GIB, FRAGMENTATION

LEAST_PACKED_SPEED = 0.95
"""Of the speed alone. Trials are packed wherever memory allows: it must not take longer than one after another."""

MOST_EXAM_SHARE = 0.15
"""Of the training time of a cell with the preset's budget; a CPU takes up to 0.085 (docs/performance.md)."""


@dataclass(frozen=True, kw_only=True)
class PackingFacts:
    """Equal trials of one arm on one GPU at the same time, with as many seeds.

    ``together_tokens_per_s`` is counted while all of them train: None where they never did. ``least_concurrent`` is the
    smallest number of trials that a record counted meanwhile; ``losses`` are those of the first seed, step by step.
    """

    arm: str
    n_trials: int
    with_mps: bool
    together_tokens_per_s: float | None = None
    least_concurrent: int = 0
    losses: tuple[float, ...] = ()
    error: str | None = None


def packed(arm: str, n_trials: int, *, with_mps: bool) -> str:
    """So many trials on one GPU, in words."""
    return f"{n_trials} x {arm}" + (" with MPS" if with_mps else "")


def packing_facts(
    arm: str, trials: Sequence[Sequence[Mapping[str, Any]]], *, with_mps: bool, error: str | None = None
) -> PackingFacts:
    """What the records of trials say that were packed.

    Counted is the time in which all of them trained: without the first steps, and without the last report, which comes
    after an exam.
    """
    timed = [records[WARM_UP_STEPS:-1] for records in trials]
    together, concurrent = None, 0
    if error is None and all(timed):
        start_s = max(records[0]["timestamp_s"] for records in timed)
        end_s = min(records[-1]["timestamp_s"] for records in timed)
        if start_s < end_s:
            together = sum(_tokens_between(records, start_s, end_s) for records in timed) / (end_s - start_s)
            concurrent = min(
                record["concurrent_trials"] or 0
                for records in timed
                for record in records
                if start_s <= record["timestamp_s"] <= end_s
            )
    return PackingFacts(
        arm=arm,
        n_trials=len(trials),
        with_mps=with_mps,
        together_tokens_per_s=together,
        least_concurrent=concurrent,
        losses=tuple(record["train_loss"] for record in trials[0]),
        error=error,
    )


def _tokens_between(records: Sequence[Mapping[str, Any]], start_s: float, end_s: float) -> float:
    """Tokens that a trial trained on, on a line between two reports."""
    import numpy as np

    times_s, tokens = ([record[key] for record in records] for key in ("timestamp_s", "tokens_seen"))
    before, after = np.interp([start_s, end_s], times_s, tokens)
    return float(after - before)


def packing_rows(facts: PackingFacts, alone: PackingFacts) -> list[Row]:
    """Is packing no slower than one trial after another, and are its numbers those of a trial alone."""
    what = packed(facts.arm, facts.n_trials, with_mps=facts.with_mps)
    faster = f"at least {LEAST_PACKED_SPEED:.0%} of one alone, all trials at the same time"
    together, one = facts.together_tokens_per_s, alone.together_tokens_per_s
    if facts.error is not None or together is None or one is None:
        found = facts.error or ("one alone was not measured" if together else "they did not train at the same time")
        return [Row(what=f"{what}: throughput", found=found, criterion=faster, held=False)]
    return [
        Row(
            what=f"{what}: throughput",
            found=f"{together:,.0f} tokens/s together, {one:,.0f} alone ({together / one:.2f}x), "
            f"{facts.least_concurrent} at the same time",
            criterion=faster,
            held=together >= LEAST_PACKED_SPEED * one and facts.least_concurrent >= facts.n_trials,
        ),
        Row(
            what=f"{what}: losses as alone",
            found="equal" if facts.losses == alone.losses else "different",
            criterion="equal to the last bit",
            held=facts.losses == alone.losses,
        ),
    ]


def exam_row(facts: StepFacts, budget_tokens: int) -> Row:
    """What the exams of a judged cell take of its training time at the preset's budget."""
    train_s = budget_tokens / facts.tokens_per_s
    return Row(
        what=f"{facts.name}: exams",
        found=f"{facts.exam_s:.1f} s, {facts.exam_s / train_s:.1%} of {train_s:.0f} s of training",
        criterion=f"at most {MOST_EXAM_SHARE:.0%}",
        held=facts.exam_s <= MOST_EXAM_SHARE * train_s,
    )


def memory_rows(facts: StepFacts) -> list[Row]:
    """What a share of a GPU assumes beyond the peak of tensors: context, workspace, fragmentation."""
    what = f"{facts.name}: memory beyond tensors"
    if facts.reserved_gib is None or facts.context_gib is None:
        return [not_measured(what, facts.error or "a CPU has no context and no allocator of its own")]
    room_gib = facts.peak_gib * FRAGMENTATION + CUDA_WORKSPACE_GIB
    return [
        Row(
            what=f"{facts.name}: context",
            found=f"{facts.context_gib:.2f} GiB beyond the allocator",
            criterion=f"at most {CUDA_CONTEXT_GIB:g} GiB, as shares assume",
            held=facts.context_gib <= CUDA_CONTEXT_GIB,
        ),
        Row(
            what=f"{facts.name}: reserved memory",
            found=f"{facts.reserved_gib:.2f} GiB for a peak of {facts.peak_gib:.2f}",
            criterion=f"at most {room_gib:.2f} GiB, as shares assume",
            held=facts.reserved_gib <= room_gib,
        ),
    ]
