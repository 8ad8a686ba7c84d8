"""What the engine costs: sweeps of fake cells (no training) of 20 reports each, at 30, 300 and 3,000 cells.

Real Ray Tune, the real driver, plan and ledger; only the training is left out. Writes ``bench/engine.json``.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from bench.results import write_json
from search_spaces import Identity, Space, explore_cells, load_space
from sweeps.cluster.connection import local_ray
from sweeps.ledger.cell_folder import CellWriter
from sweeps.ledger.storage import Storage
from sweeps.ledger.sweep_folder import Ledger
from sweeps.packing.shares import Packing
from sweeps.plan.phases import first_cells
from sweeps.plan.queue import Plan
from sweeps.running.driver import Driver
from sweeps.trial.trainable import SegmentJob

OUT = Path(__file__).with_name("engine.json")
REPORTS = 20
WORKERS = 2


def fake_segment(config: dict[str, Any]) -> None:
    """Reports and writes to the ledger as a trained segment does, without training."""
    from ray import tune

    job = SegmentJob.from_config(config)
    folder = Ledger(Storage(job.runs_uri), job.sweep).cell_folder(job.cell_id)
    records = []
    for number in range(1, REPORTS + 1):
        tokens = job.until_tokens * number // REPORTS
        loss = int(job.cell_id, 16) % 1000 / 1000 if number == REPORTS else None
        records.append({"tokens_seen": tokens, "val_loss": loss, "timestamp_s": time.time()})
        tune.report({**records[-1], "tokens_per_s": 1.0, "train_time_s": 1.0, "exam_time_s": 0.0, "ended": None})
    writer = CellWriter(folder, "000001-cafe")
    writer.write_records(0, job.until_tokens, records)
    planned = Ledger(Storage(job.runs_uri), job.sweep).planned(job.cell_id)
    writer.end(planned.cell, "completed", tokens_seen=job.until_tokens, val_loss=loss)
    tune.report({"ended": "done"})


class Unwatched:
    """Nobody looks."""

    def on_report(self, cell_id: str, record: object) -> None:
        """Nothing."""

    def on_change(self, plan: Plan) -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""


def fake_space(cells: int) -> Space:
    """Smoke's arms with so many explore cells in all, none stopped early, none confirmed in this run."""
    rates = [round(0.001 * 1.002**number, 8) for number in range(cells // 3)]
    return load_space(preset="smoke", overrides=[f"rates.lr={rates}", "early_stopping=none", "seeds.confirm=1"])


def measure(cells: int) -> dict[str, Any]:
    """One sweep of ``cells`` fake explore cells."""
    space = fake_space(cells)
    identity = Identity(corpus_fingerprint="c", tokenizer_fingerprint="t", exam_fingerprint="e")
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Storage(folder), "fake")
        ledger.add_cells(first_cells(space, explore_cells(space, identity)), because="fake")
        prints = {"corpus": "c", "tokenizer": "t", "exam": "e", "code": "d"}
        beginning = {"sweep_id": "fake", "space": space.resolved(), "strategies": [], "fingerprints": prints}
        ledger.begin({**beginning, "created_s": time.time()})
        arms = [arm.name for arm in space.strategies]
        packing = Packing(threads=1, gpu_fraction=dict.fromkeys(arms), slots=dict.fromkeys(arms, WORKERS))
        driver = Driver(
            ledger=ledger,
            space=space,
            identity=identity,
            packing=packing,
            watcher=Unwatched(),
            checkpoint_every_s=60.0,
            wake_tracking=lambda: None,
            trainable=fake_segment,
        )
        process = psutil.Process()
        memory, cpu, started_s = process.memory_info().rss, sum(process.cpu_times()[:2]), time.perf_counter()
        driver.run()
        wall_s = time.perf_counter() - started_s
        cpu_s = sum(process.cpu_times()[:2]) - cpu
        ended = len(driver.plan.cells)
    reports = ended * REPORTS
    return {
        "cells": ended,
        "wall_s": round(wall_s, 2),
        "wall_ms_per_cell": round(1e3 * wall_s / ended, 2),
        "driver_cpu_ms_per_report": round(1e3 * cpu_s / reports, 3),
        "memory_growth_mib": round((process.memory_info().rss - memory) / 2**20, 1),
    }


def main() -> None:
    """Run the three sizes in one Ray and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, nargs="+", default=[30, 300, 3000])
    sizes = parser.parse_args().cells
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rows = []
    with local_ray(cpus=WORKERS, declared_gpus=None):
        measure(12)  # workers started, modules imported
        for size in sizes:
            rows.append(measure(size))
            print(rows[-1], flush=True)
    ratio = rows[-1]["driver_cpu_ms_per_report"] / rows[0]["driver_cpu_ms_per_report"]
    write_json(OUT, {"rows": rows, "cpu_per_report_last_over_first": round(ratio, 2)})


if __name__ == "__main__":
    main()
