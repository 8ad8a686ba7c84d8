"""Which workers hang: they live, and neither report nor beat."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from sweeps.errors import StorageError
from sweeps.ledger.lease import LeaseWatch
from sweeps.ledger.world import World

BEATS_WITHIN_S: Final = 60.0  # a worker that has reported: it holds its cell's lease, and beats every 5 s
STARTS_WITHIN_S: Final = 900.0  # the same before its first report: imports and orphans may come before the lease
REPORTS_WITHIN_S: Final = 1_800.0  # or ten times the longest pause between two reports: exams take long
BEGINS_WITHIN_S: Final = 7_200.0  # until the first report: a node may have to build its token files, and to compile
_PAUSES: Final = 10
_LOOK_EVERY_S: Final = 5.0
_LOOK_AFTER_S: Final = 30.0  # of silence, or twice the longest pause: who reports as usual costs no look at a lease


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
