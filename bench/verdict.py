"""How often the verdict is wrong, in full: every row of ``bench.calibration``, 4,000 repeats each.

    python bench/verdict.py [--repeats 4000]

prints tables and writes ``bench/verdict.json``. The rules that are tried are the verdict's own code.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402

from bench import calibration  # noqa: E402
from bench.calibration import ALPHA, CURVATURES, FAR, Setting  # noqa: E402
from bench.results import write_json  # noqa: E402
from bench.tables import table  # noqa: E402

SEEDS = (3, 4, 5)
LAPTOP_MARGIN = 3.2
"""A margin of 0.03 nats where paired differences have a standard deviation of 0.0134 nats, which is 1.41 here."""


def main() -> None:
    """Run every part, print it, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=4_000)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "verdict.json")
    options = parser.parse_args()
    started_s = time.perf_counter()
    rng = np.random.default_rng(20_260_713)
    found: dict[str, Any] = {"repeats": options.repeats, "alpha": ALPHA, "python": platform.python_version()}
    symmetric, asymmetric = list(calibration.symmetric_settings()), list(calibration.asymmetric_settings())
    found["symmetric"] = [row(name, setting, options.repeats, rng) for name, setting in symmetric]
    found["asymmetric"] = [row(name, setting, options.repeats, rng) for name, setting in asymmetric]
    found["summary"] = summary(found["symmetric"], options.repeats)
    found["ties"] = tie_rows(options.repeats, rng)
    found["extensions"] = extension_rows(options.repeats, rng)
    found["selection_bias"] = bias_rows(options.repeats, rng)
    found["seconds"] = round(time.perf_counter() - started_s, 1)
    write_json(options.out, found)
    show(found)
    print(f"written to {options.out.name} after {found['seconds']:.0f} s")


def row(name: str, setting: Setting, repeats: int, rng: np.random.Generator) -> dict[str, Any]:
    """Return one setting with its false wins, the coverage of its intervals, and its power."""
    return {
        "case": name,
        "arms": len(setting.means),
        "seeds": setting.seeds,
        "documents": setting.documents,
        **calibration.rates_of(setting, repeats, rng),
        **calibration.power(setting, repeats, rng),
    }


def summary(rows: list[dict[str, Any]], repeats: int) -> list[dict[str, Any]]:
    """Return the worst of the symmetric rows beside the bound of Monte-Carlo error."""
    return [
        {
            "rows": len(rows),
            "worst_false_wins": max(row["false_wins"] for row in rows),
            "worst_by_seeds": max(row["by_seeds"] for row in rows),
            "bound": calibration.monte_carlo_bound(ALPHA, repeats, len(rows)),
            "lowest_coverage": min(row["coverage"] for row in rows),
        }
    ]


def tie_rows(repeats: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Return how often ties are called: true ones, ones at the margin, and ones whose rates are still to be found."""
    rows: list[dict[str, Any]] = []
    for documents in (32, 64, 128, 256):
        truths: tuple[tuple[str, tuple[float, ...]], ...] = (
            ("equal", (0.0, 0.0, FAR)),
            ("one at the margin", (0.0, LAPTOP_MARGIN, FAR)),
            ("two at the margin", (0.0, LAPTOP_MARGIN, LAPTOP_MARGIN)),
        )
        for name, means in truths:
            setting = Setting(means=means, documents=documents)
            rates = calibration.tie_rates(setting, LAPTOP_MARGIN, repeats, rng)
            rows.append({"truth": name, "curvature": None, "documents": documents, **rates})
    for curvature in CURVATURES:
        for name, means in (("equal", (0.0, 0.0, FAR)), ("one at the margin", (0.0, LAPTOP_MARGIN, FAR))):
            setting = Setting(means=means, documents=128, curvature=curvature)
            rates = calibration.tie_rates(setting, LAPTOP_MARGIN, repeats, rng)
            rows.append({"truth": name, "curvature": curvature, "documents": 128, **rates})
    return rows


def extension_rows(repeats: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Return false wins when an undecided sweep is extended three times, by way of counting."""
    return [
        {"seeds": seeds, "looks": 4, **calibration.repeated_extensions(Setting(seeds=seeds), 4, repeats, rng)}
        for seeds in SEEDS
    ]


def bias_rows(repeats: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Return the mean error of explore's and confirm's estimates at the chosen rate, in units of the noise."""
    rows: list[dict[str, Any]] = []
    for curvature in CURVATURES:
        setting = Setting(means=(0.0, 0.0, 0.0), curvature=curvature)
        rows.append({"curvature": curvature, **calibration.selection_bias(setting, repeats, rng)})
    return rows


def show(found: dict[str, Any]) -> None:
    """Print every part."""
    lead = "power at a lead of three standard deviations of paired differences"
    table(f"Tied best arms, symmetric noise: false wins, coverage, {lead}", found["symmetric"])
    table("One arm's seeds skewed or spiking, its mean equal to the best other's", found["asymmetric"])
    table("Worst of the symmetric rows", found["summary"])
    table("Ties within 0.03 nats at laptop's noise, 5 seeds", found["ties"])
    table("An undecided sweep extended three times: rate of false wins", found["extensions"])
    table("Mean error at the chosen rate, in units of the noise", found["selection_bias"])


if __name__ == "__main__":
    main()
