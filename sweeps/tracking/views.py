"""Saved views of a sweep's runs in MLflow's UI: which columns, which charts, grouped by what.

MLflow keeps a saved view as a tag of the experiment; ``?viewStateShareKey=cells`` opens it. The names in a view's state
are those of the UI (mlflow 3.17, ``experiment page`` state). The UI ignores names that it does not know, so a newer
one shows its defaults instead.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sweeps.ledger.results import SweepResults

VIEW_TAG_PREFIX = "mlflow.sharedViewState."
COLUMNS = (
    "tags.`strategy`",
    "params.`lr`",
    "metrics.`test_loss`",
    "metrics.`val_loss`",
    "tags.`phase`",
    "tags.`outcome`",
    "tags.`seed`",
    "metrics.`tokens_per_s`",
    "metrics.`peak_mem_allocated_gib`",
)
CHARTS = ("val_loss", "train_loss", "grad_norm", "lr", "tokens_per_s", "expert_load_max_over_mean")
CELLS_VIEW, STRATEGIES_VIEW = "cells", "confirm"


RUNS_LOADED = 100
"""The UI loads so many runs, and more on request: what is ordered by loss would leave the worst strategies out."""


def view_tags(results: SweepResults) -> dict[str, str]:
    """Return the experiment's tags that hold the saved views, by tag name."""
    created_ms = round(results.beginning["created_s"] * 1000)
    n_confirm = sum(result.cell.phase == "confirm" for result in results.cells)
    by_seed = {"search": "tags.phase = 'confirm'", "order_by": "tags.`seed`"}  # every strategy has each seed
    cells = ("Cells, best test loss first", _state("tags.phase != 'sweep'", order_by="metrics.`test_loss`"))
    views = {
        # The runs carry their strategy's colour.
        CELLS_VIEW: cells if n_confirm <= RUNS_LOADED else ("Confirm cells, seed by seed", _state(**by_seed)),
        STRATEGIES_VIEW: ("Confirm seeds, mean by strategy", _state(**by_seed, group_by=("strategy",))),
    }
    return {
        VIEW_TAG_PREFIX + key: json.dumps(
            {"name": name, "createdAt": created_ms, "updatedAt": created_ms, "state": json.dumps(state)}
        )
        for key, (name, state) in views.items()
    }


def view_path(experiment_id: str, view: str) -> str:
    """Return the part of a view's address after the server's; it opens on the charts."""
    # Without the workflow the UI redirects a visitor to its pages for language-model applications.
    query = f"workflowType=machine_learning&viewStateShareKey={view}&compareRunsMode=CHART"
    return f"#/experiments/{experiment_id}/runs?{query}"


def report_path(experiment_id: str, run_id: str) -> str:
    """Return the part after the server's of the address of the report among a run's files."""
    return f"#/experiments/{experiment_id}/runs/{run_id}/artifacts/report.html?workflowType=machine_learning"


def _state(search: str, *, order_by: str, group_by: Sequence[str] = ()) -> dict[str, Any]:
    keys = [{"mode": "tag", "groupByData": tag} for tag in group_by]
    return {
        "searchFilter": search,
        "orderByKey": order_by,
        "orderByAsc": True,
        "selectedColumns": list(COLUMNS),
        "columnOrder": list(COLUMNS),
        "runsHiddenMode": "SHOW_ALL",
        "groupBy": {"aggregateFunction": "average", "groupByKeys": keys} if keys else None,
        "compareRunCharts": [_line_chart(metric) for metric in CHARTS],
        "compareRunSections": [{"uuid": "sweep", "name": "Sweep", "display": True, "isReordered": False}],
        "isAccordionReordered": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }


def _line_chart(metric: str) -> Mapping[str, Any]:
    return {
        "type": "LINE",
        "uuid": f"sweep-{metric}",
        "metricSectionId": "sweep",
        "isGenerated": False,
        "deleted": False,
        "displayName": f"{metric} by tokens seen",
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "runsCountToCompare": 100,
        "lineSmoothness": 0,
        "scaleType": "linear",
        "xAxisScaleType": "linear",
        "range": {},
        "xAxisKey": "step",
        "selectedXAxisMetricKey": "",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }
