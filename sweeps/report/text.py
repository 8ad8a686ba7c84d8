"""The sentences and commands of a report: each is made from the data, and left out when its condition does not hold."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sweeps import formatting as written
from sweeps.ledger.results import finite
from sweeps.report.facts import Facts, mapping
from sweeps.verdict.confirmed import DECIDED

OUTCOME_NAMES = {
    "wins": "one arm wins",
    "tie": "a tie",
    "undecided": "undecided",
    "exploratory": "exploratory only",
    "withheld": "verdict withheld",
}
OUTCOME_MEANINGS = {
    "wins": "The winner is better than every other arm, each in a two-sided paired test on fresh seeds.",
    "tie": "No arm wins, and the best two differ by less than the margin that was fixed beforehand.",
    "undecided": "No arm is better than all others, and the best two cannot be called equal either.",
    "exploratory": "There are too few confirm seeds to judge: read this as a description, not as a finding.",
    "withheld": "The statement says what keeps this sweep from being judged; the commands at the end would settle it.",
}


@dataclass(frozen=True, kw_only=True)
class Command:
    """A line for a shell and what it is for."""

    line: str
    purpose: str


def statement(facts: Facts) -> str:
    """Return the verdict's one sentence."""
    return str(facts.verdict.get("statement") or "This sweep has no verdict yet.")


def outcome(facts: Facts) -> str:
    """Return the verdict's outcome, ``withheld`` where there is none."""
    return str(facts.verdict.get("outcome") or "withheld")


def headline(facts: Facts) -> tuple[str, str, str]:
    """Return the statement in three parts that together are the statement: headline, the mark after it, the rest."""
    text = statement(facts)
    breaks = r" (?=\()|; " if outcome(facts) in ("tie", "undecided") else r": (?=its )|; "
    end = re.search(breaks, text)
    if end is None:
        return text, "", ""
    return text[: end.start()], end.group(), text[end.end() :]


def reservation(facts: Facts) -> str:
    """Return what to say before the evidence when it supports no verdict."""
    return "" if outcome(facts) in DECIDED else "What the finished runs show so far is no finding:"


def how_sure(facts: Facts) -> list[str]:
    """Return what stands behind the statement: seeds one by one, resampling, the margin, looks, what is missing."""
    if facts.leading is None:
        return [*_looks(facts)]
    parts = (_seed_by_seed, _resampled_seeds, _resampled_documents, _equivalence, _common_context, _more_seeds, _looks)
    return [sentence for part in parts for sentence in part(facts)]


def _seed_by_seed(facts: Facts) -> Iterator[str]:
    own = _losses(facts, facts.leading or "")
    for pair in facts.pairs:
        against = seen_from(pair, facts.leading)
        if against is None or against.difference is None:
            continue
        other = _losses(facts, against.rival)
        shared = own.keys() & other.keys()
        if len(shared) < 2:
            continue
        below = sum(own[seed] < other[seed] for seed in shared)
        text = f"{facts.leading} ended below {against.rival} in {below} of {len(shared)} seeds"
        if against.chance_better is not None and outcome(facts) in DECIDED:
            text += f"; the chance that it would in a further seed is put at {_in_words(against.chance_better)}"
        yield text + "."


def _in_words(chance: float) -> str:
    return written.chance(chance).replace("> ", "more than ").replace("< ", "less than ")


def _losses(facts: Facts, arm: str) -> dict[int, float]:
    row = facts.arm_by_name[arm].row if arm in facts.arm_by_name else {}
    pairs = zip(row.get("seeds") or (), row.get("losses") or (), strict=False)
    return {int(seed): loss for seed, value in pairs if (loss := finite(value)) is not None}


def _resampled_seeds(facts: Facts) -> Iterator[str]:
    share = facts.decided.best_shares.get(facts.leading or "")
    if share is not None and outcome(facts) in DECIDED:
        yield f"Resampling the seeds, {facts.leading} has the lowest mean in {_in_words(share)} of the draws."


def _resampled_documents(facts: Facts) -> Iterator[str]:
    open_rivals: list[str] = []
    settled: list[str] = []
    for (a, b), (low, high) in facts.decided.document_intervals.items():
        if facts.leading in (a, b):
            (open_rivals if low <= 0 <= high else settled).append(b if a == facts.leading else a)
    if settled:
        yield f"Resampling the exam's documents leaves its lead over {written.listed(settled)} standing."
    if open_rivals:
        rivals = written.listed(open_rivals)
        yield f"Resampling the exam's documents leaves room for no lead over {rivals}: it is one on this exam."


def _equivalence(facts: Facts) -> Iterator[str]:
    margin = finite(facts.verdict.get("margin"))
    if margin is not None and outcome(facts) in DECIDED:
        yield f"Differences inside ±{written.loss(margin)} count as negligible."


def _common_context(facts: Facts) -> Iterator[str]:
    if facts.verdict.get("context"):
        for view, (arm, _) in facts.decided.other_views.items():
            yield f"Read {view}, {arm} has the lowest mean instead."
        if not facts.decided.other_views:
            yield f"Read at the common context of all arms, {facts.leading} has the lowest mean too."


def _more_seeds(facts: Facts) -> Iterator[str]:
    needed = finite(facts.verdict.get("seeds_needed"))
    if needed is not None and outcome(facts) == "undecided":
        looks = facts.decided.looks
        seeds = written.plural(round(needed), "confirm seed" if looks.used < looks.planned else "more confirm seed")
        in_all = " in all" if looks.used < looks.planned else ""
        yield f"About {seeds} per arm{in_all} would be needed to settle it, were the means what they seem."


def _looks(facts: Facts) -> Iterator[str]:
    looks = mapping(facts.verdict.get("looks"))
    planned, used = finite(looks.get("planned")), finite(looks.get("used"))
    if planned is not None and used is not None and (planned > 1 or used > planned):
        yield f"{written.plural(round(used), 'look')} at the judged cells so far, {round(planned)} planned."


@dataclass(frozen=True, kw_only=True)
class Against:
    """A pair as one of its arms sees it: ``difference`` is that arm's loss minus the rival's, in nats per token."""

    rival: str
    difference: float | None
    low: float | None
    high: float | None
    chance_better: float | None


def seen_from(pair: Mapping[str, Any], arm: str | None) -> Against | None:
    """Return a pair from the side of ``arm``, None when it is about two others."""
    a, b = str(pair.get("a")), str(pair.get("b"))
    if arm not in (a, b):
        return None
    difference, low, high = (finite(pair.get(key)) for key in ("difference", "ci_low", "ci_high"))
    chance = finite(pair.get("probability_a_better"))
    if arm == a:
        return Against(rival=b, difference=difference, low=low, high=high, chance_better=chance)
    return Against(
        rival=a,
        difference=None if difference is None else -difference,
        low=None if high is None else -high,
        high=None if low is None else -low,
        chance_better=None if chance is None else 1 - chance,
    )


def cost(facts: Facts) -> list[tuple[str, str]]:
    """Return what the sweep cost, as pairs of a name and a value."""
    found = [
        ("Cells", written.count(len(facts.results.cells))),
        ("Training tokens", written.short_count(facts.tokens_trained)),
        ("Training time, all cells", written.duration(facts.train_time_s)),
        ("Exam time, all cells", written.duration(facts.exam_time_s)),
    ]
    if facts.wall_time_s is not None:
        found.append(("Wall time, first to last work", written.duration(facts.wall_time_s)))
    whole = facts.results.sittings
    if len(whole) == 1 and not whole[0]["interrupted"] and whole[0]["first_estimate_s"] is not None:
        off = whole[0]["first_estimate_s"] / whole[0]["wall_s"] - 1
        found.append(("First estimate", f"{written.duration(whole[0]['first_estimate_s'])} ({off:+.0%})"))
    if facts.tokens_not_spent:
        share = facts.tokens_not_spent / (facts.tokens_not_spent + facts.tokens_trained)
        found.append(
            (
                "Tokens saved by stopping early",
                f"{written.short_count(facts.tokens_not_spent)} ({written.share(share)})",
            )
        )
    return found


def commands(facts: Facts) -> list[Command]:
    """Return the commands that reproduce this sweep, and those that would settle what it leaves open."""
    name = shlex.quote(facts.results.name)
    found = []
    if facts.outcomes["unfinished"]:
        found.append(Command(line=f"sweeps resume {name}", purpose="run the cells that have no outcome yet"))
    if facts.decided.command and all(facts.decided.command != command.line for command in found):
        found.append(Command(line=facts.decided.command, purpose="bring what the verdict is missing"))
    elif not facts.outcomes["unfinished"]:
        seeds = len({result.cell.seed for result in facts.cells("confirm")})
        found.append(Command(line=f"sweeps extend {name} --seeds {seeds + 3}", purpose="judge again on fresh seeds"))
    found.append(Command(line=f"sweeps verdict {name}", purpose="decide again from the ledger"))
    if any(result.outcome == "completed" for result in facts.cells("confirm")):
        found.append(
            Command(line=f"sweeps export {name} --out model", purpose="write the best model for stock transformers")
        )
        found.append(
            Command(line=f"sweeps exam {name} --out exam.npz", purpose="write the exam, to score any other model on it")
        )
    again = facts.beginning.get("command")
    if not again and facts.beginning.get("preset"):
        again = f"sweeps run --preset {shlex.quote(str(facts.beginning['preset']))}"
    if again:
        found.append(Command(line=str(again), purpose="run the same sweep again under a fresh name"))
    elif facts.space:
        line = "sweeps run --space space.toml"
        found.append(
            Command(line=line, purpose="run the same sweep again, from the space that report.html shows in full")
        )
    return found


def caveats(facts: Facts) -> list[str]:
    """Return the verdict's caveats as sentences."""
    return [_sentence(str(text), facts) for text in facts.verdict.get("caveats") or ()]


def _sentence(text: str, facts: Facts) -> str:
    """Return a clause with a capital and a full stop; a name keeps its first letter."""
    starts_with_name = any(text.startswith(arm.name) for arm in facts.arms)
    return (text if starts_with_name else text[:1].upper() + text[1:]) + ("" if text.endswith((".", "!", "?")) else ".")


def arms_note(facts: Facts) -> str:
    """Return the sentence above the table of arms: what was judged, or that nothing was."""
    judged = [arm for arm in facts.arms if finite(arm.row.get("mean")) is not None]
    if not judged:
        return "No confirm cell has been scored yet, so there is nothing to compare."
    seeds = {len(arm.row.get("losses") or ()) for arm in judged}
    span = written.plural(min(seeds), "fresh seed") if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)} fresh seeds"
    return (
        f"Mean test loss in nats per token over {span} an arm, each at its own best rate and in its own context, "
        f"with {facts.confidence} intervals; the lowest first."
    )
