"""What a sweep was measured by: one list of checks of the method's rules, each kept or not.

The sentences of the checks that were not kept are the caveats of ``verdict.json``; a report shows both kinds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sweeps import formatting as written
from sweeps.ledger.results import CellResult, SweepResults, finite
from sweeps.verdict.case import ExamFacts
from sweeps.verdict.confirmed import DECIDED, Confirmed, Looks
from sweeps.verdict.evidence import FEWEST_DOCUMENTS
from sweeps.verdict.margin import Margin
from sweeps.verdict.rows import BudgetViews, ContextSplit, ContextUse, ControlSplit
from sweeps.verdict.selection import Choice
from sweeps.verdict.speeds import measured_speeds

RULES = {
    1: "No leak",
    2: "Equal tokens, the same tokens",
    3: "The schedule is in tokens and ends at the budget",
    4: "One exam",
    5: "Every arm gets the same tuning effort",
    6: "Early stopping is fair to arms",
    7: "No best rate at an edge",
    8: "Selected on one thing, judged on another",
    9: "Statistics stated in advance",
    10: "Tokens, time, memory",
    11: "Why, and how far",
    12: "Load balancing is the same for every arm",
    13: "Everything is written down",
}
ENOUGH_SEEDS = 5
STABLE_CHANCE = 0.95
MEMORY_SPREAD_LIMIT = 0.10
"""Peaks that differ by more than this are not equal memory (rule 10 of the method)."""
TOKENS_PER_PARAMETER = 20.0
"""Compute-optimal training sees about 20 tokens per parameter (Hoffmann et al. 2022, arXiv 2203.15556)."""
_AUDITED_RULES = {"exam_rows": 4, "straddling_windows": 13, "document_tokens": 11, "epochs": 2}
"""Which rule a finding of the corpus audit is about; all others are about leaks."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One measurement for one rule of the method.

    ``sentence`` of a check that was not kept can be read alone and quotes the value; ``value`` is text, empty where
    the sentence says it all.
    """

    rule: int
    kept: bool
    sentence: str
    value: str = ""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What the verdict found on its way that the checks read."""

    results: SweepResults
    outcome: str
    chosen: Mapping[str, Choice]
    confirmed: Confirmed
    looks: Looks
    margin: Margin | None
    n_seeds: int
    context: Sequence[ContextSplit] | None
    context_used: ContextUse | None
    controls: Sequence[ControlSplit] | None
    by_budget: BudgetViews
    winner: str | None
    leading: str | None
    next_seed: Mapping[str, float]
    exam: ExamFacts

    @property
    def confirm_cells(self) -> dict[str, list[CellResult]]:
        """Each arm's confirm cells at the rate at which it is judged."""
        return {arm: list(found.values()) for arm, found in self.confirmed.cells.items()}


def checks(found: Findings) -> tuple[Check, ...]:
    """Return every check that the sweep has the data for, the weightiest first."""
    return tuple(check for measure in _MEASURES for check in measure(found))


def _looks(found: Findings) -> Iterator[Check]:
    looks = found.looks
    of_planned = f"look {looks.used} of {looks.planned} planned"
    if looks.unplanned:
        seen = written.listed([str(seed) for seed in looks.seen_seeds])
        yield Check(
            rule=9,
            kept=False,
            value=of_planned,
            sentence=f"{of_planned}: seeds {seen} were decided on before and are left out, and the test is at "
            f"{looks.alpha:.3g}; all unplanned looks together raise the chance of a false win to twice alpha at most",
        )
    elif found.results.rule("verdict", "pairing", None) is not None:
        text = "how often these records were looked at before is not known: alpha counts this look only"
        yield Check(rule=9, kept=False, sentence=text)
    else:
        yield Check(rule=9, kept=True, value=of_planned, sentence=f"each at a level of {looks.alpha:.3g}")


def _seeds(found: Findings) -> Iterator[Check]:
    if found.n_seeds >= ENOUGH_SEEDS:
        yield Check(rule=8, kept=True, value=f"{found.n_seeds}", sentence="confirm seeds that every arm finished")
    elif found.n_seeds:
        seeds = written.plural(found.n_seeds, "confirm seed")
        text = f"{seeds} per arm: intervals are wide, and only large leads can be found"
        yield Check(rule=8, kept=False, value=f"{found.n_seeds}", sentence=text)
    planned = found.confirmed.planned_seeds
    reused = [str(seed) for seed in planned if seed in found.confirmed.explored_seeds]
    if reused:
        text = f"confirm seeds that also chose the rates are not fresh and are left out: {written.listed(reused)}"
        yield Check(rule=8, kept=False, value=f"{len(reused)}", sentence=text)
    elif planned and found.confirmed.explored_seeds:
        yield Check(rule=8, kept=True, sentence="explore and confirm share no seed")
    for arm, number in Counter(result.cell.strategy for result in found.confirmed.elsewhere).items():
        text = f"{written.plural(number, 'confirm cell')} of {arm} at another rate than the chosen one are not judged"
        yield Check(rule=8, kept=False, value=f"{number}", sentence=text)


def _order(found: Findings) -> Iterator[Check]:
    """Whether the leading arm would lead on a further seed; nothing where nothing is judged."""
    for rival, chance in found.next_seed.items():
        value = written.chance(chance)
        if chance < STABLE_CHANCE:
            seed = f"on one more seed {found.leading} ends below {rival}"
            text = f"the order is not stable: {seed} with a probability of {value}"
            yield Check(rule=9, kept=False, value=value, sentence=text)
        else:
            text = f"probability that {found.leading} ends below {rival} on one more seed"
            yield Check(rule=9, kept=True, value=value, sentence=text)


def _outcomes(found: Findings) -> Iterator[Check]:
    cells = found.results.cells
    words = {"diverged": "diverged", "failed": "failed", "oom": "ran out of memory"}
    lost = Counter((r.cell.strategy, r.cell.phase, r.outcome) for r in cells if r.outcome in words)
    for (arm, phase, outcome), number in lost.items():
        text = f"{written.plural(number, f'{phase} cell')} of {arm} {words[str(outcome)]}"
        yield Check(rule=8 if phase == "confirm" else 6, kept=False, value=f"{number}", sentence=text)
    known = [value for result in cells if (value := result.last("skipped_steps")) is not None]
    if sum(known):
        steps = written.plural(round(sum(known)), "optimizer step")
        text = f"{steps} skipped for gradients that were not finite; their tokens count as seen"
        yield Check(rule=3, kept=False, value=f"{round(sum(known)):,}", sentence=text)
    elif known:
        yield Check(rule=3, kept=True, value="0", sentence="optimizer steps skipped")


def _tokens(found: Findings) -> Iterator[Check]:
    per_step = {arm.name: arm.tokens_per_step for arm in found.results.arms if arm.tokens_per_step}
    if len(set(per_step.values())) > 1:
        counts = ", ".join(f"{name} {tokens:,}" for name, tokens in per_step.items())
        text = f"tokens per step differ ({counts}): arms made unequal numbers of updates from equal tokens"
        yield Check(rule=2, kept=False, value=counts, sentence=text)
    elif per_step:
        yield Check(rule=2, kept=True, value=f"{next(iter(per_step.values())):,}", sentence="tokens per step")
    done = [r.tokens_seen for r in found.results.cells if r.cell.phase == "confirm" and r.outcome == "completed"]
    if len(set(done)) > 1:
        span = f"{min(done):,} to {max(done):,}"
        text = f"finished confirm cells saw unequal numbers of tokens ({span})"
        yield Check(rule=2, kept=False, value=span, sentence=text)
    elif done:
        yield Check(rule=2, kept=True, value=f"{done[0]:,}", sentence="tokens seen by every finished confirm cell")


def _rates(found: Findings) -> Iterator[Check]:
    rates = found.results.space.get("rates")
    fixed = rates if isinstance(rates, Mapping) else {}
    for key, words in (("adamw_ratio", "at {} of Muon's"), ("adamw_fixed", "fixed at {}")):
        if (value := finite(fixed.get(key))) is not None:
            rate = words.format(written.rate(value))
            text = f"conditional on AdamW's rate {rate} in every arm, and on the other settings held fixed"
            yield Check(rule=5, kept=False, value=rate, sentence=text)
            break
    if found.confirmed.planned_seeds and not any(found.results.of("explore", arm) for arm in found.confirmed.arms):
        text = "no explore cell is in the records: how each arm's rate was chosen, and whether at an edge, is not known"
        yield Check(rule=5, kept=False, sentence=text)
    tried = {arm: len(choice.tried) for arm, choice in found.chosen.items()}
    counts = ", ".join(f"{arm} {number}" for arm, number in tried.items())
    if len(set(tried.values())) > 1:
        text = f"unequal numbers of rates were tried, for grids were widened or extended: {counts}"
        yield Check(rule=5, kept=False, value=counts, sentence=text)
    elif tried:
        yield Check(rule=5, kept=True, value=f"{next(iter(tried.values()))}", sentence="rates tried in every arm")
    if len({choice.n_seeds for choice in found.chosen.values()}) > 1:
        yield Check(rule=5, kept=False, sentence="arms were explored on unequal numbers of seeds")


def _stopping(found: Findings) -> Iterator[Check]:
    explored = [result for result in found.results.cells if result.cell.phase == "explore"]
    stopped = sum(result.outcome == "stopped_early" for result in explored)
    if stopped:
        text = "explore cells stopped early, each ranked within its own arm"
        yield Check(rule=6, kept=True, value=f"{stopped:,} of {len(explored):,}", sentence=text)
    for arm, choice in found.chosen.items():
        if choice.curve.n_carried and (better := _better_if_carried(choice)) is not None:
            text = (
                f"without early stopping {arm} might have been judged at {better:g}: the loss it was stopped at, "
                "carried on as the finished rates went on, ends below the chosen rate's"
            )
            yield Check(rule=6, kept=False, value=f"{better:g}", sentence=text)


def _better_if_carried(choice: Choice) -> float | None:
    """A rate that early stopping ended, whose guessed final loss is below the chosen rate's."""
    lowest = min(range(len(choice.curve.losses)), key=lambda place: choice.curve.losses[place])
    return None if lowest == choice.curve.chosen else float(f"{math.exp(choice.curve.log_lrs[lowest]):.6g}")


def _edges(found: Findings) -> Iterator[Check]:
    """Best rates and whether they lie inside their grids; an edge that blocks the verdict is its reason already."""
    rates = [(arm, choice.lr, choice.at_edge) for arm, choice in found.chosen.items()]
    rates += [(f"the control of {c.a}", c.lr, c.at_edge) for c in found.controls or () if c.lr is not None]
    inside = ", ".join(f"{name} {rate:g}" for name, rate, at_edge in rates if not at_edge)
    if inside:
        yield Check(rule=7, kept=True, value=inside, sentence="best rates inside their grids")
    for name, rate, at_edge in rates:
        if at_edge and (found.outcome in DECIDED or name not in found.chosen):
            text = f"the best rate of {name} ({rate:g}) is at the edge of its grid: a better one may lie beyond"
            yield Check(rule=7, kept=False, value=f"{rate:g}", sentence=text)


def _context(found: Findings) -> Iterator[Check]:
    used = found.context_used
    if used is not None:
        gain = f"{used.gain.mean:.4f} nats"
        beyond = f"beyond {used.beyond_tokens:,} tokens its longer context brings {used.arm}"
        if used.is_used:
            yield Check(rule=11, kept=True, value=gain, sentence=beyond)
        else:
            text = (
                f"context not yet used: {beyond} {gain} per token, which is not shown to be a gain, so nothing is "
                "claimed about length"
            )
            yield Check(rule=11, kept=False, value=gain, sentence=text)
    if found.context:
        yield Check(rule=11, kept=True, sentence="own context and common context both scored")


def _controls(found: Findings) -> Iterator[Check]:
    lengths = {arm.seq_len for arm in found.results.arms if arm.seq_len}
    if not found.controls and len(lengths) > 1 and found.outcome in DECIDED:
        text = (
            "no control was run (`controls = true`): what length does and what the diversity of a batch does are "
            "not separated"
        )
        yield Check(rule=11, kept=False, sentence=text)
    for entry in found.controls or ():
        if entry.diversity_share is not None and entry.lead.mean > 0:
            share = written.share(entry.diversity_share)
            yield Check(rule=11, kept=False, value=share, sentence=diversity_sentence(entry))


def diversity_sentence(entry: ControlSplit) -> str:
    """Return what share of a short arm's lead goes with the diversity of its batches."""
    lead, share = f"{entry.a}'s lead over {entry.b}", entry.diversity_share
    if share is None or entry.lead.mean <= 0:
        effect = f"{abs(entry.diversity.mean):.4f} nats {'worse' if entry.diversity.mean > 0 else 'better'}"
        return f"grouped windows make {entry.a} {effect}; it has no clear lead over {entry.b} to divide"
    if share <= 0:
        return f"none of {lead} goes with the diversity of its batches: it does not shrink with grouped windows"
    if share >= 1:
        return f"all of {lead} goes with the diversity of its batches: nothing of it is left with grouped windows"
    return (
        f"{written.share(share)} of {lead} goes with the diversity of its batches (it vanishes with grouped windows), "
        "the rest with length; the split says no more than that"
    )


def _memory(found: Findings) -> Iterator[Check]:
    hardware = found.results.beginning.get("hardware")
    if isinstance(hardware, Mapping) and not hardware.get("gpus"):
        text = "measured on a CPU: no claim is made about the memory of a GPU or its speed"
        yield Check(rule=10, kept=False, value="CPU", sentence=text)
    peaks = {
        arm: max(values)
        for arm, cells in found.confirm_cells.items()
        if (values := [peak for r in cells if (peak := r.last("peak_mem_allocated_gib")) is not None])
    }
    if len(peaks) < 2 or max(peaks.values()) <= 0:
        return
    spread = 1 - min(peaks.values()) / max(peaks.values())
    value = written.share(spread)
    if spread > MEMORY_SPREAD_LIMIT:
        counts = ", ".join(f"{arm} {written.gib(peak)}" for arm, peak in peaks.items())
        text = f"arms do not fill the same memory ({counts}): no claim is made about equal memory"
        yield Check(rule=10, kept=False, value=value, sentence=text)
    else:
        yield Check(rule=10, kept=True, value=value, sentence="difference in peak memory between arms")


def _time(found: Findings) -> Iterator[Check]:
    view = found.by_budget.time
    if view is not None and not view.comparable:
        text = "arms are not known to have been timed under equal load, so the view at equal time names no arm"
        yield Check(rule=10, kept=False, sentence=text)
    elif view is not None and found.outcome in DECIDED and view.winner != found.winner:
        sentence = f"at equal time {f'{view.winner} wins' if view.winner else 'no arm wins'}"
        yield Check(rule=10, kept=False, value=view.winner or "none", sentence=sentence)
    cells = found.confirm_cells
    counted = {finite(record.get("concurrent_trials")) for own in cells.values() for r in own for record in r.records}
    loads = sorted(int(load) for load in counted if load)
    if not loads:
        return
    span = f"{loads[0]}" if len(loads) == 1 else f"{loads[0]} to {loads[-1]}"
    speeds = measured_speeds(cells)
    if speeds is None or speeds.concurrent_trials is None:
        text = f"confirm cells ran under unequal load ({span} at a time): seconds are not compared"
        yield Check(rule=10, kept=False, value=span, sentence=text)
    else:
        text = f"confirm cells at a time; speeds are compared where {speeds.concurrent_trials} ran"
        yield Check(rule=10, kept=True, value=span, sentence=text)


def _scale(found: Findings) -> Iterator[Check]:
    size = found.results.beginning.get("parameters")
    active = finite(size.get("active")) if isinstance(size, Mapping) else None
    if not active:
        return
    ratio = found.results.budget_tokens / active
    if ratio >= TOKENS_PER_PARAMETER:
        yield Check(rule=11, kept=True, value=f"{ratio:.3g}", sentence="tokens per active parameter")
        return
    text = (
        f"{ratio:.3g} tokens per active parameter, where compute-optimal training sees about "
        f"{TOKENS_PER_PARAMETER:g}: early training, and the order of arms may change with the budget"
    )
    yield Check(rule=11, kept=False, value=f"{ratio:.3g}", sentence=text)


def _audit(found: Findings) -> Iterator[Check]:
    """What the corpus audit found before the sweep began."""
    audit = found.results.beginning.get("audit")
    for finding in (audit.get("findings") or ()) if isinstance(audit, Mapping) else ():
        if isinstance(finding, Mapping) and finding.get("message"):
            value = "" if finding.get("value") is None else f"{finding['value']:.3g}"
            yield Check(
                rule=_AUDITED_RULES.get(str(finding.get("rule")), 1),
                kept=finding.get("level") == "ok",
                value=value,
                sentence=str(finding["message"]),
            )


def _exam(found: Findings) -> Iterator[Check]:
    yield from _documents(found)
    exam = found.results.beginning.get("exam")
    if not isinstance(exam, Mapping):
        return
    if exam.get("packed"):
        text = "rows of the exam are packed from several documents, as in training: few documents are long enough"
        yield Check(rule=4, kept=False, sentence=text)
    elif exam.get("packed") is not None:
        yield Check(rule=4, kept=True, sentence="every row of the exam is cut from one document")
    if exam.get("fingerprint"):
        text = "fingerprint of the exam, one for all cells"
        yield Check(rule=4, kept=True, value=str(exam["fingerprint"])[:16], sentence=text)


def _documents(found: Findings) -> Iterator[Check]:
    """Whether the exam has the documents that a claim beyond it needs."""
    exam = found.exam
    if not found.n_seeds:
        return
    if exam.effective is None:
        text = "losses by document are not known, so every claim is about this exam"
        yield Check(rule=9, kept=False, sentence=text)
        return
    value, units = f"{exam.effective:.3g}", f"effective {exam.units}"
    if exam.is_on_this_exam:
        text = f"the exam holds {value} {units}, fewer than {FEWEST_DOCUMENTS}: every claim is about this exam"
        yield Check(rule=9, kept=False, value=value, sentence=text)
    else:
        yield Check(rule=9, kept=True, value=value, sentence=f"{units} in the exam")


def _margin(found: Findings) -> Iterator[Check]:
    if found.margin is not None:
        text = f"margin in nats per token: {found.margin.source}"
        yield Check(rule=9, kept=True, value=f"{found.margin.value:.4f}", sentence=text)
    elif found.outcome in ("undecided", "wins"):
        yield Check(rule=9, kept=False, sentence="no margin could be estimated, so a tie cannot be shown")


def _balancing(found: Findings) -> Iterator[Check]:
    loads = {
        arm: max(values)
        for arm, cells in found.confirm_cells.items()
        if (values := [load for r in cells if (load := r.last("expert_load_max_over_mean")) is not None])
    }
    if loads:
        value = ", ".join(f"{arm} {load:.2f}" for arm, load in loads.items())
        text = "load of the busiest expert over the mean at the end, counted over the whole optimizer step"
        yield Check(rule=12, kept=True, value=value, sentence=text)
    splits = round(sum(result.last("micro_batch_splits") or 0 for result in found.results.cells))
    if splits:
        text = f"a micro-batch was split {written.plural(splits, 'time')} to fit the memory"
        yield Check(rule=12, kept=False, value=f"{splits:,}", sentence=text)


def _recorded(found: Findings) -> Iterator[Check]:
    cells, git = found.results.cells, found.results.beginning.get("git")
    used = sorted({str(r.records[-1]["precision"]) for r in cells if r.records and r.records[-1].get("precision")})
    if len(used) > 1:
        text = f"cells were trained in several precisions: {written.listed(used)}"
        yield Check(rule=13, kept=False, value=written.listed(used), sentence=text)
    elif used:
        yield Check(rule=13, kept=True, value=used[0], sentence="precision used in every cell")
    if isinstance(git, Mapping) and git.get("commit"):
        commit = str(git["commit"])[:12]
        if git.get("dirty"):
            text = f"the code had changes that git commit {commit} does not hold"
            yield Check(rule=13, kept=False, value=commit, sentence=text)
        else:
            yield Check(rule=13, kept=True, value=commit, sentence="git commit of the code, without other changes")


_MEASURES: tuple[Callable[[Findings], Iterator[Check]], ...] = (
    _looks,
    _seeds,
    _order,
    _outcomes,
    _tokens,
    _edges,
    _rates,
    _stopping,
    _context,
    _controls,
    _memory,
    _time,
    _scale,
    _audit,
    _exam,
    _margin,
    _balancing,
    _recorded,
)
"""In the order of their weight, which is the order of the caveats."""
