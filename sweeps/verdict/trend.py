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
from sweeps.verdict.rows import Estimate, PairDifference
from sweeps.verdict.statistics import Comparison, Floats, holm

NOT_TESTED = "not_tested"
NOT_SHOWN = "not_shown"
LINE_POINTS = 13
"""Points of the fitted line that are kept, for those who draw it."""


@dataclass(frozen=True, kw_only=True)
class ArmAtBudget:
    """One arm at one budget: the rate it is judged at, with the interval of the fitted optimum, and its mean loss."""

    name: str
    best_lr: float | None
    best_lr_at_edge: bool | None
    optimum_lr_low: float | None
    optimum_lr_high: float | None
    mean: float | None


@dataclass(frozen=True, kw_only=True)
class AtBudget:
    """What one budget shows. ``outcome`` is ``not_tested`` where a larger budget has no winner (fixed sequence)."""

    budget_tokens: int
    outcome: str
    winner: str | None
    leading: str | None
    seeds: int
    reason: str | None
    arms: tuple[ArmAtBudget, ...]
    pairs: tuple[PairDifference, ...]


@dataclass(frozen=True, kw_only=True)
class TokenShare:
    """The share of its tokens with which ``leader`` reaches the loss that ``rival`` has at this budget.

    ``low`` is None where no share between two budgets bounds it from below; ``is_upper_bound`` says that the share
    itself may be less.
    """

    leader: str
    rival: str
    share: float
    low: float | None
    high: float
    is_upper_bound: bool


@dataclass(frozen=True, kw_only=True)
class LeadAtBudget:
    """The lead of a over b at one budget, in nats per token and in tokens of whichever is ahead there."""

    budget_tokens: int
    lead: Estimate
    tokens: TokenShare


@dataclass(frozen=True, kw_only=True)
class Crossover:
    """Budgets at which the lead may be zero: where the interval of the fitted line holds zero (Fieller's set).

    ``ranges`` are in tokens; ``at`` is where the line itself crosses, None where it does not between the ends that were
    searched. A set that reaches such an end is open there: nothing is known of its continuation. ``is_extrapolated``
    says that a part of it lies beyond the budgets that were run.
    """

    ranges: tuple[tuple[int, int], ...]
    at: int | None
    searched: tuple[int, int]
    is_open_below: bool
    is_open_above: bool
    is_extrapolated: bool


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What smaller budgets say of the largest one's lead, by a ``line`` in log tokens or by ``persistence``."""

    by: str
    predicted: float
    miss: Estimate


@dataclass(frozen=True, kw_only=True)
class LinePoint:
    """The fitted line's lead at a budget, with its interval."""

    tokens: int
    lead: Estimate


@dataclass(frozen=True, kw_only=True)
class PairTrend:
    """How the lead of a, the arm ahead at the largest budget, over b goes with the budget.

    ``per_doubling`` is the least-squares slope in nats per doubling; ``change`` is ``grows``, ``shrinks`` or
    ``not_shown`` by Holm's p-value over all pairs, which is None where nothing is judged. ``advantage`` says the same
    of the advantage in tokens, by intervals at the smallest and the largest budget that do not overlap.
    ``at_chosen_rates`` says that better rates at the two ends could make the change.
    """

    a: str
    b: str
    leads: tuple[LeadAtBudget, ...]
    per_doubling: Estimate
    p_value: float | None
    p_adjusted: float | None
    change: str
    at_chosen_rates: bool
    advantage: str
    line: tuple[LinePoint, ...]
    crossover: Crossover
    predictions: tuple[Prediction, ...]
    line_predicts_better: bool | None


@dataclass(frozen=True, kw_only=True)
class Trend:
    """Every budget, smallest first, and every pair of arms that can win at all of them."""

    budgets: tuple[AtBudget, ...] = ()
    pairs: tuple[PairTrend, ...] = ()

    def of(self, one: str, other: str) -> PairTrend | None:
        """Return the trend of a pair of arms, whichever leads."""
        return next((pair for pair in self.pairs if {pair.a, pair.b} == {one, other}), None)


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
            pairs=tuple(_differences(each, alpha)),
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


def _differences(each: Judgement, alpha: float) -> Iterator[PairDifference]:
    evidence, arms = each.evidence, each.confirmed.arms
    for a, b in combinations(range(len(arms)), 2):
        difference, low, high = None, None, None
        if evidence is not None:
            difference = float(evidence.means_A[a] - evidence.means_A[b])
            if evidence.has_tests:
                low, high = (float(end) for end in evidence.pair(a, b).deciding(alpha).interval(alpha))
        yield PairDifference(a=arms[a], b=arms[b], difference=difference, ci_low=low, ci_high=high)


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
            per_doubling=_scaled(_estimate(slope, alpha), math.log(2)),
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
    """The slope of the lead of arm ``a``, ahead at the largest budget, over ``b`` (places in the ladder)."""

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
    """Return the slope of every pair's lead in the logarithm of the budget, p-values by Holm over all pairs."""
    means_A = ladder.losses_KSA[-1].mean(axis=0)
    pairs = [(a, b) if means_A[a] <= means_A[b] else (b, a) for a, b in combinations(range(len(ladder.arms)), 2)]
    slopes = [ladder.contrast(ladder.lead(a, b, ladder.slope())) for a, b in pairs]
    adjusted = holm(np.asarray([float(slope.p_value) for slope in slopes]))
    return [
        Change(a=a, b=b, slope=slope, p_adjusted=float(p))
        for (a, b), slope, p in zip(pairs, slopes, adjusted, strict=True)
    ]


def _estimate(comparison: Comparison, alpha: float) -> Estimate:
    deciding = comparison.deciding(alpha)
    low, high = deciding.interval(alpha)
    return Estimate(mean=float(deciding.mean), low=finite(float(low)), high=finite(float(high)))


def _scaled(value: Estimate, factor: float) -> Estimate:
    low, high = (None if end is None else end * factor for end in (value.low, value.high))
    return Estimate(mean=value.mean * factor, low=low, high=high)


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
    rng = np.random.default_rng([DRAW_SEED, a, b])
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
