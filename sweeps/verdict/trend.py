"""The budget as an axis: verdicts below the largest budget, how leads change with it, and where they end.

Rule 14 of docs/method.md. All of it rests on cells whose schedules ended at their budget; nothing is read off a rung.
"""

# X points at which something is asked, K budgets, A arms

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from sweeps.ledger.results import SweepResults, finite
from sweeps.verdict.judgement import DRAW_SEED, Judgement, judge
from sweeps.verdict.ladder import POINTS, Ladder, ladder_of
from sweeps.verdict.leads import pair_differences
from sweeps.verdict.rows import Estimate
from sweeps.verdict.statistics import Comparison, Floats, holm
from sweeps.verdict.trend_rows import (
    NOT_SHOWN,
    NOT_TESTED,
    ArmAtBudget,
    AtBudget,
    Crossover,
    LeadAtBudget,
    LinePoint,
    PairTrend,
    Prediction,
    TokenShare,
    Trend,
)

LINE_POINTS = 13
"""Points of the fitted line that are kept, for those who draw it."""


def trend_of(results: SweepResults, largest: Judgement) -> Trend:
    """Return how the arms compare at every budget and how that changes; empty for a sweep with one budget."""
    budgets = results.budgets_tokens
    if len(budgets) < 2:
        return Trend()
    judged = [*(judge(results.at(budget), largest.looks) for budget in budgets[:-1]), largest]
    alpha = largest.looks.alpha
    ladder = ladder_of(judged)
    rows = () if ladder is None else tuple(_pair_trends(ladder, judged, alpha, is_judged=largest.is_judged))
    return Trend(budgets=tuple(_at_budgets(judged, alpha)), pairs=rows)


def _at_budgets(judged: Sequence[Judgement], alpha: float) -> Iterator[AtBudget]:
    """Each budget's outcome in a fixed sequence: the largest first, a smaller one only while each above it wins.

    All of them together claim a false win at rate ``alpha`` at most: the first true tie on the way down ends it.
    """
    tested = reached([each.winner is not None for each in judged])
    for each, is_tested in zip(judged, tested, strict=True):
        outcome = each.outcome if is_tested or not each.is_judged else NOT_TESTED
        yield AtBudget(
            budget_tokens=each.budget_tokens,
            outcome=outcome,
            winner=each.winner if is_tested else None,
            leading=each.best,
            seeds=len(each.seeds),
            reason=each.blockers[0].text if each.blockers else None,
            arms=tuple(_arm_at(each, place) for place in range(len(each.confirmed.arms))),
            pairs=() if each.evidence is None else pair_differences(each.confirmed.arms, each.evidence, alpha),
        )


def reached(wins: Sequence[bool]) -> list[bool]:
    """Return which budgets a fixed sequence from the last downwards reaches: one follows while each above it wins."""
    return [all(wins[place + 1 :]) for place in range(len(wins))]


def _arm_at(each: Judgement, place: int) -> ArmAtBudget:
    arm = each.confirmed.arms[place]
    choice, optimum = each.chosen.get(arm), each.optima.get(arm)
    return ArmAtBudget(
        name=arm,
        best_lr=each.confirmed.rates[arm][0],
        best_lr_at_edge=choice.at_edge if choice else None,
        optimum_lr_low=optimum.lr_low if optimum else None,
        optimum_lr_high=optimum.lr_high if optimum else None,
        mean=None if each.evidence is None else float(each.evidence.means_A[place]),
    )


def _pair_trends(ladder: Ladder, judged: Sequence[Judgement], alpha: float, *, is_judged: bool) -> Iterator[PairTrend]:
    for change in changes(ladder):
        a, b, slope = change.a, change.b, change.slope
        leads = tuple(_lead_at(ladder, a, b, place, alpha) for place in range(len(ladder.budgets_tokens)))
        predicted = tuple(predictions(ladder, a, b, alpha))
        better = None
        if len(predicted) > 1:
            line, persistence = (abs(prediction.miss.mean) for prediction in predicted)
            better = line < persistence
        yield PairTrend(
            a=ladder.arms[a],
            b=ladder.arms[b],
            leads=leads,
            per_doubling=_estimate(slope, alpha),
            p_value=float(slope.p_value) if is_judged else None,
            p_adjusted=change.p_adjusted if is_judged else None,
            change=change.direction(alpha) if is_judged else NOT_SHOWN,
            at_chosen_rates=not _outlasts_better_rates(ladder, judged, a, b, alpha),
            advantage=_advantage(leads),
            line=tuple(_line(ladder, a, b, alpha)),
            crossover=crossover(ladder, a, b, alpha, may_extrapolate=bool(better)),
            predictions=predicted,
            line_predicts_better=better,
        )


@dataclass(frozen=True, kw_only=True)
class Change:
    """The slope per doubling of the lead of ``a``, ahead at the largest budget, over ``b``: places in the ladder."""

    a: int
    b: int
    slope: Comparison
    p_adjusted: float

    def direction(self, alpha: float) -> str:
        """``grows``, ``shrinks`` or ``not_shown``."""
        if self.p_adjusted > alpha:
            return NOT_SHOWN
        return "grows" if float(self.slope.deciding(alpha).mean) > 0 else "shrinks"


def changes(ladder: Ladder) -> list[Change]:
    """Return the slope of every pair's lead per doubling of the budget, p-values by Holm over all pairs."""
    means_A = ladder.losses_KSA[-1].mean(axis=0)
    pairs = [(a, b) if means_A[a] <= means_A[b] else (b, a) for a, b in combinations(range(len(ladder.arms)), 2)]
    slopes = [ladder.contrast(ladder.lead(a, b, math.log(2) * ladder.slope())) for a, b in pairs]
    adjusted = holm(np.asarray([float(slope.p_value) for slope in slopes]))
    return [
        Change(a=a, b=b, slope=slope, p_adjusted=float(p))
        for (a, b), slope, p in zip(pairs, slopes, adjusted, strict=True)
    ]


def _estimate(comparison: Comparison, alpha: float) -> Estimate:
    deciding = comparison.deciding(alpha)
    low, high = deciding.interval(alpha)
    return Estimate(mean=float(deciding.mean), low=finite(float(low)), high=finite(float(high)))


def _lead_at(ladder: Ladder, a: int, b: int, place: int, alpha: float) -> LeadAtBudget:
    lead = _estimate(ladder.contrast(ladder.lead(a, b, ladder.at(place))), alpha)
    leader, rival = (a, b) if lead.mean >= 0 else (b, a)
    return LeadAtBudget(
        budget_tokens=ladder.budgets_tokens[place], lead=lead, tokens=_token_share(ladder, leader, rival, place, alpha)
    )


def _token_share(ladder: Ladder, leader: int, rival: int, place: int, alpha: float) -> TokenShare:
    """Where the leader's curve meets the rival's loss, loss being linear in log tokens between two budgets.

    At the smallest budget the rival's curve is followed upwards instead, to the leader's loss there: it needs more
    tokens by the inverse of the share.
    """
    follows_leader = place > 0
    other = place - 1 if follows_leader else place + 1
    curve, fixed, sign = (leader, rival, 1.0) if follows_leader else (rival, leader, -1.0)
    near, far = ladder.budgets_tokens[place], ladder.budgets_tokens[other]
    ratio = max(near, far) / min(near, far)
    along_X = np.linspace(0.0, 1.0, POINTS)
    over_XK = (1 - along_X)[:, None] * ladder.at(place) + along_X[:, None] * ladder.at(other)
    excess = ladder.contrast(sign * (ladder.weights(curve, over_XK) - ladder.weights(fixed, ladder.at(place))))
    means_X = excess.tests["seeds"].mean
    step = float(means_X[-1] - means_X[0])
    along = -float(means_X[0]) / step if step > 0 else math.inf
    inside_X = along_X[excess.p_value > alpha]
    ends = (float(inside_X[0]), float(inside_X[-1])) if inside_X.size else (min(along, 1.0), min(along, 1.0))
    return TokenShare(
        leader=ladder.arms[leader],
        rival=ladder.arms[rival],
        share=ratio ** -min(along, 1.0),
        low=None if ends[1] >= 1.0 else ratio ** -ends[1],
        high=ratio ** -ends[0],
        is_upper_bound=along > 1.0,
    )


def _advantage(leads: Sequence[LeadAtBudget]) -> str:
    """How the advantage in tokens goes from the smallest to the largest budget; a share of one is none."""
    first, last = leads[0].tokens, leads[-1].tokens
    if first.leader != last.leader:
        return NOT_SHOWN
    if last.low is not None and last.low > first.high:
        return "shrinks"
    return "grows" if first.low is not None and first.low > last.high else NOT_SHOWN


def _outlasts_better_rates(ladder: Ladder, judged: Sequence[Judgement], a: int, b: int, alpha: float) -> bool:
    """Whether the change would stand if, at both ends, the arm that would undo it had its best rate."""
    first, last = judged[0].optima, judged[-1].optima
    ends = ladder.contrast(ladder.lead(a, b, ladder.at(len(judged) - 1) - ladder.at(0))).deciding(alpha)
    grows = float(ends.mean) > 0
    early, late = (ladder.arms[a], ladder.arms[b]) if grows else (ladder.arms[b], ladder.arms[a])
    if early not in first or late not in last:
        return False
    rng = np.random.default_rng([DRAW_SEED, 2, a, b])  # no optimum draws from it
    gains_R = first[early].gain_draws + last[late].gain_draws
    changes_R = ends.draws(rng, gains_R.size) * (1 if grows else -1)
    return bool((changes_R > gains_R).mean() >= 1 - alpha / 2)


def predictions(ladder: Ladder, a: int, b: int, alpha: float) -> Iterator[Prediction]:
    """Yield what the budgets below say of the largest, the line first; two of them make a line."""
    n_below = len(ladder.budgets_tokens) - 1
    observed_K = ladder.at(n_below)
    ways: dict[str, Floats] = {}
    if n_below > 1:
        ways["line"] = np.append(ladder.below(n_below).line_at(ladder.log_budgets_K[-1]), 0.0)
    ways["persistence"] = ladder.at(n_below - 1)
    for by, over_K in ways.items():
        miss = _estimate(ladder.contrast(ladder.lead(a, b, observed_K - over_K)), alpha)
        predicted = ladder.contrast(ladder.lead(a, b, over_K)).tests["seeds"].mean
        yield Prediction(by=by, predicted=float(predicted), miss=miss)


def _line(ladder: Ladder, a: int, b: int, alpha: float) -> Iterator[LinePoint]:
    """Yield the fitted line from the smallest budget to the largest."""
    first, last = ladder.log_budgets_K[[0, -1]]
    for log_tokens in np.linspace(first, last, LINE_POINTS):
        found = ladder.contrast(ladder.lead(a, b, ladder.line_at(log_tokens)))
        yield LinePoint(tokens=_tokens(log_tokens), lead=_estimate(found, alpha))


def crossover(ladder: Ladder, a: int, b: int, alpha: float, *, may_extrapolate: bool) -> Crossover:
    """Return where the line's interval holds zero, at most one step of the ladder beyond its ends."""
    logs_K = ladder.log_budgets_K
    low, high = float(logs_K[0]), float(logs_K[-1])
    if may_extrapolate:
        low, high = low - float(logs_K[1] - logs_K[0]), high + float(logs_K[-1] - logs_K[-2])
    logs_X = np.linspace(low, high, POINTS)
    line = ladder.contrast(ladder.lead(a, b, ladder.line_at(logs_X)))
    means_X, is_zero_X = line.tests["seeds"].mean, line.p_value > alpha
    slope = float(means_X[-1] - means_X[0]) / (high - low)
    crosses = means_X[0] * means_X[-1] <= 0 and slope != 0
    is_beyond_X = (logs_X < logs_K[0]) | (logs_X > logs_K[-1])
    edges = np.flatnonzero(np.diff(np.concatenate(([False], is_zero_X, [False])).astype(np.int8)))
    return Crossover(
        ranges=tuple((_tokens(logs_X[start]), _tokens(logs_X[end - 1])) for start, end in edges.reshape(-1, 2)),
        at=_tokens(low - float(means_X[0]) / slope) if crosses else None,
        searched=(_tokens(low), _tokens(high)),
        is_open_below=bool(is_zero_X[0]),
        is_open_above=bool(is_zero_X[-1]),
        is_extrapolated=bool((is_zero_X & is_beyond_X).any()),
    )


def _tokens(log_tokens: float) -> int:
    return round(math.exp(log_tokens))
