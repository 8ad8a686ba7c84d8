"""A sweep kept in a bucket: run, killed, resumed and reported, and with a server that fails for a while.

Both servers are local: moto speaks S3, and ``tests/integration/gcs_server.py`` as much of Google's as pyarrow asks for.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from typing import Protocol

import pytest

from sweeps.errors import StorageAwayError, StorageError
from sweeps.ledger.storage import Storage
from tests.integration.conftest import NoteCost
from tests.integration.counting import Strike
from tests.integration.faulty_proxy import Fault, faulty_proxy
from tests.integration.gcs_server import GcsServer, gcs_server
from tests.integration.s3_server import s3_server
from tests.integration.sweeping import Sweeps, decided, end_with_children, how_it_ends, losses, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.faults]

IS_FULL = os.environ.get("SWEEPS_FAULTS") == "full"
FAILS_FOR_S = 60.0 if IS_FULL else 20.0
TRIES = 3 if IS_FULL else 1
NAMES = {"s3": "S3", "gs": "Google Cloud Storage"}


class Server(Protocol):
    """What both servers do."""

    @property
    def address(self) -> str: ...
    def environment(self, address: str = "") -> Mapping[str, str]: ...
    def make_bucket(self, name: str) -> str: ...


@pytest.fixture(params=["s3", "gs"])
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def server(kind: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    if kind == "gs" and not has_gcs():
        pytest.skip("this pyarrow was built without Google Cloud Storage")
    with s3_server() if kind == "s3" else gcs_server() as started:
        for name, value in started.environment().items():
            monkeypatch.setenv(name, value)
        yield started


def has_gcs() -> bool:
    try:
        from pyarrow.fs import GcsFileSystem  # noqa: F401
    except ImportError:
        return False
    return True


def test_a_storage_in_a_bucket_puts_gets_lists_and_deletes(server: Server) -> None:
    storage = Storage(f"{server.make_bucket('things')}/runs")
    assert storage.names() == []
    storage.write_bytes("a/b.json", b"{}")
    large = bytes(range(256)) * 80_000  # beyond one part of an upload
    storage.write_bytes("a/large", large)
    assert storage.names("a") == ["b.json", "large"]
    assert storage.read_bytes("a/large") == large
    storage.write_bytes("a/b.json", b"[]")
    assert storage.read_json("a/b.json") == []
    storage.create_bytes("c/once", b"1")
    with pytest.raises(FileExistsError):
        storage.create_bytes("c/once", b"2")
    storage.delete("a")
    assert storage.names() == ["c"]
    assert not storage.exists("a/b.json")
    with pytest.raises(FileNotFoundError):
        storage.read_bytes("a/b.json")


def test_a_bucket_that_is_not_there_is_a_refusal_and_not_waited_for(server: Server) -> None:
    storage = Storage(f"{server.make_bucket('things').replace('things', 'nothing')}/runs")
    with pytest.raises(StorageError, match=r"cannot write .*nothing/runs/a: .*NO_SUCH_BUCKET") as refused:
        storage.write_bytes("a", b"1")
    assert not isinstance(refused.value, StorageAwayError)


@pytest.mark.parametrize("kind", ["gs"], indirect=True)
def test_credentials_that_google_does_not_take_are_a_refusal_and_not_waited_for(server: GcsServer) -> None:
    storage = Storage(f"{server.make_bucket('things')}/runs")
    server.locked.add("things")
    with pytest.raises(StorageError, match=r"cannot read .*things/runs/a: .*401") as refused:
        storage.read_bytes("a")
    assert not isinstance(refused.value, StorageAwayError)


@pytest.mark.parametrize("fault", ["answers 503", "loses answers"])
def test_an_object_is_created_once_although_the_server_fails_meanwhile(server: Server, fault: Fault) -> None:
    bucket = server.make_bucket("things")
    with faulty_proxy(server.address) as proxy, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment(proxy.address).items():
            patch.setenv(name, value)
        storage = Storage(f"{bucket}/runs", patience_s=60.0)
        storage.create_bytes("once", b"1")
        striking = threading.Thread(target=proxy.strike, args=(fault, 8.0))
        striking.start()
        storage.create_bytes("again", b"1")
        striking.join()
        assert proxy.struck > 0
        with pytest.raises(FileExistsError):
            storage.create_bytes("again", b"2")
    assert Storage(f"{bucket}/runs").read_bytes("again") == b"1"


def test_a_sweep_in_a_bucket_that_was_killed_ends_as_one_on_a_disk_that_was_not(
    server: Server, sweeps: Sweeps, undisturbed: Sweeps, kind: str, note_cost: NoteCost
) -> None:
    runs = f"{server.make_bucket('sweeps')}/runs"
    sweeps.environment |= {**server.environment(), "SWEEPS_RUNS_DIR": runs}
    sweep = sweeps.start("run", "--space", "space.toml", "--name", "first")
    wait_for(lambda: len(losses(runs, "first")) >= 2, "two cells with an outcome", sweep)
    end_with_children(sweep)
    before = losses(runs, "first")
    assert len(before) < len(undisturbed.outcomes("first")), "it was killed in the middle"

    strike = Strike(runs, "first")
    resumed = sweeps.start("resume", "first")
    strike.wait_for_progress(resumed)
    said, _ = resumed.communicate()
    assert resumed.returncode == 0, said
    assert before.items() <= losses(runs, "first").items(), "what had an outcome was not run again"
    note_cost(f"kill -9 and resume in a bucket of {NAMES[kind]}", strike)
    assert how_it_ends(runs, "first") == undisturbed.end_of("first")
    assert decided(runs, "first") == decided(str(undisturbed.runs), "first")

    folder = Storage(runs).child("first")
    folder.delete("report.html")
    sweeps("report", "first")
    assert folder.exists("report.html")


@pytest.mark.parametrize("fault", ["answers 503", "loses answers"])
def test_a_sweep_outlives_a_server_that_fails_for_a_minute(
    server: Server, sweeps: Sweeps, undisturbed: Sweeps, note_cost: NoteCost, kind: str, fault: Fault
) -> None:
    if kind == "gs" and not IS_FULL:
        pytest.skip("two minutes; SWEEPS_FAULTS=full has it")
    bucket = server.make_bucket("sweeps")
    sweeps.environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{sweeps.folder}/mlflow.db"
    with faulty_proxy(server.address) as proxy:
        sweeps.environment |= server.environment(proxy.address)
        for number in range(TRIES):
            runs = f"{bucket}/runs-{number}"
            sweep = sweeps.start("run", "--space", "space.toml", "--name", "first", "--runs-dir", runs)
            wait_for(lambda: len(losses(runs, "first")) >= 2, "two cells with an outcome", sweep)  # noqa: B023 - at once
            strike = Strike(runs, "first")
            proxy.strike(fault, FAILS_FOR_S)
            assert sweep.poll() is None, "it ended before the server came back"
            strike.wait_for_progress(sweep)
            said, _ = sweep.communicate()
            assert sweep.returncode == 0, said
            assert proxy.struck > 0
            note_cost(f"a server of {NAMES[kind]} {fault} for {FAILS_FOR_S:.0f} s", strike)
            assert how_it_ends(runs, "first") == undisturbed.end_of("first")
            assert decided(runs, "first") == decided(str(undisturbed.runs), "first")
