"""The budget as an axis: how often its claims are wrong, and how well small budgets predict large ones.

    python bench/budgets.py [--repeats 2000]

prints tables and writes ``bench/budgets.json``. The simulated ladders have known truths; the recorded ones
(``bench/data/ladder_*.csv``, as ``sweeps records`` writes them) are sweeps of ``laptop`` at four budgets.
"""

# R repeats, K budgets, S seeds, D documents, A arms

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402

from bench.calibration import ALPHA, DOCUMENT_NOISE, FAR, INTERACTION, monte_carlo_bound  # noqa: E402
from bench.results import write_json  # noqa: E402
from bench.tables import table  # noqa: E402
from sweeps.verdict.evidence import Evidence, winner  # noqa: E402
from sweeps.verdict.judgement import judge  # noqa: E402
from sweeps.verdict.ladder import POINTS, Ladder, ladder_of  # noqa: E402
from sweeps.verdict.records import results_of  # noqa: E402
from sweeps.verdict.records_table import read_rows  # noqa: E402
from sweeps.verdict.statistics import Floats  # noqa: E402
from sweeps.verdict.trend import changes, crossover, predictions, reached  # noqa: E402

RECORDED = ROOT / "bench" / "data"
SMALLEST, STEP = 32_768, 4
SHARED = 0.5
"""Correlation of an arm's noise from one budget to the next: a smaller budget's targets are among a larger one's."""


@dataclass(frozen=True)
class Setting:
    """One row: true means [K][A] and seed noise [K] in units of the smallest; documents as in ``calibration``."""

    means: tuple[tuple[float, ...], ...]
    noise: tuple[float, ...]
    seeds: int = 5
    documents: int | None = 32


def main() -> None:
    """Run both parts, print them, and write them down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2_000)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "budgets.json")
    options = parser.parse_args()
    started_s = time.perf_counter()
    rng = np.random.default_rng(20_261_130)
    rows = [{"case": name, **rates(setting, options.repeats, rng)} for name, setting in steady_settings()]
    crossings = [
        {"case": name, **coverage(setting, at, options.repeats, rng)} for name, setting, at in crossing_settings()
    ]
    recorded = [row for path in sorted(RECORDED.glob("ladder_*.csv")) for row in predicted_rows(path)]
    found = {
        "repeats": options.repeats,
        "python": platform.python_version(),
        "bound": monte_carlo_bound(ALPHA, options.repeats, len(rows)),
        "simulated": rows,
        "crossovers": crossings,
        "recorded": recorded,
        "errors": errors(recorded),
        "seconds": round(time.perf_counter() - started_s, 1),
    }
    write_json(options.out, found)
    table("Simulated ladders: rates of false claims", rows)
    table("Simulated crossovers: coverage of the set, and how often it is bounded on both sides", crossings)
    if recorded:
        show_recorded(recorded, found["errors"])
    print(f"written to {options.out.name} after {found['seconds']:.0f} s")


def show_recorded(rows: list[dict[str, Any]], mean_errors: list[dict[str, Any]]) -> None:
    """Print what the recorded ladders show."""
    table("Recorded ladders: each budget's leads as the smaller ones predict them, in nats", rows)
    table("Recorded ladders: mean absolute miss, and how often its interval holds zero", mean_errors)


def steady_settings() -> Iterator[tuple[str, Setting]]:
    """Leads that do not change: any change, and any win of a tied arm, is a false claim."""
    for n_budgets in (2, 3, 4):
        falling = tuple(2.0 - place / (n_budgets - 1) for place in range(n_budgets))
        even = (1.0,) * n_budgets
        for seeds in (3, 5):
            for documents in (None, 32):
                where = f"{n_budgets} budgets, {seeds} seeds, {documents or 'no'} documents"
                for name, noise in (("equal noise", even), ("noise falls with the budget", falling)):
                    tied = ((0.0, 0.0, FAR),) * n_budgets
                    yield f"tie at every budget, {name}, {where}", Setting(tied, noise, seeds, documents)
                wins_at_largest = (*((0.0, 0.0, FAR),) * (n_budgets - 1), (0.0, FAR, FAR))
                yield f"tie below a clear win, {where}", Setting(wins_at_largest, even, seeds, documents)


def crossing_settings() -> Iterator[tuple[str, Setting, float]]:
    """A lead that goes straight through zero: at a place in steps from the smallest budget, at some slope a step."""
    for n_budgets in (2, 3, 4):
        for at in (0.3, 0.5, 0.9):
            for slope in (1.0, 3.0, 10.0):
                for seeds in (3, 5):
                    place = at * (n_budgets - 1)
                    means = tuple((0.0, slope * (place - k), FAR) for k in range(n_budgets))
                    name = f"{n_budgets} budgets, {seeds} seeds, zero at {at:.0%} of the range, slope {slope:g}"
                    yield name, Setting(means, (1.0,) * n_budgets, seeds, 32), place


def draw(setting: Setting, rng: np.random.Generator) -> Ladder:
    """One ladder: noise of seeds that budgets share in part, and of documents crossed with arms and budgets."""
    means_KA = np.asarray(setting.means)
    n_budgets, n_arms = means_KA.shape
    shape = (n_budgets, setting.seeds, n_arms)
    lasting_SA = rng.standard_normal(shape[1:])
    own_KSA = np.sqrt(SHARED) * lasting_SA + np.sqrt(1 - SHARED) * rng.standard_normal(shape)
    losses_KSA = means_KA[:, None] + np.asarray(setting.noise)[:, None, None] * own_KSA
    documents_KDA = weights_D = None
    if setting.documents:
        lasting_DA = rng.standard_normal((setting.documents, n_arms))
        fresh_KDA = rng.standard_normal((n_budgets, setting.documents, n_arms))
        away_KDA = DOCUMENT_NOISE * (np.sqrt(SHARED) * lasting_DA + np.sqrt(1 - SHARED) * fresh_KDA)
        crossed_KSDA = INTERACTION * rng.standard_normal((n_budgets, setting.seeds, setting.documents, n_arms))
        losses_KSA = losses_KSA + away_KDA.mean(axis=1)[:, None] + crossed_KSDA.mean(axis=2)
        documents_KDA = means_KA[:, None] + away_KDA + crossed_KSDA.mean(axis=1)
        weights_D = np.full(setting.documents, 1 / setting.documents)
    return Ladder(
        arms=tuple(map(str, range(n_arms))),
        budgets_tokens=tuple(SMALLEST * STEP**place for place in range(n_budgets)),
        seeds=tuple(range(setting.seeds)),
        losses_KSA=losses_KSA,
        documents_KDA=documents_KDA,
        weights_D=weights_D,
    )


def rates(setting: Setting, repeats: int, rng: np.random.Generator) -> dict[str, float]:
    """Return how often a change is claimed of leads that do not change, and a win of tied arms at any budget."""
    means_KA = np.asarray(setting.means)
    steady = bool((np.ptp(means_KA - means_KA[:, :1], axis=0) == 0).all())
    shrinks = grows = false_wins = 0
    for _ in range(repeats):
        ladder = draw(setting, rng)
        claimed = {change.direction(ALPHA) for change in changes(ladder)} if steady else set()
        shrinks, grows = shrinks + ("shrinks" in claimed), grows + ("grows" in claimed)
        false_wins += bool(_false_wins(ladder, means_KA))
    counts = {"shrinks": shrinks, "grows": grows} if steady else {"shrinks": float("nan"), "grows": float("nan")}
    return {name: count / repeats for name, count in {**counts, "false_wins": false_wins}.items()}


def _false_wins(ladder: Ladder, means_KA: Floats) -> int:
    """Wins of an arm that is not better than every other, at the budgets that the fixed sequence reaches."""
    best = [int(winner(_evidence(ladder, place), ALPHA)) for place in range(len(ladder.budgets_tokens))]
    tested = reached([arm >= 0 for arm in best])
    return sum(
        is_tested and arm >= 0 and int((truth_A <= truth_A[arm]).sum()) > 1
        for arm, is_tested, truth_A in zip(best, tested, means_KA, strict=True)
    )


def _evidence(ladder: Ladder, place: int) -> Evidence:
    documents_KDA = ladder.documents_KDA
    return Evidence(
        losses_SA=ladder.losses_KSA[place],
        documents_DA=None if documents_KDA is None else documents_KDA[place],
        weights_D=ladder.weights_D,
    )


def coverage(setting: Setting, place: float, repeats: int, rng: np.random.Generator) -> dict[str, float]:
    """Return how often the set of budgets at which the lead may be zero holds the one at which it is."""
    truth = SMALLEST * STEP**place
    held = bounded = 0
    for _ in range(repeats):
        found = crossover(draw(setting, rng), 0, 1, ALPHA, may_extrapolate=False)
        grain = (found.searched[1] / found.searched[0]) ** (1 / (POINTS - 1))
        held += any(low / grain <= truth <= high * grain for low, high in found.ranges)
        bounded += bool(found.ranges) and not found.is_open_below and not found.is_open_above
    return {"coverage": held / repeats, "bounded": bounded / repeats}


def predicted_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield each recorded lead beside what a line through the smaller budgets, and the last of them, say of it."""
    results = results_of(read_rows(path), name=path.stem)
    ladder = ladder_of([judge(results.at(budget)) for budget in results.budgets_tokens])
    assert ladder is not None, f"{path.name} has no seeds that all its budgets share"
    for n_budgets in range(2, len(ladder.budgets_tokens) + 1):
        part = ladder.below(n_budgets)
        for change in changes(part):
            for entry in predictions(part, change.a, change.b, ALPHA):
                low, high = entry.miss.low, entry.miss.high
                yield {
                    "corpus": path.stem.removeprefix("ladder_"),
                    "tokens": part.budgets_tokens[-1],
                    "pair": f"{ladder.arms[change.a]} over {ladder.arms[change.b]}",
                    "by": entry.by,
                    "predicted": entry.predicted,
                    "found": entry.predicted + entry.miss.mean,
                    "miss": entry.miss.mean,
                    "low": low,
                    "high": high,
                    "holds_zero": low is not None and high is not None and low <= 0 <= high,
                }


def errors(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the mean absolute miss by corpus and way of predicting, where both ways predict."""
    both = {(row["corpus"], row["tokens"], row["pair"]) for row in rows if row["by"] == "line"}
    kinds = dict.fromkeys((row["corpus"], row["by"]) for row in rows)
    found = []
    for corpus, by in kinds:
        own = [
            row
            for row in rows
            if (row["corpus"], row["by"]) == (corpus, by) and (corpus, row["tokens"], row["pair"]) in both
        ]
        if own:
            miss = float(np.mean([abs(row["miss"]) for row in own]))
            covered = float(np.mean([row["holds_zero"] for row in own]))
            found.append({"corpus": corpus, "by": by, "leads": len(own), "mean_miss": miss, "holds_zero": covered})
    return found


if __name__ == "__main__":
    main()
