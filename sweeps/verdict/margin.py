"""The margin below which a difference is not worth a claim: the loss that 5% more tokens would buy.

It is computed from validation losses of explore cells alone, so that it is fixed before the first confirm cell is
trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from sweeps import formatting as written
from sweeps.ledger.results import CellResult, SweepResults, finite
from sweeps.verdict.best_rate import Choice, choices
from sweeps.verdict.grid_edge import tried_rates

MORE_TOKENS = 1.05
DATA_EXPONENT = 0.095
"""Kaplan et al. 2020 (arXiv 2001.08361), equation 1.2: loss falls as tokens to the power -0.095."""
STEEPEST_EXPONENT = 0.5
"""A secant between two budgets overstates the slope at the larger one, the more the steeper loss falls: 1.07, 1.24 and
1.44 times at exponents of 0.1, 0.3 and 0.5 over a factor of four. The largest correction gives the smallest margin."""
LEVEL = 0.95
"""Level of the one-sided bound below which the slope is not taken: a margin that is too wide makes ties easy."""


@dataclass(frozen=True, kw_only=True)
class Margin:
    """The equivalence margin in nats per token, and where it comes from in words that follow "the margin is"."""

    value: float
    source: str


def margin_of(results: SweepResults) -> Margin | None:
    """Return the margin in force: the space's own number, else the one fixed before confirm, else the default."""
    declared = finite(results.rule("verdict", "margin", None))
    if declared is not None:
        return Margin(value=declared, source="stated in the space")
    found = estimate(results)
    if results.fixed_margin is not None and results.is_at_largest:
        source = found.source if found and math.isclose(found.value, results.fixed_margin, rel_tol=1e-9) else None
        return Margin(
            value=results.fixed_margin, source=source or "as it was written down before the confirm cells ran"
        )
    return found


def default_margin(results: SweepResults) -> float | None:
    """Return the loss that 5% more tokens would buy in nats per token, by ``estimate``."""
    found = estimate(results)
    return found.value if found else None


@dataclass(frozen=True, kw_only=True)
class _Slopes:
    """What one more e-fold of tokens buys in nats, cell by cell.

    ``own`` are those at the arm's chosen rate; ``spread`` holds those at the rates beside it too, which only say how
    much slopes vary.
    """

    arm: str
    own: tuple[float, ...]
    spread: tuple[float, ...]


def estimate(results: SweepResults) -> Margin | None:
    """Return the loss that 5% more tokens would buy, estimated from explore records; None without any loss.

    The slope of validation loss in the logarithm of tokens, at the chosen rate, of each of the two arms that are best
    by validation loss; the smaller one, at its lower 95% bound, times ln 1.05. It is measured between decayed cells at
    this budget and a smaller one where there are such, else between the last two exams on the plateau of the schedule.
    None too where that bound is not above zero: then no difference is shown to be negligible. Records without curves
    fall back on the exponent of Kaplan et al. 2020 applied to the lowest validation loss.
    """
    best_two = sorted(choices(results).values(), key=lambda choice: choice.val_loss)[:2]
    for measure, where in (
        (_decayed, "between decayed explore cells at two budgets"),
        (_undecayed, "on the plateau of the schedule, undecayed, in explore"),
    ):
        found = [slopes for choice in best_two if (slopes := measure(results, choice)).own]
        if found:
            slope = min(_lower_bounds(found))
            if slope <= 0:
                return None
            has_bound = any(len(slopes.spread) > 1 for slopes in found)
            arms = written.listed([slopes.arm for slopes in found])
            slope_of = "the lower 95% bound of the slope" if has_bound else "the slope"
            which = f"the smaller of {arms}" + ("" if has_bound else ", one explore seed, no bound")
            source = f"the loss that 5% more tokens would buy, by {slope_of} of validation loss {where} ({which})"
            return Margin(value=slope * math.log(MORE_TOKENS), source=source)
    return _published(results, [choice.val_loss for choice in best_two])


def _lower_bounds(found: Sequence[_Slopes]) -> list[float]:
    """Each arm's slope at its one-sided 95% bound, the spread pooled over the arms; as it is without a spread."""
    from scipy import stats

    df = sum(len(slopes.spread) - 1 for slopes in found)
    squares = sum(float(np.var(slopes.spread)) * len(slopes.spread) for slopes in found)
    reach = float(stats.t.ppf(LEVEL, df)) * math.sqrt(squares / df) if df else 0.0
    return [sum(slopes.own) / len(slopes.own) - reach / math.sqrt(len(slopes.own)) for slopes in found]


def _undecayed(results: SweepResults, choice: Choice) -> _Slopes:
    """Slopes between the last two exams on the plateau, of cells at the chosen rate and at the rates next to it."""
    rates = sorted({rate.lr for rate in choice.tried})
    place = rates.index(choice.lr)
    near = rates[max(0, place - 1) : place + 2]
    cells = [r for r in results.of("explore", choice.strategy) if r.cell.lr in near]
    pairs = [(choice.is_rate_of(r) and r.reached_budget, slope) for r in cells if (slope := _plateau(results, r))]
    return _Slopes(
        arm=choice.strategy,
        own=tuple(slope for is_own, slope in pairs if is_own),
        spread=tuple(slope for _, slope in pairs),
    )


def _plateau(results: SweepResults, result: CellResult) -> float | None:
    """Nats per token that one more e-fold of tokens buys on the plateau of a cell's schedule, or None."""
    budget = result.cell.budget_tokens
    arm = result.cell.strategy
    decay_from = budget * (1 - results.rule_of(arm, "schedule", "decay_share", 0.2))
    warm_until = budget * results.rule_of(arm, "schedule", "warmup_share", 0.05)
    exams = sorted(
        (tokens, loss)
        for record in result.records
        if (loss := finite(record.get("val_loss"))) is not None
        and warm_until < (tokens := float(record.get("tokens_seen") or 0)) <= decay_from * (1 + 1e-9)
    )
    return _secant(*exams[-2:]) if len(exams) > 1 else None


def _decayed(results: SweepResults, choice: Choice) -> _Slopes:
    """Slopes between the best rates of this budget and of the next smaller one (of the smallest: the next larger)."""
    budgets = results.budgets_tokens
    if len(budgets) < 2:
        return _Slopes(arm=choice.strategy, own=(), spread=())
    place = max(1, budgets.index(results.budget_tokens))
    small, large = budgets[place - 1 : place + 1]
    early, late = (_best_losses(results.at(budget).of("explore", choice.strategy)) for budget in (small, large))
    ratio = large / small
    overstated = (ratio**STEEPEST_EXPONENT - 1) / (STEEPEST_EXPONENT * math.log(ratio))
    shared = sorted(early.keys() & late.keys())
    slopes = tuple(_secant((small, early[seed]), (large, late[seed])) / overstated for seed in shared)
    return _Slopes(arm=choice.strategy, own=slopes, spread=slopes)


def _best_losses(cells: Iterable[CellResult]) -> dict[int, float]:
    """Losses by seed at the rate of lowest mean, among rates with the most seeds."""
    rates = [rate for rate in tried_rates([result for result in cells if result.reached_budget]) if rate.losses]
    if not rates:
        return {}
    most = max(len(rate.losses) for rate in rates)
    return dict(min((r for r in rates if len(r.losses) == most), key=lambda rate: rate.mean or 0.0).losses)


def _secant(first: tuple[float, float], second: tuple[float, float]) -> float:
    return (first[1] - second[1]) / math.log(second[0] / first[0])


def _published(results: SweepResults, losses: list[float]) -> Margin | None:
    """The margin by a published exponent, from the lowest loss of explore, else of any finished cell."""
    phase = "explore"
    if not losses:
        judged = [r for r in results.cells if r.reached_budget]
        both = [(finite(r.val_loss), finite(r.test_loss)) for r in judged]
        losses = [loss for val, test in both if (loss := test if val is None else val) is not None]
        phase = "recorded"
    if not losses:
        return None
    source = (
        "the loss that 5% more tokens would buy if loss fell as tokens to the power "
        f"−{DATA_EXPONENT} (Kaplan et al. 2020), from the lowest {phase} loss: the records give no slope"
    )
    return Margin(value=min(losses) * (1 - MORE_TOKENS**-DATA_EXPONENT), source=source)
