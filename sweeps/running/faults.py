"""Whose fault it was that a segment did not end well: the world's, or the cell's."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sweeps.errors import StorageError
from sweeps.ledger.lease import LeaseWatch
from sweeps.ledger.world import World

MAX_IN_SUCCESSION: Final = 6
_FIRST_WAIT_S: Final = 1.0

PLACE: Final = ("hostname", "node_ip")
"""Keys of a report that say where it was made; Ray adds them."""

BEATS_WITHIN_S: Final = 60.0  # a worker that has reported: it holds its cell's lease, and beats every 5 s
STARTS_WITHIN_S: Final = 900.0  # the same before its first report: imports and orphans may come before the lease
REPORTS_WITHIN_S: Final = 1_800.0  # or ten times the longest pause between two reports: exams take long
BEGINS_WITHIN_S: Final = 7_200.0  # until the first report: a node may have to build its token files, and to compile
_PAUSES: Final = 10
_LOOK_EVERY_S: Final = 5.0
_LOOK_AFTER_S: Final = 30.0  # of silence, or twice the longest pause: who reports as usual costs no look at a lease


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


@dataclass
class _Silence:
    """A segment that a worker has: when it was heard last, and why it is taken to hang."""

    heard_s: float
    has_reported: bool = False
    lease: LeaseWatch | None = None
    hangs: str | None = None


class HangWatch:
    """Tells which workers hang: they live, and neither report nor beat.

    Whatever its training does, a worker rewrites the lease of its cell. A lease that stands still means a process that
    is stopped, or whose storage hangs. A worker that beats while its training hangs (a GPU) is told by its silence
    alone, and only after long. What this process itself missed counts for nothing: a laptop may have slept.
    """

    def __init__(self, world: World, lease_of: Callable[[str], LeaseWatch]) -> None:
        self._world = world
        self._lease_of = lease_of
        self._segments: dict[str, _Silence] = {}
        self._longest_pause_s = 0.0
        self._looked_s = world.monotonic_s()

    def reported(self, cell_id: str) -> None:
        """A running segment reported."""
        now_s = self._world.monotonic_s()
        segment = self._segments.setdefault(cell_id, _Silence(now_s))
        self._longest_pause_s = max(self._longest_pause_s, now_s - segment.heard_s)
        segment.heard_s, segment.has_reported, segment.lease = now_s, True, None

    def ended(self, cell_id: str) -> str | None:
        """A segment ended; returns why its worker was taken to hang, if it was."""
        segment = self._segments.pop(cell_id, None)
        return None if segment is None else segment.hangs

    def hung(self, at_work: Collection[str]) -> list[str]:
        """Those of the cells that workers have now whose worker hangs; looks every few seconds, however often asked."""
        now_s = self._world.monotonic_s()
        if now_s - self._looked_s >= _LOOK_EVERY_S:
            missed_s, self._looked_s = now_s - self._looked_s, now_s
            for cell_id in at_work:
                segment = self._segments.setdefault(cell_id, _Silence(now_s))
                if missed_s > 3 * _LOOK_EVERY_S:
                    segment.heard_s, segment.lease = now_s, None
                elif segment.hangs is None:
                    segment.hangs = self._why(cell_id, segment, now_s - segment.heard_s)
        return [cell_id for cell_id in at_work if cell_id in self._segments and self._segments[cell_id].hangs]

    def _why(self, cell_id: str, segment: _Silence, silent_s: float) -> str | None:
        if silent_s < max(_LOOK_AFTER_S, 2 * self._longest_pause_s):
            return None
        limit_s = max(REPORTS_WITHIN_S, _PAUSES * self._longest_pause_s) if segment.has_reported else BEGINS_WITHIN_S
        if silent_s > limit_s:
            return f"its worker hung: no report for {silent_s:.0f} s"
        segment.lease = segment.lease or self._lease_of(cell_id)
        try:
            still_s = segment.lease.unchanged_s()
        except StorageError:
            segment.lease = None  # what cannot be seen says nothing
            return None
        if still_s > (BEATS_WITHIN_S if segment.has_reported else STARTS_WITHIN_S):
            return f"its worker hung: no report for {silent_s:.0f} s, no heartbeat for {still_s:.0f} s"
        return None
