"""How often the verdict is wrong, in full: every configuration of tied arms, 2,000 repeats a row.

    python bench/verdict.py [--repeats 2000]

prints a table and writes ``bench/verdict.json``. The rules that are tried are the verdict's own code.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402

from bench import calibration  # noqa: E402
from bench.calibration import ALPHA, CURVATURES, NOISES, Setting  # noqa: E402
from bench.results import write_json  # noqa: E402

EQUAL = NOISES[0]
SEEDS = (3, 4, 5)


def main() -> None:
    """Run every part, print it, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2_000)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "verdict.json")
    options = parser.parse_args()
    started_s = time.perf_counter()
    rng = np.random.default_rng(20_260_713)
    found: dict[str, Any] = {"repeats": options.repeats, "alpha": ALPHA, "python": platform.python_version()}
    found["false_wins"] = false_win_rows(options.repeats, rng)
    found["summary"] = summary(found["false_wins"], options.repeats)
    found["power"] = power_rows(options.repeats, rng)
    found["ties"] = tie_rows(options.repeats, rng)
    found["extensions"] = extension_rows(options.repeats, rng)
    found["selection_bias"] = bias_rows(options.repeats, rng)
    found["seconds"] = round(time.perf_counter() - started_s, 1)
    write_json(options.out, found)
    show(found)
    print(f"written to {options.out.name} after {found['seconds']:.0f} s")


def false_win_rows(repeats: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Return a row for every configuration of tied arms."""
    return [
        {
            "truth": name,
            "noise": setting.noise,
            "correlation": setting.correlation,
            "seeds": setting.seeds,
            "looks": setting.looks,
            "curvature": setting.curvature,
            **calibration.false_wins(setting, repeats, rng),
        }
        for name, setting in calibration.settings()
    ]


def summary(rows: list[dict[str, Any]], repeats: int) -> list[dict[str, Any]]:
    """Return, per way to choose rates and number of looks, the worst row and the bound of Monte-Carlo error."""
    groups: list[dict[str, Any]] = []
    for curvature in (None, *CURVATURES):
        for looks in (1, 2):
            group = [row for row in rows if row["curvature"] == curvature and row["looks"] == looks]
            groups.append(
                {
                    "curvature": curvature,
                    "looks": looks,
                    "rows": len(group),
                    "worst": max(row["false_wins"] for row in group),
                    "mean": float(np.mean([row["false_wins"] for row in group])),
                    "most_wins": max(row["wins"] for row in group),
                    "bound": calibration.monte_carlo_bound(ALPHA, repeats, len(group)),
                    "lowest_coverage": min(row["coverage"] for row in group),
                    "highest_coverage": max(row["coverage"] for row in group),
                }
            )
    return groups


def power_rows(repeats: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Return how often a lead of two standard deviations of the paired differences over both others is found."""
    rows: list[dict[str, Any]] = []
    for correlation in (0.0, 0.5):
        lead = 2 * float(np.sqrt(2 * (1 - correlation)))
        for seeds in SEEDS:
            setting = Setting(means=(0.0, lead, lead), noise=EQUAL, correlation=correlation, seeds=seeds)
            rows.append({"correlation": correlation, "seeds": seeds, "power": calibration.power(setting, repeats, rng)})
    return rows


def tie_rows(repeats: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Return how often ties are called, true ones and false ones, by margin in sds of the paired differences."""
    rows: list[dict[str, Any]] = []
    difference_sd = float(np.sqrt(2))
    for truth, means in (("two tied, one far", (0.0, 0.0, 25.0)), ("all equal", (0.0, 0.0, 0.0))):
        for seeds in SEEDS:
            for margin in (1.0, 2.0, 3.0):
                setting = Setting(means=means, noise=EQUAL, correlation=0.0, seeds=seeds)
                rates = calibration.tie_rates(setting, margin * difference_sd, repeats, rng)
                rows.append({"truth": truth, "seeds": seeds, "margin_sd": margin, **rates})
    for truth, third in (("one at the margin", 25.0), ("two at the margin", None)):
        for seeds in SEEDS:
            for margin_sd in (1.0, 2.0):
                margin = margin_sd * difference_sd
                means = (0.0, margin, margin if third is None else third)
                setting = Setting(means=means, noise=EQUAL, correlation=0.0, seeds=seeds)
                rates = calibration.tie_rates(setting, margin, repeats, rng)
                rows.append({"truth": truth, "seeds": seeds, "margin_sd": margin_sd, **rates})
    return rows


def extension_rows(repeats: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Return false wins when an undecided sweep is extended three times, by way of counting."""
    rows: list[dict[str, Any]] = []
    for seeds in SEEDS:
        setting = Setting(means=(0.0, 0.0, 25.0), noise=EQUAL, correlation=0.0, seeds=seeds)
        rows.append({"seeds": seeds, "looks": 4, **calibration.repeated_extensions(setting, 4, repeats, rng)})
    return rows


def bias_rows(repeats: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Return the mean error of explore's and confirm's estimates at the chosen rate, in units of the noise."""
    rows: list[dict[str, Any]] = []
    for curvature in CURVATURES:
        setting = Setting(means=(0.0, 0.0, 0.0), noise=EQUAL, correlation=0.0, seeds=5, curvature=curvature)
        rows.append({"curvature": curvature, **calibration.selection_bias(setting, repeats, rng)})
    return rows


def show(found: dict[str, Any]) -> None:
    """Print every part but the single rows."""
    table("False wins among tied arms (curvature None: every arm at its best rate)", found["summary"])
    table("Power: a lead of two standard deviations over both others, equal noise", found["power"])
    table("Ties: margin in standard deviations of the differences", found["ties"])
    table("An undecided sweep extended three times: rate of false wins", found["extensions"])
    table("Mean error at the chosen rate, in units of the noise", found["selection_bias"])


def table(title: str, rows: Iterable[dict[str, Any]]) -> None:
    """Print rows of equal keys under their names."""
    rows = list(rows)
    print(f"\n{title}")
    print("".join(f"{key:>18}" for key in rows[0]))
    for row in rows:
        print("".join(f"{value:>18.4f}" if isinstance(value, float) else f"{value!s:>18}" for value in row.values()))


if __name__ == "__main__":
    main()
