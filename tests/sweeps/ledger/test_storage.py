"""Storages: whole objects in, whole objects out, on a path or behind a URI."""

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pyarrow.fs import LocalFileSystem

from sweeps.errors import BadInputError, DamagedError, StorageError
from sweeps.ledger.backends import LocalDisk, ObjectStore
from sweeps.ledger.storage import Storage
from sweeps.ledger.world import RealWorld


class PatientWorld(RealWorld):
    """Sleeps without waiting, and keeps for how long."""

    def __init__(self) -> None:
        self.slept_s: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)


@pytest.fixture(params=["path", "uri"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """The same folder by its path, and on the road of every remote storage."""
    return Storage(str(tmp_path / "runs")) if request.param == "path" else remote(tmp_path)


def remote(tmp_path: Path) -> Storage:
    """A bucket that is a folder of this machine behind pyarrow."""
    backend = ObjectStore("s3://bucket/runs", opened=(LocalFileSystem(), str(tmp_path / "runs")))
    return Storage("s3://bucket/runs", backend=backend)


@pytest.fixture
def made(storage: Storage, tmp_path: Path) -> Storage:
    (tmp_path / "runs" / "a").mkdir(parents=True)
    return storage


def test_an_object_comes_back_as_it_was_put(made: Storage) -> None:
    made.write_bytes("a/b.bin", b"\0\1")
    made.write_json("a/c.json", {"loss": 0.1})
    assert made.read_bytes("a/b.bin") == b"\0\1"
    assert made.read_json("a/c.json") == {"loss": 0.1}
    assert made.names("a") == ["b.bin", "c.json"]


def test_a_folder_that_is_not_there_is_empty_and_an_object_is_file_not_found(made: Storage) -> None:
    assert made.names("nowhere") == []
    assert not made.exists("nowhere")
    with pytest.raises(FileNotFoundError):
        made.read_bytes("nowhere")


def test_deleting_takes_objects_and_folders_and_is_no_error_twice(made: Storage) -> None:
    made.write_bytes("a/b.bin", b"x")
    made.delete("a/b.bin")
    made.delete("a/b.bin")
    made.delete("a")
    made.delete("a")
    assert not made.exists("a")


def test_an_object_that_is_not_json_is_named(made: Storage) -> None:
    made.write_bytes("a/c.json", b'{"loss": 0.')
    with pytest.raises(StorageError, match=r"a/c\.json is damaged: it is not JSON"):
        made.read_json("a/c.json")


def test_a_path_that_cannot_be_written_is_a_storage_error_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write .*/file/x/sweep\.json: "):
        Storage(str(tmp_path / "file")).write_bytes("x/sweep.json", b"")


def test_a_failed_write_leaves_the_old_object_and_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(tmp_path))
    storage.write_bytes("sweep.json", b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="No space left on device"):
        storage.write_bytes("sweep.json", b"new")
    assert storage.read_bytes("sweep.json") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.json"]


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3://key:secret@bucket/runs", "the s3:// address holds a password.*AWS_ACCESS_KEY_ID"),
        ("s3://bucket/runs?region=x", r"s3://bucket/runs\?\.\.\. has options.*AWS_REGION"),
    ],
)
def test_an_address_with_a_password_or_options_is_refused_and_the_password_never_said(uri: str, message: str) -> None:
    with pytest.raises(BadInputError, match=message) as refused:
        Storage(uri)
    assert "secret" not in str(refused.value)


def test_a_folder_inside_shares_the_open_connection(tmp_path: Path) -> None:
    runs = remote(tmp_path)
    (tmp_path / "runs" / "a").mkdir(parents=True)
    runs.write_bytes("a/b.bin", b"x")
    assert runs.child("a")._backend is runs._backend
    assert runs.child("a").read_bytes("b.bin") == b"x"


def test_a_file_uri_is_a_path_with_all_that_a_path_is_promised(tmp_path: Path) -> None:
    storage = Storage(f"file://{tmp_path}/my%20runs")
    assert storage.path == tmp_path / "my runs"
    storage.write_bytes("deep/down/sweep.json", b"x")
    assert (tmp_path / "my runs" / "deep" / "down" / "sweep.json").read_bytes() == b"x"
    with pytest.raises(BadInputError, match=r"file://host/runs names the machine 'host'; write file:///FOLDER"):
        Storage("file://host/runs")


def test_of_two_creators_one_gets_the_name(made: Storage) -> None:
    made.create_json("a/1.json", {"who": "first"})
    with pytest.raises(FileExistsError):
        made.create_json("a/1.json", {"who": "second"})
    made.create_json("a/1.json", {"who": "first"})  # the answer to the first try was lost, and it is tried again
    assert made.read_json("a/1.json") == {"who": "first"}
    assert made.names("a") == ["1.json"]


def test_a_name_whose_object_was_superseded_while_it_was_looked_at_is_taken(
    made: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to a creation was lost; the retry finds the object, and a successor deletes it before it is read."""
    made.create_json("a/1.json", {"who": "first"})
    read = made._backend.read

    def read_too_late(key: str) -> bytes:
        made._backend.delete(key)
        return read(key)

    monkeypatch.setattr(made._backend, "read", read_too_late)
    with pytest.raises(FileExistsError):
        made.create_json("a/1.json", {"who": "first"})


def test_eight_creators_at_once_make_one_object(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    start = threading.Barrier(8)

    def create(number: int) -> bool:
        start.wait()
        try:
            storage.create_json("plan/0001.json", {"who": number})
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(create, range(8)))
    assert sum(created) == 1
    assert storage.read_json("plan/0001.json") == {"who": created.index(True)}


def test_a_file_system_without_hard_links_decides_between_creators_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", no_links)
    storage = Storage(str(tmp_path))
    storage.create_bytes("a", b"first")
    with pytest.raises(FileExistsError):
        storage.create_bytes("a", b"second")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_every_single_bit_flip_in_an_object_is_found(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write_json("a.json", {"loss": 5.08, "alpha": 0.05, "seeds": [101, 102], "nested": {"é": None}})
    whole = (tmp_path / "a.json").read_bytes()
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        (tmp_path / "a.json").write_bytes(flipped)
        with pytest.raises(DamagedError, match=r"a\.json is damaged"):
            storage.read_json("a.json")


def test_an_object_of_version_0_1_has_no_checksum_and_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"loss": 5.08}')
    assert Storage(str(tmp_path)).read_json("a.json") == {"loss": 5.08}


@pytest.mark.parametrize("times", [1, 5])
def test_a_storage_that_is_away_for_a_while_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    world = PatientWorld()
    storage = Storage(str(tmp_path), world=world, patience_s=60)
    left = [OSError(errno.ESTALE, "Stale file handle")] * times
    real = LocalDisk.write

    def away(self: LocalDisk, key: str, data: bytes) -> None:
        if left:
            raise left.pop()
        real(self, key, data)

    monkeypatch.setattr(LocalDisk, "write", away)
    storage.write_bytes("a", b"x")
    assert storage.read_bytes("a") == b"x"
    assert world.slept_s == [0.25, 0.5, 1.0, 2.0, 4.0][:times]


@pytest.mark.parametrize(
    ("error", "least_s", "most_s"),
    [(errno.EIO, 60, 75), (errno.ENOSPC, 0, 0), (errno.EROFS, 0, 0), (errno.EACCES, 0, 0)],
)
def test_what_lasts_is_an_error_and_a_full_disk_is_one_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, least_s: float, most_s: float
) -> None:
    world = PatientWorld()

    def fails(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(LocalDisk, "write", fails)
    with pytest.raises(StorageError, match=os.strerror(error)):
        Storage(str(tmp_path), world=world, patience_s=60).write_bytes("a", b"x")
    assert least_s <= sum(world.slept_s) <= most_s


def test_a_disk_that_fails_is_not_a_missing_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("os.stat", fails)
    with pytest.raises(StorageError, match=r"cannot look up .*: Input/output error"):
        Storage(str(tmp_path)).exists("outcome.json")


def test_every_folder_that_a_write_makes_is_flushed_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    monkeypatch.setattr("os.fsync", lambda file: flushed.append(str(Path(f"/proc/self/fd/{file}").readlink())))
    Storage(str(tmp_path)).write_bytes("first/cells/c0ffee/a", b"x")
    folders = [tmp_path, tmp_path / "first", tmp_path / "first" / "cells", tmp_path / "first" / "cells" / "c0ffee"]
    assert {str(folder) for folder in folders} <= set(flushed)


@pytest.mark.parametrize(
    ("said", "is_away"),
    [
        ("AWS Error NETWORK_CONNECTION during PutObject operation for key 'runs/a/cells/54032c'", True),
        ("AWS Error UNKNOWN (HTTP status 503) for key 'runs/403/plan/0001.json'", True),
        ("google::cloud::Status(UNAVAILABLE: Retry policy exhausted)", True),
        ("AWS Error UNKNOWN (HTTP status 403) during HeadObject operation: No response body", False),
        ("AWS Error UNKNOWN (HTTP status 401) during HeadObject operation: No response body", False),
        ("google::cloud::Status(PERMISSION_DENIED: Permanent error)", False),
        ("google::cloud::Status(UNAUTHENTICATED: Permanent error)", False),
    ],
)
def test_what_an_object_store_refuses_is_not_waited_for_and_all_else_is(said: str, is_away: bool) -> None:
    assert ObjectStore("s3://bucket/runs").is_away(OSError(said)) is is_away
