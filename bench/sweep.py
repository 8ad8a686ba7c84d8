"""The sweep against a plain loop: ``laptop`` as users run it, and the same full grid one cell after another.

The loop is one process with both cores as torch threads, without Ray, ledger or early stopping. Both train the same
explore cells; the table says how long each takes to the same chosen rates, and how long a sweep needs from the command
to its first training report, how busy its workers are, and how long one takes between two trials. Writes
``bench/sweep.json``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.results import write_json
from search_spaces import Space, explore_cells, load_space
from sweeps.cluster.machines import usable_cpus
from sweeps.ledger.reading import LedgerReader
from sweeps.ledger.results import SweepResults
from sweeps.ledger.storage import Storage
from sweeps.ledger.sweep_folder import Ledger
from sweeps.training_config import train_config
from sweeps.training_data import TrainingData, load_training_data
from sweeps.verdict.best_rate import choices

OUT = Path(__file__).with_name("sweep.json")
PAUSE_S = 0.1  # between the records of one trial there is less


def plain_loop(space: Space, data: TrainingData) -> dict[str, Any]:
    """Every explore cell to its full budget, one after another, all cores as threads of one process."""
    from moe.device import set_threads

    set_threads(usable_cpus())
    started_s = time.perf_counter()
    losses: dict[str, dict[float, float]] = {}
    for cell in explore_cells(space, data.identity):
        config = train_config(space, cell, vocab_size=data.tokens.vocab_size)
        trainer = data.trainer(config)
        for report in trainer.run():
            if report.val_loss is not None:
                losses.setdefault(cell.strategy, {})[cell.lr or 0.0] = report.val_loss
    wall_s = time.perf_counter() - started_s
    best = {arm: min(found, key=lambda lr: found[lr]) for arm, found in losses.items()}
    return {
        "wall_s": round(wall_s, 1),
        "tokens": sum(cell.budget_tokens for cell in explore_cells(space, None)),
        "rates": best,
    }


def stretches(results: SweepResults) -> list[tuple[float, float]]:
    """Begin and end, in seconds since the epoch, of each trial's training and exams without a pause, in order."""
    found = []
    for result in results.cells:
        busy_s = 0.0
        for record in result.records:
            now_s, so_far_s = record["timestamp_s"], record["train_time_s"] + record["exam_time_s"]
            began_s = now_s - (so_far_s - busy_s)
            busy_s = so_far_s
            if found and found[-1][0] is result and began_s - found[-1][2] < PAUSE_S:
                found[-1] = (result, found[-1][1], now_s)
            else:
                found.append((result, began_s, now_s))
    return sorted((began_s, ended_s) for _, began_s, ended_s in found)


def worker_times(results: SweepResults, workers: int) -> dict[str, float]:
    """How busy workers were between first and last record, and how long one takes from one trial to the next."""
    worked = stretches(results)
    running: list[float] = []
    idle_since: list[float] = []
    gaps_s = []
    for began_s, ended_s in worked:
        idle_since += [end_s for end_s in running if end_s <= began_s]
        running = [end_s for end_s in running if end_s > began_s]
        if idle_since:  # the worker that has just become free is the one that began
            newest = idle_since.index(max(idle_since))
            gaps_s.append(began_s - idle_since.pop(newest))
        running.append(ended_s)
    busy_s = sum(ended_s - began_s for began_s, ended_s in worked)
    wall_s = max(ended_s for _, ended_s in worked) - worked[0][0]
    return {"efficiency": round(busy_s / (wall_s * workers), 3), "median_gap_s": round(statistics.median(gaps_s), 3)}


def sweep(space_options: list[str], runs: Path) -> dict[str, Any]:
    """The same explore cells by ``sweeps run``, with early stopping; one confirm seed, not counted."""
    words = [sys.executable, "-m", "sweeps", "run", "--preset", "laptop", "--name", "bench", "--runs-dir", str(runs)]
    started_s = time.time()
    subprocess.run([*words, *space_options, "--quiet"], check=True)
    results = LedgerReader(Ledger(Storage(str(runs)), "bench")).results()
    explored = [result for result in results.cells if result.cell.phase == "explore"]
    stamps = [record["timestamp_s"] for result in explored for record in result.records]
    return {
        "wall_s": round(max(stamps) - started_s, 1),
        "to_first_report_s": round(min(stamps) - started_s, 1),
        "tokens": sum(result.tokens_seen for result in explored),
        "rates": {arm: choice.lr for arm, choice in choices(results).items()},
        **worker_times(results, usable_cpus()),
    }


def main() -> None:
    """Run both in turn and write the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="change laptop, as in sweeps run")
    overrides = ["budget_tokens=524288", *parser.parse_args().overrides, "rates.max_widenings=0", "seeds.confirm=1"]
    space = load_space(preset="laptop", overrides=overrides)
    material = load_training_data(space)
    with tempfile.TemporaryDirectory() as folder:
        ours = sweep([word for value in overrides for word in ("--set", value)], Path(folder))
    loop = plain_loop(space, material)
    table = {
        "sweep": ours,
        "plain_loop": loop,
        "wall_ratio": round(loop["wall_s"] / ours["wall_s"], 2),
        "token_share": round(ours["tokens"] / loop["tokens"], 3),
        "same_rates": ours["rates"] == loop["rates"],
    }
    write_json(OUT, table)
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
