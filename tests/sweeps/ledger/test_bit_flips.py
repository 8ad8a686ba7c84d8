"""A single changed bit in any object of a sweep is found when the object is read."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from search_spaces import Identity, explore_cells, load_space
from sweeps.errors import DamagedError
from sweeps.ledger.cell_folder import CellWriter
from sweeps.ledger.lease import CELL_LEASE, DRIVER_LEASE, Lease, _read_claim
from sweeps.ledger.reading import LedgerReader
from sweeps.ledger.storage import Storage
from sweeps.ledger.sweep_folder import Ledger
from sweeps.plan.phases import first_cells

FLIPS = 1_000


def whole_sweep(runs: Path) -> Ledger:
    """A sweep with an object of every kind."""
    ledger = Ledger(Storage(str(runs)), "first")
    space = load_space(preset="smoke")
    identity = Identity(corpus_fingerprint="c", tokenizer_fingerprint="t", exam_fingerprint="e")
    ledger.add_cells(first_cells(space, explore_cells(space, identity)), because="the first grid")
    prints = {"corpus": "c", "tokenizer": "t", "exam": "e", "code": "d"}
    ledger.begin(
        {"space": space.resolved(), "strategies": [], "fingerprints": prints, "sweep_id": "1", "created_s": 0.0}
    )
    Lease(ledger.storage, DRIVER_LEASE)._claim(1)
    ended, under_way = ledger.planned_cells()[:2]
    for planned in (ended, under_way):
        folder = ledger.cell_folder(planned.cell_id)
        Lease(folder.storage, CELL_LEASE)._claim(1)
        writer = CellWriter(folder, "000001-cafe")
        writer.write_records(0, 1_024, [{"tokens_seen": 1_024, "val_loss": 5.08, "train_loss": 5.1}])
        writer.save(1_024, lambda path: (path / "state.pt").write_bytes(bytes(200)) and None)
        folder.add_attempt("error", "a bug", traceback="line 7")
    writer = CellWriter(ledger.cell_folder(ended.cell_id), "000002-cafe")
    writer.adopt(lambda _: None)
    writer.end(ended.cell, "completed", tokens_seen=1_024, val_loss=5.08, test_loss=5.18)
    ledger.fix_margin(0.02)
    ledger.add_code_change("d2")
    ledger.add_session(began_s=0.0, first_estimate_s=None, interrupted=False)
    ledger.write_verdict({"schema": 1, "outcome": "tie", "alpha": 0.05})
    return ledger


def reader_of(runs: Path, path: Path) -> Callable[[], object]:
    """What a sweep reads an object with."""
    ledger = Ledger(Storage(str(runs)), "first")
    kind, *inner = path.relative_to(runs / "first").parts
    simple: dict[str, Callable[[], object]] = {
        "sweep.json": ledger.beginning,
        "plan": ledger.planned_cells,
        "margin.json": ledger.margin,
        "code": ledger.code_changes,
        "sittings": ledger.sessions,
        "verdicts": ledger.verdicts,
        "verdict.json": ledger.verdict,
        DRIVER_LEASE: lambda: _read_claim(ledger.storage, DRIVER_LEASE, 1),
    }
    if kind != "cells":
        return simple[kind]
    folder = ledger.cell_folder(inner[0])
    of_a_cell: dict[str, Callable[[], object]] = {
        "segments": folder.records,
        "attempts": folder.attempts,
        "outcome.json": folder.outcome,
        "commits": lambda: folder.commits.read(int(path.stem)),
        CELL_LEASE: lambda: _read_claim(folder.storage, CELL_LEASE, 1),
    }
    return of_a_cell.get(inner[1], lambda: folder.checkpoints.load(inner[1], lambda _: None))


def test_every_flip_of_a_bit_is_found_in_every_kind_of_object(tmp_path: Path) -> None:
    whole_sweep(tmp_path)
    assert len(LedgerReader(Ledger(Storage(str(tmp_path)), "first")).results().cells) == 6
    paths = sorted(path for path in (tmp_path / "first").rglob("*") if path.is_file())
    kinds = {path.relative_to(tmp_path / "first").parts[0] for path in paths}
    assert kinds == {
        *("sweep.json", "plan", "margin.json", "code", "sittings", "verdicts", "verdict.json", "cells", "driver")
    }
    rng = random.Random(6)
    for number in range(FLIPS):
        path = paths[number % len(paths)]
        whole = path.read_bytes()
        bit = rng.randrange(8 * len(whole))
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(DamagedError, match="is damaged"):
            reader_of(tmp_path, path)()
        path.write_bytes(whole)
