"""A sweep's ledger read into plain results, without reading twice what cannot change any more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sweeps.ledger.cell_folder import CellFolder
from sweeps.ledger.results import CellResult, SweepResults
from sweeps.ledger.space import arm_entry, current_space, identity_of, require_own_ids
from sweeps.ledger.sweep_folder import LEDGER_VERSION, Ledger, PlannedCell


class LedgerReader:
    """Reads one sweep again and again; cells that have an outcome are read once. Not for two threads at once."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._ended: dict[str, CellResult] = {}
        self._checked: set[str] = set()

    def results(self) -> SweepResults:
        """Everything that the ledger knows now; raises DamagedError where a cell's id is not that of its values."""
        storage = self._ledger.storage
        beginning = _with_extensions(self._ledger)
        planned = self._ledger.planned_cells()
        self._check_ids(beginning, planned)
        return SweepResults(
            name=self._ledger.name,
            beginning=beginning,
            cells=tuple(self._cell(entry) for entry in planned),
            earlier_verdicts=tuple(self._ledger.verdicts()),
            fixed_margin=self._ledger.margin(),
            folder=storage.uri,
            sessions=tuple(self._ledger.sessions()),
        )

    def _check_ids(self, beginning: Mapping[str, Any], planned: Sequence[PlannedCell]) -> None:
        """Compute ids again, each once; how version 0.1 computed them is not known here."""
        fresh = [entry for entry in planned if entry.cell_id not in self._checked]
        if fresh and beginning.get("ledger_version") == LEDGER_VERSION:
            require_own_ids(self._ledger.storage, current_space(self._ledger), identity_of(beginning), fresh)
        self._checked |= {entry.cell_id for entry in fresh}

    def _cell(self, planned: PlannedCell) -> CellResult:
        known = self._ended.get(planned.cell_id)
        if known is not None:
            return known
        result = read_cell(planned, self._ledger.cell_folder(planned.cell_id))
        if result.outcome is not None:
            self._ended[planned.cell_id] = result
        return result


def _with_extensions(ledger: Ledger) -> dict[str, Any]:
    """The frozen beginning, with the arms that extensions added beside its own."""
    beginning = ledger.beginning()
    if all(page["extension"] is None for page in ledger.plan_pages()):
        return beginning
    known = {entry["name"] for entry in beginning["strategies"]}
    space = current_space(ledger)
    added = [
        arm_entry(space, strategy.name, vocab_size=beginning.get("vocab_size"))
        for strategy in space.strategies
        if strategy.name not in known
    ]
    return {**beginning, "space": space.resolved(), "strategies": [*beginning["strategies"], *added]}


def read_cell(planned: PlannedCell, folder: CellFolder) -> CellResult:
    """What became of one cell so far."""
    outcome = folder.outcome()
    records = tuple(folder.records_of(outcome))
    if outcome is None:
        tokens = int(records[-1]["tokens_seen"]) if records else 0
        return CellResult(cell=planned.cell, tokens_seen=tokens, records=records)
    return CellResult(
        cell=planned.cell,
        outcome=outcome["outcome"],
        tokens_seen=outcome["tokens_seen"],
        val_loss=outcome["val_loss"],
        test_loss=outcome["test_loss"],
        reason=outcome["reason"],
        scores=outcome.get("scores"),
        records=records,
    )
