"""What a verdict holds about several budgets: each of them, and how the lead of each pair goes with them, typed."""

from __future__ import annotations

from dataclasses import dataclass

from sweeps.verdict.rows import Estimate, PairDifference

NOT_TESTED = "not_tested"
NOT_SHOWN = "not_shown"


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
