"""Storages: whole objects in, whole objects out, on a path or behind a URI."""

from pathlib import Path

import pytest
from pyarrow.fs import LocalFileSystem

from sweeps.errors import BadInputError, StorageError
from sweeps.ledger.storage import Storage


@pytest.fixture(params=["path", "uri"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """The same folder by its path, and on the road of every remote storage."""
    return Storage(str(tmp_path / "runs")) if request.param == "path" else remote(tmp_path)


def remote(tmp_path: Path) -> Storage:
    """A bucket that is a folder of this machine behind pyarrow."""
    storage = Storage("s3://bucket/runs")
    storage.__dict__["_opened"] = (LocalFileSystem(), str(tmp_path / "runs"))
    return storage


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
    assert runs.child("a")._remote is runs._remote
    assert runs.child("a").read_bytes("b.bin") == b"x"


def test_a_file_uri_is_a_path_with_all_that_a_path_is_promised(tmp_path: Path) -> None:
    storage = Storage(f"file://{tmp_path}/my%20runs")
    assert storage.path == tmp_path / "my runs"
    storage.write_bytes("deep/down/sweep.json", b"x")
    assert (tmp_path / "my runs" / "deep" / "down" / "sweep.json").read_bytes() == b"x"
    with pytest.raises(BadInputError, match=r"file://host/runs names the machine 'host'; write file:///FOLDER"):
        Storage("file://host/runs")
