"""One run in MLflow: what is known of it, what it lacks, and the requests that give it that."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.tracking.projection import DesiredDataset, DesiredRun, Point, points_digest

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Run

# MLflow's UI hides tags that begin with "mlflow.": these are bookkeeping.
POINTS_TAG = "mlflow.ledger.points"
ARTIFACTS_TAG = "mlflow.ledger.artifacts"
NAME_TAG = "mlflow.runName"
MAX_POINTS_PER_BATCH = 1_000  # MLflow's limit on the metrics of one log_batch
MAX_TAG_CHARS = 8_000
TERMINAL = ("FINISHED", "FAILED", "KILLED")
# Tags that come and go with the state of a cell: where the ledger no longer has them, they are taken away.
TRANSIENT_TAGS = ("outcome", "reason", "winner")


@dataclass(kw_only=True)
class KnownRun:
    """What MLflow is known to hold of one run."""

    run_id: str
    status: str
    tags: dict[str, str]
    params: frozenset[str] = frozenset()
    metrics: dict[str, tuple[float, int]] = field(default_factory=dict)
    """Newest value and step of each metric; kept for the parent only."""
    has_inputs: bool = False
    mark: object = None
    """What the cell looked like when it was last brought up to date."""


def mark_of(run: DesiredRun) -> object:
    """Return what is equal for two views of a cell that MLflow should show alike, without looking at every record."""
    assert run.cell is not None
    records = run.cell.records
    last = (records[-1]["tokens_seen"], records[-1]["timestamp_s"]) if records else None
    return (len(records), last, run.cell.test_loss, run.status, run.name, tuple(run.tags.items()))


def known_run(run: Run) -> KnownRun:
    """Return what a search found of one run."""
    newest = {metric.key: (metric.value, metric.step) for metric in run.data._metric_objs}
    return KnownRun(
        run_id=run.info.run_id,
        status=run.info.status,
        tags=dict(run.data.tags),
        params=frozenset(run.data.params),
        metrics={} if "cell_id" in run.data.tags else newest,
        has_inputs=bool(run.inputs and run.inputs.dataset_inputs),
    )


def points_to_add(known: KnownRun, points: list[Point]) -> list[Point] | None:
    """The points that the run lacks, or None where it holds others than the ledger's."""
    count, _, digest = known.tags.get(POINTS_TAG, "0").partition(" ")
    logged = int(count)
    if logged and (logged > len(points) or points_digest(points[:logged]) != digest):
        return None
    return points[logged:]


def new_params(known: KnownRun, params: Mapping[str, str]) -> dict[str, str]:
    """Return the parameters that the run lacks; MLflow never changes one that is there."""
    return {key: value for key, value in params.items() if key not in known.params}


def new_summary(known: KnownRun, summary: Mapping[str, float]) -> list[Point]:
    """Summary values that changed, each at the next step: its verdicts in order."""
    now_ms = round(time.time() * 1000)
    points = []
    for key, value in summary.items():
        held, step = known.metrics.get(key, (None, -1))
        if held != value:
            points.append(Point(key, value, now_ms, step + 1))
            known.metrics[key] = (value, step + 1)
    return points


def log(
    client: MlflowClient, known: KnownRun, params: Mapping[str, str], points: list[Point], tags: Mapping[str, str]
) -> None:
    """Send what is new in as few requests as MLflow allows; the tags go last, with the last points."""
    from mlflow.entities import Metric, Param, RunTag

    short_tags = {key: cut(value) for key, value in tags.items()}
    new_tags = {key: value for key, value in short_tags.items() if known.tags.get(key) != value}
    batches = [points[at : at + MAX_POINTS_PER_BATCH] for at in range(0, len(points), MAX_POINTS_PER_BATCH)]
    for batch in batches[:-1]:
        client.log_batch(known.run_id, metrics=[Metric(*point) for point in batch])
    last = batches[-1] if batches else []
    if last or params or new_tags:
        # MLflow takes 1,000 entities a request in all; ours have some 50 parameters and tags.
        room = MAX_POINTS_PER_BATCH - len(params) - len(new_tags)
        if len(last) > room:
            client.log_batch(known.run_id, metrics=[Metric(*point) for point in last[:-room]])
            last = last[-room:]
        client.log_batch(
            known.run_id,
            metrics=[Metric(*point) for point in last],
            params=[Param(key, value) for key, value in params.items()],
            tags=[RunTag(key, value) for key, value in new_tags.items()],
        )
    known.tags.update(new_tags)
    known.params |= frozenset(params)
    for key in TRANSIENT_TAGS:
        if key in known.tags and key not in tags:
            client.delete_tag(known.run_id, key)
            del known.tags[key]


def set_status(client: MlflowClient, known: KnownRun, run: DesiredRun) -> None:
    """Change the status if it is another; a run that ended carries its last record's time, not this moment."""
    if known.status == run.status:
        return
    if run.status in TERMINAL:
        client.set_terminated(known.run_id, run.status, run.end_time_ms)
    else:
        client.update_run(known.run_id, status=run.status)
    known.status = run.status


def set_name(client: MlflowClient, known: KnownRun, run: DesiredRun) -> None:
    """Rename a run whose name is no longer unique, as when an extension adds a second AdamW rate to its rate."""
    if known.tags.get(NAME_TAG) != run.name:
        client.update_run(known.run_id, name=run.name)
        known.tags[NAME_TAG] = run.name


def log_artifacts(client: MlflowClient, known: KnownRun, attachments: Mapping[str, bytes]) -> None:
    """Upload the files that changed since they were last sent; which those are is a tag of the run."""
    sent: dict[str, str] = json.loads(known.tags.get(ARTIFACTS_TAG, "{}"))
    digests = {name: hashlib.sha256(data).hexdigest()[:16] for name, data in attachments.items()}
    changed = sorted(name for name, digest in digests.items() if sent.get(name) != digest)
    if not changed:
        return
    with tempfile.TemporaryDirectory(prefix="sweeps-artifacts-") as folder:
        _write_files(Path(folder), {name: attachments[name] for name in changed})
        client.log_artifacts(known.run_id, folder)
    tag = json.dumps({**sent, **digests}, sort_keys=True)
    client.set_tag(known.run_id, ARTIFACTS_TAG, tag)
    known.tags[ARTIFACTS_TAG] = tag


def _write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def dataset_input(dataset: DesiredDataset) -> DatasetInput:
    """Return the corpus as MLflow's input of a run."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    entity = Dataset(
        name=dataset.name,
        digest=dataset.digest,
        source_type=dataset.source_type,
        source=json.dumps(dataset.source),
        profile=json.dumps(dataset.profile),
    )
    return DatasetInput(dataset=entity, tags=[InputTag("mlflow.data.context", "training")])


def cut(value: str) -> str:
    """Return a tag's value no longer than MLflow takes."""
    return value if len(value) <= MAX_TAG_CHARS else value[: MAX_TAG_CHARS - 3] + "..."
