"""What one cell left behind.

A record counts once the checkpoint that holds it is complete: ``records`` never returns one that a resume would make
again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from search_spaces import Cell
from sweeps.errors import StorageError
from sweeps.ledger.checkpoints import Checkpoints
from sweeps.ledger.entries import SCHEMA, add_numbered, if_there, numbered
from sweeps.ledger.storage import Storage

RETRIED = "retried"
Outcome = Literal["completed", "stopped_early", "diverged", "oom", "failed"]


class CellFolder:
    """What one cell left behind: segments of records, checkpoints, attempts, outcome."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.checkpoints = Checkpoints(storage)

    def outcome(self) -> dict[str, Any] | None:
        """How the cell ended, or None."""
        return if_there(self.storage, "outcome.json")

    def write_outcome(self, cell: Cell, outcome: Outcome, **facts: object) -> dict[str, Any]:
        """Write how the cell ended; ``facts`` are tokens_seen, the losses, the reason and whatever else is known."""
        entry: dict[str, Any] = {
            "schema": SCHEMA,
            "cell_id": cell.cell_id,
            "phase": cell.phase,
            "strategy": cell.strategy,
            "lr": cell.lr,
            "adamw_lr": cell.adamw_lr,
            "arrangement": cell.arrangement,
            "seed": cell.seed,
            "outcome": outcome,
            "tokens_seen": 0,
            "val_loss": None,
            "test_loss": None,
            "reason": None,
            "ended_s": time.time(),
            **facts,
        }
        self.storage.write_json("outcome.json", entry)
        return entry

    def records(self) -> list[dict[str, Any]]:
        """Every durable record in order of tokens."""
        outcome = self.outcome()
        durable = int(outcome["tokens_seen"]) if outcome else (self.checkpoints.newest_complete() or 0)
        return self.records_until(durable)

    def records_until(self, tokens: int) -> list[dict[str, Any]]:
        """The records of all segments that end at ``tokens`` or before."""
        found: list[dict[str, Any]] = []
        for name in self.storage.names("segments"):
            if _segment_span(name)[1] <= tokens:
                found += self.storage.read_json(f"segments/{name}")["records"]
        return found

    def write_segment(self, start: int, end: int, records: Sequence[Mapping[str, Any]]) -> None:
        """Write the records made between two durable points; they count once the checkpoint at ``end`` is complete."""
        name = f"segments/{start:015d}-{end:015d}.json"
        self.storage.write_json(name, {"schema": SCHEMA, "from": start, "to": end, "records": list(records)})

    def drop_segments_after(self, tokens: int) -> None:
        """Delete records that will be made again, before training goes on from ``tokens``."""
        for name in self.storage.names("segments"):
            if _segment_span(name)[1] > tokens:
                self.storage.delete(f"segments/{name}")

    def attempts(self) -> list[dict[str, Any]]:
        """Why segments of this cell failed, oldest first."""
        return numbered(self.storage, "attempts")

    def attempts_here(self) -> list[dict[str, Any]]:
        """Failures at the present checkpoint, since the user last asked for a retry."""
        attempts = self.attempts()
        retried = [number for number, attempt in enumerate(attempts) if attempt["kind"] == RETRIED]
        tokens = self.checkpoints.newest_complete() or 0
        return [a for a in attempts[retried[-1] + 1 if retried else 0 :] if a["tokens_seen"] == tokens]

    def add_attempt(self, kind: str, reason: str, traceback: str | None = None) -> None:
        """Note that a segment failed, with the traceback where an exception ended it."""
        entry = {
            "schema": SCHEMA,
            "kind": kind,
            "reason": reason,
            "traceback": traceback,
            "tokens_seen": self.checkpoints.newest_complete() or 0,
            "time_s": time.time(),
        }
        add_numbered(self.storage, "attempts", entry)

    def forget_failure(self) -> None:
        """Let a failed or out-of-memory cell run again: its outcome goes to the attempts."""
        outcome = self.outcome()
        assert outcome is not None
        self.add_attempt(RETRIED, f"retried by request after: {outcome['reason']}")
        self.storage.delete("outcome.json")


def _segment_span(name: str) -> tuple[int, int]:
    start, _, end = name.removesuffix(".json").partition("-")
    try:
        return int(start), int(end)
    except ValueError:
        raise StorageError(f"segments/{name} is not a segment of this program; move it out of the sweep") from None
