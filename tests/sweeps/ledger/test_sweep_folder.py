"""The ledger: what is durable counts, what is not is made again."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from search_spaces import Cell
from sweeps.errors import BadInputError, DamagedError, StorageError, SweepHeldError
from sweeps.ledger.cell_folder import CellFolder, CellWriter
from sweeps.ledger.commits import Commits
from sweeps.ledger.models import Commit
from sweeps.ledger.storage import Storage
from sweeps.ledger.sweep_folder import Ledger, PlannedCell

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

BEGINNING = {
    "sweep_id": "1",
    "created_s": 0.0,
    "space": {},
    "strategies": [],
    "fingerprints": {"corpus": "c", "tokenizer": "t", "exam": "e", "code": "d"},
}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(Storage(str(tmp_path)), "first")


def writer(folder: CellFolder, number: int = 1) -> CellWriter:
    return CellWriter(folder, f"{number:06d}-cafe")


def save(writer: CellWriter, tokens: int) -> None:
    writer.save(tokens, lambda path: (path / "state.bin").write_bytes(b"%d" % tokens) and None)


def train(writer: CellWriter, *points: int, start: int = 0, who: str = "") -> None:
    """Records and a checkpoint at each of the points."""
    for end in points:
        writer.write_records(start, end, [{"tokens_seen": end, "who": who}])
        save(writer, end)
        start = end


def adopted(writer: CellWriter) -> tuple[int, bytes, list[str]]:
    """What a holder takes over: tokens, the state, and what it has to say."""
    found: list[bytes] = [b""]
    notes: list[str] = []
    tokens = writer.adopt(lambda path: found.append((path / "state.bin").read_bytes()), notes.append)
    return tokens, found[-1], notes


def tokens_of(folder: CellFolder) -> list[int]:
    return [record["tokens_seen"] for record in folder.records()]


def complete_at(folder: CellFolder) -> list[int]:
    return [name.tokens for name in folder.checkpoints.complete()]


def manifest_at(tmp_path: Path, tokens: int) -> Path:
    return next(tmp_path.glob(f"first/cells/c0ffee/checkpoint-{tokens:015d}-*/manifest.json"))


def test_a_record_counts_once_its_checkpoint_is_complete(ledger: Ledger) -> None:
    folder = ledger.cell_folder("c0ffee")
    first = writer(folder)
    first.write_records(0, 100, [{"tokens_seen": 100}])
    assert folder.records() == []
    save(first, 100)
    assert tokens_of(folder) == [100]
    first.write_records(100, 200, [{"tokens_seen": 200}])
    assert tokens_of(folder) == [100]


def test_all_records_of_an_ended_cell_count_without_its_checkpoints(ledger: Ledger) -> None:
    folder = ledger.cell_folder("c0ffee")
    first = writer(folder)
    train(first, 200, 400)
    first.end(CELL, "completed", tokens_seen=400, val_loss=1.0)
    folder.delete_checkpoints()
    assert tokens_of(folder) == [200, 400]


def test_the_last_two_checkpoints_are_kept(ledger: Ledger) -> None:
    folder = ledger.cell_folder("c0ffee")
    train(writer(folder), 100, 200, 300)
    assert complete_at(folder) == [200, 300]
    assert adopted(writer(folder, 2)) == (300, b"300", [])


def test_a_checkpoint_that_was_not_committed_does_not_count(ledger: Ledger, tmp_path: Path) -> None:
    folder = ledger.cell_folder("c0ffee")
    train(writer(folder), 100, 200)
    (tmp_path / "first" / "cells" / "c0ffee" / "commits" / "0002.json").unlink()
    assert folder.newest_checkpoint() == 100
    assert tokens_of(folder) == [100]


@pytest.mark.parametrize("what", ["checkpoint-*200*/manifest.json", "commits/0002.json"])
def test_without_the_newest_manifest_or_commit_the_one_before_it_serves(
    ledger: Ledger, tmp_path: Path, what: str
) -> None:
    folder = ledger.cell_folder("c0ffee")
    train(writer(folder), 100, 200)
    path = next(tmp_path.glob(f"first/cells/c0ffee/{what}"))
    if path.name == "manifest.json":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-9])
    tokens, state, notes = adopted(writer(folder, 2))
    assert (tokens, state) == (100, b"100")
    assert f"{path.name} is " in notes[0]
    assert tokens_of(folder) == [100]


def test_an_unknown_file_among_the_commits_is_named(ledger: Ledger) -> None:
    folder = ledger.cell_folder("c0ffee")
    train(writer(folder), 100)
    folder.storage.write_bytes("segments/notes.txt", b"nothing lists it")
    assert tokens_of(folder) == [100]
    folder.storage.write_bytes("commits/notes.txt", b"")
    with pytest.raises(StorageError, match=r"commits/notes.txt is not a file of this program; move it out"):
        folder.records()


@pytest.mark.parametrize("damage", [b"", b"20", b"2X0"])
def test_a_damaged_file_is_found_and_named_and_the_checkpoint_before_it_serves(
    ledger: Ledger, tmp_path: Path, damage: bytes
) -> None:
    folder = ledger.cell_folder("c0ffee")
    train(writer(folder), 100, 200)
    (manifest_at(tmp_path, 200).parent / "state.bin").write_bytes(damage)
    tokens, state, notes = adopted(writer(folder, 2))
    assert (tokens, state) == (100, b"100")
    assert "checkpoint at 200 tokens set aside, the one before it serves" in notes[0]
    assert "state.bin is damaged" in notes[0]
    assert tokens_of(folder) == [100]


@pytest.mark.parametrize(
    ("manifest", "says"),
    [
        ('{"schema": 1, "tokens_seen": 200}', "it has no files"),
        ('{"tokens_seen": 200, "files": {"state.bin": {"bytes": 3}}}', "it has no files.state.bin.blake2b"),
        ('{"tokens_seen": "200", "files": {}}', "tokens_seen: Input should be a valid integer"),
        (
            '{"tokens_seen": 200, "files": {"../x": {"bytes": 3, "blake2b": ""}}}',
            "'../x' is not the name of one folder",
        ),
        ("[]", "it is not a JSON object"),
        ('{"files"', "it is not JSON"),
    ],
)
def test_a_manifest_that_lists_no_files_is_a_damaged_checkpoint(
    ledger: Ledger, tmp_path: Path, manifest: str, says: str
) -> None:
    folder = ledger.cell_folder("c0ffee")
    train(writer(folder), 100, 200)
    manifest_at(tmp_path, 200).write_text(manifest)
    tokens, _, notes = adopted(writer(folder, 2))
    assert tokens == 100
    assert "manifest.json is damaged: " in notes[0]
    assert says in notes[0]


def test_with_both_checkpoints_damaged_a_cell_starts_again(ledger: Ledger, tmp_path: Path) -> None:
    folder = ledger.cell_folder("c0ffee")
    train(writer(folder), 100, 200)
    for tokens in (100, 200):
        (manifest_at(tmp_path, tokens).parent / "state.bin").unlink()
    second = writer(folder, 2)
    assert adopted(second)[0] == 0
    assert folder.records() == []
    train(second, 400)
    assert tokens_of(folder) == [400]


def test_nothing_counts_of_what_a_holder_writes_that_slept_while_another_took_over(ledger: Ledger) -> None:
    folder = ledger.cell_folder("c0ffee")
    sleeper, heir = writer(folder, 1), writer(folder, 2)
    train(sleeper, 100, who="sleeper")
    assert adopted(heir)[0] == 100
    for _ in range(2):
        with pytest.raises(SweepHeldError, match="another worker took over"):
            train(sleeper, 200, start=100, who="sleeper")
    assert tokens_of(folder) == [100], "it was superseded when it wrote these"
    train(heir, 150, start=100, who="heir")
    assert [(record["tokens_seen"], record["who"]) for record in folder.records()] == [(100, "sleeper"), (150, "heir")]
    with pytest.raises(SweepHeldError):
        writer(folder, 1).adopt(lambda _: None)
    heir.write_records(150, 400, [{"tokens_seen": 400, "who": "heir"}])
    heir.end(CELL, "completed", tokens_seen=400, val_loss=1.0)
    assert sleeper.end(CELL, "diverged", tokens_seen=400, reason="nan")["outcome"] == "completed"
    assert [record["who"] for record in folder.records()] == ["sleeper", "heir", "heir"]


def test_nothing_that_the_new_holder_needs_is_deleted_by_one_that_slept(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ledger.cell_folder("c0ffee")

    def lost() -> None:
        raise SweepHeldError("taken over")

    sleeper = CellWriter(folder, "000001-cafe", confirm=lost)
    train(sleeper, 100, 200)
    create = Commits.create

    def taken_over_after(self: Commits, number: int, commit: Commit) -> bool:
        monkeypatch.setattr(Commits, "create", create)
        created = create(self, number, commit)
        assert adopted(writer(folder, 2))[0] == 300
        return created

    monkeypatch.setattr(Commits, "create", taken_over_after)
    with pytest.raises(SweepHeldError):
        train(sleeper, 300, start=200)
    assert complete_at(folder) == [100, 200, 300]
    with pytest.raises(SweepHeldError):
        sleeper.end(CELL, "completed", tokens_seen=300)
    assert folder.outcome() is None
    heir = writer(folder, 3)
    assert adopted(heir)[0] == 300
    under_way = writer(folder, 4)
    under_way.write_records(300, 400, [{"tokens_seen": 400}])
    train(heir, 350, start=300)
    assert len(folder.storage.names("segments")) == 5, "a later holder's segment is none of this one's business"


def test_what_an_earlier_holder_completes_while_its_heir_reads_is_adopted_too(ledger: Ledger) -> None:
    folder = ledger.cell_folder("c0ffee")
    sleeper, heir = writer(folder, 1), writer(folder, 2)
    train(sleeper, 100)
    loads: list[bytes] = []

    def load(path: Path) -> None:
        loads.append((path / "state.bin").read_bytes())
        if len(loads) == 1:
            train(sleeper, 200, start=100)

    assert heir.adopt(load) == 200
    assert loads == [b"100", b"200"]
    assert tokens_of(folder) == [100, 200]


def test_who_reads_while_a_new_holder_clears_up_finds_what_counts(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ledger.cell_folder("c0ffee")
    train(writer(folder), 100, 200)
    numbers = Commits.numbers

    def listed_before(self: Commits) -> list[int]:
        found = numbers(self)
        monkeypatch.setattr(Commits, "numbers", numbers)
        heir = writer(folder, 2)
        adopted(heir)
        train(heir, 300, 400, start=200)
        return found

    monkeypatch.setattr(Commits, "numbers", listed_before)
    outcome = folder.write_outcome(CELL, "stopped_early", tokens_seen=400)
    assert len(outcome["segments"]) == 4
    assert tokens_of(folder) == [100, 200, 300, 400]


def test_a_commit_that_a_late_listing_does_not_show_is_adopted(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ledger.cell_folder("c0ffee")
    train(writer(folder), 100, 200)
    monkeypatch.setattr(Commits, "numbers", lambda _: [1])
    assert adopted(writer(folder, 2))[:2] == (200, b"200")


def test_a_holder_whose_newest_commit_a_late_listing_does_not_show_goes_on(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ledger.cell_folder("c0ffee")
    first = writer(folder)
    train(first, 100, 200)
    monkeypatch.setattr(Commits, "numbers", lambda _: [])
    train(first, 300, start=200)
    monkeypatch.undo()
    assert tokens_of(folder) == [100, 200, 300]


def test_an_outcome_that_lands_late_finds_its_records(ledger: Ledger) -> None:
    folder = ledger.cell_folder("c0ffee")
    sleeper, heir = writer(folder, 1), writer(folder, 2)
    train(sleeper, 100)
    sleeper.write_records(100, 150, [{"tokens_seen": 150}])
    adopted(heir)
    train(heir, 200, 300, start=100)
    sleeper.end(CELL, "oom", tokens_seen=150, reason="the last look at its lease was long ago")
    assert tokens_of(folder) == [100, 150]


def test_segments_that_do_not_count_are_collected_once_the_cell_has_ended(ledger: Ledger) -> None:
    folder = ledger.cell_folder("c0ffee")
    sleeper, heir = writer(folder, 1), writer(folder, 2)
    train(sleeper, 100)
    adopted(heir)
    sleeper.write_records(100, 200, [{"tokens_seen": 200}])
    heir.write_records(100, 400, [{"tokens_seen": 400}])
    heir.end(CELL, "completed", tokens_seen=400)
    folder.collect()
    assert len(folder.storage.names("segments")) == 2
    assert tokens_of(folder) == [100, 400]


@pytest.mark.parametrize("damage", ["delete", "change"])
def test_a_segment_that_counts_and_is_not_what_was_written_is_named(
    ledger: Ledger, tmp_path: Path, damage: str
) -> None:
    folder = ledger.cell_folder("c0ffee")
    train(writer(folder), 100)
    segment = next(tmp_path.glob("first/cells/c0ffee/segments/*.json"))
    if damage == "delete":
        segment.unlink()
    else:
        segment.write_bytes(segment.read_bytes().replace(b"100", b"101"))
    with pytest.raises(DamagedError, match=r"segments/.*json is (missing|damaged)"):
        folder.records()


def test_a_cell_of_version_0_1_is_read(ledger: Ledger) -> None:
    folder = ledger.cell_folder("c0ffee")
    for start, end in ((0, 100), (100, 200), (200, 300)):
        folder.storage.write_bytes(
            f"segments/{start:015d}-{end:015d}.json", b'{"schema": 1, "records": [{"tokens_seen": %d}]}' % end
        )
    name = "checkpoint-000000000000200"
    folder.storage.write_bytes(f"{name}/state.bin", b"200")
    listed = {"state.bin": {"bytes": 3, "blake2b": hashlib.blake2b(b"200").hexdigest()}}
    manifest = {"schema": 1, "tokens_seen": 200, "files": listed}
    folder.storage.write_bytes(f"{name}/manifest.json", json.dumps(manifest).encode())
    assert tokens_of(folder) == [100, 200]
    loaded: list[bytes] = []
    folder.load_newest(lambda path: loaded.append((path / "state.bin").read_bytes()))
    assert loaded == [b"200"]
    outcome = {"outcome": "diverged", "tokens_seen": 300, "val_loss": None, "test_loss": None, "reason": "nan"}
    folder.storage.write_bytes("outcome.json", json.dumps(outcome).encode())
    assert tokens_of(folder) == [100, 200, 300]


def test_an_outcome_never_changes(ledger: Ledger) -> None:
    folder = ledger.cell_folder("c0ffee")
    first = folder.write_outcome(CELL, "completed", tokens_seen=400, val_loss=1.0)
    assert folder.write_outcome(CELL, "failed", reason="too late") == first
    assert folder.outcome() == first


def test_pages_of_two_writers_never_meet(tmp_path: Path) -> None:
    first, second = (Ledger(Storage(str(tmp_path)), "first") for _ in range(2))
    cells = [
        PlannedCell(cell=replace(CELL, cell_id=f"c{number}"), reason="grid", may_stop_early=True) for number in range(3)
    ]
    pages = first.plan_pages()
    second.add_cells(cells[:1], because="second")
    assert not first.add_cells_to(pages, cells[1:2], because="first"), "the plan is not the one that was read"
    first.add_cells(cells[1:2], because="first")
    assert first.storage.names("plan") == ["0001.json", "0002.json"]
    assert Ledger(Storage(str(tmp_path)), "first").planned_cells() == cells[:2]
    (tmp_path / "first" / "plan" / "0001.json").unlink()
    with pytest.raises(DamagedError, match=r"plan/0001\.json is missing; restore it from a copy"):
        Ledger(Storage(str(tmp_path)), "first").add_cells(cells[2:], because="a page is missing")


def test_pages_that_a_beginning_left_that_was_cut_short_do_not_count(ledger: Ledger) -> None:
    old, new = (PlannedCell(cell=replace(CELL, cell_id=i), reason="grid", may_stop_early=True) for i in ("old", "new"))
    ledger.add_cells([old], because="the first grid", sweep_id="1")
    ledger.add_cells([new], because="the first grid", sweep_id="2")
    ledger.begin({**BEGINNING, "sweep_id": "2"})
    ledger.add_cells([replace(old, may_stop_early=False)], because="the first grid, late", sweep_id="1")
    assert ledger.planned_cells() == [new]


def test_a_sweep_is_started_once(ledger: Ledger) -> None:
    ledger.begin({**BEGINNING, "sweep_id": "2"})
    with pytest.raises(SweepHeldError, match="was started by another process"):
        ledger.begin({**BEGINNING, "sweep_id": "3"})
    assert ledger.beginning()["sweep_id"] == "2"


def test_a_sweep_of_version_0_1_is_read_and_not_resumed(ledger: Ledger) -> None:
    ledger.storage.write_bytes("sweep.json", json.dumps({"schema": 1, "sweep": "first", **BEGINNING}).encode())
    assert ledger.beginning()["sweep_id"] == "1"
    with pytest.raises(
        BadInputError, match=r"was started by version 0\.1 of moe-sweeps, which can resume and extend it"
    ):
        ledger.require_current()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"created_s": "yesterday"}, "created_s: Input should be a valid number"),
        ({"created_s": True}, "created_s: Input should be a valid number"),
        ({"created_s": float("inf")}, "created_s: Input should be a finite number"),
        ({"space": []}, "space: Input should be a valid dictionary"),
        ({"strategies": {}}, "strategies: Input should be a valid list"),
        ({"fingerprints": {"corpus": 1}}, "fingerprints.corpus: Input should be a valid string"),
        ({"sweep_id": None}, "sweep_id: Input should be a valid string"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_as_damage(ledger: Ledger, change: dict[str, Any], says: str) -> None:
    text = json.dumps({"schema": 1, "sweep": "first", **BEGINNING, **change})
    ledger.storage.write_bytes("sweep.json", text.encode())
    with pytest.raises(DamagedError, match=r"first/sweep\.json is damaged: ") as damaged:
        ledger.beginning()
    assert says in str(damaged.value)


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
    ledger.begin(BEGINNING)
    (tmp_path / "first" / ".tmp-sweep.json-1-abcd").write_text('{"schema"')
    assert ledger.storage.names() == ["sweep.json"]
    assert ledger.beginning()["sweep"] == "first"


def test_a_cell_that_is_added_twice_at_once_stands_once_in_the_plan(ledger: Ledger) -> None:
    planned = PlannedCell(cell=CELL, reason="extension", may_stop_early=False)
    ledger.add_cells([planned, planned], because="extension")
    assert ledger.planned_cells() == [planned]


def test_what_a_crash_left_of_a_checkpoint_is_cleared(ledger: Ledger, tmp_path: Path) -> None:
    folder = ledger.cell_folder("c0ffee")
    first, second = writer(folder, 1), writer(folder, 2)
    train(first, 100, 200)
    cut_short = tmp_path / "first" / "cells" / "c0ffee" / "checkpoint-000000000000250-000001-cafe"
    cut_short.mkdir()
    (cut_short / ".tmp-state.bin-1-abcd").write_bytes(b"half")
    adopted(second)
    train(second, 300, 400, start=200)
    assert not cut_short.exists()
    assert complete_at(folder) == [300, 400]


@pytest.mark.parametrize("name", ["first/../first", "..", "", "a/b", ".hidden", "first\n"])
def test_a_name_that_is_not_one_folder_is_refused_wherever_a_ledger_is_opened(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInputError, match=r"name=.* must be 1 to 64 letters, digits"):
        Ledger(Storage(str(tmp_path)), name)


@pytest.mark.parametrize("cell_id", ["../../../victim", "a/b", "", None, 7, ".."])
def test_a_plan_page_that_names_another_folder_as_a_cell_is_damaged(ledger: Ledger, cell_id: object) -> None:
    cell = {**CELL.as_dict(), "cell_id": cell_id, "reason": "grid", "may_stop_early": True}
    page = {"schema": 1, "added_s": 0.0, "because": "", "extension": None, "cells": [cell]}
    ledger.storage.write_json("plan/0001.json", page)
    with pytest.raises(DamagedError, match=r"plan/0001\.json is damaged: cells\.0\.cell_id"):
        ledger.planned_cells()
    if isinstance(cell_id, str):
        with pytest.raises(DamagedError, match="cell_id"):
            ledger.cell_folder(cell_id)
