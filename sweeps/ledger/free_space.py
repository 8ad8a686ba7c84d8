"""Free space for a sweep on its storage, checked when it begins and when it is resumed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from search_spaces import Cell, Space, planned_cells
from sweeps.errors import BadInputError
from sweeps.ledger.checkpoints import KEPT
from sweeps.ledger.sweep_folder import Ledger
from sweeps.training_config import model_config

BYTES_PER_PARAMETER: Final = 12
"""Of a checkpoint: fp32 weights, Muon's momentum or AdamW's two moments. An upper bound: Muon keeps one."""
BYTES_OF_RECORDS_PER_CELL: Final = 200_000
BYTES_OF_REPORT: Final = 4_000_000


def bytes_needed(space: Space, *, vocab_size: int, ended: Sequence[Cell] = (), unfinished: Sequence[Cell] = ()) -> int:
    """Bytes that the cells without an outcome may come to hold at once: checkpoints, records, report.

    ``ended`` are the cells that have an outcome, ``unfinished`` the others in the plan. With
    ``keep = best`` an arm's explore cells have given their checkpoints back before its confirm cells begin.
    """
    from moe.flops import total_parameters

    def left(*, explore: bool) -> int:
        foreseen, gone, there = (
            sum((cell.phase == "explore") is explore for cell in cells)
            for cells in (planned_cells(space), ended, unfinished)
        )
        return max(foreseen - gone, there)

    explore, judged = left(explore=True), left(explore=False)
    at_once = max(explore, judged) if space.keep == "best" else explore + judged
    models = (model_config(space, arm.name, vocab_size=vocab_size) for arm in space.strategies)
    checkpoint = max(map(total_parameters, models)) * BYTES_PER_PARAMETER
    return at_once * KEPT * checkpoint + (explore + judged) * BYTES_OF_RECORDS_PER_CELL + BYTES_OF_REPORT


def require_room(ledger: Ledger, space: Space, *, vocab_size: int) -> None:
    """Raises BadInputError where a local storage has less room than what is left of the sweep may need."""
    if not ledger.storage.is_local:
        return
    folders = {planned.cell: ledger.cell_folder(planned.cell_id) for planned in ledger.planned_cells()}
    ended = [cell for cell, folder in folders.items() if folder.outcome() is not None]
    unfinished = [cell for cell in folders if cell not in ended]
    needed = bytes_needed(space, vocab_size=vocab_size, ended=ended, unfinished=unfinished)
    needed -= sum(_held_bytes(folders[cell].storage.path) for cell in unfinished)
    where = ledger.storage.path
    while not where.exists():
        where = where.parent
    free = shutil.disk_usage(where).free
    if free < needed:
        raise BadInputError(
            f"{where} has {free / 2**20:,.0f} MiB free, and this sweep may come to hold {needed / 2**20:,.0f} MiB"
            + (
                " more; free some, or move its folder to another --runs-dir"
                if unfinished
                else "; free some, or choose another --runs-dir"
            )
        )


def _held_bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # a worker of an earlier driver may still delete files
            total += path.stat().st_size if path.is_file() else 0
    return total
