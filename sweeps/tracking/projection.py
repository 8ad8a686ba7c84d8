"""What MLflow should show of a sweep, as a pure function of the ledger: no MLflow in here.

One parent run per sweep and one nested run per cell. A metric's ``step`` is ``tokens_seen`` and its timestamp the
record's own, so that the same ledger always gives the same points.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from sweeps import formatting as written
from sweeps.report.plots.style import ARM_LIGHT
from sweeps.tracking.note import experiment_description
from sweeps.tracking.views import view_tags

if TYPE_CHECKING:
    from search_spaces import Cell
    from sweeps.ledger.results import CellResult, SweepResults
    from sweeps.verdict.verdict import Verdict

LiveState = Literal["queued", "running", "waiting", "done"]
RunStatus = Literal["RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"]

# The keys of a record that become metrics; whatever else a record holds stays in the ledger.
METRICS = (
    "train_loss",
    "val_loss",
    "val_bpb",
    "val_common_loss",
    "lb_loss",
    "z_loss",
    "router_entropy",
    "grad_norm",
    "lr",
    "tokens_per_s",
    "mfu_pct",
    "peak_mem_allocated_gib",
    "loss_scale",
    "skipped_steps",
    "expert_load_max_over_mean",
    "train_time_s",
)
SUMMARY_METRICS = {
    "mean": "test_loss",
    "bpb": "test_bpb",
    "common_context_loss": "common_context_loss",
    "tokens_per_s": "tokens_per_s",
    "peak_mem_allocated_gib": "peak_mem_allocated_gib",
    "best_lr": "best_lr",
}
# A diverged cell never finished its budget; one that was stopped early did all that was planned for it.
STATUS_OF_OUTCOME: Mapping[str, RunStatus] = {
    "completed": "FINISHED",
    "stopped_early": "FINISHED",
    "diverged": "FAILED",
    "oom": "FAILED",
    "failed": "FAILED",
}
STATUS_OF_STATE: Mapping[str, RunStatus] = {
    "queued": "SCHEDULED",
    "running": "RUNNING",
    "waiting": "SCHEDULED",
    "done": "RUNNING",
}


class Point(NamedTuple):
    """One value of one metric; ``step`` is tokens seen, ``timestamp_ms`` the record's wall clock."""

    key: str
    value: float
    timestamp_ms: int
    step: int


@dataclass(frozen=True, kw_only=True)
class SweepView:
    """What the ledger and the driver know at one moment.

    ``states`` is what each unfinished cell does right now, by cell_id; None means that no driver runs the sweep.
    ``attachments`` are files for the parent run, by artifact path (``report.html``, ``plots/losses.png``).
    """

    results: SweepResults
    states: Mapping[str, LiveState] | None = None
    verdict: Verdict | None = None
    attachments: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DesiredRun:
    """One run as MLflow should show it. ``cell`` is None for the sweep's own run, the parent of all others."""

    name: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    status: RunStatus
    start_time_ms: int | None
    end_time_ms: int | None
    cell: CellResult | None = None

    @property
    def cell_id(self) -> str | None:
        """The cell this run shows, None for the parent."""
        return None if self.cell is None else self.cell.cell.cell_id

    def points(self) -> list[Point]:
        """Every point of the run, oldest first; a cell that goes on only ever adds at the end."""
        return [] if self.cell is None else cell_points(self.cell)


@dataclass(frozen=True, kw_only=True)
class DesiredDataset:
    """The corpus as MLflow's data set input."""

    name: str
    digest: str
    source_type: str
    source: Mapping[str, Any]
    profile: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class DesiredSweep:
    """A sweep as MLflow should show it; ``summary`` are the parent's metrics per arm, from the verdict."""

    experiment: str
    experiment_tags: Mapping[str, str]
    parent: DesiredRun
    cells: tuple[DesiredRun, ...]
    summary: Mapping[str, float]
    dataset: DesiredDataset


def desired_sweep(view: SweepView) -> DesiredSweep:
    """Return what MLflow should show of ``view``. Cells without an id (rate undecided) have no run yet."""
    results = view.results
    with_adamw = _rates_with_several_adamw(results)
    cells = tuple(_desired_cell(cell, view, with_adamw) for cell in results.cells if cell.cell.cell_id is not None)
    return DesiredSweep(
        experiment=results.name,
        experiment_tags={
            "mlflow.note.content": experiment_description(results),
            # Without this tag MLflow asks each visitor what the experiment is for.
            "mlflow.experimentKind": "custom_model_development",
            "mlflow.experiment.primaryMetric.name": "val_loss",
            "sweep": results.name,
            **view_tags(results),
        },
        parent=_desired_parent(view),
        cells=cells,
        summary=_summary(view.verdict),
        dataset=_dataset(results),
    )


def cell_points(result: CellResult) -> list[Point]:
    """Every finite value of the cell's records in order, and at the end ``test_loss`` once there is one.

    Values that are not finite are left out: MLflow would draw infinity as 1.8e308. The outcome and its reason show it.
    """
    points: list[Point] = []
    timestamp_ms = 0
    for record in result.records:
        timestamp_ms = _milliseconds(record["timestamp_s"])
        step = int(record["tokens_seen"])
        for key in METRICS:
            value = record.get(key)
            if value is not None and math.isfinite(value):
                points.append(Point(key, float(value), timestamp_ms, step))
    if result.outcome is not None and result.test_loss is not None and math.isfinite(result.test_loss):
        points.append(Point("test_loss", float(result.test_loss), timestamp_ms, int(result.tokens_seen)))
    return points


def points_digest(points: list[Point]) -> str:
    """Return sixteen hex digits that identify exactly these points in this order."""
    text = "\n".join(f"{key} {value!r} {timestamp_ms} {step}" for key, value, timestamp_ms, step in points)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run_name(cell: Cell, *, with_adamw: bool = False, with_budget: bool = False) -> str:
    """Return a cell's name as people read it, ``balanced lr=0.02 seed=3 confirm``."""
    adamw = f" adamw_lr={cell.adamw_lr:g}" if with_adamw and cell.adamw_lr is not None else ""
    rate = "?" if cell.lr is None else f"{cell.lr:g}"
    budget = f" {written.short_count(cell.budget_tokens)} tokens" if with_budget else ""
    return f"{cell.strategy} lr={rate}{adamw} seed={cell.seed} {cell.phase}{budget}"


def _rates_with_several_adamw(results: SweepResults) -> set[tuple[str, float | None]]:
    rates = {(cell.cell.strategy, cell.cell.lr, cell.cell.adamw_lr) for cell in results.cells}
    several = Counter((strategy, lr) for strategy, lr, _ in rates)
    return {rate for rate, n in several.items() if n > 1}


def _desired_cell(result: CellResult, view: SweepView, with_adamw: set[tuple[str, float | None]]) -> DesiredRun:
    cell = result.cell
    beginning = view.results.beginning
    first = result.records[0] if result.records else None
    tags = {
        "sweep": view.results.name,
        "sweep_id": str(beginning["sweep_id"]),
        "cell_id": str(cell.cell_id),
        "phase": cell.phase,
        "strategy": cell.strategy,
        "seed": str(cell.seed),
        "lr": f"{cell.lr:g}",
        "budget_tokens": str(cell.budget_tokens),
        "mlflow.runColor": ARM_LIGHT[_place(cell, view.results) % len(ARM_LIGHT)],
        **_source_tags(beginning),
    }
    if result.outcome is not None:
        tags["outcome"] = result.outcome
    if result.reason:
        tags["reason"] = result.reason
    if result.records and result.records[-1].get("precision"):
        tags["precision"] = str(result.records[-1]["precision"])
    return DesiredRun(
        name=run_name(
            cell,
            with_adamw=(cell.strategy, cell.lr) in with_adamw,
            with_budget=len(view.results.budgets_tokens) > 1,
        ),
        tags=tags,
        params=_cell_params(cell, view.results),
        status=_cell_status(result, view.states),
        start_time_ms=None if first is None else _milliseconds(first["timestamp_s"] - first.get("train_time_s", 0.0)),
        end_time_ms=_last_ms(result),
        cell=result,
    )


def _cell_status(result: CellResult, states: Mapping[str, LiveState] | None) -> RunStatus:
    if result.outcome is not None:
        return STATUS_OF_OUTCOME[result.outcome]
    if states is None:  # no driver runs the sweep: a cell with records was interrupted, any other still waits
        return "KILLED" if result.records else "SCHEDULED"
    return STATUS_OF_STATE[states.get(str(result.cell.cell_id), "queued")]


def _place(cell: Cell, results: SweepResults) -> int:
    """The place of a cell's arm among all of them; controls come after the arms that are compared."""
    return [arm.name for arm in results.every_arm].index(cell.strategy)


def _cell_params(cell: Cell, results: SweepResults) -> dict[str, str]:
    arm = results.every_arm[_place(cell, results)]
    params: dict[str, Any] = {
        "strategy": cell.strategy,
        "lr": cell.lr,
        "adamw_lr": cell.adamw_lr,
        "seed": cell.seed,
        "phase": cell.phase,
        "arrangement": cell.arrangement,
        "budget_tokens": cell.budget_tokens,
        "micro_batch_size": arm.micro_batch_size,
        "seq_len": arm.seq_len,
        "grad_accum_steps": arm.grad_accum_steps,
        "tokens_per_step": arm.tokens_per_step,
        **_section(results, "model"),
        **_section(results, "optimizer"),
        **_section(results, "schedule"),
        **arm.differs_in,
    }
    return {key: str(value) for key, value in params.items() if value is not None}


def _desired_parent(view: SweepView) -> DesiredRun:
    results, verdict = view.results, view.verdict
    beginning = results.beginning
    fingerprints = beginning.get("fingerprints") or {}
    tags = {
        "sweep": results.name,
        "sweep_id": str(beginning["sweep_id"]),
        "phase": "sweep",
        **_source_tags(beginning),
        **{f"{kind}_fingerprint": str(value)[:16] for kind, value in fingerprints.items() if value},
        **{f"version.{name}": str(value) for name, value in (beginning.get("versions") or {}).items()},
    }
    if verdict is not None:
        tags["outcome"] = verdict.outcome
        tags["winner"] = verdict.winner or "none"
    params = {
        "strategies": ", ".join(results.arm_names),
        "budget_tokens": ", ".join(map(str, results.budgets_tokens)),
        **{key: str(value) for key, value in _section(results, "model").items()},
    }
    ends = [end for end in map(_last_ms, results.cells) if end is not None]
    return DesiredRun(
        name=results.name,
        tags=tags,
        params=params,
        status=_parent_status(view),
        start_time_ms=_milliseconds(beginning["created_s"]),
        end_time_ms=max(ends, default=None),
    )


def _parent_status(view: SweepView) -> RunStatus:
    if view.states is not None:
        return "RUNNING"
    finished = view.verdict is not None and all(cell.outcome is not None for cell in view.results.cells)
    return "FINISHED" if finished else "KILLED"


def _section(results: SweepResults, section: str) -> dict[str, Any]:
    return {f"{section}.{key}": value for key, value in (results.space.get(section) or {}).items()}


def _source_tags(beginning: Mapping[str, Any]) -> dict[str, str]:
    git = beginning.get("git") or {}
    tags = {"mlflow.source.name": "sweeps", "mlflow.source.type": "LOCAL"}
    if git.get("commit"):
        tags["mlflow.source.git.commit"] = str(git["commit"])
        tags["mlflow.source.git.dirty"] = str(bool(git.get("dirty"))).lower()
    return tags


def _summary(verdict: Verdict | None) -> dict[str, float]:
    """Metrics per arm, named ``summary/balanced.test_loss``: the part before the slash is a section of charts."""
    if verdict is None:
        return {}
    values = {
        f"summary/{arm.name}.{metric}": getattr(arm, key)
        for arm in verdict.strategies
        for key, metric in SUMMARY_METRICS.items()
    }
    return {key: float(value) for key, value in values.items() if value is not None and math.isfinite(value)}


def _dataset(results: SweepResults) -> DesiredDataset:
    corpus = {key: value for key, value in (results.space.get("corpus") or {}).items() if value is not None}
    fingerprints = results.beginning.get("fingerprints") or {}
    kind = str(corpus.get("kind", "corpus"))
    return DesiredDataset(
        name=str(corpus.get("dataset") or kind),
        digest=str(fingerprints.get("corpus") or "unknown")[:16],
        source_type="hf" if kind == "hub" else "local",
        source=corpus,
        profile={"fingerprints": fingerprints, "exam": results.beginning.get("exam") or {}},
    )


def _last_ms(result: CellResult) -> int | None:
    return _milliseconds(result.records[-1]["timestamp_s"]) if result.records else None


def _milliseconds(time_s: float) -> int:
    return round(time_s * 1000)
