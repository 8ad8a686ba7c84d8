"""The projector against a real sqlite store: one run per cell, every point once, whatever happened before."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from sweeps.ledger.results import CellResult, SweepResults
from sweeps.tracking.projection import SweepView, cell_points
from sweeps.tracking.projector import Projector, delete_runs, sync
from sweeps.tracking.store import TrackingStore, TrackingUnavailableError, connect, tracking_store
from tests.sweeps import made_up_sweep as made_up
from tests.sweeps.what_mlflow_holds import assert_shows, everything, history, runs_of


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TrackingStore:
    return tracking_store(str(tmp_path_factory.mktemp("runs")), {})


@pytest.fixture(scope="module")
def client(store: TrackingStore) -> Any:
    return connect(store)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A sweep of its own for each test: its name is also its sweep_id."""
    return str(request.node.name)[-60:]


def sweep(name: str, cells: list[CellResult] | None = None) -> SweepResults:
    return made_up.finished_sweep(name, name) if cells is None else made_up.results(cells, name, name)


class LostAnswer:
    """A client whose nth call of a method is carried out, and whose answer is then lost."""

    def __init__(self, client: Any, method: str, nth: int, *, carried_out: bool = True) -> None:
        self._client, self._method, self._left, self._carried_out = client, method, nth, carried_out

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._client, name)
        if name != self._method:
            return real

        def call(*args: Any, **kwargs: Any) -> Any:
            self._left -= 1
            if self._left:
                return real(*args, **kwargs)
            if self._carried_out:
                real(*args, **kwargs)
            raise ConnectionError("the server went away")

        return call


def test_mlflow_shows_what_the_ledger_says_field_by_field(store: TrackingStore, client: Any, name: str) -> None:
    view = SweepView(results=sweep(name), verdict=made_up.verdict(), attachments={"plots/losses.svg": b"<svg/>"})
    sync(view, store)
    assert_shows(client, view)
    runs = runs_of(client, name)
    parent = runs[None]
    first = runs["long_seq-0.01-1-explore"]
    assert first.info.start_time == made_up.CREATED_S * 1000 + 10_000, "the first record's time less its training time"
    assert (parent.info.status, parent.data.metrics["summary/balanced.test_loss"]) == ("FINISHED", 5.25)
    assert parent.data.tags["mlflow.note.content"].startswith("**wins**")
    assert client.list_artifacts(parent.info.run_id, "plots")[0].path == "plots/losses.svg"
    data_set = parent.inputs.dataset_inputs[0].dataset
    assert (data_set.name, data_set.digest) == ("embedded", "c" * 16)
    experiment = client.get_experiment_by_name(name)
    assert "Three shapes of one batch." in experiment.tags["mlflow.note.content"]


def test_a_second_sync_from_another_process_changes_nothing(store: TrackingStore, client: Any, name: str) -> None:
    view = SweepView(results=sweep(name), verdict=made_up.verdict(), attachments={"report.md": b"# Report"})
    sync(view, store)
    before = everything(client, name)
    sync(view, store)
    assert everything(client, name) == before


def test_a_view_that_did_not_change_sends_no_request(store: TrackingStore, client: Any, name: str) -> None:
    asked: list[str] = []

    class Listening:
        def __getattr__(self, method: str) -> Any:
            asked.append(method)
            return getattr(client, method)

    projector = Projector(store, open_client=lambda _: Listening())
    view = SweepView(results=sweep(name), verdict=made_up.verdict())
    projector.apply(view)
    asked.clear()
    projector.apply(view)
    assert asked == []


def test_a_cell_that_goes_on_gets_its_new_points_and_its_status(store: TrackingStore, client: Any, name: str) -> None:
    which = made_up.cell(phase="confirm")
    projector = Projector(store)
    statuses = []
    for result, state in (
        (CellResult(cell=which), "queued"),
        (made_up.underway(which, 1), "running"),
        (made_up.underway(which, 2), "waiting"),
        (made_up.underway(which, 3), "running"),
        (made_up.finished(which), "done"),
    ):
        states: Any = {str(which.cell_id): state}
        projector.apply(SweepView(results=sweep(name, [result]), states=states))
        run = runs_of(client, name)[which.cell_id]
        statuses.append(run.info.status)
        assert history(client, run) == set(cell_points(result))
    assert statuses == ["SCHEDULED", "RUNNING", "SCHEDULED", "RUNNING", "FINISHED"]
    assert runs_of(client, name)[None].info.status == "RUNNING"


def test_more_points_than_a_request_takes_are_sent_in_several(store: TrackingStore, client: Any, name: str) -> None:
    records = tuple(made_up.record(8 * (i + 1)) for i in range(170))
    result = CellResult(cell=made_up.cell(), outcome="completed", tokens_seen=1_360, records=records)
    assert len(cell_points(result)) > 2_000
    sync(SweepView(results=sweep(name, [result])), store)
    assert history(client, runs_of(client, name)[result.cell.cell_id]) == set(cell_points(result))


@pytest.mark.parametrize("carried_out", [True, False])
@pytest.mark.parametrize(
    ("method", "nth"),
    [
        ("create_experiment", 1),
        ("create_run", 1),
        ("create_run", 3),
        ("log_batch", 1),
        ("log_batch", 3),
        ("set_terminated", 2),
        ("log_inputs", 1),
        ("log_artifacts", 1),
    ],
)
def test_a_lost_request_is_made_good_and_nothing_is_doubled(
    store: TrackingStore, client: Any, name: str, method: str, nth: int, carried_out: bool
) -> None:
    flaky = LostAnswer(client, method, nth, carried_out=carried_out)
    view = SweepView(results=sweep(name), verdict=made_up.verdict(), attachments={"report.md": b"# Report"})
    projector = Projector(store, open_client=lambda _: flaky)
    with pytest.raises(ConnectionError):
        projector.apply(view)
    projector.apply(view)
    found = runs_of(client, name)
    assert len(found) == len(view.results.cells) + 1
    for result in view.results.cells:
        assert history(client, found[result.cell.cell_id]) == set(cell_points(result))
    assert not [run for run in found.values() if run.info.status == "RUNNING"]


def test_a_crash_leaves_nothing_running_after_the_next_sync(store: TrackingStore, client: Any, name: str) -> None:
    which = made_up.cell()
    states: Any = {str(which.cell_id): "running"}
    Projector(store).apply(SweepView(results=sweep(name, [made_up.underway(which)]), states=states))
    assert {run.info.status for run in runs_of(client, name).values()} == {"RUNNING"}
    sync(SweepView(results=sweep(name, [made_up.underway(which)])), store)
    assert {run.info.status for run in runs_of(client, name).values()} == {"KILLED"}
    sync(SweepView(results=sweep(name, [made_up.finished(which)]), verdict=made_up.verdict()), store)
    assert {run.info.status for run in runs_of(client, name).values()} == {"FINISHED"}


def test_records_that_were_made_again_replace_the_run_instead_of_doubling_points(
    store: TrackingStore, client: Any, name: str
) -> None:
    which = made_up.cell()
    sync(SweepView(results=sweep(name, [made_up.underway(which, 3)])), store)
    again = tuple(made_up.record(1_024 * (i + 1), start_s=made_up.CREATED_S + 500) for i in range(2))
    result = CellResult(cell=which, tokens_seen=2_048, records=again)
    sync(SweepView(results=sweep(name, [result])), store)
    assert history(client, runs_of(client, name)[which.cell_id]) == set(cell_points(result))


def test_a_failed_cell_that_runs_again_loses_its_outcome_and_reason(
    store: TrackingStore, client: Any, name: str
) -> None:
    which = made_up.cell()
    failed = replace(made_up.underway(which), outcome="failed", reason="worker was killed")
    sync(SweepView(results=sweep(name, [failed])), store)
    run = runs_of(client, name)[which.cell_id]
    assert (run.info.status, run.data.tags["reason"]) == ("FAILED", "worker was killed")
    states: Any = {str(which.cell_id): "running"}
    Projector(store).apply(SweepView(results=sweep(name, [made_up.underway(which)]), states=states))
    run = runs_of(client, name)[which.cell_id]
    assert run.info.status == "RUNNING"
    assert not {"outcome", "reason"} & run.data.tags.keys()


def test_a_run_is_renamed_when_an_extension_makes_its_name_ambiguous(
    store: TrackingStore, client: Any, name: str
) -> None:
    first = CellResult(cell=made_up.cell(adamw_lr=0.001))
    second = CellResult(cell=made_up.cell(adamw_lr=0.003, cell_id="second"))
    sync(SweepView(results=sweep(name, [first])), store)
    view = SweepView(results=sweep(name, [first, second]))
    sync(view, store)
    assert_shows(client, view)
    assert "adamw_lr=0.001" in runs_of(client, name)[first.cell.cell_id].info.run_name


def test_a_new_verdict_is_the_next_step_of_the_summary(store: TrackingStore, client: Any, name: str) -> None:
    for mean in (5.25, 5.25, 5.5):
        sync(SweepView(results=sweep(name), verdict=made_up.verdict(mean)), store)
    parent = runs_of(client, name)[None]
    held = client.get_metric_history(parent.info.run_id, "summary/balanced.test_loss")
    assert [(metric.step, metric.value) for metric in held] == [(0, 5.25), (1, 5.5)]


def test_only_files_that_changed_are_uploaded_again(store: TrackingStore, client: Any, name: str) -> None:
    uploads: list[list[str]] = []

    class Watching:
        def __getattr__(self, method: str) -> Any:
            return self.log_artifacts_seen if method == "log_artifacts" else getattr(client, method)

        def log_artifacts_seen(self, run_id: str, folder: str) -> None:
            uploads.append(sorted(each.name for each in Path(folder).rglob("*") if each.is_file()))
            client.log_artifacts(run_id, folder)

    def apply(**files: bytes) -> None:
        projector = Projector(store, open_client=lambda _: Watching())
        projector.apply(SweepView(results=sweep(name), attachments=files))

    apply(a=b"1", b=b"1")
    apply(a=b"1", b=b"2")
    apply(a=b"1", b=b"2")
    assert uploads == [["a", "b"], ["b"]]


def test_two_sweeps_with_the_same_cells_stay_apart_in_one_store(store: TrackingStore, client: Any, name: str) -> None:
    for each in (f"{name}-1", f"{name}-2"):
        sync(SweepView(results=sweep(each), verdict=made_up.verdict()), store)
    first, second = runs_of(client, f"{name}-1"), runs_of(client, f"{name}-2")
    assert first.keys() == second.keys()
    assert not {run.info.run_id for run in first.values()} & {run.info.run_id for run in second.values()}


def test_deleted_runs_are_gone_and_only_those_of_that_sweep(store: TrackingStore, client: Any, name: str) -> None:
    sync(SweepView(results=made_up.results([], name, f"{name}-kept")), store)
    sync(SweepView(results=sweep(name)), store)
    assert delete_runs(store, sweep_id=name, experiment=name) == 13
    assert [run.data.tags["sweep_id"] for run in runs_of(client, name).values()] == [f"{name}-kept"]
    assert delete_runs(store, sweep_id=name, experiment="never-was") == 0


def test_a_run_or_an_experiment_deleted_by_hand_comes_back_whole(store: TrackingStore, client: Any, name: str) -> None:
    view = SweepView(results=sweep(name), verdict=made_up.verdict())
    sync(view, store)
    which = view.results.cells[-1]
    client.delete_run(runs_of(client, name)[which.cell.cell_id].info.run_id)
    client.delete_experiment(client.get_experiment_by_name(name).experiment_id)
    sync(view, store)
    assert history(client, runs_of(client, name)[which.cell.cell_id]) == set(cell_points(which))


def test_a_store_that_does_not_answer_is_one_message_with_the_command_and_no_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uri = "http://ada:secret@127.0.0.1:9"
    with pytest.raises(TrackingUnavailableError, match="repeat `sweeps sync first` when it answers") as caught:
        sync(SweepView(results=made_up.finished_sweep()), TrackingStore(uri=uri, artifacts_dir=None))
    assert "http://127.0.0.1:9" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_database_that_is_down_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(seconds: float) -> None:
        raise AssertionError(f"somebody waits {seconds} s before another attempt, as MLflow does for 100 s in all")

    monkeypatch.setattr("mlflow.store.db.utils.time.sleep", wait)
    store = TrackingStore(uri="postgresql://ada:secret@127.0.0.1:9/mlflow", artifacts_dir=None)
    with pytest.raises(TrackingUnavailableError, match=r"repeat `sweeps sync first` when it answers") as caught:
        sync(SweepView(results=made_up.finished_sweep()), store)
    assert "Connection refused" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_process_killed_while_it_makes_the_database_leaves_a_store_that_opens(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from sqlalchemy import Engine, event\n"
        "from sweeps.tracking.store import connect, tracking_store\n"
        "def kill(connection, cursor, statement, *_):\n"
        "    if statement.startswith('ALTER TABLE metrics ADD COLUMN step'):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "event.listen(Engine, 'after_cursor_execute', kill)\n"
        "connect(tracking_store(sys.argv[1], {}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "mlflow.db").exists()
    connect(tracking_store(str(tmp_path), {})).create_experiment("first")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["mlartifacts", "mlflow.db", "mlflow.db.lock"]


def test_a_store_that_could_not_be_made_is_made_by_the_same_process_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow keeps its connections by address: an attempt that failed must not stand in the way of the next."""
    full = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", Mock(side_effect=full))
        with pytest.raises(OSError, match="No space left"):
            connect(tracking_store(str(tmp_path), {}))
    connect(tracking_store(str(tmp_path), {})).create_experiment("first")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["mlartifacts", "mlflow.db", "mlflow.db.lock"]


@pytest.mark.parametrize("name", ["an empty file", "a link to nothing yet"])
def test_a_database_that_is_only_a_name_is_made(tmp_path: Path, name: str) -> None:
    there, elsewhere = tmp_path / "runs" / "mlflow.db", tmp_path / "other disk" / "mlflow.db"
    there.parent.mkdir()
    elsewhere.parent.mkdir()
    if name == "an empty file":
        there.touch()
    else:
        there.symlink_to(elsewhere)
    connect(tracking_store(str(there.parent), {})).create_experiment("first")
    assert there.is_symlink() == elsewhere.exists() == (name == "a link to nothing yet")
    assert connect(tracking_store(str(there.parent), {})).get_experiment_by_name("first") is not None


def test_a_mistake_of_this_program_is_not_taken_for_an_outage(
    store: TrackingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: TrackingStore) -> Any:
        raise KeyError("a mistake")

    with pytest.raises(KeyError):
        Projector(store, open_client=broken).apply(SweepView(results=made_up.finished_sweep()))


def test_the_terminal_stays_quiet_and_the_working_directory_clean(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.append(sys.argv[1])\n"
        "from sweeps.tracking.projector import sync\n"
        "from sweeps.tracking.projection import SweepView\n"
        "from sweeps.tracking.store import tracking_store\n"
        "from tests.sweeps import made_up_sweep as made_up\n"
        "view = SweepView(results=made_up.finished_sweep(), verdict=made_up.verdict(), attachments={'a': b'1'})\n"
        "sync(view, tracking_store('runs', {}))\n"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code, str(root)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [each.name for each in tmp_path.iterdir()] == ["runs"]
    assert sorted(each.name for each in (tmp_path / "runs").iterdir()) == ["mlartifacts", "mlflow.db", "mlflow.db.lock"]
