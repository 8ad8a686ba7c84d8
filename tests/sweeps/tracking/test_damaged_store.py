"""A damaged ``mlflow.db``: it is named as damaged, with commands that rebuild it from the sweep's folder."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sweeps.errors import EXIT_BAD_INPUT
from sweeps.tracking.projection import SweepView
from sweeps.tracking.projector import Projector, delete_runs, sync
from sweeps.tracking.store import DamagedStoreError, connect, damage, tracking_store
from sweeps.tracking.thread import TrackingThread
from sweeps.tracking.ui import pages
from tests.sweeps import made_up_sweep as made_up
from tests.sweeps.what_mlflow_holds import assert_shows

PAGE_BYTES = 4096


def overwritten(path: Path) -> None:
    path.write_bytes(b"this is no database, but it is long enough to be one" * 100)


def without_its_schema(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:100] + bytes(PAGE_BYTES - 100) + data[PAGE_BYTES:])


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: 3 * PAGE_BYTES])


@pytest.fixture(scope="module")
def view() -> SweepView:
    return SweepView(results=made_up.results([made_up.finished(made_up.cell())]))


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory, view: SweepView) -> Path:
    """A database that shows the view. A test copies it: MLflow keeps connections to every file that it has opened."""
    folder = tmp_path_factory.mktemp("intact")
    sync(view, tracking_store(str(folder), {}))
    return folder / "mlflow.db"


@pytest.mark.parametrize("broken", [overwritten, without_its_schema, cut_short])
def test_a_damaged_database_is_rebuilt_by_the_commands_of_the_message(
    tmp_path: Path, intact: Path, view: SweepView, broken: Callable[[Path], None]
) -> None:
    store = tracking_store(str(tmp_path), {})
    shutil.copy(intact, tmp_path)
    broken(tmp_path / "mlflow.db")
    (tmp_path / "mlflow.db-journal").write_bytes(b"of the damaged database")
    with pytest.raises(DamagedStoreError) as raised:
        sync(view, store)
    assert raised.value.exit_code == EXIT_BAD_INPUT
    message = str(raised.value)
    assert message.startswith(f"MLflow's database {tmp_path}/mlflow.db is damaged (")
    assert "repeat" not in message
    [move, again, _] = re.findall("`(.*?)`", message)
    assert again == "sweeps sync first"
    subprocess.run(move, shell=True, check=True)
    (tmp_path / "again").symlink_to(tmp_path)  # another address, as for another process
    rebuilt = tracking_store(str(tmp_path / "again"), {})
    sync(view, rebuilt)
    assert_shows(connect(rebuilt), view)


def test_the_ui_and_rm_name_the_damage_too(tmp_path: Path) -> None:
    overwritten(tmp_path / "mlflow.db")
    store = tracking_store(str(tmp_path), {})
    with pytest.raises(DamagedStoreError, match=r"is damaged .*run `sweeps ui` again"):
        pages(store, "http://127.0.0.1:5000")
    with pytest.raises(DamagedStoreError, match=r"is damaged .*run `sweeps rm first` again"):
        delete_runs(store, sweep_id="0", experiment="first")


def test_a_sweep_goes_on_and_reports_the_damage_once(tmp_path: Path, view: SweepView) -> None:
    overwritten(tmp_path / "mlflow.db")
    said: list[str] = []
    thread = TrackingThread(
        Projector(tracking_store(str(tmp_path), {})), lambda: view, said.append, sync_command="sweeps sync first"
    )
    assert not thread.start().close(60)
    [line] = [line for line in said if "is damaged (file is not a database)" in line]
    assert "run `sweeps sync first` again" in line
    assert "the sweep goes on" in line


def test_an_intact_database_a_missing_one_and_a_server_are_not_damaged(tmp_path: Path, intact: Path) -> None:
    assert damage(tracking_store(str(tmp_path), {})) is None
    assert damage(tracking_store(str(intact.parent), {})) is None
    assert damage(tracking_store("runs", {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"})) is None
