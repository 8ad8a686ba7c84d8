"""A sweep kept in a bucket: run, killed, resumed and reported, and with a server that fails for a while."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from sweeps.ledger.storage import Storage
from tests.integration.conftest import NoteCost
from tests.integration.counting import Strike
from tests.integration.faulty_proxy import Fault, faulty_proxy
from tests.integration.s3_server import S3Server, s3_server
from tests.integration.sweeping import Sweeps, decided, end_with_children, how_it_ends, losses, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.faults]


IS_FULL = os.environ.get("SWEEPS_FAULTS") == "full"
FAILS_FOR_S = 60.0 if IS_FULL else 20.0
TRIES = 3 if IS_FULL else 1


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with s3_server() as started:
        for name, value in started.environment().items():
            monkeypatch.setenv(name, value)
        yield started


def test_a_storage_in_a_bucket_puts_gets_lists_and_deletes(server: S3Server) -> None:
    storage = Storage(f"{server.make_bucket('things')}/runs")
    assert storage.names() == []
    storage.write_bytes("a/b.json", b"{}")
    large = bytes(range(256)) * 80_000  # beyond one part of a multipart upload
    storage.write_bytes("a/large", large)
    assert storage.names("a") == ["b.json", "large"]
    assert storage.read_bytes("a/large") == large
    storage.write_bytes("a/b.json", b"[]")
    assert storage.read_json("a/b.json") == []
    storage.delete("a")
    assert not storage.exists("a/b.json")
    with pytest.raises(FileNotFoundError):
        storage.read_bytes("a/b.json")


def test_a_sweep_in_a_bucket_that_was_killed_ends_as_one_on_a_disk_that_was_not(
    server: S3Server, sweeps: Sweeps, undisturbed: Sweeps
) -> None:
    runs = f"{server.make_bucket('sweeps')}/runs"
    sweeps.environment |= {**server.environment(), "SWEEPS_RUNS_DIR": runs}
    sweep = sweeps.start("run", "--space", "space.toml", "--name", "first")
    wait_for(lambda: len(losses(runs, "first")) >= 2, "two cells with an outcome", sweep)
    end_with_children(sweep)
    before = losses(runs, "first")
    assert len(before) < len(undisturbed.outcomes("first")), "it was killed in the middle"

    sweeps("resume", "first")
    assert before.items() <= losses(runs, "first").items(), "what had an outcome was not run again"
    assert how_it_ends(runs, "first") == undisturbed.end_of("first")
    assert decided(runs, "first") == decided(str(undisturbed.runs), "first")

    folder = Storage(runs).child("first")
    folder.delete("report.html")
    sweeps("report", "first")
    assert folder.exists("report.html")


@pytest.mark.parametrize("fault", ["answers 503", "loses answers"])
def test_a_sweep_outlives_a_server_that_fails_for_a_minute(
    server: S3Server, sweeps: Sweeps, undisturbed: Sweeps, note_cost: NoteCost, fault: Fault
) -> None:
    bucket = server.make_bucket("sweeps")
    with faulty_proxy(server.address) as proxy:
        for number in range(TRIES):
            runs = f"{bucket}/runs-{number}"
            sweeps.environment |= {
                **server.environment(),
                "AWS_ENDPOINT_URL": proxy.address,
                "SWEEPS_RUNS_DIR": runs,
                "MLFLOW_TRACKING_URI": f"sqlite:///{sweeps.folder}/mlflow.db",
            }
            sweep = sweeps.start("run", "--space", "space.toml", "--name", "first")
            wait_for(lambda: len(losses(runs, "first")) >= 2, "two cells with an outcome", sweep)  # noqa: B023 - at once
            strike = Strike(runs, "first")
            proxy.strike(fault, FAILS_FOR_S)
            assert sweep.poll() is None, "it ended before the server came back"
            strike.wait_for_progress(sweep)
            said, _ = sweep.communicate()
            assert sweep.returncode == 0, said
            assert proxy.struck > 0
            note_cost(f"S3 server {fault} for {FAILS_FOR_S:.0f} s", strike.cost(), strike.seconds)
            assert how_it_ends(runs, "first") == undisturbed.end_of("first")
            assert decided(runs, "first") == decided(str(undisturbed.runs), "first")
