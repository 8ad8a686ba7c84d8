"""The folder of a cell: what is durable counts, what is not is made again."""

import hashlib
import json
from pathlib import Path

import pytest

from sweeps.errors import DamagedError, StorageError, SweepHeldError
from sweeps.ledger.cell_folder import CellFolder, CellWriter
from sweeps.ledger.commits import Commits
from sweeps.ledger.models import Commit
from sweeps.ledger.sweep_folder import Ledger
from tests.sweeps.ledger.a_cell import CELL


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


def test_a_failure_that_is_forgotten_stays_in_the_attempts(ledger: Ledger) -> None:
    folder = ledger.cell_folder("c0ffee")
    folder.write_outcome(CELL, "failed", tokens_seen=0, reason="a bug")
    folder.forget_failure()
    assert folder.outcome() is None
    assert folder.attempts()[0]["reason"] == "retried by request after: a bug"


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
