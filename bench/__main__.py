"""``python -m bench [--only PART]``: every part, one after another, each writing ``bench/PART.json``."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

PARTS = ("step", "loader", "engine", "verdict", "budgets", "tracking", "sweep", "early_stopping")
ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Run the parts in processes of their own, so that none warms up or disturbs another."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--only", choices=PARTS, help="one part alone")
    only = parser.parse_args().only
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for part in (only,) if only else PARTS:
        print(f"== {part}", flush=True)
        subprocess.run([sys.executable, "-m", f"bench.{part}"], check=True, cwd=ROOT, env=environment)


if __name__ == "__main__":
    main()
