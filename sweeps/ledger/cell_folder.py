"""What one cell left behind: records, checkpoints, attempts, outcome.

A record counts once a checkpoint's manifest, or the outcome, lists its segment: ``records`` never returns one that a
resume would make again, and none twice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from search_spaces import Cell
from sweeps.errors import DamagedError
from sweeps.ledger.checkpoints import (
    KEPT,
    Checkpoint,
    CheckpointName,
    Checkpoints,
    read_listed,
    stored_file,
)
from sweeps.ledger.checksum import with_checksum
from sweeps.ledger.entries import SCHEMA, add_numbered, find_entry, numbered
from sweeps.ledger.models import Attempt, CountedSegment, Outcome, OutcomeEntry, Segment, validated
from sweeps.ledger.results import RETRIED_OUTCOMES
from sweeps.ledger.storage import Storage

RETRIED: Final = "retried"
_OUTCOME: Final = "outcome.json"
_SEGMENT: Final = re.compile(r"(\d{15})-(\d{15})(?:-(\d{6,})-[0-9a-f]+)?\.json")


class CellFolder:
    """What one cell left behind; ``CellWriter`` adds to it under a lease."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.checkpoints = Checkpoints(storage)

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
        """Write how the cell ended, once, and return what stands there: an outcome never changes.

        ``segments`` are those that count, by default those of the checkpoint that counts; ``facts`` are tokens_seen,
        the losses, the reason and whatever else is known.
        """
        if segments is None:
            durable = self.checkpoints.durable()
            listed = (durable.manifest.segments if durable is not None else None) or []
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

    def records(self) -> list[dict[str, Any]]:
        """Every record that counts, in order of tokens."""
        return self.records_of(self.outcome())

    def records_of(self, outcome: Mapping[str, Any] | None) -> list[dict[str, Any]]:
        """The same, for an outcome that was read before."""
        if outcome is None:
            durable = self.checkpoints.durable()
            if durable is None:
                return []
            counted, tokens = durable.manifest.segments, durable.tokens
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
            numbers = _segment_numbers(name)
            if numbers is None:
                raise DamagedError(f"{self.storage.uri}/segments/{name} is not of this program; move it elsewhere")
            if numbers[1] <= tokens:
                value = self.storage.read_json(f"segments/{name}")
                validated(self.storage, f"segments/{name}", value, Segment)
                found += value["records"]
        return found

    def attempts(self) -> list[dict[str, Any]]:
        """Why segments of this cell failed, oldest first."""
        return numbered(self.storage, "attempts", Attempt)

    def attempts_here(self) -> list[dict[str, Any]]:
        """Failures at the present checkpoint, since the user last asked for a retry."""
        attempts = self.attempts()
        retried = [number for number, attempt in enumerate(attempts) if attempt["kind"] == RETRIED]
        tokens = self.checkpoints.newest_complete() or 0
        return [a for a in attempts[retried[-1] + 1 if retried else 0 :] if a["tokens_seen"] == tokens]

    def add_attempt(self, kind: str, reason: str, **facts: object) -> None:
        """Note that a segment failed; ``facts`` are the traceback, the node and how far it got."""
        entry = {
            "schema": SCHEMA,
            "kind": kind,
            "reason": reason,
            "traceback": None,
            "tokens_seen": self.checkpoints.newest_complete() or 0,
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
            if name not in counted and _segment_numbers(name) is not None:
                self.storage.delete(f"segments/{name}")


class CellWriter:
    """Adds to a cell's folder under a lease, whose ``token`` is in the name of everything.

    ``confirm`` raises SweepHeldError where the lease was taken over; it is asked before anything is deleted.
    """

    def __init__(self, folder: CellFolder, token: str, confirm: Callable[[], None] = lambda: None) -> None:
        self._folder = folder
        self._storage = folder.storage
        self._checkpoints = folder.checkpoints
        self._token = token
        self._number = CheckpointName.of(0, token).number
        self._confirm = confirm
        self._saved: list[Checkpoint] = []
        self._segments: list[dict[str, Any]] = []

    def adopt(self, load: Callable[[Path], None], note: Callable[[str], None] = lambda _line: None) -> int:
        """Load the newest whole checkpoint and make it the base of what this holder writes; returns its tokens.

        ``note`` is given a line for each checkpoint that is damaged. A checkpoint that an earlier holder completed
        before the base was written may have been read by others, so it is looked for once more and adopted too.
        """
        seen: set[CheckpointName] = set()
        base = self._load_best(load, note, seen, above=None)
        self._write_base(base)
        while (later := self._load_best(load, note, seen, above=base)) is not None:
            base = later
            self._write_base(base)
        return 0 if base is None else base.tokens

    def _load_best(
        self,
        load: Callable[[Path], None],
        note: Callable[[str], None],
        seen: set[CheckpointName],
        above: Checkpoint | None,
    ) -> Checkpoint | None:
        """Load the first whole checkpoint of an earlier holder that counts before ``above``; None without one."""
        for name in self._checkpoints.names():
            if name.number >= self._number or name in seen or (above is not None and name <= above.name):
                continue
            try:
                checkpoint = self._checkpoints.read(name)
                if checkpoint.manifest.files:
                    self._checkpoints.load(checkpoint, load)
            except FileNotFoundError:
                continue  # not complete
            except DamagedError as error:
                note(f"checkpoint at {name.tokens:,} tokens set aside, the one before it serves: {error}")
                seen.add(name)
                continue
            seen.add(name)
            return checkpoint
        return None

    def _write_base(self, base: Checkpoint | None) -> None:
        """Write a manifest of this holder's own over the files and segments of ``base``, or over none."""
        name = CheckpointName.of(0 if base is None else base.tokens, self._token)
        found = {} if base is None else base.manifest.model_dump(by_alias=True, include={"files", "segments"})
        self._segments = found.get("segments") or []
        folder = str(name) if base is None else base.files_folder
        files = found.get("files", {})
        self._saved = [self._checkpoints.write_manifest(name, folder=folder, files=files, segments=self._segments)]

    def write_records(self, start: int, end: int, records: Sequence[Mapping[str, Any]]) -> None:
        """Write the records made between two durable points; they count once a manifest or the outcome lists them."""
        name = f"{start:015d}-{end:015d}-{self._token}.json"
        data = with_checksum({"schema": SCHEMA, "from": start, "to": end, "records": list(records)})
        self._storage.write_bytes(f"segments/{name}", data)
        self._segments = [segment for segment in self._segments if segment["name"] != name]
        self._segments.append({"name": name, **stored_file(data)})

    def save(self, tokens: int, write: Callable[[Path], None]) -> None:
        """Let ``write`` fill a folder and store it as the checkpoint at ``tokens``; then all records so far count.

        What can count no more goes: checkpoints before the last two, and what earlier holders left.
        """
        name = CheckpointName.of(tokens, self._token)
        files = self._checkpoints.write_files(name, write)
        saved = self._checkpoints.write_manifest(name, folder=str(name), files=files, segments=self._segments)
        self._saved.append(saved)
        self._confirm()  # who took over before this may need what this one does not
        self._collect()

    def _collect(self) -> None:
        """Delete what no holder can need.

        Whoever takes over later finds the last two checkpoints, and everything else counts less than they do.
        """
        kept = [checkpoint for checkpoint in self._saved if checkpoint.manifest.files][-KEPT:]
        if len(kept) < KEPT:
            return
        folders = {str(checkpoint.name) for checkpoint in kept} | {checkpoint.files_folder for checkpoint in kept}
        for name in reversed(self._checkpoints.names()):
            if name.number <= self._number and str(name) not in folders:
                self._checkpoints.delete(str(name))
        counted = {segment["name"] for segment in self._segments}
        for segment in self._storage.names("segments"):
            numbers = _segment_numbers(segment)
            if segment not in counted and numbers is not None and numbers[2] <= self._number:
                self._storage.delete(f"segments/{segment}")
        self._saved = kept

    def end(self, cell: Cell, outcome: Outcome, **facts: object) -> dict[str, Any]:
        """Write how the cell ended, with every record so far."""
        self._confirm()
        return self._folder.write_outcome(cell, outcome, segments=self._segments, **facts)


def _segment_numbers(name: str) -> tuple[int, int, int] | None:
    """Where a segment begins and ends, in tokens, and its holder's number (0 in version 0.1); None for another file."""
    found = _SEGMENT.fullmatch(name)
    return found and (int(found[1]), int(found[2]), int(found[3] or 0))
