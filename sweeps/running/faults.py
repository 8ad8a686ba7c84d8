"""Whose fault it was that a segment did not end well: the world's, or the cell's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sweeps.ledger.world import World

MAX_IN_SUCCESSION: Final = 6
_FIRST_WAIT_S: Final = 1.0


class WorldFaults:
    """Faults of the world in succession, with longer and longer waits between them.

    The succession ends when a segment ends well. Faults while one waits count as one: several workers see the same.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._count = 0
        self._began_s = 0.0
        self._not_before_s = 0.0
        self._started_s: dict[str, float] = {}

    def started(self, cell_id: str) -> None:
        """A segment of this cell was handed out."""
        self._started_s[cell_id] = self._world.monotonic_s()

    def ended_well(self, cell_id: str) -> None:
        """A segment of this cell ended, and nothing around it failed."""
        self._started_s.pop(cell_id, None)
        self._count = 0
        self._not_before_s = 0.0

    def struck(self, cell_id: str) -> float | None:
        """The world failed a segment; returns how long to wait before the next one, None where nothing works.

        That is so after ``MAX_IN_SUCCESSION`` faults, unless a segment runs that was handed out before the first.
        """
        now_s = self._world.monotonic_s()
        self._started_s.pop(cell_id, None)
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
        self._last: dict[str, tuple[int, str | None]] = {}

    def started(self, cell_id: str) -> None:
        """A segment of this cell was handed out; it has reported nothing yet."""
        self._last[cell_id] = (0, None)

    def reported(self, cell_id: str, record: Mapping[str, Any]) -> None:
        """A running segment reported; Ray adds the host to each report."""
        self._last[cell_id] = (int(record["tokens_seen"]), record.get("hostname"))

    def last(self, cell_id: str) -> tuple[int, str | None]:
        """Tokens of the last report of this segment and its host; 0 and None before its first."""
        return self._last.get(cell_id, (0, None))
