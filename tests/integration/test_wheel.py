"""The packages as a wheel: complete, and at home outside of the repository."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.integration.sweeping import AT_ONCE, TINY_SPACE, clean_environment, command
from tests.integration.tracked_files import ROOT, copy_tracked
from tests.programs import needs

pytestmark = [pytest.mark.slow, needs("git")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what git tracks, so that nothing is left in the working tree."""
    folder = tmp_path_factory.mktemp("wheel")
    copy_tracked(folder / "source")
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*pip, str(folder / "source")], check=True, capture_output=True)
    [built] = folder.glob("*.whl")
    return built


def test_a_wheel_holds_the_three_packages_with_their_data_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"search_spaces", "moe", "sweeps"}
    needed = {"search_spaces/presets/smoke.toml", "search_spaces/template.toml", "moe/py.typed", "sweeps/py.typed"}
    assert needed <= set(names)
    templates = {
        f"sweeps/report/templates/{path.name}" for path in (ROOT / "sweeps" / "report" / "templates").iterdir()
    }
    assert {name for name in templates if not name.endswith("__pycache__")} <= set(names)


def test_a_wheel_runs_a_sweep_outside_of_the_repository(wheel: Path, tmp_path: Path, corpus: Path) -> None:
    installed = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(installed), str(wheel)]
    subprocess.run(pip, check=True, capture_output=True)
    (tmp_path / "space.toml").write_text(TINY_SPACE.format(budget=4096, rung=2048, corpus=corpus))
    environment = clean_environment(PYTHONPATH=str(installed), SWEEPS_CACHE_DIR=str(tmp_path / "cache"))
    where = "import moe, search_spaces, sweeps; print(*(m.__file__ for m in (moe, search_spaces, sweeps)))"
    asked = subprocess.run(
        [sys.executable, "-c", where], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert all(path.startswith(str(installed)) for path in asked.stdout.split())
    ran = subprocess.run(
        command("run", "--space", "space.toml", "--name", "first", *AT_ONCE),
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert (tmp_path / "runs" / "first" / "verdict.json").is_file()
    assert "<html" in (tmp_path / "runs" / "first" / "report.html").read_text()
