"""The verdict in words, from the data by template: a clause whose condition fails is not written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from sweeps import formatting as written
from sweeps.ledger.results import SweepResults, finite
from sweeps.verdict.blockers import excluded_words
from sweeps.verdict.case import Case, Lead
from sweeps.verdict.confirmed import Confirmed
from sweeps.verdict.exclusions import STEPS_BEYOND_THE_EDGE
from sweeps.verdict.power import MOST_SEEDS

UNSEEN_FAILURE_LEVEL = 0.05
"""A failure that occurs in a share q of seeds stays unseen in n of them with probability (1 - q)^n."""


def compose(case: Case) -> str:
    """Return one sentence for a decision, else what is missing."""
    sentences = {"wins": _wins, "tie": _tie, "undecided": _undecided}
    if case.outcome not in sentences:
        return _no_verdict(case)
    clauses = [
        *sentences[case.outcome](case),
        *_at_equal_flops(case),
        *_change(case),
        *_views(case),
        *_behind(case),
        *_excluded(case),
        *_scale(case.results),
    ]
    return f"{'; '.join(clauses)}."


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


def _wins(case: Case) -> Iterator[str]:
    leads = written.listed([f"{_nats(lead.lead)} below {lead.rival} ({_evidence(lead, case)})" for lead in case.leads])
    yield f"{headline(case)}: its test loss{_after(case)} is {leads}, {_compared(case)}"
    yield from _negligible(case)
    yield from _rates(case)
    n_runs = case.n_runs[case.best or ""]
    unseen = 1 - UNSEEN_FAILURE_LEVEL ** (1 / n_runs)
    yield f"a failure not seen in {written.plural(n_runs, 'seed')} may still occur in up to {unseen:.0%} of seeds"


def _tie(case: Case) -> Iterator[str]:
    assert case.margin is not None
    closest = case.closest
    limits = [
        *(["at the chosen rates"] if case.tie_at_chosen_rates else []),
        *(["on this exam"] if case.exam.is_on_this_exam else []),
    ]
    yield (
        f"Tie{' ' if limits else ''}{', '.join(limits)}: {case.best} and {closest.rival}{_after(case)} differ by "
        f"{_nats(closest.lead)} ({_evidence(closest, case)}), within the margin of {_nats(case.margin.value)} (two "
        f"one-sided tests, {_p(case.tie_p)}), {_compared(case)}"
    )
    if case.tie_at_chosen_rates:
        yield "a better rate for one of the two could move their difference out of the margin"


def _undecided(case: Case) -> Iterator[str]:
    closest = case.closest
    yield (
        f"Undecided: {case.best} has the lowest mean test loss{_after(case)}, {_nats(closest.lead)} below "
        f"{closest.rival} ({_evidence(closest, case)}), {_compared(case)}, which neither separates it from every other "
        f"arm{' nor shows a tie' if case.margin is not None else ''}"
    )
    if case.exam.winner_over_seeds is not None:
        yield (
            f"by seeds alone, on this exam, {case.exam.winner_over_seeds} is better than every other arm, but other "
            f"{case.exam.units} may reverse that"
        )
    yield from _settling(case)
    if case.exam.tie_out_of_reach and case.margin is not None:
        yield f"a tie within {_nats(case.margin.value)} is out of reach on this exam, whatever the number of seeds"


def _settling(case: Case) -> Iterator[str]:
    needed = case.needed
    if needed is None:
        return
    if needed.seeds is not None:
        what = "a win" if needed.settles == "wins" else "a tie"
        command = f": `{case.command}`" if case.command else ""
        fresh = "fresh seeds" if case.looks.used >= case.looks.planned else "seeds in all"
        yield f"about {needed.seeds} {fresh} would settle it as {what}, if the means are what they seem{command}"
    else:
        yield f"no number of seeds up to {MOST_SEEDS} would settle it, if the means are what they seem"
    if needed.documents is not None and case.exam.documents is not None:
        yield (
            f"so would an exam of about {needed.documents:,} {case.exam.units} instead of {case.exam.documents:,} "
            "at today's seeds, in a new sweep"
            if needed.seeds is not None
            else f"an exam of about {needed.documents:,} {case.exam.units} instead of {case.exam.documents:,} would, "
            "in a new sweep"
        )


def _no_verdict(case: Case) -> str:
    """Several sentences: what stands in the way, what to run, and what was seen so far."""
    *first, last = (blocker.text for blocker in case.blockers)
    joined = f", and {last}" if len(first) == 1 else "".join(f"; {text}" for text in [*first[1:], last])
    sentences = [f"No verdict yet: {first[0]}{joined}" if first else f"No verdict yet: {last}"]
    if case.command:
        sentences.append(f"Run `{case.command}`")
    sentences += _so_far(case)
    names = case.results.arm_names
    rest = [*_behind(case), *(_excluded(case) if len(case.confirmed.arms) > 1 else ())]
    return " ".join([*(f"{text}." for text in sentences), *(written.sentence(text, *names) for text in rest)])


def _so_far(case: Case) -> Iterator[str]:
    if case.best is not None and case.n_seeds:
        means = f"lowest mean test loss over {written.plural(case.n_seeds, 'complete seed')}"
        yield f"Leading so far: {case.best} ({means})"
        return
    lowest = _lowest_explored(case.results)
    if lowest is not None:
        yield f"Leading so far: {lowest[0]} (lowest explore loss, {written.loss(lowest[1])})"


def _lowest_explored(results: SweepResults) -> tuple[str, float] | None:
    losses = [
        (loss, result.cell.strategy)
        for result in results.seen
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
        yield text if lead.gain_bound > lead.lead else f"{text}, which leaves too little of the lead to be certain"


def _at_equal_flops(case: Case) -> Iterator[str]:
    """What the same number of training FLOPs buys, where a token costs arms different numbers of them."""
    view = case.equal_flops
    if view is None or view.lowest is None:
        return
    budgets = written.listed([f"{arm} {written.count(tokens)}" for arm, tokens in view.budgets_tokens.items()])
    beside = "" if case.outcome != "wins" else " too" if view.winner == case.best else " instead"
    what = f"{view.winner} wins{beside}" if view.winner else f"no arm wins ({view.lowest} has the lowest mean)"
    yield f"at equal training FLOPs (tokens: {budgets}) {what}, at the rates chosen at equal tokens"


def _change(case: Case) -> Iterator[str]:
    """How the best arm's leads went with the budget, in one clause."""
    parts = []
    for lead in case.leads:
        pair = case.trend.of(case.best or "", lead.rival)
        if pair is None:
            continue
        side = 1 if pair.a == case.best else -1
        first, last = (written.signed(side * at.lead.mean) for at in (pair.leads[0], pair.leads[-1]))
        tokens = written.count(pair.leads[0].budget_tokens)
        shown = "not shown to change" if pair.change == "not_shown" else pair.change
        rates = " at the chosen rates" if pair.at_chosen_rates and pair.change != "not_shown" else ""
        parts.append(
            f"over {lead.rival} from {first} at {tokens} tokens to {last} ({shown}{rates}, {_p(pair.p_adjusted)})"
        )
    if parts:
        yield f"with the budget its lead went {written.listed(parts)}"


def _views(case: Case) -> Iterator[str]:
    for view, (arm, wins) in case.other_views.items():
        yield f"{view} {arm} {'wins' if wins else 'has the lowest mean, without winning'}"


def _behind(case: Case) -> Iterator[str]:
    for found in case.behind:
        yield (
            f"the best rate of {found.edge.strategy} ({found.edge.best:g}) is the {found.edge.side}est tried, but it "
            f"is {_nats(found.behind)} behind, more than {STEPS_BEYOND_THE_EDGE:g} times the "
            f"{_nats(found.last_gain)} that the last step of its grid gained"
        )


def _excluded(case: Case) -> Iterator[str]:
    excluded = case.confirmed.excluded
    if not excluded:
        return
    yield f"{excluded_words(case.confirmed)}, and an arm that diverged can neither win nor tie"
    means = [mean for arm in case.confirmed.arms if (mean := _mean_of(case.confirmed, arm)) is not None]
    for arm, found in excluded.items():
        mean = found.finished_mean
        if mean is not None and means:
            has = "have" if mean < min(means) else "do not have"
            seeds = written.plural(len(found.finished), "finished seed")
            yield f"the {seeds} of {arm} {has} the lowest mean ({written.loss(mean)})"
    rates = sorted({found.lower_lr for found in excluded.values() if found.lower_lr is not None})
    if rates and case.results.folder is not None:
        options = " ".join(f"--lr {rate:g}" for rate in rates)
        yield f"a lower rate may not diverge: `sweeps extend {case.results.name} {options}`"


def _mean_of(confirmed: Confirmed, arm: str) -> float | None:
    losses = [loss for r in confirmed.cells[arm].values() if (loss := finite(r.test_loss)) is not None]
    return sum(losses) / len(losses) if losses else None


def _evidence(lead: Lead, case: Case) -> str:
    if lead.low is None or lead.high is None:
        return "no interval from one seed"
    level = f"{100 * (1 - case.looks.alpha):.3g}%"
    text = f"{level} interval {_span(lead.low, lead.high)}, {_p(lead.p_value)}"
    seeds, welch = lead.tests.get("seeds"), lead.tests.get("welch")
    if "documents" in lead.tests and seeds is not None:
        return f"{text}; on this exam {_span(seeds.low, seeds.high)}"
    if welch is not None and seeds is not None:
        return f"{text}; paired {_p(seeds.p_value)}, unpaired {_p(welch.p_value)}"
    return text


def _span(low: float, high: float) -> str:
    """An interval of a lead, with signs only where it reaches below zero: "0.1 below" needs no plus."""
    return written.interval(low, high, sign=low < 0)


def _compared(case: Case) -> str:
    """What the differences are taken over."""
    each = "each difference " if len(case.leads) > 1 else ""
    numbers = sorted(set(case.n_runs.values()))
    runs = f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    if case.confirmed.pairing == "runs":
        return f"{each}over {runs} unpaired runs per arm by Welch's test"
    if case.confirmed.pairing == "both":
        return (
            f"{each}paired over {written.plural(case.n_seeds, 'shared seed')} and unpaired over {runs} runs "
            "per arm, the larger p-value deciding"
        )
    extra = f" (unplanned look {case.looks.unplanned}, earlier seeds left out)" if case.looks.unplanned else ""
    exam = case.exam
    documents = "" if exam.documents is None else f" and {exam.documents:,} {exam.units} of the exam"
    return f"{each}paired over {written.plural(case.n_seeds, 'fresh seed')}{documents}{extra}"


def _p(p_value: float | None) -> str:
    value = written.p_value(p_value)
    return f"p {value}" if value.startswith("<") else f"p = {value}"


def _after(case: Case) -> str:
    return f" after {written.count(case.results.budget_tokens)} tokens" if case.results.budget_tokens else ""


def _nats(value: float) -> str:
    return f"{value:.4f} nats" if abs(value) >= 0.0005 or value == 0 else f"{value:.2g} nats"


def _scale(results: SweepResults) -> Iterator[str]:
    """Model, data and updates that the claim is about: it goes no further."""
    facts: list[str] = []
    sizes = results.model_sizes
    if sizes:
        total, active = (sorted({size[place] for size in sizes}) for place in (0, 1))
        tokens = sorted({float(f"{results.budget_tokens / size:.3g}") for size in active})
        facts.append(f"{_span_of(total, _millions)} parameters of which {_span_of(active, _millions)} active")
        facts.append(f"{_span_of(tokens, '{:.3g}'.format)} tokens per active parameter")
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


def _span_of(values: Sequence[float], write: Callable[[float], str]) -> str:
    """One value, or the least and the greatest."""
    return write(values[0]) if len(values) == 1 else f"{write(values[0])} to {write(values[-1])}"


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
