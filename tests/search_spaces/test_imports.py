"""A space can be read where nothing heavy is installed."""

from __future__ import annotations

import subprocess
import sys


def test_importing_search_spaces_loads_no_heavy_package() -> None:
    program = (
        "import sys, search_spaces\n"
        "search_spaces.planned_cells(search_spaces.load_space(preset='smoke'))\n"
        "heavy = {'torch', 'ray', 'numpy', 'mlflow', 'scipy', 'moe', 'sweeps'}\n"
        "print(sorted(heavy & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
