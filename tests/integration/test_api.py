"""The Python API: the examples of its docstrings and the notebook of the documents, run as they stand."""

from __future__ import annotations

import doctest
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sweeps
from tests.integration.documents import ROOT
from tests.integration.sweeping import clean_environment

pytestmark = pytest.mark.slow

IN_ORDER = (
    sweeps.run,
    sweeps.open,
    sweeps.names,
    sweeps.preview,
    sweeps.Sweep.records,
    sweeps.Sweep.cells,
    sweeps.Sweep.verdict,
    sweeps.Sweep.report,
    sweeps.Sweep.resume,
)
"""A reader meets the examples in this order: each goes on from those before it."""
EXAMPLES = "import sys; from tests.integration.test_api import examples; sys.exit(examples())"


def examples() -> int:
    """Run every example in the working folder; return how many failed, after the output of each."""
    names: dict[str, object] = {}
    runner = doctest.DocTestRunner(optionflags=doctest.REPORT_NDIFF)
    for documented in IN_ORDER:
        found = doctest.DocTestFinder(recurse=False).find(documented, documented.__qualname__, globs=names)
        assert found, f"{documented.__qualname__} has no docstring"
        for test in found:
            assert test.examples, f"{test.name} has no example"
            test.globs = names
            runner.run(test, clear_globs=False)
    return runner.summarize(verbose=False).failed


def python(folder: Path, code: str) -> str:
    """Run a program in a folder of its own, as a user's; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=clean_environment(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_examples_of_the_docstrings_do_what_they_show_and_print_nothing_else(tmp_path: Path) -> None:
    assert python(tmp_path, EXAMPLES) == ""
    assert (tmp_path / "runs" / "first" / "report.html").is_file()
    assert "on-end" not in (tmp_path / "runs" / "first" / "sweep.json").read_text()


def test_the_notebook_of_the_documents_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(ROOT / "docs" / "notebook.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    for name in [name for name in os.environ if name.startswith(("RAY_", "MLFLOW_", "SWEEPS_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources=resources).execute()
    said = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("text/html" in output.get("data", {}) for output in said), "tables are shown"
