"""What a reader must know beside the verdict: one sentence each, written only where its condition holds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweeps import formatting as written
from sweeps.ledger.results import SweepResults, finite
from sweeps.verdict.case import ExamFacts
from sweeps.verdict.confirmed import DECIDED, Confirmed, Looks
from sweeps.verdict.evidence import FEWEST_DOCUMENTS
from sweeps.verdict.margin import Margin
from sweeps.verdict.selection import Choice, choose

FEW_SEEDS = 5
STABLE_CHANCE = 0.95
MEMORY_SPREAD_LIMIT = 0.10
"""Peaks that differ by more than this are not equal memory (rule 10 of the method)."""
TOKENS_PER_PARAMETER = 20.0
"""Compute-optimal training sees about 20 tokens per parameter (Hoffmann et al. 2022, arXiv 2203.15556)."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What the verdict found on its way that deserves a caveat."""

    results: SweepResults
    outcome: str
    chosen: Mapping[str, Choice]
    confirmed: Confirmed
    looks: Looks
    margin: Margin | None
    n_seeds: int
    context_used: Mapping[str, Any] | None
    controls: Sequence[Mapping[str, Any]] | None
    by_budget: Mapping[str, Any]
    winner: str | None
    leading: str | None
    next_seed: Mapping[str, float]
    exam: ExamFacts


def caveats(found: Findings) -> list[str]:
    """Return every caveat that holds, the weightiest first."""
    return [
        *_looks(found),
        *_seeds(found),
        *_outcomes(found),
        *_steps(found),
        *_rates(found),
        *_context(found),
        *_controls(found),
        *_time_and_memory(found),
        *_scale(found),
        *_exam(found),
        *_margin(found),
    ]


def _looks(found: Findings) -> Iterator[str]:
    looks = found.looks
    if looks.unplanned:
        yield (
            f"look {looks.used} of {looks.planned} planned: seeds {written.listed([str(s) for s in looks.seen_seeds])} "
            f"were decided on before and are left out, and the test is at {looks.alpha:.3g}; all unplanned looks "
            "together raise the chance of a false win to twice alpha at most"
        )
    elif found.results.rule("verdict", "pairing", None) is not None:
        yield "how often these records were looked at before is not known: alpha counts this look only"
    elif looks.planned > 1:
        yield f"look {looks.used} of {looks.planned} planned, each at a level of {looks.alpha:.3g}"


def _seeds(found: Findings) -> Iterator[str]:
    if 0 < found.n_seeds < FEW_SEEDS:
        yield f"{written.plural(found.n_seeds, 'confirm seed')}: intervals are wide, and only large leads can be found"
    reused = [str(seed) for seed in found.confirmed.planned_seeds if seed in found.confirmed.explored_seeds]
    if reused:
        yield f"confirm seeds that also chose the rates are not fresh and are left out: {written.listed(reused)}"
    for rival, chance in found.next_seed.items():
        if chance < STABLE_CHANCE:
            seed = f"on one more seed {found.leading} ends below {rival}"
            yield f"the order is not stable: {seed} with a probability of {chance:.0%}"
    left = Counter(result.cell.strategy for result in found.confirmed.elsewhere)
    for arm, number in left.items():
        yield f"{written.plural(number, 'confirm cell')} of {arm} at another rate than the chosen one are not judged"
    if found.confirmed.planned_seeds and not any(found.results.of("explore", arm) for arm in found.confirmed.arms):
        yield "no explore cell is in the records: how each arm's rate was chosen, and whether at an edge, is not known"


def _outcomes(found: Findings) -> Iterator[str]:
    lost = Counter(
        (result.cell.strategy, result.cell.phase, result.outcome)
        for result in found.results.cells
        if result.outcome in ("diverged", "failed", "oom")
    )
    for (arm, phase, outcome), number in lost.items():
        words = {"diverged": "diverged", "failed": "failed", "oom": "ran out of memory"}[str(outcome)]
        yield f"{written.plural(number, f'{phase} cell')} of {arm} {words}"
    skipped = sum(result.last("skipped_steps") or 0 for result in found.results.cells)
    if skipped:
        steps = written.plural(round(skipped), "optimizer step")
        yield f"{steps} skipped for gradients that were not finite; their tokens count as seen"


def _steps(found: Findings) -> Iterator[str]:
    per_step = {arm.name: arm.tokens_per_step for arm in found.results.arms if arm.tokens_per_step}
    if len(set(per_step.values())) > 1:
        counts = ", ".join(f"{name} {tokens:,}" for name, tokens in per_step.items())
        yield f"tokens per step differ ({counts}): arms made unequal numbers of updates from equal tokens"


def _rates(found: Findings) -> Iterator[str]:
    rates = found.results.space.get("rates")
    if isinstance(rates, Mapping):
        rest = "and on the other settings held fixed"
        if finite(rates.get("adamw_ratio")) is not None:
            yield f"conditional on AdamW's rate at {rates['adamw_ratio']:g} of Muon's in every arm, {rest}"
        elif finite(rates.get("adamw_fixed")) is not None:
            yield f"conditional on AdamW's rate fixed at {rates['adamw_fixed']:g} in every arm, {rest}"
    tried = {arm: len(choice.tried) for arm, choice in found.chosen.items()}
    if len(set(tried.values())) > 1:
        counts = ", ".join(f"{arm} {number}" for arm, number in tried.items())
        yield f"unequal numbers of rates were tried, for grids were widened or extended: {counts}"
    if len({choice.n_seeds for choice in found.chosen.values()}) > 1:
        yield "arms were explored on unequal numbers of seeds"
    for arm, choice in found.chosen.items():
        if choice.curve.n_carried and (better := _better_if_carried(choice)) is not None:
            yield (
                f"without early stopping {arm} might have been judged at {better:g}: the loss it was stopped at, "
                "carried on as the finished rates went on, ends below the chosen rate's"
            )


def _better_if_carried(choice: Choice) -> float | None:
    """A rate that early stopping ended, whose guessed final loss is below the chosen rate's."""
    lowest = min(range(len(choice.curve.losses)), key=lambda place: choice.curve.losses[place])
    return None if lowest == choice.curve.chosen else float(f"{math.exp(choice.curve.log_lrs[lowest]):.6g}")


def _context(found: Findings) -> Iterator[str]:
    used = found.context_used
    if used is not None and not used["used"]:
        yield (
            f"context not yet used: beyond {used['beyond_tokens']:,} tokens its longer context brings {used['arm']} "
            f"{used['gain']:.4f} nats per token, which is not shown to be a gain, so nothing is claimed about length"
        )


def _controls(found: Findings) -> Iterator[str]:
    lengths = {arm.seq_len for arm in found.results.arms if arm.seq_len}
    if not found.controls:
        if len(lengths) > 1 and found.outcome in DECIDED:
            yield (
                "no control was run (`controls = true`): what length does and what the diversity of a batch does are "
                "not separated"
            )
        return
    for entry in found.controls:
        share = entry.get("diversity_share")
        if share is not None and entry["lead"] > 0:
            yield _split(f"{entry['a']}'s lead over {entry['b']}", share)
        choice = choose(found.results, str(entry["a"]), "grouped")
        if choice is not None and choice.at_edge:
            yield f"the control of {entry['a']} was judged at a rate at the edge of its grid ({choice.lr:g})"


def _split(lead: str, share: float) -> str:
    if share <= 0:
        return f"none of {lead} goes with the diversity of its batches: it does not shrink with grouped windows"
    if share >= 1:
        return f"all of {lead} goes with the diversity of its batches: nothing of it is left with grouped windows"
    return (
        f"{written.share(share)} of {lead} goes with the diversity of its batches (it vanishes with grouped windows), "
        "the rest with length; the split says no more than that"
    )


def _time_and_memory(found: Findings) -> Iterator[str]:
    results, cells = found.results, found.confirmed.cells
    peaks = {
        arm: max(values)
        for arm, by_seed in cells.items()
        if (values := [v for r in by_seed.values() if (v := r.last("peak_mem_allocated_gib")) is not None])
    }
    hardware = results.beginning.get("hardware")
    on_cpu = isinstance(hardware, Mapping) and not hardware.get("gpus")
    if on_cpu:
        yield "measured on a CPU: no claim is made about the memory of a GPU or its speed"
    if (
        len(peaks) > 1
        and max(peaks.values()) > 0
        and 1 - min(peaks.values()) / max(peaks.values()) > MEMORY_SPREAD_LIMIT
    ):
        counts = ", ".join(f"{arm} {written.gib(peak)}" for arm, peak in peaks.items())
        yield f"arms do not fill the same memory ({counts}): no claim is made about equal memory"
    time = found.by_budget.get("time")
    if time is not None and not time["comparable"]:
        yield "arms are not known to have been timed under equal load, so the view at equal time names no arm"
    elif time is not None and found.outcome in DECIDED and time.get("winner") != found.winner:
        other = f"{time['winner']} wins" if time.get("winner") else "no arm wins"
        yield f"at equal time {other}"


def _scale(found: Findings) -> Iterator[str]:
    size = found.results.beginning.get("parameters")
    active = finite(size.get("active")) if isinstance(size, Mapping) else None
    if active:
        ratio = found.results.budget_tokens / active
        if ratio < TOKENS_PER_PARAMETER:
            yield (
                f"{ratio:.3g} tokens per active parameter, where compute-optimal training sees about "
                f"{TOKENS_PER_PARAMETER:g}: early training, and the order of arms may change with the budget"
            )
    audit = found.results.beginning.get("audit")
    for finding in (audit.get("findings") or ()) if isinstance(audit, Mapping) else ():
        if isinstance(finding, Mapping) and finding.get("level") == "warn" and finding.get("message"):
            yield str(finding["message"])


def _exam(found: Findings) -> Iterator[str]:
    if found.exam.documents is None and found.n_seeds:
        yield "losses by document are not known, so every claim is about this exam"
    elif found.exam.is_on_this_exam and found.exam.effective is not None and found.n_seeds:
        yield (
            f"the exam holds {found.exam.effective:.3g} effective {found.exam.unit}s, fewer than {FEWEST_DOCUMENTS}: "
            "every claim is about this exam"
        )
    exam = found.results.beginning.get("exam")
    if isinstance(exam, Mapping) and exam.get("packed"):
        yield "rows of the exam are packed from several documents, as in training: few documents are long enough"


def _margin(found: Findings) -> Iterator[str]:
    if found.margin is not None:
        yield f"the margin of {found.margin.value:.4f} nats per token is {found.margin.source}"
    elif found.outcome in ("undecided", "wins"):
        yield "no margin could be estimated, so a tie cannot be shown"
