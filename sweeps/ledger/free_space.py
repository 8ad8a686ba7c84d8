"""Room for a sweep on its storage, looked at before anything is spent."""

from __future__ import annotations

import shutil
from typing import Final

from search_spaces import Space, planned_cells
from sweeps.bridge import model_config
from sweeps.errors import BadInputError
from sweeps.ledger.checkpoints import KEPT
from sweeps.ledger.storage import Storage

BYTES_PER_PARAMETER: Final = 12
"""Of a checkpoint: fp32 weights, Muon's momentum or AdamW's two moments. An upper bound: Muon keeps one."""
BYTES_OF_RECORDS_PER_CELL: Final = 200_000
BYTES_OF_REPORT: Final = 4_000_000


def bytes_needed(space: Space, *, vocab_size: int) -> int:
    """Bytes that a sweep may come to hold at once: checkpoints, records, report.

    With ``keep = best`` an arm's explore cells have given their checkpoints back before its confirm cells begin.
    """
    from moe.flops import total_parameters

    cells = planned_cells(space)
    explore = sum(cell.phase == "explore" for cell in cells)
    held = max(explore, len(cells) - explore) if space.keep == "best" else len(cells)
    checkpoint = total_parameters(model_config(space, vocab_size=vocab_size)) * BYTES_PER_PARAMETER
    return held * KEPT * checkpoint + len(cells) * BYTES_OF_RECORDS_PER_CELL + BYTES_OF_REPORT


def require_room(runs: Storage, space: Space, *, vocab_size: int) -> None:
    """Raises BadInputError where a local storage has less room than the sweep may need."""
    if not runs.is_local:
        return
    folder = runs.path
    while not folder.exists():
        folder = folder.parent
    free, needed = shutil.disk_usage(folder).free, bytes_needed(space, vocab_size=vocab_size)
    if free < needed:
        raise BadInputError(
            f"{folder} has {free / 2**20:,.0f} MiB free, and this sweep may come to hold {needed / 2**20:,.0f} MiB; "
            "free some, or choose another --runs-dir"
        )
