"""The first screen of a report: what was found or seen, how large it is, and what keeps it from being a verdict."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sweeps import formatting as written
from sweeps.report.facts import Facts
from sweeps.shown_commands import shown_line, with_shown_commands
from sweeps.verdict.rows import TokensToTarget
from sweeps.verdict.verdict import Verdict

OUTCOME_NAMES = {
    "wins": "one arm wins",
    "tie": "a tie",
    "undecided": "undecided",
    "exploratory": "exploratory",
    "withheld": "no verdict yet",
}
OUTCOME_MEANINGS = {
    "wins": "It is better than every other arm, each in a two-sided test over fresh {over}.",
    "tie": "No arm wins, and the best two are shown to differ by less than the margin that was fixed beforehand.",
    "undecided": "It is not shown to be better than every other arm, nor are the best two shown to be equal.",
    "exploratory": "What was seen so far is a description, not a finding: too few seeds were judged.",
    "withheld": "What was seen so far is not a finding yet.",
}
FIRST_PICTURES = ("confirm", "rates")
"""The one picture of the first screen is the first of these that there is."""


@dataclass(frozen=True, kw_only=True)
class Opening:
    """The parts of the first screen; ``reasons`` and ``command`` are empty for a decided sweep."""

    badge: str
    headline: str
    leads: tuple[str, ...]
    meaning: str
    reasons: tuple[str, ...]
    command: str
    statement: str
    before: str
    """The last decided verdict of a sweep that was extended since."""


def opening(facts: Facts) -> Opening:
    """Return the first screen of a sweep."""
    verdict = facts.verdict
    names = [arm.name for arm in facts.arms]
    reasons = () if verdict.is_decided else tuple(written.sentence(why.text, *names) for why in verdict.objections)
    return Opening(
        badge=OUTCOME_NAMES[verdict.outcome],
        headline=_headline(verdict),
        leads=tuple(_lead_sentences(facts)),
        meaning=OUTCOME_MEANINGS[verdict.outcome].format(over=facts.over),
        reasons=reasons,
        command=shown_line(verdict.command) if verdict.command and not verdict.is_decided else "",
        statement=with_shown_commands(verdict.statement),
        before=_before(verdict),
    )


def _headline(verdict: Verdict) -> str:
    """The outcome in a few words; of a sweep that was extended since it was decided, what was decided."""
    last = verdict.last_decided
    if last is None:
        return verdict.headline
    decided = f"{last['winner']} wins" if last["winner"] else OUTCOME_NAMES[last["outcome"]]
    return f"{decided}, as decided before the sweep was extended"


def _before(verdict: Verdict) -> str:
    """The last decided verdict of an extended sweep, and what is seen since."""
    now = written.sentence(f"with what was added since: {verdict.headline}")
    return with_shown_commands(f"{verdict.before} {now}") if verdict.before else ""


def _lead_sentences(facts: Facts) -> Iterator[str]:
    leading = facts.verdict.leading
    for pair in facts.leads:
        assert leading is not None
        lead, rival = pair.above(leading), pair.rival_of(leading)
        assert lead is not None
        parts = [] if lead.low is None else [f"{facts.confidence} interval {_span(lead.low, lead.high)}"]
        if facts.verdict.pairing == "seeds":
            one, other = (arm.loss_of_seed for arm in facts.arms if arm.name in pair)
            exam = facts.verdict.exam
            documents = "" if exam.documents is None else f" and {exam.documents:,} {exam.units} of the exam"
            parts.append(f"paired over {written.plural(len(one.keys() & other.keys()), 'seed')}{documents}")
        yield f"{lead.mean:.4f} nats below {rival}" + (f" ({', '.join(parts)})" if parts else "")


def _span(low: float | None, high: float | None) -> str:
    return written.interval(low, high, sign=low is not None and low < 0)


def how_sure(facts: Facts) -> tuple[str, ...]:
    """Return what stands behind the outcome: seeds one by one, documents, the margin, other views, what is missing."""
    parts = (_seed_by_seed, _documents, _savings, _equivalence, _common_context, _settling, _looks)
    return tuple(sentence for part in parts for sentence in part(facts)) if facts.verdict.leading else ()


def _seed_by_seed(facts: Facts) -> Iterator[str]:
    leading = facts.verdict.leading or ""
    losses = {arm.name: arm.loss_of_seed for arm in facts.arms}
    for pair in facts.leads:
        rival = pair.rival_of(leading)
        shared = losses[leading].keys() & losses[rival].keys()
        if len(shared) < 2:
            continue
        below = sum(losses[leading][seed] < losses[rival][seed] for seed in shared)
        text = f"{leading} ended below {rival} in {below} of {len(shared)} seeds"
        chance = pair.chance_of(leading)
        if chance is not None and facts.verdict.is_decided:
            words = written.chance(chance).replace("> ", "more than ").replace("< ", "less than ")
            text += f"; the chance that it would in a further seed is put at {words}"
        yield f"{text}."


def _documents(facts: Facts) -> Iterator[str]:
    """What new documents beside new seeds do to each lead, where the deciding interval is not that of the seeds."""
    leading, exam = facts.verdict.leading or "", facts.verdict.exam
    clear: list[str] = []
    unclear: list[str] = []
    for pair in facts.leads:
        found = next((test for test in pair.tests if test.test == "documents"), None)
        if found is not None:
            (clear if found.ci_low * found.ci_high > 0 else unclear).append(pair.rival_of(leading))
    if clear and not exam.is_on_this_exam:
        yield f"Its lead over {written.listed(clear)} holds over new {exam.units} too, not on those of the exam alone."
    if unclear:
        yield f"Other {exam.units} than those of the exam may reverse its lead over {written.listed(unclear)}."


def _savings(facts: Facts) -> Iterator[str]:
    """What the leading arm needs of a rival's tokens, time and money to reach the rival's loss."""
    tokens = facts.verdict.by_budget.tokens
    for row in (tokens.to_target if tokens and facts.verdict.is_decided else None) or ():
        about = "at most " if row.is_upper_bound else ""
        needed = [f"{about}{_of(row.share, row.ci_low, row.ci_high, facts)} of its tokens"]
        if row.time_share is not None and row.time_ci_high is not None:
            needed.append(
                f"{about}{_of(row.time_share, row.time_ci_low, row.time_ci_high, facts)} of its training time"
            )
        yield f"{row.a} reaches the loss of {row.b} with {written.listed(needed)}{_in_money(row, facts)}."


def _in_money(row: TokensToTarget, facts: Facts) -> str:
    if row.device_hours is None or row.time_share is None or facts.price_per_hour is None:
        return ""
    cost = row.device_hours * facts.price_per_hour
    saved = written.money(cost * (1 - row.time_share))
    return f": of the {written.money(cost)} that a run of {row.b} costs, {saved} is saved"


def _of(share: float, low: float | None, high: float, facts: Facts) -> str:
    bounds = f"{'?' if low is None else written.share(low)} to {written.share(high)}"
    return f"{written.share(share)} ({facts.confidence} interval {bounds})"


def _equivalence(facts: Facts) -> Iterator[str]:
    if facts.verdict.margin is not None and facts.verdict.is_decided:
        margin = facts.verdict.margin
        yield f"Differences inside ±{written.loss(margin.value)} count as negligible: {margin.source}."


def _common_context(facts: Facts) -> Iterator[str]:
    if facts.verdict.context:
        for view, (arm, _) in facts.verdict.other_views.items():
            yield f"Read {view}, {arm} has the lowest mean instead."
        if not facts.verdict.other_views:
            yield f"Read at the common context of all arms, {facts.verdict.leading} has the lowest mean too."


def _settling(facts: Facts) -> Iterator[str]:
    """The seeds, or the documents of another exam, that would settle an undecided verdict."""
    verdict = facts.verdict
    needed, documents, looks, exam = verdict.seeds_needed, verdict.documents_needed, verdict.looks, verdict.exam
    if verdict.outcome != "undecided":
        return
    if needed is not None:
        planned = looks.used < looks.planned
        seeds = written.plural(needed, "confirm seed" if planned else "more confirm seed")
        yield f"About {seeds} per arm{' in all' if planned else ''} would settle it, if the means are what they seem."
    if documents is not None and exam.documents is not None:
        yield (
            f"An exam of about {documents:,} {exam.units} instead of {exam.documents:,} would settle it at today's "
            "seeds, in a new sweep."
        )


def _looks(facts: Facts) -> Iterator[str]:
    looks = facts.verdict.looks
    used = looks.used - (not facts.verdict.is_decided)
    if looks.planned > 1 or used > looks.planned:
        yield f"{written.plural(used, 'look')} at the judged cells so far, {looks.planned} planned."
