"""What a sweep was measured by: one list of checks of the method's rules, each kept or not.

The sentences of the checks that were not kept are the caveats of ``verdict.json``; a report shows both kinds. Here are
those of how arms were tuned and judged; ``conditions`` has those of what the answer holds for.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from search_spaces import ADAMW_RATES
from sweeps import formatting as written
from sweeps.ledger.results import Arm, SweepResults, finite
from sweeps.verdict import conditions
from sweeps.verdict.best_rate import Choice
from sweeps.verdict.confirmed import DECIDED
from sweeps.verdict.findings import Check, Findings

ENOUGH_SEEDS = 5
STABLE_CHANCE = 0.95


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
    done = [r.tokens_seen for r in found.results.seen if r.cell.phase == "confirm" and r.outcome == "completed"]
    if len(set(done)) > 1:
        span = f"{min(done):,} to {max(done):,}"
        text = f"finished confirm cells saw unequal numbers of tokens ({span})"
        yield Check(rule=2, kept=False, value=span, sentence=text)
    elif done:
        yield Check(rule=2, kept=True, value=f"{done[0]:,}", sentence="tokens seen by every finished confirm cell")


def _rate_of_the_rest(results: SweepResults, arm: Arm) -> str | None:
    """How AdamW's rate of what is no hidden matrix is tied, in words; None where it is searched for itself."""
    common = results.space.get("rates")
    own = {key: arm.differs_in[f"rates.{key}"] for key in ADAMW_RATES if f"rates.{key}" in arm.differs_in}
    rates = own or (common if isinstance(common, Mapping) else {})
    if (fixed := finite(rates.get("adamw_fixed"))) is not None:
        return f"fixed at {written.rate(fixed)}"
    if (ratio := finite(rates.get("adamw_ratio"))) is None:
        return None
    whose = "Muon's" if results.rule_of(arm.name, "optimizer", "kind", "muon") == "muon" else "the hidden matrices'"
    return f"at {written.rate(ratio)} of {whose}"


def _rates(found: Findings) -> Iterator[Check]:
    arms_by_rate: dict[str, list[str]] = {}
    for arm in found.results.arms:
        if (rate := _rate_of_the_rest(found.results, arm)) is not None:
            arms_by_rate.setdefault(rate, []).append(arm.name)
    if arms_by_rate:
        every = len(arms_by_rate) == 1 and len(next(iter(arms_by_rate.values()))) == len(found.results.arms)
        rates = [f"{rate} in {'every arm' if every else written.listed(arms)}" for rate, arms in arms_by_rate.items()]
        text = f"conditional on AdamW's rate {written.listed(rates)}, and on the other settings held fixed"
        yield Check(rule=5, kept=False, value="; ".join(arms_by_rate), sentence=text)
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
    explored = [result for result in found.results.seen if result.cell.phase == "explore"]
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


def _margin(found: Findings) -> Iterator[Check]:
    if found.margin is not None:
        text = f"margin in nats per token: {found.margin.source}"
        yield Check(rule=9, kept=True, value=f"{found.margin.value:.4f}", sentence=text)
    elif found.outcome in ("undecided", "wins"):
        yield Check(rule=9, kept=False, sentence="no margin could be estimated, so a tie cannot be shown")


_MEASURES: tuple[Callable[[Findings], Iterator[Check]], ...] = (
    _looks,
    _seeds,
    _order,
    _outcomes,
    _tokens,
    _edges,
    _rates,
    _stopping,
    conditions.context,
    conditions.controls,
    conditions.memory,
    conditions.flops,
    conditions.half_lives,
    conditions.time,
    conditions.scale,
    conditions.budgets,
    conditions.audit,
    conditions.exam,
    _margin,
    conditions.balancing,
    conditions.recorded,
)
"""In the order of their weight, which is the order of the caveats."""
