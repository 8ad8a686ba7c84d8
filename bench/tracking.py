"""What MLflow costs: a wake-up, a pass of the background thread, a large sweep projected at once, and the speed of a
trial beside a driver that projects without a pause (sqlite).

    python bench/tracking.py [--runs 3000] [--points 20] [--pairs 5]

writes ``bench/tracking.json``.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
import timeit
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from bench.results import write_json  # noqa: E402
from search_spaces import Cell, parse_space, preset_text  # noqa: E402
from sweeps.cluster.connection import local_ray  # noqa: E402
from sweeps.ledger.results import CellResult, SweepResults  # noqa: E402
from sweeps.tracking.projection import SweepView, cell_points  # noqa: E402
from sweeps.tracking.projector import Projector, sync  # noqa: E402
from sweeps.tracking.store import tracking_store  # noqa: E402
from sweeps.tracking.thread import TrackingThread  # noqa: E402
from sweeps.trial.probe import ShortRun, run_in_ray  # noqa: E402

STRATEGIES = ("large_batch", "long_seq", "balanced")
TOKENS_PER_POINT = 26_214
STARTED_S = 1_760_000_000.0
TRIAL_STEPS = 100  # some eight seconds of the laptop preset, so that several passes fall into it
LOOK_EVERY_S = 2.0  # as often as a sweep may at most


def made_up_view(n_runs: int, n_points: int, *, running: bool) -> SweepView:
    """A sweep of ``n_runs`` cells with ``n_points`` records each, as many metrics in a record as a trainer reports."""
    cells = tuple(_cell(number, n_points, finished=not running) for number in range(n_runs))
    beginning: dict[str, Any] = {
        "sweep_id": f"bench{n_runs}{running}",
        "created_s": STARTED_S,
        "space": {"budget_tokens": n_points * TOKENS_PER_POINT, "model": {"d_model": 64}, "optimizer": {"clip": 1.0}},
        "strategies": [
            {"name": name, "micro_batch_size": 8, "seq_len": 256, "grad_accum_steps": 1, "tokens_per_step": 2048}
            for name in STRATEGIES
        ],
    }
    states: Any = {str(cell.cell.cell_id): "running" for cell in cells} if running else None
    return SweepView(
        results=SweepResults(name=f"bench-{n_runs}-{running}", beginning=beginning, cells=cells), states=states
    )


def with_one_more_record(view: SweepView) -> SweepView:
    """The same sweep after its first cell has reported once more."""
    first, *others = view.results.cells
    more = (*first.records, _record(len(first.records)))
    return replace(view, results=replace(view.results, cells=(replace(first, records=more), *others)))


def measure(n_runs: int, n_points: int) -> dict[str, Any]:
    """Every figure, in seconds unless the name says otherwise."""
    with tempfile.TemporaryDirectory() as folder:
        store = tracking_store(folder, {})
        opening_s = _seconds(lambda: sync(made_up_view(0, 0, running=False), store))
        view = made_up_view(60, n_points, running=True)
        projector = Projector(store)
        projector.apply(view)
        passes_ms = []
        for _ in range(20):
            view = with_one_more_record(view)
            passes_ms.append(1000 * _seconds(lambda: projector.apply(view)))  # noqa: B023 - called at once
        idle_pass_ms = 1000 * _seconds(lambda: projector.apply(view))
        thread = TrackingThread(projector, lambda: view, print).start()
        wakes = 10_000
        wake_us = 1e6 * timeit.timeit(thread.wake, number=wakes) / wakes
        assert thread.close(60)
        large = made_up_view(n_runs, n_points, running=False)
        cpu_before_s = time.process_time()
        sync_s = _seconds(lambda: sync(large, store))
        sync_cpu_s = time.process_time() - cpu_before_s
        again_s = _seconds(lambda: sync(large, store))
        size_mb = (Path(folder) / "mlflow.db").stat().st_size / 1e6
    return {
        "import_and_new_store_s": round(opening_s, 2),
        "wake_us": round(wake_us, 2),
        "pass_with_one_new_record_of_60_cells_ms": round(sorted(passes_ms)[10], 2),
        "pass_with_nothing_new_of_60_cells_ms": round(idle_pass_ms, 2),
        "sync": {
            "runs": n_runs,
            "records_per_run": n_points,
            "metric_values": sum(len(cell_points(cell)) for cell in large.results.cells),
            "first_s": round(sync_s, 1),
            "first_cpu_s": round(sync_cpu_s, 1),
            "ms_per_run": round(1000 * sync_s / n_runs, 2),
            "again_with_nothing_new_s": round(again_s, 2),
            "store_mb": round(size_mb, 1),
        },
        "machine": {
            "load": round(os.getloadavg()[0], 1),
            "cpus": os.cpu_count(),
            "processor": platform.machine(),
            "python": platform.python_version(),
        },
    }


def measure_training(pairs: int) -> dict[str, Any]:
    """Tokens per second of one trial in a worker of its own, in turn without tracking and beside a driver's thread.

    The thread finds a new record in each of its passes.
    """
    space = parse_space(preset_text("laptop"))
    trial = ShortRun(space=space.resolved(), arm=space.strategies[0].name, precision="fp32", steps=TRIAL_STEPS, lr=0.01)
    alone, tracked = [], []
    with tempfile.TemporaryDirectory() as folder, local_ray(cpus=1, declared_gpus=None):

        def tokens_per_s() -> float:
            facts = run_in_ray(trial, gpus=0.0)
            if facts.error is not None:
                raise RuntimeError(facts.error)
            return facts.tokens_per_s

        views = [made_up_view(60, 20, running=True)]

        def read() -> SweepView:
            views.append(with_one_more_record(views[-1]))
            return views[-1]

        for _ in range(pairs):
            alone.append(tokens_per_s())
            thread = TrackingThread(
                Projector(tracking_store(folder, {})), read, print, min_interval_s=0.0, look_every_s=LOOK_EVERY_S
            ).start()
            tracked.append(tokens_per_s())
            assert thread.close(60)
    ratios = [one / other for one, other in zip(tracked, alone, strict=True)]
    return {
        "pairs": pairs,
        "tokens_per_s_alone": [round(rate) for rate in alone],
        "tokens_per_s_tracked": [round(rate) for rate in tracked],
        "median_ratio": round(statistics.median(ratios), 4),
        "passes": len(views) - 1,
    }


def _cell(number: int, n_points: int, *, finished: bool) -> CellResult:
    budget_tokens = n_points * TOKENS_PER_POINT
    cell = Cell(
        cell_id=f"{number:016x}",
        phase="explore",
        strategy=STRATEGIES[number % 3],
        lr=0.01,
        adamw_lr=0.003,
        arrangement="shuffled",
        seed=number,
        budget_tokens=budget_tokens,
    )
    records = tuple(_record(at) for at in range(n_points))
    return CellResult(
        cell=cell, outcome="completed" if finished else None, tokens_seen=budget_tokens, val_loss=5.0, records=records
    )


def _record(at: int) -> dict[str, Any]:
    return {
        "tokens_seen": (at + 1) * TOKENS_PER_POINT,
        "timestamp_s": STARTED_S + at,
        "train_loss": 8.0 - at / 10,
        "val_loss": 8.1 - at / 10 if at % 5 == 4 else None,
        "val_bpb": 2.5 if at % 5 == 4 else None,
        "lb_loss": 1.01,
        "z_loss": 0.5,
        "router_entropy": 1.9,
        "grad_norm": 0.7,
        "lr": 0.01,
        "tokens_per_s": 20_000.0,
        "mfu_pct": None,
        "peak_mem_allocated_gib": 0.25,
        "loss_scale": None,
        "skipped_steps": 0,
        "expert_load_max_over_mean": 1.3,
        "train_time_s": float(at),
    }


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3_000)
    parser.add_argument("--points", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    figures = {"training": measure_training(options.pairs), **measure(options.runs, options.points)}
    write_json(options.out, figures)
    print(options.out.read_text(), end="")


if __name__ == "__main__":
    main()
