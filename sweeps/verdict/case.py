"""What a statement is made from: the best arm's leads, the exam, and all that limits a claim."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sweeps.ledger.results import SweepResults
from sweeps.verdict.blockers import Blocker
from sweeps.verdict.confirmed import Confirmed, Looks
from sweeps.verdict.exclusions import BehindAtEdge
from sweeps.verdict.margin import Margin
from sweeps.verdict.power import Needed
from sweeps.verdict.rows import FlopsView
from sweeps.verdict.trend_rows import Trend


@dataclass(frozen=True, kw_only=True)
class Interval:
    """One test of a lead: its interval and two-sided p-value."""

    low: float
    high: float
    p_value: float


@dataclass(frozen=True, kw_only=True)
class Lead:
    """The best arm's lead over one rival in nats per token, above zero when it is ahead.

    ``low``, ``high`` and ``p_value`` are of the test that decides, ``tests`` all of them by name. ``at_chosen_rates``
    says that the rival's rate may be what the lead is made of (rule 8 of the method); ``gain_bound`` is what the rival
    could plausibly gain from a better rate, None where nothing bounds it; ``this_exam`` says that the claim goes no
    further than the exam's documents.
    """

    rival: str
    lead: float
    low: float | None
    high: float | None
    p_value: float | None
    at_chosen_rates: bool = False
    gain_bound: float | None = None
    this_exam: bool = False
    tests: Mapping[str, Interval] = field(default_factory=dict)

    def is_negligible(self, margin: Margin | None) -> bool:
        """Whether the whole interval lies inside the margin."""
        if margin is None or self.low is None or self.high is None:
            return False
        return -margin.value < self.low and self.high < margin.value


@dataclass(frozen=True, kw_only=True)
class ExamFacts:
    """What the exam can support: ``unit`` is ``document`` or ``group``, None where losses by document are not known.

    ``effective`` documents, equally long, would be as noisy as the ``documents`` there are; ``winner_over_seeds`` is
    the arm that wins by seeds alone, which holds on this exam; ``tie_out_of_reach`` says that the documents alone are
    too noisy for a tie within the margin.
    """

    unit: str | None
    documents: int | None
    effective: float | None
    is_on_this_exam: bool
    winner_over_seeds: str | None = None
    tie_out_of_reach: bool = False

    @property
    def units(self) -> str:
        """What the exam's units are called in a sentence, empty where losses by document are not known."""
        return {None: "", "document": "documents"}.get(self.unit, "groups of documents")

    def as_dict(self) -> dict[str, Any]:
        """Return the entry of ``verdict.json``."""
        return {
            "unit": self.unit,
            "documents": self.documents,
            "effective_documents": self.effective,
            "is_on_this_exam": self.is_on_this_exam,
            "winner_over_seeds": self.winner_over_seeds,
        }


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a statement is made from. ``best`` is the arm of lowest mean test loss, None where there is none."""

    results: SweepResults
    outcome: str
    best: str | None
    leads: tuple[Lead, ...]
    n_seeds: int
    """Complete seeds of all judged arms, those that are paired."""
    n_runs: Mapping[str, int]
    """Runs of each judged arm."""
    looks: Looks
    margin: Margin | None
    confirmed: Confirmed
    exam: ExamFacts
    trend: Trend = field(default_factory=Trend)
    equal_flops: FlopsView | None = None
    blockers: tuple[Blocker, ...] = ()
    behind: tuple[BehindAtEdge, ...] = ()
    command: str | None = None
    needed: Needed | None = None
    tie_p: float | None = None
    """The p-value of two one-sided tests for the two arms of lowest mean, where there is a margin."""
    tie_at_chosen_rates: bool = False
    other_views: Mapping[str, tuple[str, bool]] = field(default_factory=dict)
    """By the words that name a view of the exam: its arm of lowest mean, and whether that arm wins there."""

    @property
    def closest(self) -> Lead:
        """The lead over the rival of second lowest mean."""
        return min(self.leads, key=lambda lead: lead.lead)
