"""One cell's folder: records, checkpoints, commits, attempts, outcome.

A record counts once a commit, or the outcome, lists its segment; ``records`` never returns one twice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from search_spaces import Cell
from sweeps.errors import DamagedError, SweepHeldError
from sweeps.ledger.checkpoints import KEPT, CheckpointName, Checkpoints, Read, read_listed, stored_file
from sweeps.ledger.checksum import with_checksum
from sweeps.ledger.commits import Commits
from sweeps.ledger.entries import SCHEMA, add_numbered, find_entry, numbered
from sweeps.ledger.models import Attempt, Commit, CountedSegment, Outcome, OutcomeEntry, Segment, validated
from sweeps.ledger.results import RETRIED_OUTCOMES
from sweeps.ledger.storage import Storage

RETRIED: Final = "retried"
_OUTCOME: Final = "outcome.json"
_SEGMENT: Final = re.compile(r"\d{15}-(\d{15})(?:-\d{6,}-[0-9a-f]+)?\.json")


class CellFolder:
    """One cell's folder; ``CellWriter`` adds to it under a lease."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.checkpoints = Checkpoints(storage)
        self.commits = Commits(storage)

    def outcome(self) -> dict[str, Any] | None:
        """How the cell ended, or None."""
        return find_entry(self.storage, _OUTCOME, OutcomeEntry)

    def write_outcome(
        self,
        cell: Cell,
        outcome: Outcome,
        *,
        segments: Sequence[Mapping[str, Any]] | None = None,
        **facts: object,
    ) -> dict[str, Any]:
        """Write how the cell ended, once, and return what stands there: an outcome is never overwritten.

        ``segments`` are those that count, by default those of the newest commit; ``facts`` are tokens_seen, the
        losses, the reason and whatever else is known.
        """
        if segments is None:
            newest = self.newest()
            listed = (newest.segments if newest is not None else None) or []
            segments = [segment.model_dump(by_alias=True) for segment in listed]
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
            "ended_s": self.storage.world.time_s(),
            **facts,
            "segments": [dict(segment) for segment in segments],
        }
        try:
            self.storage.create_json(_OUTCOME, entry)
        except FileExistsError:
            entry = self.outcome() or entry
        return entry

    def newest(self) -> Commit | None:
        """What counts, or None; of version 0.1, which wrote no commits, the newest complete checkpoint."""
        newest = self.commits.newest()
        if newest is not None or not (complete := self.checkpoints.complete()) or complete[0].secret:
            return newest
        tokens = complete[-1].tokens
        return Commit(tokens_seen=tokens, holder="", checkpoint=str(complete[-1]), segments=None)

    def newest_checkpoint(self) -> int | None:
        """Tokens of the checkpoint that the cell resumes from, or None."""
        newest = self.newest()
        return None if newest is None or newest.checkpoint is None else newest.tokens_seen

    def load_newest(self, read: Callable[[Path], Read]) -> Read:
        """Return what ``read`` makes of a folder with the newest checkpoint's files.

        Raises FileNotFoundError if there is none, DamagedError if it is damaged.
        """
        newest = self.newest()
        if newest is None or newest.checkpoint is None:
            raise FileNotFoundError(f"{self.storage.uri} holds no checkpoint")
        return self.checkpoints.load(newest.checkpoint, read)

    def delete_checkpoints(self) -> None:
        """Delete every checkpoint of a cell that has its outcome."""
        self.commits.delete()
        for name in self.checkpoints.names():
            self.checkpoints.delete(name)

    def records(self) -> list[dict[str, Any]]:
        """Every record that counts, in order of tokens."""
        return self.records_of(self.outcome())

    def records_of(self, outcome: Mapping[str, Any] | None) -> list[dict[str, Any]]:
        """Like ``records``, for an outcome that was already read."""
        if outcome is None:
            newest = self.newest()
            if newest is None:
                return []
            counted, tokens = newest.segments, newest.tokens_seen
        else:
            counted = validated(self.storage, _OUTCOME, dict(outcome), OutcomeEntry).segments
            tokens = int(outcome["tokens_seen"])
        if counted is None:
            return self._unlisted_records(tokens)
        return [record for segment in counted for record in self._listed_records(segment)]

    def _listed_records(self, segment: CountedSegment) -> list[dict[str, Any]]:
        name = f"segments/{segment.name}"
        value = self.storage.parse_json(name, read_listed(self.storage, name, segment))
        validated(self.storage, name, value, Segment)
        records: list[dict[str, Any]] = value["records"]
        return records

    def _unlisted_records(self, tokens: int) -> list[dict[str, Any]]:
        """Version 0.1 listed nothing: all segments that end at ``tokens`` or before count."""
        found: list[dict[str, Any]] = []
        for name in self.storage.names("segments"):
            found_name = _SEGMENT.fullmatch(name)
            if found_name is None:
                raise DamagedError(
                    f"{self.storage.uri}/segments/{name} was not written by this program; move it elsewhere"
                )
            if int(found_name[1]) <= tokens:
                value = self.storage.read_json(f"segments/{name}")
                validated(self.storage, f"segments/{name}", value, Segment)
                found += value["records"]
        return found

    def attempts(self) -> list[dict[str, Any]]:
        """Why segments of this cell failed, oldest first."""
        return numbered(self.storage, "attempts", Attempt)

    def attempts_here(self) -> list[dict[str, Any]]:
        """Failures at the current checkpoint, since the user last asked for a retry."""
        attempts = self.attempts()
        retried = [number for number, attempt in enumerate(attempts) if attempt["kind"] == RETRIED]
        tokens = self.newest_checkpoint() or 0
        return [a for a in attempts[retried[-1] + 1 if retried else 0 :] if a["tokens_seen"] == tokens]

    def add_attempt(self, kind: str, reason: str, **facts: object) -> None:
        """Note that a segment failed; ``facts`` are the traceback, the node and how far it got."""
        entry = {
            "schema": SCHEMA,
            "kind": kind,
            "reason": reason,
            "traceback": None,
            "tokens_seen": self.newest_checkpoint() or 0,
            "time_s": self.storage.world.time_s(),
            **facts,
        }
        add_numbered(self.storage, "attempts", entry)

    def forget_failure(self) -> None:
        """Let a failed or out-of-memory cell run again: its outcome goes to the attempts."""
        outcome = self.outcome()
        assert outcome is not None
        self.add_attempt(RETRIED, f"retried by request after: {outcome['reason']}")
        self.storage.delete(_OUTCOME)

    def collect(self) -> None:
        """Delete segments that do not count, once the cell has ended for good and no holder can need them."""
        outcome = self.outcome()
        if outcome is None or outcome["outcome"] in RETRIED_OUTCOMES or outcome.get("segments") is None:
            return
        counted = {segment["name"] for segment in outcome["segments"]}
        for name in self.storage.names("segments"):
            if name not in counted and _SEGMENT.fullmatch(name):
                self.storage.delete(f"segments/{name}")


class CellWriter:
    """Adds to a cell's folder under a lease, whose ``token`` is in the names of its segments and checkpoints.

    ``confirm`` raises SweepHeldError where the lease was taken over; it is asked before the outcome is written.
    """

    def __init__(self, folder: CellFolder, token: str, confirm: Callable[[], None] = lambda: None) -> None:
        self._folder = folder
        self._storage = folder.storage
        self._token = token
        self._holder_number = CheckpointName.of(0, token).number
        self._confirm = confirm
        self._number = 0
        self._saved: dict[int, str] = {}  # commit number to checkpoint: what a later holder may need
        self._segments: list[dict[str, Any]] = []

    def adopt(self, load: Callable[[Path], None], note: Callable[[str], None] = lambda _line: None) -> int:
        """Load the newest whole checkpoint and commit to it; returns its tokens.

        ``note`` is given a line for each commit or checkpoint that is damaged. What an earlier holder commits
        meanwhile is adopted in its place. Raises SweepHeldError where a later holder has committed.
        """
        damaged: set[str] = set()
        highest = max(self._folder.commits.numbers(), default=0)
        while True:
            base = self._load_best(highest, load, note, damaged)
            self._segments = [segment.model_dump(by_alias=True) for segment in base.segments or []]
            if self._commit(highest + 1, base.tokens_seen, base.checkpoint):
                return base.tokens_seen
            highest += 1

    def _load_best(
        self, highest: int, load: Callable[[Path], None], note: Callable[[str], None], damaged: set[str]
    ) -> Commit:
        """Load the checkpoint of the newest commit that has a whole one, or none at all."""
        for number in range(highest, 0, -1):
            try:
                commit = self._folder.commits.read(number)
            except FileNotFoundError:
                break  # the ones before it were deleted
            except DamagedError as error:
                note(f"skipping a damaged commit, using the one before it: {error}")
                continue
            if commit.holder > self._token:
                raise self._superseded()
            if commit.checkpoint in damaged:
                continue
            try:
                if commit.checkpoint is not None:
                    self._folder.checkpoints.load(commit.checkpoint, load)
            except DamagedError as error:
                note(f"checkpoint at {commit.tokens_seen:,} tokens set aside, the one before it serves: {error}")
                damaged.add(str(commit.checkpoint))
                continue
            return commit
        return Commit(tokens_seen=0, holder=self._token, checkpoint=None, segments=[])

    def _commit(self, number: int, tokens: int, checkpoint: str | None) -> bool:
        """Let the segments so far count up to a checkpoint; returns False where another holder has this number."""
        commit = Commit.model_validate(
            {"tokens_seen": tokens, "holder": self._token, "checkpoint": checkpoint, "segments": self._segments}
        )
        if not self._folder.commits.create(number, commit):
            return False
        self._number = number
        if checkpoint is not None:
            self._saved[number] = checkpoint
        return True

    def _superseded(self) -> SweepHeldError:
        return SweepHeldError(
            f"another worker took over {self._storage.uri} because this one was silent for too long; let it continue"
        )

    def write_records(self, start: int, end: int, records: Sequence[Mapping[str, Any]]) -> None:
        """Write the records made between two durable points; they count once a commit or the outcome lists them."""
        name = f"{start:015d}-{end:015d}-{self._token}.json"
        data = with_checksum({"schema": SCHEMA, "from": start, "to": end, "records": list(records)})
        self._storage.write_bytes(f"segments/{name}", data)
        self._segments = [segment for segment in self._segments if segment["name"] != name]
        self._segments.append({"name": name, **stored_file(data)})

    def save(self, tokens: int, write: Callable[[Path], None]) -> None:
        """Let ``write`` fill a folder and store it as the checkpoint at ``tokens``; then all records so far count.

        Raises SweepHeldError where a later holder has committed. What no holder can need goes.
        """
        name = CheckpointName.of(tokens, self._token)
        self._folder.checkpoints.write(name, write)
        if not self._commit(self._number + 1, tokens, str(name)):
            raise self._superseded()
        self._collect()

    def _collect(self) -> None:
        """Delete all but the last two checkpoints, and those that earlier holders left.

        Segments stay until the outcome stands: an earlier holder's may land late, and list its own.
        """
        kept = dict(sorted(self._saved.items())[-KEPT:])
        if len(kept) < KEPT:
            return
        if max(self._folder.commits.numbers(), default=0) > self._number:
            raise self._superseded()  # the later holder may need what this one does not
        self._folder.commits.delete(before=min(kept))
        for name in self._folder.checkpoints.names():
            if name.number <= self._holder_number and str(name) not in kept.values():
                self._folder.checkpoints.delete(name)
        self._saved = kept

    def end(self, cell: Cell, outcome: Outcome, **facts: object) -> dict[str, Any]:
        """Write how the cell ended, with every record so far."""
        self._confirm()
        return self._folder.write_outcome(cell, outcome, segments=self._segments, **facts)
