"""The walls of the house: who may import whom."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = (
    "cli",
    "commands",
    "gpu_check",
    "running",
    "trial",
    "packing",
    "tracking",
    "report",
    "plan",
    "verdict",
    "cluster",
    "ledger",
)
"""The folders of ``sweeps`` from the top; each imports only what lies below it, and loose files lie below them all."""

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


def imported_modules(tree: ast.AST, known: set[str]) -> set[str]:
    """The project's own modules that a file imports when it runs: not those under ``TYPE_CHECKING``."""
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        found |= imported_modules(node, known)
    return found & known


@cache
def import_graph() -> dict[str, set[str]]:
    """Every module of the three packages and the project's own modules that it imports; not packages themselves."""
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for package in ("search_spaces", "moe", "sweeps")
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"
    }
    return {name: imported_modules(ast.parse(path.read_text()), set(files)) - {name} for name, path in files.items()}


def floor_of(module: str) -> int:
    """The floor of a module of ``sweeps``, counted from the top; loose files other than the command line lie lowest."""
    room = module.split(".")[1]
    return FLOORS.index(room) if room in FLOORS else len(FLOORS)


def test_every_module_of_sweeps_imports_only_what_lies_below_it() -> None:
    upwards = [
        f"{module} -> {imported}"
        for module, imports in import_graph().items()
        for imported in sorted(imports)
        if module.startswith("sweeps.") and imported.startswith("sweeps.") and module != "sweeps.__main__"
        if floor_of(imported) < floor_of(module)
    ]
    assert upwards == []


def test_no_circle_of_imports() -> None:
    tuple(TopologicalSorter(import_graph()).static_order())  # raises CycleError, naming the circle


def test_every_room_is_on_the_list_of_floors_and_few_files_stand_loose() -> None:
    rooms = {path.name for path in (ROOT / "sweeps").iterdir() if (path / "__init__.py").exists()}
    assert rooms == set(FLOORS) - {"cli"}
    loose = [path.name for path in (ROOT / "sweeps").glob("*.py") if not path.name.startswith("__")]
    assert len(loose) <= 6, loose


def test_one_function_turns_a_cell_into_a_training_config() -> None:
    users = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "sweeps").rglob("*.py")
        if any(
            isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "TrainConfig"
            for node in ast.walk(ast.parse(path.read_text()))
        )
    }
    assert users == {"sweeps/training_config.py"}


def test_help_answers_without_the_heavy_imports() -> None:
    code = (
        "import sys, sweeps.cli\n"
        "heavy = {'torch', 'ray', 'mlflow', 'scipy', 'numpy', 'pandas', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_search_spaces_loads_neither_torch_nor_ray() -> None:
    code = "import sys, search_spaces; sys.exit(', '.join({'torch', 'ray', 'numpy'} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
