"""What a GPU must show: measurements, and pure functions that make rows of a table of them.

A row without a criterion is measured and not judged. ``held`` is None there, and where nothing could be measured, for
which ``found`` gives the reason.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

WARM_UP_STEPS = 2  # CUDA loads its code in them, and the first makes the optimizers' state

PRECISION_TOLERANCE_NATS = 0.05
"""Between the last losses of some steps in 16 bits and in fp32. Twelve steps of 2,048 tokens and six layers, under the
choices of a GPU on a CPU, differed by 0.0022 at most in the last one."""

PEAK_TOLERANCE = 0.10
"""Shares of a GPU are rounded up with a margin of ten percent: a larger error could fill a GPU."""

SPLIT_TOLERANCE_NATS = 5e-3
"""Smaller parts of a micro-batch add the same numbers in another order: 0.0026 in those twelve steps, in bf16 and four
parts. A wrong batch shows as 0.05 and more."""

MOST_COST_OF_DETERMINISM = 0.25

LAUNCHES_PER_LAYER = 250
LAUNCHES_PER_COUNTED_LAYER = 100
LAUNCHES_PER_HEAD_CHUNK = 10
LAUNCHES_BESIDE = 250
"""On paper (docs/performance.md) a layer has 200 to 246 operations forward and backward, and the optimizers 227."""

KERNELS_PER_OPERATION = 2
"""Some operations launch several kernels. A head cut for a CPU's cache would exceed this several times."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: what was looked at, what was found, the criterion, and whether it held."""

    what: str
    found: str
    criterion: str = ""
    held: bool | None = None


@dataclass(frozen=True, kw_only=True)
class StepFacts:
    """Some training steps of one arm in one precision, as they were measured.

    ``losses`` has the training loss of each step. ``ms_per_step`` and ``tokens_per_s`` leave out the first two steps.
    ``reserved_gib`` is what the allocator took, ``context_gib`` what this process occupies of the GPU besides, and
    ``gpu_gib`` the whole GPU: None where none of it was measured. Where ``error`` is set nothing else was.
    """

    arm: str
    precision: str
    losses: tuple[float, ...] = ()
    tokens_per_s: float = 0.0
    ms_per_step: float = 0.0
    mfu_pct: float | None = None
    peak_gib: float = 0.0
    predicted_peak_gib: float = 0.0
    micro_batch_splits: int = 0
    skipped_steps: int = 0
    device: str = ""
    reserved_gib: float | None = None
    context_gib: float | None = None
    gpu_gib: float | None = None
    exam_s: float = 0.0
    error: str | None = None

    @property
    def name(self) -> str:
        """The run in words."""
        return f"{self.arm}, {self.precision}"


def step_facts(
    arm: str,
    precision: str,
    records: Sequence[Mapping[str, Any]],
    *,
    tokens_per_step: int,
    **others: Any,
) -> StepFacts:
    """The facts in the records of a run that reported after every step; ``others`` are what no record holds."""
    timed = records[WARM_UP_STEPS:] or records
    speeds = [record["tokens_per_s"] for record in timed]
    utilisations = [record["mfu_pct"] for record in timed if record["mfu_pct"] is not None]
    last = records[-1]
    return StepFacts(
        arm=arm,
        precision=precision,
        losses=tuple(record["train_loss"] for record in records),
        tokens_per_s=len(speeds) / sum(1 / speed for speed in speeds),
        ms_per_step=statistics.median(1e3 * tokens_per_step / speed for speed in speeds),
        mfu_pct=statistics.median(utilisations) if utilisations else None,
        peak_gib=last["peak_mem_allocated_gib"],
        micro_batch_splits=last["micro_batch_splits"],
        skipped_steps=last["skipped_steps"],
        exam_s=last["exam_time_s"],
        **others,
    )


@dataclass(frozen=True, kw_only=True)
class ProfileFacts:
    """What one step asked of the device, as torch's profiler saw it, with what was expected of it."""

    arm: str
    launches: int
    host_reads: int
    attention: tuple[str, ...]
    expected_attention: tuple[str, ...]
    most_launches: int
    expected_host_reads: int


@dataclass(frozen=True, kw_only=True)
class ResumeFacts:
    """A run that was interrupted half-way and resumed, against one that was not: what differs, nothing where equal."""

    arm: str
    steps_after: int = 0
    differences: tuple[str, ...] = ()
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class DeterminismFacts:
    """Milliseconds of a step with deterministic algorithms, as sweeps train, and without."""

    arm: str
    with_ms: float
    without_ms: float


@dataclass(frozen=True, kw_only=True)
class OverflowFacts:
    """Steps in fp16 from a loss scale that overflows."""

    arm: str
    losses: tuple[float, ...]
    skipped_steps: int
    scale_before: float
    scale_after: float


@dataclass(frozen=True, kw_only=True)
class ContestFacts:
    """Steps of ours beside those of others, in milliseconds; ``failures`` has the reasons of those that did not run."""

    arm: str
    ours_ms: float
    others_ms: Mapping[str, float] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)


def not_measured(what: str, why: str, criterion: str = "") -> Row:
    """The row of what this machine lacks."""
    return Row(what=what, found=f"not measured: {why}", criterion=criterion)


def step_rows(facts: StepFacts) -> list[Row]:
    """Did the run learn, how fast was it, and was its peak predicted."""
    learns = "the loss of the last step is below that of the first"
    if facts.error is not None:
        return [Row(what=f"{facts.name}: loss falls", found=facts.error, criterion=learns, held=False)]
    utilisation = "" if facts.mfu_pct is None else f", MFU {facts.mfu_pct:.1f}%"
    speed = f"{facts.ms_per_step:.1f} ms a step, {facts.tokens_per_s:,.0f} tokens/s{utilisation}"
    off = facts.predicted_peak_gib / facts.peak_gib - 1
    return [
        Row(
            what=f"{facts.name}: loss falls",
            found=f"{facts.losses[0]:.3f} to {facts.losses[-1]:.3f}; {speed}",
            criterion=learns,
            held=facts.losses[-1] < facts.losses[0],
        ),
        Row(
            what=f"{facts.name}: peak memory",
            found=f"predicted {facts.predicted_peak_gib:.2f} GiB, measured {facts.peak_gib:.2f} ({off:+.1%})",
            criterion=f"the prediction is within {PEAK_TOLERANCE:.0%}",
            held=abs(off) <= PEAK_TOLERANCE,
        ),
    ]


def agreement_rows(runs: Sequence[StepFacts]) -> list[Row]:
    """Each arm's loss in 16 bits against its loss in fp32, where both were trained."""
    trained = {(run.arm, run.precision): run.losses[-1] for run in runs if run.error is None}
    return [
        Row(
            what=f"{arm}: loss in {precision} against fp32",
            found=f"{loss:.4f} and {trained[arm, 'fp32']:.4f} nats",
            criterion=f"they differ by at most {PRECISION_TOLERANCE_NATS} nats",
            held=abs(loss - trained[arm, "fp32"]) <= PRECISION_TOLERANCE_NATS,
        )
        for (arm, precision), loss in trained.items()
        if precision != "fp32" and (arm, "fp32") in trained
    ]


def launch_budget(*, n_layers: int, grad_accum_steps: int, head_chunks: int) -> int:
    """The most kernels that one step may launch."""
    micro_step = LAUNCHES_PER_LAYER * n_layers + LAUNCHES_PER_HEAD_CHUNK * (head_chunks + 1)
    counting = (grad_accum_steps - 1) * LAUNCHES_PER_COUNTED_LAYER * n_layers
    return KERNELS_PER_OPERATION * (grad_accum_steps * micro_step + counting + LAUNCHES_BESIDE)


def host_reads_of_step(*, n_layers: int, grad_accum_steps: int, grouped: bool) -> int:
    """How often the host must wait for numbers in one step: once, and where experts are not grouped once a layer."""
    passes = 0 if grouped else 2 * grad_accum_steps - 1  # all micro-steps but the first are counted beforehand
    return 1 + passes * n_layers


def profile_rows(facts: ProfileFacts) -> list[Row]:
    """Launches, host reads and attention's kernel of one step."""
    used, expected = " and ".join(facts.attention) or "none", " or ".join(facts.expected_attention)
    return [
        Row(
            what=f"{facts.arm}: launches a step",
            found=f"{facts.launches:,}",
            criterion=f"at most {facts.most_launches:,}: {KERNELS_PER_OPERATION} for each operation on paper",
            held=facts.launches <= facts.most_launches,
        ),
        Row(
            what=f"{facts.arm}: host reads a step",
            found=f"{facts.host_reads}",
            criterion=f"at most {facts.expected_host_reads}",
            held=facts.host_reads <= facts.expected_host_reads,
        ),
        Row(
            what=f"{facts.arm}: attention",
            found=used,
            criterion=f"only {expected}",
            held=bool(facts.attention) and set(facts.attention) <= set(facts.expected_attention),
        ),
    ]


def resume_row(facts: ResumeFacts, how: str = "saved, loaded, trained on") -> Row:
    """Did a run that was interrupted end with the same numbers."""
    equal = f"{facts.steps_after} steps after it, equal to the last bit"
    return Row(
        what=f"{facts.arm}: {how}",
        found=facts.error or ("another result: " + ", ".join(facts.differences) if facts.differences else equal),
        criterion="losses and weights equal those of an undisturbed run to the last bit",
        held=facts.error is None and not facts.differences,
    )


def determinism_row(facts: DeterminismFacts) -> Row:
    """What deterministic algorithms, the default of a sweep, cost."""
    cost = facts.with_ms / facts.without_ms - 1
    return Row(
        what=f"{facts.arm}: cost of determinism",
        found=f"{facts.with_ms:.1f} ms a step with it, {facts.without_ms:.1f} without ({cost:+.0%})",
        criterion=f"at most {MOST_COST_OF_DETERMINISM:.0%}",
        held=cost <= MOST_COST_OF_DETERMINISM,
    )


def overflow_row(facts: OverflowFacts) -> Row:
    """Was a step that overflowed skipped, and did training go on."""
    went_on = all(map(math.isfinite, facts.losses)) and facts.skipped_steps < len(facts.losses)
    return Row(
        what=f"{facts.arm}: overflow in fp16",
        found=f"{facts.skipped_steps} of {len(facts.losses)} steps skipped, loss scale {facts.scale_before:g} to "
        f"{facts.scale_after:g}, loss {facts.losses[-1]:.3f}",
        criterion="steps that overflow are skipped, the scale shrinks, and training goes on",
        held=facts.skipped_steps > 0 and facts.scale_after < facts.scale_before and went_on,
    )


def shortage_rows(alone: StepFacts, short: StepFacts) -> list[Row]:
    """With less memory than the peak, was the step split, and did it give the same losses."""
    what = f"{short.arm}: short of memory"
    criterion = "micro-batches are split until they fit"
    if short.error is not None:
        return [Row(what=what, found=short.error, criterion=criterion, held=False)]
    apart = max(abs(loss - other) for loss, other in zip(short.losses, alone.losses, strict=True))
    return [
        Row(
            what=what,
            found=f"micro-batch split {short.micro_batch_splits} times",
            criterion=criterion,
            held=short.micro_batch_splits > 0,
        ),
        Row(
            what=f"{what}, losses",
            found=f"differ by {apart:.2g} at most from those with enough",
            criterion=f"by {SPLIT_TOLERANCE_NATS:g} nats at most",
            held=apart <= SPLIT_TOLERANCE_NATS,
        ),
    ]


def contest_row(facts: ContestFacts) -> Row:
    """Are we at least as fast as the best way of ``transformers`` in the same run."""
    what, criterion = f"{facts.arm}: against transformers", "at least as fast as its best"
    if not facts.others_ms:
        return not_measured(what, "; ".join(f"{name}: {why}" for name, why in facts.failures.items()), criterion)
    best = min(facts.others_ms, key=lambda name: facts.others_ms[name])
    ratio = facts.others_ms[best] / facts.ours_ms
    return Row(
        what=what,
        found=f"{facts.ours_ms:.1f} ms; {best} {facts.others_ms[best]:.1f} ({ratio:.2f} times as long)",
        criterion=criterion,
        held=ratio >= 1.0,
    )


def compile_rows(facts: ContestFacts) -> list[Row]:
    """What ``torch.compile`` and graphs would bring, which is not used."""
    rows = [
        Row(
            what=f"{facts.arm}: {name}",
            found=f"{ms:.1f} ms instead of {facts.ours_ms:.1f} ({ms / facts.ours_ms - 1:+.0%})",
        )
        for name, ms in facts.others_ms.items()
    ]
    return [*rows, *(not_measured(f"{facts.arm}: {name}", why) for name, why in facts.failures.items())]
