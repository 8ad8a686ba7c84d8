"""The ledger: what is durable counts, what is not is made again."""

from pathlib import Path

import pytest

from search_spaces import Cell
from sweeps.errors import BadInputError, DamagedError, StorageError
from sweeps.ledger.cell_folder import CellFolder
from sweeps.ledger.storage import Storage
from sweeps.ledger.sweep_folder import BEGINNING_KEYS, Ledger, PlannedCell

CELL = Cell(
    cell_id="c0ffee",
    phase="explore",
    strategy="balanced",
    lr=0.02,
    adamw_lr=0.006,
    arrangement="shuffled",
    seed=1,
    budget_tokens=400,
)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(Storage(str(tmp_path)), "first")


def write_checkpoint(folder: CellFolder, tokens: int) -> None:
    folder.checkpoints.save(tokens, lambda path: (path / "state.bin").write_bytes(b"%d" % tokens) and None)


def loaded(folder: CellFolder, tokens: int) -> bytes:
    found: list[bytes] = []
    folder.checkpoints.load(tokens, lambda path: found.append((path / "state.bin").read_bytes()))
    return found[0]


def test_a_record_counts_once_its_checkpoint_is_complete(ledger: Ledger) -> None:
    folder = ledger.cell_folder("c0ffee")
    folder.write_segment(0, 100, [{"tokens_seen": 100}])
    assert folder.records() == []
    write_checkpoint(folder, 100)
    assert [record["tokens_seen"] for record in folder.records()] == [100]
    folder.write_segment(100, 200, [{"tokens_seen": 200}])
    assert [record["tokens_seen"] for record in folder.records()] == [100]


def test_all_records_of_an_ended_cell_count_without_its_checkpoints(ledger: Ledger) -> None:
    folder = ledger.cell_folder("c0ffee")
    folder.write_segment(0, 400, [{"tokens_seen": 200}, {"tokens_seen": 400}])
    write_checkpoint(folder, 400)
    folder.write_outcome(CELL, "completed", tokens_seen=400, val_loss=1.0)
    folder.checkpoints.delete_all()
    assert [record["tokens_seen"] for record in folder.records()] == [200, 400]


def test_the_last_two_checkpoints_are_kept(ledger: Ledger) -> None:
    folder = ledger.cell_folder("c0ffee")
    for tokens in (100, 200, 300):
        write_checkpoint(folder, tokens)
    assert folder.checkpoints.complete() == [200, 300]
    assert loaded(folder, 300) == b"300"


def test_a_checkpoint_without_its_manifest_is_not_complete(ledger: Ledger, tmp_path: Path) -> None:
    folder = ledger.cell_folder("c0ffee")
    write_checkpoint(folder, 100)
    write_checkpoint(folder, 200)
    next(tmp_path.glob("first/cells/c0ffee/checkpoint-*200/manifest.json")).unlink()
    assert folder.checkpoints.newest_complete() == 100


@pytest.mark.parametrize("damage", [b"", b"20", b"2X0"])
def test_a_damaged_file_is_found_and_named(ledger: Ledger, tmp_path: Path, damage: bytes) -> None:
    folder = ledger.cell_folder("c0ffee")
    write_checkpoint(folder, 200)
    next(tmp_path.glob("first/cells/c0ffee/checkpoint-*200/state.bin")).write_bytes(damage)
    with pytest.raises(StorageError, match=r"state\.bin is damaged: \d bytes that do not match the manifest"):
        loaded(folder, 200)


@pytest.mark.parametrize(
    ("manifest", "says"),
    [
        ('{"schema": 1, "tokens_seen": 200}', "files: Field required"),
        ('{"files": {"state.bin": {"bytes": 3}}}', "files.state.bin.blake2b: Field required"),
        ("[]", "the manifest: Input should be a valid dictionary"),
        ('{"files"', "it is not JSON"),
    ],
)
def test_a_manifest_that_lists_no_files_is_a_damaged_checkpoint(
    ledger: Ledger, tmp_path: Path, manifest: str, says: str
) -> None:
    folder = ledger.cell_folder("c0ffee")
    write_checkpoint(folder, 200)
    next(tmp_path.glob("first/cells/c0ffee/checkpoint-*200/manifest.json")).write_text(manifest)
    with pytest.raises(DamagedError, match=r"manifest\.json is damaged: ") as damaged:
        loaded(folder, 200)
    assert says in str(damaged.value)


def test_a_checkpoint_that_was_set_aside_does_not_serve(ledger: Ledger) -> None:
    folder = ledger.cell_folder("c0ffee")
    write_checkpoint(folder, 100)
    write_checkpoint(folder, 200)
    folder.checkpoints.set_aside(200, "one byte changed")
    assert folder.checkpoints.newest_complete() == 100


def test_a_checkpoint_made_again_where_one_was_set_aside_serves(ledger: Ledger) -> None:
    folder = ledger.cell_folder("c0ffee")
    write_checkpoint(folder, 100)
    write_checkpoint(folder, 200)
    folder.checkpoints.set_aside(200, "one byte changed")
    write_checkpoint(folder, 200)
    assert folder.checkpoints.complete() == [100, 200]


def test_planned_cells_come_back_as_they_were_added_and_are_never_doubled(ledger: Ledger) -> None:
    planned = PlannedCell(cell=CELL, reason="grid", may_stop_early=True)
    ledger.add_cells([planned], because="the first grid")
    ledger.add_cells([planned], because="again")
    assert ledger.planned_cells() == [planned]
    assert len(ledger.plan_pages()) == 1


def test_an_extension_is_kept_although_it_adds_no_cell(ledger: Ledger) -> None:
    ledger.add_cells([], because="nothing")
    ledger.add_cells([], because="extension", extension={"confirm_seeds": 5})
    assert [page["extension"] for page in ledger.plan_pages()] == [{"confirm_seeds": 5}]


def test_a_sweep_that_is_not_there_is_named_with_the_remedy(ledger: Ledger) -> None:
    with pytest.raises(BadInputError, match=r"there is no sweep 'first' in .*; `sweeps status` lists"):
        ledger.beginning()


def test_verdicts_are_kept_and_one_that_says_the_same_is_not_written_twice(ledger: Ledger) -> None:
    for outcome in ("tie", "tie", "wins"):
        ledger.write_verdict({"outcome": outcome})
    assert ledger.verdict() == {"outcome": "wins"}
    assert ledger.storage.names("verdicts") == ["0001.json", "0002.json"]


def test_a_failure_that_is_forgotten_stays_in_the_attempts(ledger: Ledger) -> None:
    folder = ledger.cell_folder("c0ffee")
    folder.write_outcome(CELL, "failed", tokens_seen=0, reason="a bug")
    folder.forget_failure()
    assert folder.outcome() is None
    assert folder.attempts()[0]["reason"] == "retried by request after: a bug"


def test_a_temporary_file_that_a_crash_left_is_not_seen(ledger: Ledger, tmp_path: Path) -> None:
    ledger.begin(dict.fromkeys(BEGINNING_KEYS))
    (tmp_path / "first" / ".tmp-sweep.json-1-abcd").write_text('{"schema"')
    assert ledger.storage.names() == ["sweep.json"]
    assert ledger.beginning()["sweep"] == "first"


def test_a_cell_that_is_added_twice_at_once_stands_once_in_the_plan(ledger: Ledger) -> None:
    planned = PlannedCell(cell=CELL, reason="extension", may_stop_early=False)
    ledger.add_cells([planned, planned], because="extension")
    assert ledger.planned_cells() == [planned]


def test_what_a_crash_left_of_a_checkpoint_is_cleared_and_one_that_was_set_aside_stays(
    ledger: Ledger, tmp_path: Path
) -> None:
    folder = ledger.cell_folder("c0ffee")
    for tokens in (100, 200, 300):
        write_checkpoint(folder, tokens)
    folder.checkpoints.set_aside(200, "one byte changed")
    cut_short = tmp_path / "first" / "cells" / "c0ffee" / "checkpoint-000000000000250"
    cut_short.mkdir()
    (cut_short / ".tmp-state.bin-1-abcd").write_bytes(b"half")
    write_checkpoint(folder, 400)
    assert not cut_short.exists()
    assert folder.checkpoints.complete() == [300, 400]
    assert [name for name in folder.storage.names() if name.endswith("200")] == ["checkpoint-000000000000200"]
