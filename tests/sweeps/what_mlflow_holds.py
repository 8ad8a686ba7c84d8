"""Reading back what MLflow holds of a sweep, and comparing it with the ledger field by field."""

from __future__ import annotations

from typing import Any

from sweeps.tracking.projection import SweepView, cell_points, desired_sweep
from sweeps.tracking.runs import POINTS_TAG


def runs_of(client: Any, name: str) -> dict[str | None, Any]:
    """Active runs of an experiment by cell_id, the parent under None; two of one cell fail the test."""
    experiment = client.get_experiment_by_name(name)
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    found = {run.data.tags.get("cell_id"): run for run in runs}
    assert len(found) == len(runs), "a run was doubled"
    return found


def history(client: Any, run: Any) -> set[tuple[str, float, int, int]]:
    """Every point of a run; two values of a metric at one step fail the test."""
    points = [
        (metric.key, metric.value, metric.timestamp, metric.step)
        for key in run.data.metrics
        for metric in client.get_metric_history(run.info.run_id, key)
    ]
    assert len({(key, step) for key, _, _, step in points}) == len(points), "a metric has two values at one step"
    return set(points)


def everything(client: Any, name: str) -> Any:
    """All that MLflow holds of a sweep, to be compared before and after."""
    return {
        cell_id: (
            dict(run.info),
            run.data.tags,
            run.data.params,
            history(client, run),
            [each.to_dictionary() for each in run.inputs.dataset_inputs],
            [each.path for each in client.list_artifacts(run.info.run_id)],
        )
        for cell_id, run in runs_of(client, name).items()
    }


def assert_shows(client: Any, view: SweepView) -> None:
    """MLflow shows exactly this view: one parent, one run per cell, every field and point of each, nothing more."""
    desired = desired_sweep(view)
    runs = runs_of(client, view.results.name)
    parent = runs.pop(None)
    assert runs.keys() == {run.cell_id for run in desired.cells}
    for wanted in desired.cells:
        run = runs[wanted.cell_id]
        assert wanted.cell is not None
        assert (run.info.run_name, run.info.status) == (wanted.name, wanted.status)
        if wanted.status in {"FINISHED", "FAILED", "KILLED"}:
            assert run.info.end_time == wanted.end_time_ms
        assert run.data.params == wanted.params
        held = {key: value for key, value in run.data.tags.items() if key not in {"mlflow.runName", POINTS_TAG}}
        assert held == {**wanted.tags, "mlflow.parentRunId": parent.info.run_id}
        assert history(client, run) == set(cell_points(wanted.cell))
    assert (parent.info.run_name, parent.info.status) == (desired.parent.name, desired.parent.status)
    assert parent.data.params == desired.parent.params
    assert desired.parent.tags.items() <= parent.data.tags.items()
    assert parent.data.metrics == desired.summary
    history(client, parent)
