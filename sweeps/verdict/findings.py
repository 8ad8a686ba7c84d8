"""One measurement of a rule of the method, and what the verdict found on its way that is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sweeps.ledger.results import CellResult, SweepResults
from sweeps.verdict.best_rate import Choice
from sweeps.verdict.case import ExamFacts
from sweeps.verdict.confirmed import Confirmed, Looks
from sweeps.verdict.margin import Margin
from sweeps.verdict.rows import BudgetViews, ContextSplit, ContextUse, ControlSplit
from sweeps.verdict.trend_rows import Trend

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
    14: "The budget is an axis",
    15: "An arm can be anything",
}


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
    trend: Trend
    winner: str | None
    leading: str | None
    next_seed: Mapping[str, float]
    exam: ExamFacts

    @property
    def confirm_cells(self) -> dict[str, list[CellResult]]:
        """Each arm's confirm cells at the rate at which it is judged."""
        return {arm: list(found.values()) for arm, found in self.confirmed.cells.items()}
