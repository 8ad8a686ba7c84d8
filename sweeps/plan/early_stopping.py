"""Arm-fair ASHA: who goes on at a rung, by recorded losses alone.

The promotion form of ASHA (Li et al. 2020, arXiv 1810.05934) inside each arm: a cell at a rung is promoted once enough
of its rivals have arrived that nothing still to come can push it out, dropped once enough arrived ones are better, and
waits otherwise. What is decided never depends on the order of arrival, so neither launch order nor a crash can change
which cells win. A cell that ended badly (diverged, out of memory, failed) counts as arrived and worst at every rung
that it did not pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Decision = Literal["promote", "drop", "wait"]


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A point of the budget, in tokens, and how many cells of a bracket go on from it."""

    tokens: int
    keep: int


@dataclass(frozen=True, kw_only=True)
class Contender:
    """What early stopping sees of a cell: its losses at the rungs it reached, and whether and how it ended."""

    cell_id: str
    losses: Mapping[int, float] = field(default_factory=dict)
    ended_badly: bool = False
    finished: bool = False


def decide(bracket: Sequence[Contender], rungs: Sequence[Rung]) -> dict[tuple[str, int], Decision]:
    """Decisions for every cell of a bracket at every rung it reached, keyed by (cell_id, rung tokens).

    Ties in loss go to the contender that stands earlier in ``bracket``. Nobody is dropped before one of the bracket has
    finished: where all that were to go on ended badly, the others are ranked again without them.
    """
    decisions = _ranked(bracket, rungs)
    out = {cell_id for (cell_id, _), decision in decisions.items() if decision == "drop"}
    sound = [contender for contender in bracket if not contender.ended_badly]
    if sound and all(contender.cell_id in out for contender in sound):
        return decide(sound, rungs)
    if any(contender.finished for contender in bracket):
        return decisions
    return {key: "wait" if decision == "drop" else decision for key, decision in decisions.items()}


def _ranked(bracket: Sequence[Contender], rungs: Sequence[Rung]) -> dict[tuple[str, int], Decision]:
    decisions: dict[tuple[str, int], Decision] = {}
    alive = list(bracket)
    most_to_come = len(bracket)
    for rung in rungs:
        arrived = [contender for contender in alive if rung.tokens in contender.losses]
        ended = [contender for contender in alive if contender.ended_badly and rung.tokens not in contender.losses]
        to_come = min(len(alive), most_to_come) - len(arrived) - len(ended)
        ranked = sorted(arrived, key=lambda contender: contender.losses[rung.tokens])
        for rank, contender in enumerate(ranked):
            decision: Decision = "wait"
            if rank + max(0, to_come) < rung.keep:
                decision = "promote"
            elif rank >= rung.keep:
                decision = "drop"
            decisions[contender.cell_id, rung.tokens] = decision
        gone = {contender.cell_id for contender in ended}
        gone |= {contender.cell_id for contender in ranked if decisions[contender.cell_id, rung.tokens] == "drop"}
        alive = [contender for contender in alive if contender.cell_id not in gone]
        alive += ended  # one that ended badly is worst at later rungs too, and keeps no place that another could take
        most_to_come = min(rung.keep, len(alive) - len(ended)) + len(ended)
    return decisions


def decide_in_turn(
    bracket: Sequence[Contender], rungs: Sequence[Rung], expected: int
) -> dict[tuple[str, int], Decision]:
    """Decisions for cells that come one after another, as a search suggests them: nobody waits for one to come.

    A cell goes on from a rung when it is among the best of those that came before it, in the share that the rung keeps
    of all ``expected`` ones (the stopping form of ASHA). What is decided of a cell depends on earlier ones alone. One
    that ended badly stands in nobody's way, so that the first that does not reaches the full budget.
    """
    decisions: dict[tuple[str, int], Decision] = {}
    for place, contender in enumerate(bracket):
        for rung in rungs:
            if rung.tokens not in contender.losses:
                break
            rank, _, keep = standing_in_turn(bracket[: place + 1], rung, expected)
            decisions[contender.cell_id, rung.tokens] = "promote" if rank <= keep else "drop"
    return decisions


def standing_in_turn(bracket: Sequence[Contender], rung: Rung, expected: int) -> tuple[int, int, int]:
    """Rank of the last of ``bracket`` at a rung that it reached, among how many, and how many of those go on."""
    *earlier, last = bracket
    rivals = [other.losses[rung.tokens] for other in earlier if not other.ended_badly and rung.tokens in other.losses]
    rank = 1 + sum(loss <= last.losses[rung.tokens] for loss in rivals)
    among = 1 + len(rivals)
    return rank, among, max(1, round(among * rung.keep / expected))
