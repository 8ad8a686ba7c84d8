"""The ledger: everything of a sweep that must survive, in objects of our own.

    sweep.json                       the frozen beginning
    plan/NNNN.json                   cells as they were added, append-only
    cells/CELL_ID/segments/FROM-TO.json   the records made between two durable points, in tokens
    cells/CELL_ID/checkpoint-TO/     the state at a durable point; complete once manifest.json is there
    cells/CELL_ID/attempts/NNNN.json why a segment failed
    cells/CELL_ID/outcome.json       how the cell ended
    verdict.json, verdicts/NNNN.json

A record counts once the checkpoint that holds it is complete: ``records`` never returns one that a resume would make
again.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from search_spaces import Cell, did_you_mean
from sweeps.errors import BadInputError, DamagedError, StorageError
from sweeps.ledger.checkpoints import Checkpoints
from sweeps.ledger.storage import Storage

SCHEMA = 1
BEGINNING_KEYS = ("sweep_id", "created_s", "space", "strategies", "fingerprints")
RETRIED = "retried"
Outcome = Literal["completed", "stopped_early", "diverged", "oom", "failed"]
PlanReason = Literal["grid", "confirm", "widening", "extension", "suggestion", "control", "time"]


@dataclass(frozen=True, kw_only=True)
class PlannedCell:
    """A cell as it stands in the plan; ``may_stop_early`` says whether it takes part in early stopping."""

    cell: Cell
    reason: PlanReason
    may_stop_early: bool

    @property
    def cell_id(self) -> str:
        """The cell's id; a cell in the ledger always has one."""
        assert self.cell.cell_id is not None, "a cell without a rate has no place in the ledger"
        return self.cell.cell_id

    def __str__(self) -> str:
        """The cell in a sentence: ``balanced lr=0.02 seed=3 confirm``."""
        cell = self.cell
        return f"{cell.strategy} lr={cell.lr:g} seed={cell.seed} {cell.phase}"


class CellFolder:
    """What one cell left behind: segments of records, checkpoints, attempts, outcome."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.checkpoints = Checkpoints(storage)

    def outcome(self) -> dict[str, Any] | None:
        """How the cell ended, or None."""
        return _if_there(self.storage, "outcome.json")

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
        return _numbered(self.storage, "attempts")

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
        _add_numbered(self.storage, "attempts", entry)

    def forget_failure(self) -> None:
        """Let a failed or out-of-memory cell run again: its outcome goes to the attempts."""
        outcome = self.outcome()
        assert outcome is not None
        self.add_attempt(RETRIED, f"retried by request after: {outcome['reason']}")
        self.storage.delete("outcome.json")


class Ledger:
    """One sweep's folder."""

    def __init__(self, runs: Storage, name: str) -> None:
        self.name = name
        self.storage = runs.child(name)
        self._runs = runs
        self._pages: dict[str, dict[str, Any]] = {}

    def exists(self) -> bool:
        """Whether a sweep of this name was begun."""
        return self.storage.exists("sweep.json")

    def begin(self, beginning: Mapping[str, Any]) -> None:
        """Write the frozen beginning."""
        self.storage.write_json("sweep.json", {"schema": SCHEMA, "sweep": self.name, **beginning})

    def beginning(self) -> dict[str, Any]:
        """The frozen beginning; raises BadInputError where there is no such sweep, naming the nearest one."""
        try:
            beginning = _table(self.storage, "sweep.json")
        except FileNotFoundError:
            nearest = did_you_mean(self.name, sweep_names(self._runs))
            raise BadInputError(
                f"there is no sweep {self.name!r} in {self._runs.uri}; "
                + (nearest or "`sweeps status` lists those that are there")
            ) from None
        if beginning.get("schema") != SCHEMA:
            raise BadInputError(
                f"sweep {self.name!r} has schema {beginning.get('schema')}, this program reads {SCHEMA}; "
                "use the program that wrote it"
            )
        return _whole(self.storage, "sweep.json", beginning, BEGINNING_KEYS)

    def add_cells(
        self, cells: Iterable[PlannedCell], *, because: str, extension: Mapping[str, Any] | None = None
    ) -> None:
        """Append cells to the plan, each once, leaving out those that already stand in it.

        ``extension`` is what the user asked the space to be extended by; it is kept although no cell is new.
        """
        known = {planned.cell_id for planned in self.planned_cells()}
        fresh = list({planned.cell_id: planned for planned in cells if planned.cell_id not in known}.values())
        if not fresh and extension is None:
            return
        page = {
            "schema": SCHEMA,
            "added_s": time.time(),
            "because": because,
            "extension": None if extension is None else dict(extension),
            "cells": [
                {**asdict(planned.cell), "reason": planned.reason, "may_stop_early": planned.may_stop_early}
                for planned in fresh
            ],
        }
        _add_numbered(self.storage, "plan", page)

    def planned_cells(self) -> list[PlannedCell]:
        """All cells in the order in which they were added."""
        planned: list[PlannedCell] = []
        for page in self.plan_pages():
            for fields in page["cells"]:
                entry = dict(fields)
                reason, may_stop_early = entry.pop("reason"), entry.pop("may_stop_early")
                planned.append(PlannedCell(cell=Cell(**entry), reason=reason, may_stop_early=may_stop_early))
        return planned

    def plan_pages(self) -> list[dict[str, Any]]:
        """The plan's pages as they were written: when, why, which cells."""
        names = self.storage.names("plan")
        for name in names:
            if name not in self._pages:  # a page never changes once it is written
                self._pages[name] = _whole(
                    self.storage, f"plan/{name}", _table(self.storage, f"plan/{name}"), ("extension", "cells")
                )
        return [self._pages[name] for name in names]

    def cell_folder(self, cell_id: str) -> CellFolder:
        """The folder of one cell; it need not exist yet."""
        return CellFolder(self.storage.child(f"cells/{cell_id}"))

    def fix_margin(self, margin: float) -> None:
        """Write down the equivalence margin, once; it comes from explore records alone."""
        if self.margin() is None:
            self.storage.write_json("margin.json", {"schema": SCHEMA, "margin": margin, "fixed_s": time.time()})

    def margin(self) -> float | None:
        """The equivalence margin in nats per token as it was fixed, or None."""
        fixed = _if_there(self.storage, "margin.json")
        return None if fixed is None else float(fixed["margin"])

    def code_changes(self) -> list[str]:
        """Fingerprints of training code that was accepted after the beginning, oldest first."""
        return [str(change["code"]) for change in _numbered(self.storage, "code")]

    def add_code_change(self, fingerprint: str) -> None:
        """Note that cells from here on were trained by other code, as the user wished."""
        _add_numbered(self.storage, "code", {"schema": SCHEMA, "code": fingerprint, "accepted_s": time.time()})

    def sittings(self) -> list[dict[str, Any]]:
        """Every sitting that came to its end in order, oldest first."""
        return _numbered(self.storage, "sittings")

    def add_sitting(self, *, began_s: float, first_estimate_s: float | None, interrupted: bool) -> dict[str, Any]:
        """Note a sitting that ends now; ``first_estimate_s`` is the wall time that it was first thought to take."""
        entry = {
            "schema": SCHEMA,
            "began_s": began_s,
            "wall_s": time.time() - began_s,
            "first_estimate_s": first_estimate_s,
            "interrupted": interrupted,
        }
        _add_numbered(self.storage, "sittings", entry)
        return entry

    def verdicts(self) -> list[dict[str, Any]]:
        """Every verdict that said something else than the one before it, oldest first."""
        return _numbered(self.storage, "verdicts")

    def write_verdict(self, verdict: Mapping[str, Any]) -> None:
        """Keep the verdict as the newest, and beside the earlier ones unless it says the same as the last."""
        earlier = self.verdicts()
        if not earlier or earlier[-1] != dict(verdict):
            _add_numbered(self.storage, "verdicts", verdict)
        self.storage.write_json("verdict.json", verdict)

    def verdict(self) -> dict[str, Any] | None:
        """The newest verdict, or None."""
        return _if_there(self.storage, "verdict.json")


def sweep_names(runs: Storage) -> list[str]:
    """Names of all sweeps that were begun in a runs folder."""
    return [name for name in runs.names() if "." not in name[:1] and runs.exists(f"{name}/sweep.json")]


def _if_there(storage: Storage, name: str) -> dict[str, Any] | None:
    """An object of the ledger, None where it was not written yet."""
    try:
        found: dict[str, Any] = storage.read_json(name)
    except FileNotFoundError:
        return None
    return found


def _numbered(storage: Storage, folder: str) -> list[dict[str, Any]]:
    """All objects of a folder that only ever grows, oldest first."""
    return [storage.read_json(f"{folder}/{name}") for name in storage.names(folder)]


def _add_numbered(storage: Storage, folder: str, entry: Mapping[str, Any]) -> None:
    """Write the next object of such a folder: ``0001.json``, ``0002.json`` and on."""
    storage.write_json(f"{folder}/{len(storage.names(folder)) + 1:04d}.json", entry)


def _table(storage: Storage, name: str) -> dict[str, Any]:
    """A JSON object of the ledger; raises DamagedError where it is another kind of value."""
    table = storage.read_json(name)
    if not isinstance(table, dict):
        raise DamagedError(f"{storage.uri}/{name} is damaged: it is not a JSON object; restore it from a copy")
    return table


def _whole(storage: Storage, name: str, table: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """``table`` itself; raises DamagedError where it lacks a key that every object of this name has."""
    missing = [key for key in keys if key not in table]
    if missing:
        lacks = " and no ".join(missing)
        raise DamagedError(f"{storage.uri}/{name} is damaged: it has no {lacks}; restore it from a copy")
    return table


def _segment_span(name: str) -> tuple[int, int]:
    start, _, end = name.removesuffix(".json").partition("-")
    try:
        return int(start), int(end)
    except ValueError:
        raise StorageError(f"segments/{name} is not a segment of this program; move it out of the sweep") from None
