"""Why an arm leads and how far it carries: the views of the verdict beside its sentence, in words and tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from sweeps import formatting as written
from sweeps.ledger.results import finite
from sweeps.report.blocks import Block, Bullets, Cell, Figure, Heading, Note, Table
from sweeps.report.facts import Facts
from sweeps.verdict.conditions import diversity_sentence
from sweeps.verdict.rows import ContextSplit, ControlSplit, Estimate, FlopsView

CONTEXT_PARTS = {"own_lead": "own context", "common_lead": "common context", "context_gain": "gained by context"}
CONTROL_PARTS = {"lead": "lead", "diversity": "batch diversity", "length": "length"}


def why_blocks(facts: Facts) -> list[Block]:
    """Return what there is to say on reasons and limits, in the order in which it is read."""
    makers = (_context, _controls, _flops, _time, _updates, _sliding, _lengths)
    return [block for make in makers for block in make(facts)]


def context_splits(facts: Facts) -> list[ContextSplit]:
    """Return the pairs that a picture has room for, each seen from the arm that is ahead."""
    drawn = [{pair.a, pair.b} for pair in facts.drawn_pairs]
    return [entry.from_ahead() for entry in facts.verdict.context or () if {entry.a, entry.b} in drawn]


def estimate_text(found: Estimate) -> str:
    """Return a difference with its sign and its interval."""
    text = written.signed(found.mean)
    return text if found.low is None else f"{text} ({written.interval(found.low, found.high, sign=True)})"


def _lead_table(entries: Sequence[ContextSplit | ControlSplit], parts: dict[str, str]) -> Table:
    return Table(
        header=("lead of", "over", *parts.values()),
        rows=tuple((e.a, e.b, *(estimate_text(getattr(e, part)) for part in parts)) for e in entries),
        n_names=2,
    )


def _context(facts: Facts) -> Iterator[Block]:
    entries = [entry.from_ahead() for entry in facts.verdict.context or ()]
    if not entries:
        return
    yield Heading(text="How much of a lead is context")
    yield Note(
        text="A lead in own context (each arm read at the length it was trained on) is the lead at the common context "
        "(all read at the shortest arm's length) plus what context gains one arm more than the other."
    )
    turned = tuple(
        f"{e.a} is ahead of {e.b} in its own context, {e.b} at the common one: the order depends on the view."
        for e in entries
        if e.common_lead.mean < 0
    )
    if turned:
        yield Bullets(items=turned)
    yield Figure(name="context", titled=False)
    yield _lead_table(entries, CONTEXT_PARTS)


def _controls(facts: Facts) -> Iterator[Block]:
    entries = facts.verdict.controls
    if not entries:
        return
    yield Heading(text="Batch diversity against length")
    yield Note(
        text="A short arm trained again on windows that stay grouped as in the long arm's blocks, with a rate search "
        "of its own: what it loses by that is diversity of the batch, what remains of its lead is length."
    )
    names = [arm.name for arm in facts.arms]
    yield Bullets(items=tuple(written.sentence(diversity_sentence(entry), *names) for entry in entries))
    yield Figure(name="controls", titled=False)
    yield _lead_table(entries, CONTROL_PARTS)


def _time(facts: Facts) -> Iterator[Block]:
    view = facts.verdict.by_budget.time
    if view is None or not view.means:
        return
    yield Heading(text="Equal time instead of equal tokens")
    yield Note(text="Each arm with the tokens that it can train in the same time, its schedule ended there.")
    if not view.comparable:
        text = "Arms are not known to have been timed under equal load: seconds do not compare, and no arm is named."
    elif view.winner is not None:
        text = f"In equal time {view.winner} is better than every other arm."
    else:
        rest = "without being better than every other arm" if facts.verdict.is_decided else "not a finding yet"
        text = f"In equal time {view.lowest} has the lowest mean, {rest}."
    yield Bullets(items=(text,))
    yield _budget_table(view)


def _flops(facts: Facts) -> Iterator[Block]:
    view = facts.verdict.by_budget.flops
    if view is None or not view.means:
        return
    yield Heading(text="Equal FLOPs instead of equal tokens")
    yield Note(
        text="Each arm with the tokens that it trains on in as many FLOPs as the arm of fewest per token needs for the "
        "whole budget, its schedule ended there, at the rate chosen at equal tokens."
    )
    better = "better than every other arm"
    what = f"{view.winner} is {better}" if view.winner else f"{view.lowest} has the lowest mean, without being {better}"
    yield Bullets(items=(f"At equal FLOPs {what}.",))
    yield _budget_table(view)


def _budget_table(view: FlopsView) -> Table:
    rows = [(arm, written.count(view.budgets_tokens.get(arm)), written.loss(mean)) for arm, mean in view.means.items()]
    return Table(header=("arm", "tokens", "mean test loss"), rows=tuple(rows))


def _updates(facts: Facts) -> Iterator[Block]:
    view = facts.verdict.by_budget.updates
    if view is None or not view.means:
        return
    yield Heading(text="Equal updates instead of equal tokens")
    yield Note(
        text=f"Validation loss after {written.count(view.updates)} optimizer steps of every arm. "
        "Undecayed losses support no claim."
    )
    rows = [(arm, written.loss(mean), view.labels[arm]) for arm, mean in view.means.items()]
    yield Table(header=("arm", "mean validation loss", "schedule"), rows=tuple(rows))


def _sliding(facts: Facts) -> Iterator[Block]:
    rows = []
    for arm in facts.arms:
        scored = [
            (own, sliding)
            for result in facts.confirmed(arm.name)
            if (own := result.score("sliding_own_loss")) is not None
            and (sliding := result.score("sliding_loss")) is not None
        ]
        if scored:
            own, sliding = np.mean(scored, axis=0)
            change = written.signed(float(sliding - own))
            rows.append((arm.name, written.loss(float(own)), written.loss(float(sliding)), change))
    if rows:
        yield Heading(text="With windows that overlap")
        yield Note(
            text="Own context cuts the exam into chunks that start from nothing; here they overlap by half, so that "
            "every target has context. On some of the exam's rows, never judged."
        )
        yield Table(header=("arm", "own context", "overlapping", "change"), rows=tuple(rows))


def _lengths(facts: Facts) -> Iterator[Block]:
    """The loss by evaluation length from confirm cells."""
    found: dict[tuple[str, int], list[tuple[float, bool]]] = {}
    for arm in facts.arms:
        for result in facts.confirmed(arm.name):
            for entry in (result.scores or {}).get("loss_by_length") or ():
                if (loss := finite(entry["loss"])) is not None:
                    found.setdefault((arm.name, int(entry["eval_len"])), []).append((loss, entry["extrapolation"]))
    lengths = sorted({length for _, length in found})
    if not lengths:
        return
    yield Heading(text="Loss by evaluation length")
    yield Note(
        text="Mean test loss when the exam is cut into chunks of each length. What lies beyond the length that the arm "
        "was trained on is extrapolation, set apart and never judged."
    )

    def cell(arm: str, length: int) -> Cell:
        values = found.get((arm, length), [])
        text = written.loss(float(np.mean([loss for loss, _ in values])) if values else None)
        return Cell(text=text, mark="far" if any(is_far for _, is_far in values) else "")

    rows = [
        (Cell(text=arm.name, arm=facts.index[arm.name]), *(cell(arm.name, length) for length in lengths))
        for arm in facts.arms
    ]
    yield Table(header=("arm", *(written.count(length) for length in lengths)), rows=tuple(rows))
