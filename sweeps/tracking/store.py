"""Where MLflow keeps a sweep's view: the store's address, its client, and an MLflow without telemetry and chatter.

No trial's process imports this. ``mlflow`` itself is imported inside functions only, once the environment turns
telemetry off.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
import sqlite3
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from sweeps.cluster.addresses import impossible_store, without_credentials
from sweeps.errors import EXIT_BAD_INPUT, BadInputError, WorldError

if TYPE_CHECKING:
    from mlflow import MlflowClient

# MLflow's own limit of 120 s with 7 retries would hold a flush for ten minutes, and its retries would create a run
# twice when only the answer was lost: repeating is the projector's task, which looks before it repeats.
QUIET_ENVIRONMENT: Mapping[str, str] = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}

# The file of the default store, in the folder of runs.
DATABASE = "mlflow.db"

# SQLite keeps these beside a database, and would apply those of a deleted one to its successor.
_COMPANIONS = ("-journal", "-wal", "-shm")

# What a database's address ends at, or takes for another character.
_NO_DATABASE_PATH = re.compile(r"\?|%[0-9A-Fa-f]{2}")


class TrackingUnavailableError(WorldError):
    """The tracking store does not answer; the ledger has everything, and ``sweeps sync`` brings the view up to date."""


class DamagedStoreError(TrackingUnavailableError):
    """The store's file is no longer a database: waiting does not help, building it again from the ledger does."""

    exit_code = EXIT_BAD_INPUT


@dataclass(frozen=True, kw_only=True)
class TrackingStore:
    """A tracking store: its ``uri`` (may hold credentials) and, for the default store, the folder of its artifacts."""

    uri: str
    artifacts_dir: Path | None

    @property
    def label(self) -> str:
        """The address as it may be shown: without user and password."""
        return without_credentials(self.uri)

    @property
    def is_server(self) -> bool:
        """Whether the store is an MLflow server, reached over http or https."""
        return self.uri.startswith(("http://", "https://"))

    @property
    def database(self) -> Path | None:
        """The file of a sqlite store, None for any other."""
        _, is_sqlite, path = self.uri.partition("sqlite:///")
        return Path(path) if is_sqlite else None

    def artifact_location(self, experiment_name: str) -> str | None:
        """Where a new experiment's artifacts go: a file URI, or None where the server decides."""
        return None if self.artifacts_dir is None else (self.artifacts_dir / experiment_name).as_uri()


def tracking_store(runs_dir: str, environment: Mapping[str, str] | None = None) -> TrackingStore:
    """Return the store named by MLFLOW_TRACKING_URI, else sqlite in ``runs_dir``.

    The default is always local: where ``runs_dir`` is a URI such as ``s3://bucket/runs``, it is ``runs`` in the
    working directory.

    Raises:
        BadInputError: MLFLOW_TRACKING_URI names something that MLflow never takes, or MLflow would read another path
            than that of ``runs_dir``.
    """
    environment = os.environ if environment is None else environment
    uri = environment.get("MLFLOW_TRACKING_URI", "")
    if uri:
        problem = impossible_store(uri)
        if problem is not None:
            raise BadInputError(problem)
        return TrackingStore(uri=uri, artifacts_dir=None)
    folder = Path("runs" if "://" in runs_dir else runs_dir).expanduser().absolute()
    if _NO_DATABASE_PATH.search(str(folder)):
        raise BadInputError(
            f"MLflow opens no database in {folder}: no '?' and nothing like '%20' may be in its path; give another "
            "--runs-dir, or name a store in MLFLOW_TRACKING_URI"
        )
    return TrackingStore(uri=f"sqlite:///{folder / DATABASE}", artifacts_dir=folder / "mlartifacts")


def quiet_mlflow() -> None:
    """Set the environment for an MLflow that sends no telemetry, prints nothing and fails fast; then import it.

    What the user has set stays, except that telemetry is always off. The same variable turns it off in the UI, whose
    server passes it on to the browser.
    """
    for name, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    # A user can do nothing about deprecations between MLflow and its dependencies.
    warnings.filterwarnings("ignore", category=Warning, module=r"(mlflow|sqlalchemy|alembic|google|pydantic)\b")
    import mlflow  # noqa: F401 - its import sets up the loggers that are turned down next

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)


def connect(store: TrackingStore) -> MlflowClient:
    """Return a client for ``store``; a default store is created when it is not there (about 2 s).

    A database that is down is reported within seconds.

    Raises:
        Exception: whatever MLflow raises where the store cannot be opened (see ``tracking.is_outage``).
    """
    quiet_mlflow()
    from mlflow import MlflowClient

    if store.artifacts_dir is None:
        if not store.is_server:
            _require_database(store.uri)
        return MlflowClient(store.uri, registry_uri=os.environ.get("MLFLOW_REGISTRY_URI") or store.uri)
    store.artifacts_dir.mkdir(parents=True, exist_ok=True)
    path = store.artifacts_dir.parent / DATABASE
    # Two sweeps that start at once must not both create the tables.
    with FileLock(f"{path}.lock"):
        _make_database(path.resolve())
        return MlflowClient(store.uri, registry_uri=store.uri)


def damage(store: TrackingStore) -> str | None:
    """Return what is wrong with the store's file, None where it is intact, busy or absent, or the store has no file.

    SQLite reads the whole file for this: seconds for a gigabyte.
    """
    if store.database is None or not store.database.is_file():
        return None
    try:
        with closing(sqlite3.connect(f"{store.database.resolve().as_uri()}?mode=rw", uri=True)) as connection:
            answer = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.OperationalError:  # locked, or not to be opened
        return None
    except sqlite3.DatabaseError as error:
        return str(error)
    return None if answer == "ok" else answer


def damaged_message(store: TrackingStore, reason: str, command: str) -> str:
    """Return what to do about a damaged store, and to run ``command`` again afterwards."""
    path = str(store.database)
    move = f"mv {shlex.quote(path)} {shlex.quote(path + '.damaged')}"
    return (
        f"MLflow's database {path} is damaged ({reason}). Move it away with `{move}` and run `{command}` again; "
        "`sweeps sync NAME` rebuilds the view of any other sweep from its folder. Only what was added by hand is lost"
    )


def _make_database(path: Path) -> None:
    """Make MLflow's database at ``path`` where there is none: under another name first, because it takes many steps.

    A process that is killed between two of them would leave tables that MLflow can neither use nor complete. Every
    attempt has its own name, since MLflow keeps the connections of earlier ones.
    """
    from mlflow import MlflowClient

    for killed in path.parent.glob(f"{path.name}.unfinished-*"):
        shutil.rmtree(killed, ignore_errors=True)
    if path.exists() and path.stat().st_size:
        return
    with tempfile.TemporaryDirectory(prefix=f"{path.name}.unfinished-", dir=path.parent) as folder:
        unfinished = Path(folder) / path.name
        uri = f"sqlite:///{unfinished}"
        MlflowClient(uri, registry_uri=uri).search_experiments(max_results=1)
        for ending in _COMPANIONS:
            Path(f"{path}{ending}").unlink(missing_ok=True)
        unfinished.replace(path)


def _require_database(uri: str) -> None:
    """Raises ConnectionError where nothing listens: MLflow itself would retry for 100 s before it reports that."""
    from sweeps.cluster.reachability import tracking_problem

    problem = tracking_problem(uri)
    if problem is not None:
        raise ConnectionError(problem)
