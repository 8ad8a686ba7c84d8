"""The ledger: everything of a sweep that must survive, in objects of our own.

    sweep.json                       the frozen beginning
    plan/NNNN.json                   cells as they were added, append-only
    cells/CELL_ID/segments/FROM-TO-HOLDER.json   the records made between two durable points, in tokens
    cells/CELL_ID/checkpoint-TO-HOLDER/          the state at a durable point; complete once manifest.json is there
    cells/CELL_ID/commits/NNNN.json  what counts from then on: a checkpoint, and the segments up to it
    cells/CELL_ID/attempts/NNNN.json why a segment failed
    cells/CELL_ID/outcome.json       how the cell ended
    verdict.json, verdicts/NNNN.json

``sweeps.ledger.cell_folder`` reads and writes what is below ``cells/CELL_ID``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Final

from search_spaces import Cell, did_you_mean
from sweeps.errors import BadInputError, DamagedError, StorageError, SweepHeldError
from sweeps.ledger.cell_folder import CellFolder
from sweeps.ledger.earlier_controls import (
    CONTROLS_ARE_ARMS,
    has_earlier_controls,
    with_cells_of_control_arms,
    with_control_arms,
)
from sweeps.ledger.entries import (
    SCHEMA,
    add_numbered,
    create_numbered,
    find_entry,
    numbered,
    numbers,
    read_entry,
)
from sweeps.ledger.identifiers import is_folder_name, require_name
from sweeps.ledger.models import (
    Beginning,
    CodeChange,
    Margin,
    PlanPage,
    PlanReason,
    SessionEntry,
    VerdictEntry,
)
from sweeps.ledger.storage import Storage

LEDGER_VERSION: Final = 2
"""2: checksums, commits, and segments and checkpoints with their holder's token. 1 is that of program version 0.1."""


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


class Ledger:
    """One sweep's folder."""

    def __init__(self, runs: Storage, name: str) -> None:
        """Open the folder ``name`` in ``runs``; raises BadInputError for what cannot be the name of a sweep."""
        require_name(name)
        self.name = name
        self.storage = runs.child(name)
        self._runs = runs
        self._pages: dict[int, dict[str, Any]] = {}

    @property
    def runs_uri(self) -> str:
        """The folder of all sweeps, in which this one is."""
        return self._runs.uri

    def patient(self, patience_s: float) -> Ledger:
        """The same ledger over a storage whose operations are retried for ``patience_s`` while it is away."""
        return Ledger(self._runs.patient(patience_s), self.name)

    def exists(self) -> bool:
        """Whether a sweep of this name was started."""
        return self.storage.exists("sweep.json")

    def begin(self, beginning: Mapping[str, Any]) -> None:
        """Write the frozen beginning; raises SweepHeldError where another process has just written one."""
        entry = {"schema": SCHEMA, "ledger_version": LEDGER_VERSION, "sweep": self.name, **beginning}
        try:
            self.storage.create_json("sweep.json", entry)
        except FileExistsError:
            raise SweepHeldError(f"{self.storage.uri} was started by another process at this moment") from None

    def beginning(self) -> dict[str, Any]:
        """The frozen beginning; raises BadInputError where there is no such sweep, naming the nearest one."""
        try:
            schema = self._schema()
        except FileNotFoundError:
            nearest = did_you_mean(self.name, sweep_names(self._runs))
            raise BadInputError(
                f"there is no sweep {self.name!r} in {self._runs.uri}; "
                + (nearest or "`sweeps status` lists those that are there")
            ) from None
        if schema != SCHEMA:
            raise BadInputError(
                f"sweep {self.name!r} has schema {schema}, this program reads {SCHEMA}; use the program that wrote it"
            )
        return with_control_arms(read_entry(self.storage, "sweep.json", Beginning))

    def _schema(self) -> object:
        found = self.storage.read_json("sweep.json")
        return found.get("schema") if isinstance(found, dict) else SCHEMA

    def require_current(self) -> None:
        """Raises BadInputError where a version wrote the ledger whose sweeps this one only reads."""
        beginning = self.beginning()
        if beginning.get("ledger_version", 1) != LEDGER_VERSION:
            raise BadInputError(
                f"sweep {self.name!r} was started by version 0.1 of moe-sweeps, which can resume and extend it; "
                "this version judges, reports, compares, syncs and exports it"
            )

    def add_cells(
        self,
        cells: Iterable[PlannedCell],
        *,
        because: str,
        extension: Mapping[str, Any] | None = None,
        sweep_id: str | None = None,
    ) -> None:
        """Append cells to the plan, each once, leaving out those that already stand in it.

        ``extension`` is what the user asked the space to be extended by; it is kept although no cell is new.
        ``sweep_id`` is that of a sweep whose beginning is not written yet.
        """
        wanted = list(cells)
        while not self.add_cells_to(self.plan_pages(), wanted, because=because, extension=extension, sweep_id=sweep_id):
            pass

    def add_cells_to(
        self,
        pages: Sequence[Mapping[str, Any]],
        cells: Iterable[PlannedCell],
        *,
        because: str,
        extension: Mapping[str, Any] | None = None,
        sweep_id: str | None = None,
    ) -> bool:
        """The same to a plan of exactly these pages; returns False, with nothing written, where it has others."""
        known = {planned.cell_id for planned in cells_of(pages)} if sweep_id is None else set()
        fresh = list({planned.cell_id: planned for planned in cells if planned.cell_id not in known}.values())
        if not fresh and extension is None:
            return True
        page = {
            "schema": SCHEMA,
            "sweep_id": sweep_id or self._sweep_id(),
            "added_s": self.storage.world.time_s(),
            "because": because,
            CONTROLS_ARE_ARMS: True,
            "extension": None if extension is None else dict(extension),
            "cells": [
                {**asdict(planned.cell), "reason": planned.reason, "may_stop_early": planned.may_stop_early}
                for planned in fresh
            ],
        }
        if len(self.plan_pages()) != len(pages):
            return False
        return create_numbered(self.storage, "plan", max(self._pages, default=0) + 1, page)

    def _sweep_id(self) -> str | None:
        """The sweep's id; None before its beginning is written."""
        try:
            return str(read_entry(self.storage, "sweep.json", Beginning)["sweep_id"])
        except FileNotFoundError:
            return None

    def planned_cells(self) -> list[PlannedCell]:
        """All cells in the order in which they were added, each once."""
        return cells_of(self.plan_pages())

    def planned(self, cell_id: str) -> PlannedCell:
        """The cell of this id; raises StorageError where the plan, as this machine sees it, has none."""
        for planned in self.planned_cells():
            if planned.cell_id == cell_id:
                return planned
        raise StorageError(
            f"{self.storage.uri} shows no cell {cell_id} in its plan on {self.storage.world.process().host}; "
            "is the storage mounted there?"
        )

    def plan_pages(self) -> list[dict[str, Any]]:
        """The plan's pages as they were written: when, why, which cells.

        Raises DamagedError where one is missing. Pages are numbered from 1 without a gap and looked for by number: on
        some mounts the listing of a folder is late.
        """
        last = max(numbers(self.storage, "plan"), default=0)
        number = len(self._pages) + 1  # a page never changes once it is written
        while (page := find_entry(self.storage, f"plan/{number:04d}.json", PlanPage)) is not None:
            self._pages[number] = self._of_today(page)
            number += 1
        if number <= last:
            raise DamagedError(f"{self.storage.uri}/plan/{number:04d}.json is missing; restore it from a copy")
        pages = list(self._pages.values())
        if len({page.get("sweep_id") for page in pages}) < 2:
            return pages
        return [page for page in pages if page.get("sweep_id") in (None, self._sweep_id())]

    def _of_today(self, page: dict[str, Any]) -> dict[str, Any]:
        """A page of the plan, with the controls of an earlier version as the arms that they are today."""
        added = (page["extension"] or {}).get("strategies")
        if page.get(CONTROLS_ARE_ARMS) or (not added and all(c["arrangement"] == "shuffled" for c in page["cells"])):
            return page
        try:
            space = read_entry(self.storage, "sweep.json", Beginning)["space"]
        except FileNotFoundError:
            return page
        return with_cells_of_control_arms(page, space) if has_earlier_controls(space) else page

    def cell_folder(self, cell_id: str) -> CellFolder:
        """The folder of one cell; it need not exist yet. Raises DamagedError for what cannot be a cell's id."""
        if not is_folder_name(cell_id):
            raise DamagedError(f"{self.storage.uri} is damaged: cell_id={cell_id!r} is not the name of one folder")
        return CellFolder(self.storage.child(f"cells/{cell_id}"))

    def fix_margin(self, margin: float) -> None:
        """Write down the equivalence margin, once; it comes from explore records alone."""
        entry = {"schema": SCHEMA, "margin": margin, "fixed_s": self.storage.world.time_s()}
        if self.margin() is None:
            with suppress(FileExistsError):
                self.storage.create_json("margin.json", entry)

    def margin(self) -> float | None:
        """The equivalence margin in nats per token as it was fixed, or None."""
        fixed = find_entry(self.storage, "margin.json", Margin)
        return None if fixed is None else float(fixed["margin"])

    def code_changes(self) -> list[str]:
        """Fingerprints of training code that was accepted after the beginning, oldest first."""
        return [str(change["code"]) for change in numbered(self.storage, "code", CodeChange)]

    def add_code_change(self, fingerprint: str) -> None:
        """Note that cells from here on were trained by other code, as the user requested."""
        entry = {"schema": SCHEMA, "code": fingerprint, "accepted_s": self.storage.world.time_s()}
        add_numbered(self.storage, "code", entry)

    def sessions(self) -> list[dict[str, Any]]:
        """Every session that came to its end in order, oldest first."""
        return numbered(self.storage, "sittings", SessionEntry)

    def add_session(self, *, began_s: float, first_estimate_s: float | None, interrupted: bool) -> dict[str, Any]:
        """Note a session that ends now; ``first_estimate_s`` is the wall time that it was first thought to take."""
        entry = {
            "schema": SCHEMA,
            "began_s": began_s,
            "wall_s": self.storage.world.time_s() - began_s,
            "first_estimate_s": first_estimate_s,
            "interrupted": interrupted,
        }
        add_numbered(self.storage, "sittings", entry)
        return entry

    def verdicts(self) -> list[dict[str, Any]]:
        """Every verdict that said something else than the one before it, oldest first."""
        return numbered(self.storage, "verdicts", VerdictEntry)

    def write_verdict(self, verdict: Mapping[str, Any]) -> None:
        """Keep the verdict as the newest, and beside the earlier ones unless it says the same as the last."""
        earlier = self.verdicts()
        if not earlier or earlier[-1] != dict(verdict):
            add_numbered(self.storage, "verdicts", verdict)
        self.storage.write_json("verdict.json", verdict)

    def verdict(self) -> dict[str, Any] | None:
        """The newest verdict, or None."""
        return find_entry(self.storage, "verdict.json", VerdictEntry)


def sweep_names(runs: Storage) -> list[str]:
    """Names of all sweeps that were started in a runs folder."""
    return [name for name in runs.names() if is_folder_name(name) and runs.exists(f"{name}/sweep.json")]


def cells_of(pages: Iterable[Mapping[str, Any]]) -> list[PlannedCell]:
    """The cells of some pages, each once, as the first page has it."""
    found: dict[str, PlannedCell] = {}
    for page in pages:
        for fields in page["cells"]:
            entry = dict(fields)
            reason, may_stop_early = entry.pop("reason"), entry.pop("may_stop_early")
            planned = PlannedCell(cell=Cell(**entry), reason=reason, may_stop_early=may_stop_early)
            found.setdefault(planned.cell_id, planned)
    return list(found.values())
