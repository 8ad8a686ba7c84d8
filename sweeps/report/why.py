"""Why an arm leads and how far it carries: the parts of the verdict beside its sentence, in words and tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sweeps import formatting as written
from sweeps.ledger.results import finite
from sweeps.report.facts import Facts, mapping, rows
from sweeps.verdict.confirmed import DECIDED


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of text; the first ``n_names`` columns are names, the others numbers, set to the right."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    n_names: int = 1


@dataclass(frozen=True, kw_only=True)
class Group:
    """One reason or one limit: a title, a note on how to read it, sentences, a table, and the picture that shows it."""

    title: str
    note: str = ""
    sentences: tuple[str, ...] = ()
    table: Table | None = None
    picture: str = ""


def why_groups(facts: Facts) -> list[Group]:
    """Return the groups for which there is data, in the order in which they are read."""
    return [group for make in _GROUPS for group in make(facts)]


def parts_of(entry: Mapping[str, Any], parts: Iterable[str]) -> dict[str, Any]:
    """Return a lead of a over b with its parts, each with its interval as ``PART_ci_low`` and ``PART_ci_high``."""
    ends = ("", "_ci_low", "_ci_high")
    values = {f"{part}{end}": finite(entry.get(f"{part}{end}")) for part in parts for end in ends}
    return {**values, "a": str(entry.get("a")), "b": str(entry.get("b"))}


def from_ahead(entry: Mapping[str, Any], parts: Sequence[str]) -> dict[str, Any]:
    """Return the same from the side of the arm that is ahead: ``parts[0]`` is then not negative."""
    values = parts_of(entry, parts)
    if (values[parts[0]] or 0.0) >= 0:
        return values
    turned: dict[str, Any] = {"a": values["b"], "b": values["a"]}
    for part in parts:
        middle, low, high = values[part], values[f"{part}_ci_low"], values[f"{part}_ci_high"]
        turned[part] = None if middle is None else -middle
        turned[f"{part}_ci_low"] = None if high is None else -high
        turned[f"{part}_ci_high"] = None if low is None else -low
    return turned


def _with_interval(entry: Mapping[str, Any], part: str) -> str:
    low, high = entry.get(f"{part}_ci_low"), entry.get(f"{part}_ci_high")
    text = written.signed(entry.get(part))
    return text if low is None or high is None else f"{text} ({written.interval(low, high, sign=True)})"


def _lead_table(entries: Sequence[Mapping[str, Any]], parts: Mapping[str, str]) -> Table:
    return Table(
        header=("lead of", "over", *parts.values()),
        rows=tuple((e["a"], e["b"], *(_with_interval(e, part) for part in parts)) for e in entries),
        n_names=2,
    )


CONTEXT_PARTS = {"own_lead": "own context", "common_lead": "common context", "context_gain": "gained by context"}
CONTROL_PARTS = {"lead": "lead", "diversity": "batch diversity", "length": "length"}


def _context(facts: Facts) -> Iterator[Group]:
    entries = [from_ahead(entry, tuple(CONTEXT_PARTS)) for entry in rows(facts.verdict.get("context"))]
    entries = [entry for entry in entries if entry["own_lead"] is not None]
    if not entries:
        return
    sentences = [
        f"{e['a']} is ahead of {e['b']} in its own context, {e['b']} at the common one: the order depends on the view."
        for e in entries
        if (e["common_lead"] or 0.0) < 0
    ]
    yield Group(
        title="How much of a lead is context",
        note="A lead in own context (each arm read at the length it was trained on) is the lead at the common context "
        "(all read at the shortest arm's length) plus what context gains one arm more than the other.",
        sentences=tuple(sentences),
        table=_lead_table(entries, CONTEXT_PARTS),
        picture="context",
    )


def _controls(facts: Facts) -> Iterator[Group]:
    found = [entry for entry in rows(facts.verdict.get("controls")) if finite(entry.get("lead")) is not None]
    if not found:
        return
    sentences = [_diversity(entry) for entry in found]
    at_edge = [entry.get("a") for entry in found if entry.get("at_edge")]
    sentences += [f"The control of {name} has its best rate at the end of its grid." for name in at_edge]
    yield Group(
        title="Batch diversity against length",
        note="A short arm trained again on windows that stay grouped as in the long arm's blocks, with a rate "
        "search of its own: what it loses by that is diversity of the batch, what remains of its lead is length.",
        sentences=tuple(sentences),
        table=_lead_table([parts_of(entry, CONTROL_PARTS) for entry in found], CONTROL_PARTS),
        picture="controls",
    )


def _diversity(entry: Mapping[str, Any]) -> str:
    """Return what grouping its windows does to a short arm; a share is given only of a lead that is there."""
    a, b = entry.get("a"), entry.get("b")
    change, share = finite(entry.get("diversity")) or 0.0, finite(entry.get("diversity_share"))
    if share is None or (finite(entry.get("lead")) or 0.0) <= 0:
        effect = f"{written.loss(abs(change))} {'worse' if change > 0 else 'better'}"
        return f"Grouping its windows makes {a} {effect}; it has no clear lead over {b} to divide."
    if share <= 0:
        return f"None of {a}'s lead over {b} goes when its windows stay grouped: it is not diversity of the batch."
    part = "All" if share >= 1 else written.share(share)
    rest = "it" if share >= 1 else "that much"
    return f"{part} of {a}'s lead over {b} goes when its windows stay grouped: {rest} is diversity of the batch."


def _time(facts: Facts) -> Iterator[Group]:
    view = mapping(mapping(facts.verdict.get("by_budget")).get("time"))
    means, budgets = mapping(view.get("means")), mapping(view.get("budgets_tokens"))
    if not means:
        return
    sentences = []
    if view.get("comparable") is False:
        sentences.append(
            "Arms are not known to have been timed under equal load: seconds do not compare, and no arm is named."
        )
    elif isinstance(view.get("winner"), str):
        sentences.append(f"In equal time {view['winner']} is better than every other arm.")
    else:
        judged = facts.verdict.get("outcome") in DECIDED
        rest = ", without being separated from all others" if judged else ", which is no finding"
        sentences.append(f"In equal time {view.get('lowest')} has the lowest mean{rest}.")
    yield Group(
        title="Equal time instead of equal tokens",
        note="Each arm with the tokens that it can train in the same time, its schedule ended there.",
        sentences=tuple(sentences),
        table=Table(
            header=("arm", "tokens", "mean test loss"),
            rows=tuple(
                (str(arm), written.count(finite(budgets.get(arm))), written.loss(finite(mean)))
                for arm, mean in means.items()
            ),
        ),
    )


def _updates(facts: Facts) -> Iterator[Group]:
    view = mapping(mapping(facts.verdict.get("by_budget")).get("updates"))
    means, labels = mapping(view.get("means")), mapping(view.get("labels"))
    if not means:
        return
    yield Group(
        title="Equal updates instead of equal tokens",
        note=f"Validation loss after {written.count(finite(view.get('updates')))} optimizer steps of every arm. "
        "Undecayed losses support no claim.",
        table=Table(
            header=("arm", "mean validation loss", "schedule"),
            rows=tuple((str(a), written.loss(finite(m)), str(labels.get(a, ""))) for a, m in means.items()),
        ),
    )


def _to_target(facts: Facts) -> Iterator[Group]:
    found = rows(mapping(mapping(facts.verdict.get("by_budget")).get("tokens")).get("to_target"))
    sentences = [
        f"{entry.get('a')} reaches the loss of {entry.get('b')} with "
        f"{'at most' if entry.get('is_upper_bound') else 'about'} {written.share(share)} of its tokens."
        for entry in found
        if (share := finite(entry.get("share"))) is not None
    ]
    if sentences:
        yield Group(title="The lead in tokens", note="From runs whose schedules ended.", sentences=tuple(sentences))


def _sliding(facts: Facts) -> Iterator[Group]:
    found = []
    for arm in facts.arms:
        scored = [result.scores or {} for result in facts.confirmed(arm.name)]
        own = [v for scores in scored if (v := finite(scores.get("sliding_own_loss"))) is not None]
        sliding = [v for scores in scored if (v := finite(scores.get("sliding_loss"))) is not None]
        if own and sliding:
            gain = float(np.mean(sliding) - np.mean(own))
            found.append(
                (
                    arm.name,
                    written.loss(float(np.mean(own))),
                    written.loss(float(np.mean(sliding))),
                    written.signed(gain),
                )
            )
    if found:
        yield Group(
            title="With windows that overlap",
            note="Own context cuts the exam into chunks that start from nothing; here they overlap by half, so that "
            "every target has context. On a part of the exam's rows, never judged.",
            table=Table(header=("arm", "own context", "overlapping", "change"), rows=tuple(found)),
        )


_GROUPS = (_context, _controls, _to_target, _time, _updates, _sliding)


def optimum_table(facts: Facts) -> Table | None:
    """Return each arm's chosen rate beside the quadratic fit's optimum and what a better rate could gain."""
    found = []
    for arm in facts.arms:
        optimum = facts.optima.get(arm.name)
        if optimum is not None:
            found.append(
                (
                    arm.name,
                    written.rate(finite(arm.row.get("best_lr"))),
                    written.rate(optimum.lr),
                    f"{written.rate(optimum.lr_low)} to {written.rate(optimum.lr_high)}",
                    f"up to {written.loss(max(0.0, optimum.gain_bound))}",
                )
            )
    if not found:
        return None
    return Table(header=("arm", "chosen lr", "fitted optimum", "its interval", "plausible gain"), rows=tuple(found))
