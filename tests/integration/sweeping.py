"""Running whole sweeps as a user would, and comparing what they leave behind."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from sweeps.ledger.storage import Storage
from sweeps.ledger.sweep_folder import Ledger

PATIENCE_S = 300.0

Losses = dict[str, tuple[str, Any, Any]]


def command(*words: str) -> list[str]:
    """The words that run ``sweeps`` with this Python."""
    return [sys.executable, "-m", "sweeps", *words]


def losses(runs_uri: str, name: str) -> Losses:
    """Outcome and losses of every cell that has ended, by its id: what two runs of one sweep must agree on."""
    ledger = Ledger(Storage(runs_uri), name)
    found: Losses = {}
    for planned in ledger.planned_cells():
        outcome = ledger.cell_folder(planned.cell_id).outcome()
        if outcome is not None:
            found[planned.cell_id] = (outcome["outcome"], outcome["val_loss"], outcome["test_loss"])
    return found


def curves(runs_uri: str, name: str) -> dict[tuple[str, int], tuple[Any, ...]]:
    """Every loss of every record, by cell and tokens: equal to the last bit however often a sweep was disturbed."""
    ledger = Ledger(Storage(runs_uri), name)
    return {
        (planned.cell_id, int(record["tokens_seen"])): tuple(
            record.get(key) for key in ("train_loss", "val_loss", "val_common_loss", "test_loss")
        )
        for planned in ledger.planned_cells()
        for record in ledger.cell_folder(planned.cell_id).records()
    }


def decided(runs_uri: str, name: str) -> dict[str, Any]:
    """What a verdict says, without how fast and in how much memory it came about."""
    verdict = Storage(runs_uri).child(name).read_json("verdict.json")
    measured = ("tokens_per_s", "peak_mem_allocated_gib")
    arms = [{key: arm[key] for key in arm if key not in measured} for arm in verdict["strategies"]]
    kept = ("outcome", "winner", "statement", "margin", "pairs", "seeds_needed", "by_rung", "controls", "context")
    return {"strategies": arms, **{key: verdict[key] for key in kept}}


def holders(runs_uri: str, name: str) -> dict[int, str]:
    """Which process works on which cell now: pid to cell id."""
    ledger = Ledger(Storage(runs_uri), name)
    found = {}
    for cell_id in ledger.storage.names("cells"):
        try:
            lease = ledger.storage.read_json(f"cells/{cell_id}/lease.json")
        except FileNotFoundError:
            continue
        found[int(lease["pid"])] = cell_id
    return found


def wait_for(condition: Callable[[], bool], what: str, process: subprocess.Popen[str] | None = None) -> None:
    """Return once the condition holds; fail when it does not in time, or when the process ended before."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        ended = process is not None and process.poll() is not None
        if ended or time.monotonic() > deadline_s:
            said = process.stdout.read() if ended and process is not None and process.stdout is not None else ""
            raise AssertionError(f"{what} did not come about{' before the process ended' if ended else ''}: {said}")
        time.sleep(0.1)
