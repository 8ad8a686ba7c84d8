"""The ledger: everything of a sweep that must survive, in objects of our own.

    sweep.json                       the frozen beginning
    plan/NNNN.json                   cells as they were added, append-only
    cells/CELL_ID/segments/FROM-TO.json   the records made between two durable points, in tokens
    cells/CELL_ID/checkpoint-TO/     the state at a durable point; complete once manifest.json is there
    cells/CELL_ID/attempts/NNNN.json why a segment failed
    cells/CELL_ID/outcome.json       how the cell ended
    verdict.json, verdicts/NNNN.json

``sweeps.ledger.cell_folder`` reads and writes what is below ``cells/CELL_ID``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from search_spaces import Cell, did_you_mean
from sweeps.errors import BadInputError
from sweeps.ledger.cell_folder import CellFolder
from sweeps.ledger.entries import SCHEMA, add_numbered, if_there, numbered, read_table, whole
from sweeps.ledger.storage import Storage

BEGINNING_KEYS = ("sweep_id", "created_s", "space", "strategies", "fingerprints")
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
            beginning = read_table(self.storage, "sweep.json")
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
        return whole(self.storage, "sweep.json", beginning, BEGINNING_KEYS)

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
        add_numbered(self.storage, "plan", page)

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
                self._pages[name] = whole(
                    self.storage, f"plan/{name}", read_table(self.storage, f"plan/{name}"), ("extension", "cells")
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
        fixed = if_there(self.storage, "margin.json")
        return None if fixed is None else float(fixed["margin"])

    def code_changes(self) -> list[str]:
        """Fingerprints of training code that was accepted after the beginning, oldest first."""
        return [str(change["code"]) for change in numbered(self.storage, "code")]

    def add_code_change(self, fingerprint: str) -> None:
        """Note that cells from here on were trained by other code, as the user wished."""
        add_numbered(self.storage, "code", {"schema": SCHEMA, "code": fingerprint, "accepted_s": time.time()})

    def sittings(self) -> list[dict[str, Any]]:
        """Every sitting that came to its end in order, oldest first."""
        return numbered(self.storage, "sittings")

    def add_sitting(self, *, began_s: float, first_estimate_s: float | None, interrupted: bool) -> dict[str, Any]:
        """Note a sitting that ends now; ``first_estimate_s`` is the wall time that it was first thought to take."""
        entry = {
            "schema": SCHEMA,
            "began_s": began_s,
            "wall_s": time.time() - began_s,
            "first_estimate_s": first_estimate_s,
            "interrupted": interrupted,
        }
        add_numbered(self.storage, "sittings", entry)
        return entry

    def verdicts(self) -> list[dict[str, Any]]:
        """Every verdict that said something else than the one before it, oldest first."""
        return numbered(self.storage, "verdicts")

    def write_verdict(self, verdict: Mapping[str, Any]) -> None:
        """Keep the verdict as the newest, and beside the earlier ones unless it says the same as the last."""
        earlier = self.verdicts()
        if not earlier or earlier[-1] != dict(verdict):
            add_numbered(self.storage, "verdicts", verdict)
        self.storage.write_json("verdict.json", verdict)

    def verdict(self) -> dict[str, Any] | None:
        """The newest verdict, or None."""
        return if_there(self.storage, "verdict.json")


def sweep_names(runs: Storage) -> list[str]:
    """Names of all sweeps that were begun in a runs folder."""
    return [name for name in runs.names() if "." not in name[:1] and runs.exists(f"{name}/sweep.json")]
