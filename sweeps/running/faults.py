"""Whose fault it was that a segment did not end well: the world's, or the cell's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sweeps.ledger.world import World

MAX_IN_SUCCESSION: Final = 6
MAX_ERRORS: Final = 3  # of one cell between two checkpoints; two identical ones are enough
MAX_DEATHS_AT_A_POINT: Final = 5  # of its workers after the same report: a lost node kills anywhere, a bug at one point
MAX_DEATHS: Final = 10  # between two checkpoints: a cell that cannot reach the next one would be retried for ever
_FIRST_WAIT_S: Final = 1.0

PLACE: Final = ("hostname", "node_ip")
"""Keys of a report that say where it was made; Ray adds them."""


@dataclass
class _Suspect:
    """A node whose last segment met a fault of the world: which cell, when, and whether another node works since."""

    cell_id: str
    since_s: float
    others_work: bool = False


class WorldFaults:
    """Faults of the world in succession, with longer and longer waits between them, and the nodes that they name.

    The succession ends when a segment ends well. Faults while one waits count as one: several workers see the same.

    A node is left alone once segments of two cells met faults there in succession, the second one handed out after the
    first fault, while a segment ended well on another node: so a storage that is away for all is no node's fault, and a
    damaged object of one cell neither, and the last node that works is never left alone.
    """

    def __init__(self, world: World) -> None:
        self.left_alone: set[str] = set()
        self._world = world
        self._count = 0
        self._began_s = 0.0
        self._not_before_s = 0.0
        self._started_s: dict[str, float] = {}
        self._suspects: dict[str, _Suspect] = {}

    def started(self, cell_id: str) -> None:
        """A segment of this cell was handed out."""
        self._started_s[cell_id] = self._world.monotonic_s()

    def ended_well(self, cell_id: str, node: str | None = None) -> None:
        """A segment of this cell ended, and nothing around it failed; ``node`` is where, if that is known."""
        self._started_s.pop(cell_id, None)
        self._count = 0
        self._not_before_s = 0.0
        if node is not None:
            self._suspects.pop(node, None)
            for suspect in self._suspects.values():
                suspect.others_work = True

    def struck(self, cell_id: str, node: str | None = None) -> float | None:
        """The world failed a segment; returns how long to wait before the next one, None where nothing works.

        That is so after ``MAX_IN_SUCCESSION`` faults, unless a segment runs that was handed out before the first.
        """
        now_s = self._world.monotonic_s()
        started_s = self._started_s.pop(cell_id, now_s)
        if node is not None:
            suspect = self._suspects.setdefault(node, _Suspect(cell_id, now_s))
            if suspect.others_work and suspect.cell_id != cell_id and started_s >= suspect.since_s:
                self.left_alone.add(node)
        if now_s >= self._not_before_s:
            if self._count == 0:
                self._began_s = now_s
            self._count += 1
            self._not_before_s = now_s + _FIRST_WAIT_S * 2 ** min(self._count - 1, MAX_IN_SUCCESSION)
        somebody_works = any(started_s < self._began_s for started_s in self._started_s.values())
        if self._count >= MAX_IN_SUCCESSION and not somebody_works:
            return None
        return self.wait_s()

    def wait_s(self) -> float:
        """Seconds until the next segment may be handed out."""
        return max(0.0, self._not_before_s - self._world.monotonic_s()) if self._count else 0.0


class DeathLog:
    """How far each running segment got, and where it runs, as its reports said."""

    def __init__(self) -> None:
        self._last: dict[str, Mapping[str, Any]] = {}

    def started(self, cell_id: str) -> None:
        """A segment of this cell was handed out; it has reported nothing yet."""
        self._last[cell_id] = {}

    def reported(self, cell_id: str, record: Mapping[str, Any]) -> None:
        """A running segment reported; Ray adds the host to each report."""
        self._last[cell_id] = {key: record.get(key) for key in ("tokens_seen", *PLACE)}

    def last(self, cell_id: str) -> tuple[int, str | None]:
        """Tokens of the last report of this segment and its host; 0 and None before its first."""
        last = self._last.get(cell_id, {})
        return int(last.get("tokens_seen", 0)), last.get("hostname")

    def place(self, cell_id: str) -> dict[str, Any]:
        """Where this segment runs, in the words of a report."""
        return {key: self._last.get(cell_id, {}).get(key) for key in PLACE}


def is_its_own_fault(attempts: Sequence[Mapping[str, Any]]) -> bool:
    """Whether failures at one checkpoint are the cell's: the same error twice, or deaths after the same report.

    A lost node kills its workers at whatever point they have reached, so other deaths say nothing about a cell.
    """
    if not attempts:
        return False  # a worker presumed dead has moved the cell past this checkpoint
    newest = attempts[-1]
    if newest["kind"] == "error":
        errors = [attempt for attempt in attempts if attempt["kind"] == "error"]
        return len(errors) >= MAX_ERRORS or sum(e["reason"] == newest["reason"] for e in errors) >= 2
    deaths = [attempt for attempt in attempts if attempt["kind"] == newest["kind"]]
    reached = newest.get("reached_tokens")
    here = [attempt for attempt in deaths if reached and attempt.get("reached_tokens") == reached]
    return len(here) >= MAX_DEATHS_AT_A_POINT or len(deaths) >= MAX_DEATHS
