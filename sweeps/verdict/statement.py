"""The verdict in one sentence, from the data by template: a clause whose condition fails is not written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sweeps import formatting as written
from sweeps.ledger.results import SweepResults, finite
from sweeps.verdict.blockers import Objection
from sweeps.verdict.confirmed import Looks
from sweeps.verdict.margin import Margin
from sweeps.verdict.statistics import SeedsNeeded


@dataclass(frozen=True, kw_only=True)
class Lead:
    """The best arm's lead over one rival in nats per token, above zero when it is ahead.

    ``at_chosen_rates`` says that the rival's rate may be what the lead is made of (rule 8 of the method);
    ``gain_bound`` is what the rival could plausibly gain from a better rate, None where nothing bounds it;
    ``this_exam`` says that resampling the exam's documents leaves room for no lead.
    """

    rival: str
    lead: float
    low: float | None
    high: float | None
    p_value: float | None
    at_chosen_rates: bool = False
    gain_bound: float | None = None
    this_exam: bool = False

    def is_negligible(self, margin: Margin | None) -> bool:
        """Whether the whole interval lies inside the margin."""
        if margin is None or self.low is None or self.high is None:
            return False
        return -margin.value < self.low and self.high < margin.value


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a statement is made from. ``best`` is the arm of lowest mean test loss, None where there is none."""

    results: SweepResults
    outcome: str
    best: str | None
    leads: tuple[Lead, ...]
    n_seeds: int
    looks: Looks
    margin: Margin | None
    objections: tuple[Objection, ...] = ()
    command: str | None = None
    seeds_needed: SeedsNeeded | None = None
    tie_p: float | None = None
    """The p-value of two one-sided tests for the two arms of lowest mean, where there is a margin."""
    other_views: Mapping[str, tuple[str, bool]] = field(default_factory=dict)
    """By the words that name a view of the exam: its arm of lowest mean, and whether that arm wins there."""

    @property
    def closest(self) -> Lead:
        """The lead over the rival of second lowest mean."""
        return min(self.leads, key=lambda lead: lead.lead)


def compose(case: Case) -> str:
    """Return the sentence for a case."""
    sentences = {"wins": _wins, "tie": _tie, "undecided": _undecided}
    sentence = sentences[case.outcome](case) if case.outcome in sentences else _no_verdict(case)
    return f"{sentence}."


def headline(case: Case) -> str:
    """Return the outcome in a few words, as the title of a report: what was found, else what was seen so far."""
    if case.outcome == "wins":
        return f"{case.best} wins{_qualifiers(case)}"
    if case.outcome == "tie":
        return f"{case.best} and {case.closest.rival} tie"
    if case.outcome == "undecided":
        return f"Undecided: {case.best} has the lowest mean"
    if case.best is not None and case.n_seeds:
        return f"{case.best} has the lowest mean so far"
    lowest = _lowest_explored(case.results)
    return f"{lowest[0]} has the lowest explore loss so far" if lowest else "Nothing to compare yet"


def _wins(case: Case) -> str:
    leads = written.listed([f"{_nats(lead.lead)} below {lead.rival} ({_evidence(lead, case)})" for lead in case.leads])
    clauses = [
        f"{headline(case)}: its test loss{_after(case)} is {leads}, each difference paired over {_seeds(case)}",
        *_negligible(case),
        *_rates(case),
        *_views(case),
        *_scale(case.results),
    ]
    return "; ".join(clauses)


def _tie(case: Case) -> str:
    assert case.margin is not None
    closest = case.closest
    clauses = [
        f"Tie: {case.best} and {closest.rival}{_after(case)} differ by {_nats(closest.lead)} "
        f"({_evidence(closest, case)}), within the margin of {_nats(case.margin.value)} (two one-sided tests, "
        f"{_p(case.tie_p)}) over {_seeds(case)}",
        *_views(case),
        *_scale(case.results),
    ]
    return "; ".join(clauses)


def _undecided(case: Case) -> str:
    closest = case.closest
    clauses = [
        f"Undecided: {case.best} has the lowest mean test loss{_after(case)}, {_nats(closest.lead)} below "
        f"{closest.rival} ({_evidence(closest, case)}) over {_seeds(case)}, which neither separates it from every "
        f"other arm{' nor shows a tie' if case.margin is not None else ''}",
        _settling(case),
        *_views(case),
        *_scale(case.results),
    ]
    return "; ".join(clauses)


def _settling(case: Case) -> str:
    needed = case.seeds_needed
    if needed is None:
        return "more seeds than 200 would be needed to settle it, were the means what they seem"
    what = "a win" if needed.settles == "wins" else "a tie"
    command = f": `{case.command}`" if case.command else ""
    fresh = "fresh seeds" if case.looks.used >= case.looks.planned else "seeds in all"
    return f"about {needed.seeds} {fresh} would settle it as {what}, were the means what they seem{command}"


def _no_verdict(case: Case) -> str:
    word = "Exploratory" if case.outcome == "exploratory" else "Withheld"
    reasons = "; ".join(objection.text for objection in case.objections)
    clauses = [f"{word}: {reasons}"]
    if case.command:
        clauses.append(f"`{case.command}` would bring what is missing")
    clauses += _so_far(case)
    return "; ".join(clauses)


def _so_far(case: Case) -> Iterator[str]:
    if case.best is not None and case.n_seeds:
        seeds = written.plural(case.n_seeds, "complete seed")
        yield f"so far {case.best} has the lowest mean test loss ({seeds}), which is no finding"
        return
    lowest = _lowest_explored(case.results)
    if lowest is not None:
        yield f"the lowest loss of explore is {lowest[0]}'s ({written.loss(lowest[1])}), which is no finding"


def _lowest_explored(results: SweepResults) -> tuple[str, float] | None:
    losses = [
        (loss, result.cell.strategy)
        for result in results.cells
        if result.cell.phase == "explore" and result.reached_budget and (loss := finite(result.val_loss)) is not None
    ]
    return (min(losses)[1], min(losses)[0]) if losses else None


def _qualifiers(case: Case) -> str:
    words = []
    if any(lead.at_chosen_rates for lead in case.leads):
        words.append("at the chosen rates")
    if any(lead.this_exam for lead in case.leads):
        words.append("on this exam")
    if case.other_views:
        words.append("in own context")
    return f" {', '.join(words)}" if words else ""


def _negligible(case: Case) -> Iterator[str]:
    rivals = [lead.rival for lead in case.leads if lead.is_negligible(case.margin)]
    if rivals and case.margin is not None:
        yield (
            f"the lead over {written.listed(rivals)} is detectable but negligible: its whole interval lies inside the "
            f"margin of {_nats(case.margin.value)}"
        )


def _rates(case: Case) -> Iterator[str]:
    for lead in case.leads:
        if not lead.at_chosen_rates or lead.gain_bound is None:
            continue
        text = f"{lead.rival} could plausibly gain up to {_nats(lead.gain_bound)} from a better rate"
        yield text if lead.gain_bound > lead.lead else f"{text}, which leaves too little of the lead to be sure of"


def _views(case: Case) -> Iterator[str]:
    for view, (arm, wins) in case.other_views.items():
        yield f"{view} {arm} {'wins' if wins else 'has the lowest mean, without winning'}"


def _evidence(lead: Lead, case: Case) -> str:
    if lead.low is None or lead.high is None:
        return "no interval from one seed"
    level = f"{100 * (1 - case.looks.alpha):.3g}%"
    parts = [f"{level} interval {written.signed(lead.low)} to {written.signed(lead.high)}"]
    if lead.p_value is not None:
        parts.append(_p(lead.p_value))
    return ", ".join(parts)


def _p(p_value: float | None) -> str:
    value = written.p_value(p_value)
    return f"p {value}" if value.startswith("<") else f"p = {value}"


def _after(case: Case) -> str:
    return f" after {written.count(case.results.budget_tokens)} tokens" if case.results.budget_tokens else ""


def _seeds(case: Case) -> str:
    kind = "fresh seed"
    extra = f" (unplanned look {case.looks.unplanned}, earlier seeds left out)" if case.looks.unplanned else ""
    return written.plural(case.n_seeds, kind) + extra


def _nats(value: float) -> str:
    return f"{value:.4f} nats" if abs(value) >= 0.0005 or value == 0 else f"{value:.2g} nats"


def _scale(results: SweepResults) -> Iterator[str]:
    """Model, data and updates that the claim is about: it goes no further."""
    facts: list[str] = []
    size = results.beginning.get("parameters")
    if isinstance(size, Mapping) and size.get("total") and size.get("active"):
        facts.append(f"{_millions(size['total'])} parameters of which {_millions(size['active'])} active")
        facts.append(f"{results.budget_tokens / float(size['active']):.3g} tokens per active parameter")
    updates = {results.budget_tokens // arm.tokens_per_step for arm in results.arms if arm.tokens_per_step}
    if updates:
        facts.append(
            written.plural(min(updates), "update")
            if len(updates) == 1
            else f"{min(updates):,} to {max(updates):,} updates"
        )
    corpus = _corpus_name(results.space.get("corpus"))
    if corpus:
        facts.append(corpus)
    if facts:
        yield f"all this for {', '.join(facts)}"


def _corpus_name(corpus: Any) -> str:
    if isinstance(corpus, str):
        return f"corpus {corpus}"
    if not isinstance(corpus, Mapping):
        return ""
    if corpus.get("kind") == "hub":
        return f"corpus {corpus.get('dataset')}" + (f"/{corpus['name']}" if corpus.get("name") else "")
    return f"{corpus.get('kind')} corpus"


def _millions(count: float) -> str:
    return f"{count / 1e6:.3g} M" if count < 1e9 else f"{count / 1e9:.3g} B"
