"""The walls of the house: who may import whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FORBIDDEN = {
    "search_spaces": {"torch", "ray", "mlflow", "numpy", "moe", "sweeps", "optuna", "datasets", "transformers"},
    "moe": {"ray", "mlflow", "optuna", "search_spaces", "sweeps", "pydantic"},
}


def imported_packages(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_package_imports_nothing_beyond_its_wall(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    broken = {
        str(path.relative_to(ROOT)): crossing
        for path in files
        if (crossing := imported_packages(path) & FORBIDDEN[package])
    }
    assert broken == {}


def test_only_the_bridge_turns_a_space_into_a_training_config() -> None:
    users = [
        path.name
        for path in (ROOT / "sweeps").glob("*.py")
        if any(
            isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "TrainConfig"
            for node in ast.walk(ast.parse(path.read_text()))
        )
    ]
    assert users == ["bridge.py"]


def test_help_answers_without_the_heavy_imports() -> None:
    code = (
        "import sys, sweeps.cli\n"
        "heavy = {'torch', 'ray', 'mlflow', 'scipy', 'numpy', 'pandas', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_search_spaces_loads_neither_torch_nor_ray() -> None:
    code = "import sys, search_spaces; sys.exit(', '.join({'torch', 'ray', 'numpy'} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
