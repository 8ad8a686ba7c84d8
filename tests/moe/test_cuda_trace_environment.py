"""``bench/cuda_trace.sh``: the environment that it makes, with a stand-in for Python, pip and uv."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.programs import needs

pytestmark = needs("sh")

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = "numpy==2.0.0\ntorch==2.9.9\n"
# Notes how it was called; makes an environment of itself, fails where FAILS is in its words, and is torch where asked.
PROGRAM = """#!/bin/sh
echo "$(basename "$0") $*" >>"$CALLS"
case "$*" in *"$FAILS"*) echo "it failed"; exit 1 ;; esac
case "$*" in
  "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; cp "$0" "$3/bin/uv" ;;
  "-c import torch"*) echo "$CUDA" ;;
  "-m bench.cuda_trace"*) echo traced; exit "$WRONG" ;;
esac
"""


class Project:
    """The script in a folder of its own, beside a stand-in for Python."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.venv, self._calls = folder, folder / ".venv-cuda", folder / "calls"
        (folder / "bench").mkdir()
        shutil.copy(ROOT / "bench" / "cuda_trace.sh", folder / "bench")
        (folder / "constraints.txt").write_text(f"numpy-typing-compat==1\n{VERSIONS}torchvision==1\n")
        self.python = folder / "python3"
        self.python.write_text(PROGRAM)
        self.python.chmod(0o755)

    def trace(self, fails: str = "never", cuda: str = "13.0", wrong: int = 0) -> tuple[int, str, list[str]]:
        """Exit code, what was said, and the programs that were started."""
        self._calls.write_text("")
        settings = {"FAILS": fails, "CUDA": cuda, "WRONG": str(wrong), "CALLS": str(self._calls)}
        done = subprocess.run(
            ["sh", str(self.folder / "bench" / "cuda_trace.sh"), "--capability", "8.0"],
            cwd="/",
            env={**os.environ, **settings, "PYTHON": str(self.python)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout, self._calls.read_text().splitlines()


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def test_the_first_run_installs_the_pinned_versions_and_the_second_only_traces(project):
    code, said, calls = project.trace()
    assert (code, calls[-1]) == (0, "python -m bench.cuda_trace --capability 8.0"), said
    assert "uv pip install -q --python .venv-cuda/bin/python numpy==2.0.0 torch==2.9.9" in calls
    code, said, calls = project.trace(wrong=1)
    assert (code, said) == (1, "traced\n")
    assert not any("install" in call for call in calls)


def test_other_versions_and_a_half_made_environment_are_made_anew(project):
    project.trace()
    left = project.venv / "left over"
    left.write_text("")
    (project.folder / "constraints.txt").write_text(VERSIONS.replace("2.9.9", "3.0.0"))
    assert any("torch==3.0.0" in call for call in project.trace()[2])
    assert not left.exists()
    (project.venv / ".ready").unlink()
    left.write_text("")
    assert any("install" in call for call in project.trace()[2])
    assert not left.exists()


@pytest.mark.parametrize("step", ["-m pip install", "torch==2.9.9"])
def test_where_it_cannot_be_installed_it_is_skipped_with_the_reason_and_nothing_is_left(project, step):
    code, said, _ = project.trace(fails=step)
    assert code == 0
    assert "it failed" in said
    assert "cuda-trace skipped: these could not be installed into .venv-cuda" in said
    assert "traced" not in said
    assert not project.venv.exists()


def test_a_cpu_build_is_skipped_and_a_damaged_one_is_not(project):
    code, said, calls = project.trace(cuda="None")
    assert (code, "a CPU build" in said) == (0, True)
    assert not any("bench.cuda_trace" in call for call in calls)
    code, said, _ = project.trace(fails="import torch")
    assert code == 1
    assert "rm -r .venv-cuda, then run it again" in said


def test_a_python_that_makes_no_environment_is_an_error(project):
    code, said, _ = project.trace(fails="-m venv")
    assert code != 0
    assert said.endswith("it failed\n")


def test_constraints_without_torch_are_an_error(project):
    (project.folder / "constraints.txt").write_text("scipy==1\n")
    code, said, calls = project.trace()
    assert code != 0
    assert not calls, said
