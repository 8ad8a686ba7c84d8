"""Updates of MLflow from the ledger: only differences are sent, and none of them twice.

A run is found by its tags (``sweep_id``, ``cell_id``). The tag ``mlflow.ledger.points`` holds how many points it has
and a digest of them, so that a projector that sees a run for the first time, after a crash or in another process,
continues where the last one ended. Points are sent with their records' own timestamps, and MLflow keeps one of two
equal points: what was sent and not noted is sent again without harm.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sweeps.cluster.addresses import without_credentials
from sweeps.tracking.note import parent_note
from sweeps.tracking.projection import DesiredRun, DesiredSweep, SweepView, desired_sweep, points_digest
from sweeps.tracking.runs import (
    NAME_TAG,
    POINTS_TAG,
    KnownRun,
    cut,
    dataset_input,
    known_run,
    log,
    log_artifacts,
    mark_of,
    new_params,
    new_summary,
    points_to_add,
    set_name,
    set_status,
)
from sweeps.tracking.store import (
    DamagedStoreError,
    TrackingStore,
    TrackingUnavailableError,
    connect,
    damage,
    damaged_message,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

RUNS_PER_PAGE = 1_000
MAX_REASON_CHARS = 200
# urllib3 names address, path and retries before the cause, and MLflow repeats it all.
CAUSE = re.compile(r"Caused by \w+\(['\"](.+?)['\"]\)")


class Projector:
    """Brings one sweep's runs in MLflow up to date with a view of its ledger.

    Not for two threads at once. Any error leaves it ready for the next ``apply``, which then reads again what MLflow
    holds before it changes anything.
    """

    def __init__(self, store: TrackingStore, *, open_client: Callable[[TrackingStore], MlflowClient] = connect) -> None:
        """Nothing is opened, and MLflow not imported, before the first ``apply``."""
        self.store = store
        self._open_client = open_client
        self._client: MlflowClient | None = None
        self._known: dict[str | None, KnownRun] | None = None
        self._experiment_id = ""
        self._experiment_tags: dict[str, str] = {}

    def apply(self, view: SweepView) -> None:
        """Bring MLflow up to date with ``view``.

        Raises:
            Exception: whatever MLflow or the network raise (see ``is_outage``); what was done so far stays.
        """
        desired = desired_sweep(view)
        done = False
        try:
            if self._client is None:
                self._client = self._open_client(self.store)
            if self._known is None:
                self._find_runs(self._client, desired)
            self._apply(self._client, desired, view)
            done = True
        finally:
            if not done:
                self.forget()

    def forget(self) -> None:
        """Look again at what MLflow holds before the next change: a request that failed may have been carried out."""
        self._known = None

    def delete_runs(self, sweep_id: str, experiment: str) -> int:
        """Move every run of a sweep to MLflow's trash and return their number; no experiment, no run: 0."""
        client = self._client = self._client or self._open_client(self.store)
        found = client.get_experiment_by_name(experiment)
        runs = [] if found is None else _search(client, found.experiment_id, sweep_id)
        for run in runs:
            client.delete_run(run.info.run_id)
        self.forget()
        return len(runs)

    def _find_runs(self, client: MlflowClient, desired: DesiredSweep) -> None:
        experiment = client.get_experiment_by_name(desired.experiment)
        if experiment is None:
            location = self.store.artifact_location(desired.experiment)
            self._experiment_id = client.create_experiment(desired.experiment, location, dict(desired.experiment_tags))
            self._experiment_tags = dict(desired.experiment_tags)
        else:
            self._experiment_id = experiment.experiment_id
            self._experiment_tags = dict(experiment.tags)
            if experiment.lifecycle_stage == "deleted":
                client.restore_experiment(self._experiment_id)
        known: dict[str | None, KnownRun] = {}
        for run in _search(client, self._experiment_id, desired.parent.tags["sweep_id"]):
            cell_id = run.data.tags.get("cell_id")
            if cell_id in known:  # a create whose answer was lost was made again: the first one stays
                client.delete_run(run.info.run_id)
            else:
                known[cell_id] = known_run(run)
        self._known = known

    def _apply(self, client: MlflowClient, desired: DesiredSweep, view: SweepView) -> None:
        for key, value in desired.experiment_tags.items():
            if self._experiment_tags.get(key) != value:
                client.set_experiment_tag(self._experiment_id, key, value)
                self._experiment_tags[key] = value
        parent = self._update_parent(client, desired, view)
        for run in desired.cells:
            self._update_cell(client, run, parent.run_id)
        # Last, so that a sweep that reads FINISHED has all of its cells.
        set_status(client, parent, desired.parent)

    def _update_parent(self, client: MlflowClient, desired: DesiredSweep, view: SweepView) -> KnownRun:
        assert self._known is not None
        known = self._known.get(None)
        if known is None:
            known = self._known[None] = self._create(client, desired.parent, {})
        artifacts_url = f"#/experiments/{self._experiment_id}/runs/{known.run_id}/artifacts"
        tags = {**desired.parent.tags, "mlflow.note.content": parent_note(view, artifacts_url)}
        log(client, known, new_params(known, desired.parent.params), new_summary(known, desired.summary), tags)
        if not known.has_inputs:
            client.log_inputs(known.run_id, datasets=[dataset_input(desired.dataset)])
            known.has_inputs = True
        log_artifacts(client, known, view.attachments)
        return known

    def _update_cell(self, client: MlflowClient, run: DesiredRun, parent_run_id: str) -> None:
        assert self._known is not None
        known = self._known.get(run.cell_id)
        mark = mark_of(run)
        if known is not None and known.mark == mark:
            return
        points = run.points()
        new = None if known is None else points_to_add(known, points)
        if known is not None and new is None:
            # The ledger's past changed (a damaged checkpoint sent the cell back): a metric cannot be taken out of a
            # run, so the run starts afresh.
            client.delete_run(known.run_id)
            known = None
        if known is None:
            known = self._known[run.cell_id] = self._create(client, run, {"mlflow.parentRunId": parent_run_id})
            new = points
        assert new is not None
        tags = {**run.tags, "mlflow.parentRunId": parent_run_id}
        if points:
            tags[POINTS_TAG] = f"{len(points)} {points_digest(points)}"
        log(client, known, new_params(known, run.params), new, tags)
        set_name(client, known, run)
        set_status(client, known, run)
        known.mark = mark

    def _create(self, client: MlflowClient, run: DesiredRun, extra_tags: Mapping[str, str]) -> KnownRun:
        tags = {key: cut(value) for key, value in {**run.tags, **extra_tags}.items()}
        made = client.create_run(self._experiment_id, start_time=run.start_time_ms, tags=tags, run_name=run.name)
        return KnownRun(run_id=made.info.run_id, status=made.info.status, tags={**tags, NAME_TAG: run.name})


def sync(view: SweepView, store: TrackingStore) -> None:
    """Bring MLflow up to date with ``view`` in the foreground, once.

    Raises:
        TrackingUnavailableError: the store does not answer or refuses; the message holds the next command.
    """
    with answering(store, f"sweeps sync {view.results.name}"):
        Projector(store).apply(view)


def delete_runs(store: TrackingStore, *, sweep_id: str, experiment: str) -> int:
    """Move a sweep's runs to MLflow's trash (``mlflow gc`` empties it) and return how many there were.

    Raises:
        TrackingUnavailableError: the store does not answer or refuses.
    """
    with answering(store, f"sweeps rm {experiment}"):
        return Projector(store).delete_runs(sweep_id, experiment)


@contextmanager
def answering(store: TrackingStore, command: str) -> Iterator[None]:
    """Turn an outage inside into one sentence without credentials, which names the ``command`` to repeat.

    Raises:
        TrackingUnavailableError: the store did not answer or refused.
        DamagedStoreError: it has a file, and that is damaged.
    """
    try:
        yield
    except TrackingUnavailableError:
        raise
    except Exception as error:
        if not is_outage(error):
            raise
        damaged = damage(store)
        if damaged is not None:
            raise DamagedStoreError(damaged_message(store, damaged, command)) from error
        raise TrackingUnavailableError(
            f"MLflow at {store.label} does not answer ({reason_of(error)}); nothing is lost: "
            f"repeat `{command}` when it answers"
        ) from error


def find_run(client: MlflowClient, *, experiment: str, sweep_id: str, cell_id: str | None) -> Run | None:
    """Return the run of a cell, or of the sweep itself where ``cell_id`` is None; None where there is none."""
    found = client.get_experiment_by_name(experiment)
    runs = [] if found is None else _search(client, found.experiment_id, sweep_id)
    return next((run for run in runs if run.data.tags.get("cell_id") == cell_id), None)


def is_outage(error: BaseException) -> bool:
    """Whether ``error`` is the store's (unreachable, refusing, full, locked) and not a mistake in this program."""
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    outages = (TrackingUnavailableError, MlflowException, requests.RequestException, SQLAlchemyError, OSError)
    return isinstance(error, outages)


def reason_of(error: BaseException) -> str:
    """Return the first line of ``error``, or the cause that it names at its end, short and without credentials."""
    lines = without_credentials(str(error)).strip().splitlines() or [type(error).__name__]
    caused = CAUSE.search(lines[0])
    reason = caused[1] if caused else lines[0]
    return reason if len(reason) <= MAX_REASON_CHARS else reason[:MAX_REASON_CHARS] + "..."


def _search(client: MlflowClient, experiment_id: str, sweep_id: str) -> list[Run]:
    """Active runs of a sweep, oldest first."""
    found: list[Run] = []
    token: str | None = None
    while True:
        page = client.search_runs(
            [experiment_id],
            f"tags.sweep_id = '{sweep_id}'",
            max_results=RUNS_PER_PAGE,
            order_by=["attributes.start_time ASC", "attributes.run_id ASC"],
            page_token=token,
        )
        found.extend(page)
        token = page.token
        if not token:
            return found
