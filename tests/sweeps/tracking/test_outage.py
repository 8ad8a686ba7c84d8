"""The background thread: nobody waits for MLflow, an outage is told once, and the view catches up."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from sweeps.errors import StorageError
from sweeps.ledger.results import CellResult, SweepResults
from sweeps.tracking.projection import SweepView
from sweeps.tracking.projector import Projector, sync
from sweeps.tracking.store import TrackingStore, connect, quiet_mlflow, tracking_store
from sweeps.tracking.thread import TrackingThread
from tests.sweeps import made_up_sweep as made_up
from tests.sweeps.tracking_server import PostgresServer, TrackingServer
from tests.sweeps.what_mlflow_holds import assert_shows

A_DAY_S = 86_400.0  # what waits so long hangs, and the suite's own limit ends it
QUICK_S = 0.02  # between passes and before the first retry, so that a test does not wait


class SwitchedProjector(Projector):
    """A projector whose store can be made to fail or to hang; it counts passes that came through."""

    def __init__(self) -> None:
        super().__init__(TrackingStore(uri="http://ada:secret@tracking.example", artifacts_dir=None))
        self.error: Exception | None = None
        self.answers = threading.Event()
        self.answers.set()
        self.passes: list[SweepView] = []
        self.attempts = 0

    def apply(self, view: SweepView) -> None:
        self.attempts += 1
        self.answers.wait()
        if self.error is not None:
            raise self.error
        self.passes.append(view)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def projector() -> Iterator[SwitchedProjector]:
    quiet_mlflow()
    made = SwitchedProjector()
    yield made
    made.answers.set()


def thread_for(projector: Projector, said: list[str], read: Callable[[], SweepView] | None = None) -> TrackingThread:
    view = SweepView(results=made_up.finished_sweep())
    return TrackingThread(projector, read or (lambda: view), said.append, min_interval_s=QUICK_S, first_retry_s=QUICK_S)


def wait_until(true: Callable[[], bool]) -> None:
    while not true():  # the suite's own limit ends what hangs
        time.sleep(0.005)


def test_a_thousand_wake_ups_during_one_pass_wait_for_nothing_and_are_one_pass_after_it(
    projector: SwitchedProjector, said: list[str]
) -> None:
    projector.answers.clear()
    thread = thread_for(projector, said).start()
    wait_until(lambda: projector.attempts == 1)
    for _ in range(1_000):
        thread.wake()  # returns: the store, which answers nobody yet, is waited for by another thread
    assert projector.attempts == 1
    projector.answers.set()
    wait_until(lambda: len(projector.passes) == 2)
    assert thread.close(A_DAY_S)
    assert len(projector.passes) == 3, "one for the wake-ups, one for the end"


def test_what_a_long_segment_has_made_durable_is_shown_without_a_wake_up(
    projector: SwitchedProjector, said: list[str]
) -> None:
    newest = [SweepView(results=made_up.results([]))]
    thread = TrackingThread(
        projector, lambda: newest[-1], said.append, min_interval_s=QUICK_S, look_every_s=QUICK_S
    ).start()
    wait_until(lambda: bool(projector.passes))
    newest.append(SweepView(results=made_up.finished_sweep()))
    wait_until(lambda: projector.passes[-1] is newest[-1])
    assert thread.close(A_DAY_S)


def test_the_last_pass_shows_the_newest_ledger(projector: SwitchedProjector, said: list[str]) -> None:
    newest = [SweepView(results=made_up.results([]))]
    thread = thread_for(projector, said, lambda: newest[-1]).start()
    wait_until(lambda: bool(projector.passes))
    newest.append(SweepView(results=made_up.finished_sweep()))
    assert thread.close(A_DAY_S)
    assert projector.passes[-1] is newest[-1]
    assert said == []


def test_an_outage_is_told_once_when_it_begins_and_once_when_it_ends_and_never_the_password(
    projector: SwitchedProjector, said: list[str]
) -> None:
    projector.error = ConnectionError("http://ada:secret@tracking.example refused\nand a second line")
    thread = thread_for(projector, said).start()
    wait_until(lambda: projector.attempts > 3)
    assert said == [
        "MLflow at http://tracking.example does not answer (http://tracking.example refused); "
        "the sweep goes on and the view catches up later"
    ]
    projector.error = None
    wait_until(lambda: bool(projector.passes))
    assert thread.close(A_DAY_S)
    assert said[1:] == ["MLflow at http://tracking.example is back, and up to date with the sweep"]


def test_closing_during_an_outage_tries_once_more_and_does_not_wait(
    projector: SwitchedProjector, said: list[str]
) -> None:
    projector.error = ConnectionError("refused")
    thread = thread_for(projector, said).start()
    wait_until(lambda: len(said) == 1)
    assert not thread.close(A_DAY_S), "it returns all the same"
    assert said[1:] == ["MLflow at http://tracking.example is behind the sweep; `sweeps sync` brings it up to date"]


def test_closing_does_not_wait_longer_than_its_timeout_for_a_store_that_hangs(
    projector: SwitchedProjector, said: list[str]
) -> None:
    projector.answers.clear()
    thread = thread_for(projector, said).start()
    assert not thread.close(0.1)
    assert said == ["MLflow at http://tracking.example is behind the sweep; `sweeps sync` brings it up to date"]


@pytest.mark.parametrize("error", [StorageError("the mount is gone"), FileNotFoundError("the mount is gone")])
def test_a_ledger_that_cannot_be_read_for_a_while_does_not_end_the_thread_and_is_not_mlflows_fault(
    projector: SwitchedProjector, said: list[str], error: Exception
) -> None:
    answers: list[SweepView | None] = [None, None, SweepView(results=made_up.finished_sweep())]

    def read() -> SweepView:
        view = answers.pop(0) if len(answers) > 1 else answers[0]
        if view is None:
            raise error
        return view

    thread = thread_for(projector, said, read).start()
    wait_until(lambda: bool(projector.passes))
    assert thread.close(A_DAY_S)
    assert f"cannot follow: {type(error).__name__} (the mount is gone)" in said[0]


def test_a_server_that_is_down_at_the_start_is_told_and_close_leaves_the_rest_to_sync(said: list[str]) -> None:
    store = TrackingStore(uri="http://127.0.0.1:9", artifacts_dir=None)  # nothing listens on the discard port
    thread = thread_for(Projector(store), said).start()
    wait_until(lambda: bool(said))
    assert not thread.close(A_DAY_S)
    assert said[0].startswith("MLflow at http://127.0.0.1:9 does not answer (")
    assert len(said) == 2


def test_a_server_that_answers_errors_is_told_once_with_its_code(said: list[str]) -> None:
    class Failing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(503)

        do_POST = do_GET

        def log_message(self, *arguments: object) -> None:
            """Silent."""

    with HTTPServer(("127.0.0.1", 0), Failing) as http:
        threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
        store = TrackingStore(uri=f"http://127.0.0.1:{http.server_port}", artifacts_dir=None)
        thread = thread_for(Projector(store), said).start()
        wait_until(lambda: bool(said))
        assert not thread.close(A_DAY_S)
        http.shutdown()
    assert said[0].startswith(f"MLflow at {store.uri} does not answer (")
    assert "(too many 503 error responses)" in said[0]
    assert len(said) == 2


@pytest.mark.slow
def test_a_locked_sqlite_store_is_an_outage_that_ends(tmp_path: Path, said: list[str]) -> None:
    """Another program holds the database's write lock longer than sqlite waits for it (five seconds)."""
    import sqlite3

    store = tracking_store(str(tmp_path), {})
    view = SweepView(results=made_up.results([made_up.finished(made_up.cell())]))
    sync(SweepView(results=made_up.results([], "other")), store)
    other = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    thread = thread_for(Projector(store), said, lambda: view).start()
    wait_until(lambda: bool(said))
    other.execute("ROLLBACK")
    other.close()
    wait_until(lambda: len(said) == 2)
    assert thread.close(A_DAY_S)
    assert_shows(connect(store), view)


class GrowingSweep:
    """A sweep whose cells report a little more each time the ledger is read, until all are done."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.reads = 0

    def results_after(self, n_reads: int) -> SweepResults:
        cells: list[CellResult] = []
        for at, which in enumerate(made_up.all_cells()):
            n_records = min(max(n_reads - 2 * at, 0), 40)
            full = made_up.finished(which, n_records=40)
            cells.append(full if n_records == 40 else made_up.underway_of(full, n_records))
        return made_up.results(cells, self.name, self.name)

    def read(self) -> SweepView:
        self.reads += 1
        results = self.results_after(self.reads)
        states: Any = {str(cell.cell.cell_id): "running" if cell.records else "queued" for cell in results.cells}
        return SweepView(results=results, states=states)

    def end(self) -> SweepView:
        files = {"report.md": b"# Report"}
        return SweepView(results=self.results_after(1_000), verdict=made_up.verdict(), attachments=files)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrackingServer]:
    with (
        PostgresServer(tmp_path_factory.mktemp("runtime")) as database,
        TrackingServer(database.uri, tmp_path_factory.mktemp("server")) as running,
    ):
        yield running


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("outage_s", [2, 60] if os.environ.get("SWEEPS_FAULTS") == "full" else [2])
def test_four_sweeps_lose_and_double_nothing_when_the_server_is_killed_and_comes_back(
    server: TrackingServer, outage_s: float
) -> None:
    sweeps = [GrowingSweep(f"sweep-{outage_s}-{number}") for number in range(4)]
    store = TrackingStore(uri=server.uri, artifacts_dir=None)
    said: list[list[str]] = [[] for _ in sweeps]
    threads = [
        TrackingThread(Projector(store), each.read, told.append, min_interval_s=0.1, first_retry_s=0.2).start()
        for each, told in zip(sweeps, said, strict=True)
    ]

    def drive(for_s: float) -> None:
        until = time.monotonic() + for_s
        while time.monotonic() < until:
            for thread in threads:
                thread.wake()
            time.sleep(0.05)

    while min(each.reads for each in sweeps) < 4:
        drive(0.2)
    server.kill()
    drive(outage_s)
    wait_until(lambda: all(len(told) == 1 for told in said))
    server.start()
    wait_until(lambda: all(len(told) == 2 for told in said))
    drive(1)
    for thread, each in zip(threads, sweeps, strict=True):
        thread._read = each.end
    assert [thread.close(A_DAY_S) for thread in threads] == [True] * 4
    client = connect(store)
    for each in sweeps:
        assert_shows(client, each.end())
    for told in said:
        assert "does not answer" in told[0]
        assert "is back" in told[1]
    sync(sweeps[0].end(), store)
    assert_shows(client, sweeps[0].end())
