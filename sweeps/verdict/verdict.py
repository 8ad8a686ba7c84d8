"""A decided sweep: what ``decision`` found, what ``verdict.json`` holds, and what a report reads beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sweeps.verdict.best_rate import Choice
from sweeps.verdict.blockers import Blocker
from sweeps.verdict.case import ExamFacts
from sweeps.verdict.confirmed import DECIDED, Looks
from sweeps.verdict.exclusions import BehindAtEdge, Exclusion
from sweeps.verdict.findings import Check
from sweeps.verdict.margin import Margin
from sweeps.verdict.rate_curve import Optimum
from sweeps.verdict.rows import ArmResult, BudgetViews, ContextSplit, ControlSplit, PairResult, RungView, as_json
from sweeps.verdict.trend_rows import Trend

SCHEMA = 1
METRIC = "test_loss"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A decided sweep. ``as_dict`` is ``verdict.json``; the rest is for those who draw and explain it.

    ``choices`` and ``optima`` are by arm; ``document_intervals`` are by pair, over new seeds and new documents;
    ``leading`` is the winner, or else the judged arm of lowest mean. ``next_seed`` is by rival the chance that the
    leading arm ends below it on one more seed; ``headline`` is the outcome in a few words.
    """

    sweep: str
    outcome: str
    winner: str | None
    headline: str
    statement: str
    alpha: float
    margin: Margin | None
    budget_tokens: int
    strategies: tuple[ArmResult, ...]
    pairs: tuple[PairResult, ...]
    seeds_needed: int | None
    looks: Looks
    context: tuple[ContextSplit, ...] | None
    controls: tuple[ControlSplit, ...] | None
    by_rung: tuple[RungView, ...]
    by_budget: BudgetViews
    trend: Trend
    checks: tuple[Check, ...]
    exam: ExamFacts
    pairing: str = "seeds"
    documents_needed: int | None = None
    tie_at_chosen_rates: bool | None = None
    excluded: tuple[Exclusion, ...] = ()
    behind_at_edge: tuple[BehindAtEdge, ...] = ()
    last_decided: Mapping[str, Any] | None = None
    objections: tuple[Blocker, ...] = ()
    command: str | None = None
    leading: str | None = None
    choices: Mapping[str, Choice] = field(default_factory=dict)
    optima: Mapping[str, Optimum] = field(default_factory=dict)
    next_seed: Mapping[str, float] = field(default_factory=dict)
    document_intervals: Mapping[tuple[str, str], tuple[float, float]] = field(default_factory=dict)
    other_views: Mapping[str, tuple[str, bool]] = field(default_factory=dict)

    @property
    def before(self) -> str | None:
        """What was decided before the sweep was extended, where the newest verdict decides nothing."""
        return None if self.last_decided is None else before_extension(self.last_decided)

    @property
    def is_decided(self) -> bool:
        """Whether the arms were judged: neither exploratory nor withheld."""
        return self.outcome in DECIDED

    @property
    def caveats(self) -> tuple[str, ...]:
        """What a reader must know beside the statement: the sentences of the checks that were not kept."""
        return tuple(check.sentence for check in self.checks if not check.kept)

    def as_dict(self) -> dict[str, Any]:
        """The contract's JSON document; numbers that do not exist are None."""
        return {
            "schema": SCHEMA,
            "sweep": self.sweep,
            "outcome": self.outcome,
            "winner": self.winner,
            "statement": self.statement,
            "metric": METRIC,
            "alpha": self.alpha,
            "margin": self.margin.value if self.margin else None,
            "budget_tokens": self.budget_tokens,
            "strategies": as_json(self.strategies),
            "pairs": as_json(self.pairs),
            "exam": self.exam.as_dict(),
            "pairing": self.pairing,
            "tie_at_chosen_rates": self.tie_at_chosen_rates,
            "excluded": [found.as_dict() for found in self.excluded],
            "last_decided": None if self.last_decided is None else dict(self.last_decided),
            "seeds_needed": self.seeds_needed,
            "documents_needed": self.documents_needed,
            "looks": {"planned": self.looks.planned, "used": self.looks.used - (self.outcome not in DECIDED)},
            "context": as_json(self.context),
            "controls": as_json(self.controls),
            "by_rung": as_json(self.by_rung),
            "by_budget": as_json(self.by_budget),
            "by_budget_tokens": as_json(self.trend.budgets) or None,
            "trend": as_json(self.trend.pairs) or None,
            "caveats": list(self.caveats),
        }


def before_extension(last_decided: Mapping[str, Any]) -> str:
    """``last_decided``, as a verdict or its JSON holds it, in words."""
    return f"Last decided verdict ({last_decided['verdict']}): {last_decided['statement']}"
