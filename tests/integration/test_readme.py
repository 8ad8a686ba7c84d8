"""The README's own commands, one after another in a clone, as a newcomer types them.

What would take minutes runs at smoke size; the environment is this one's, and what the tests are part of (`make test`,
`make bench`) is only looked up by make.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import WORDS
from tests.integration.documents import ROOT, block_commands, copy_working_tree
from tests.integration.sweeping import clean_environment
from tests.programs import needs

pytestmark = [
    pytest.mark.slow,
    needs("make", "git"),
    pytest.mark.skipif(not (ROOT / ".venv" / ".ready-dev").exists(), reason="no program .venv made by make"),
]

OF_SPACE = "--set budget_tokens=65536 --set rungs_tokens=[32768] --set early_stopping.keep=[2] --set seeds.confirm=1"
OF_SMOKE = "--set budget_tokens=16384 --set rungs_tokens=[8192] --set seeds.confirm=1"
OWN_TEXTS = "--set corpus=files:path/to/folder --set corpus.duplicates=group"
SMALLER = {
    "make sweep": f"make sweep PRESET=smoke ARGS='{OF_SMOKE}'",
    "make sweep SPACE=my-space.toml": f"make sweep SPACE=my-space.toml ARGS='{OF_SPACE}'",
    f'make sweep PRESET=smoke ARGS="{OWN_TEXTS}"': f"make sweep PRESET=smoke ARGS='{OWN_TEXTS} {OF_SMOKE}'",
}
LOOKED_UP = re.compile(r"make (check|test|bench)")
ELSEWHERE = re.compile(r"git clone|RAY_ADDRESS=")
"""What needs a place that the README can only hint at; tests/integration/test_cluster_job.py has the second."""


def commands() -> list[str]:
    """The README's commands that can be typed in a clone."""
    return [line for line in block_commands("README.md") if not ELSEWHERE.search(line)]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the working tree, and some text of the user's."""
    folder = tmp_path_factory.mktemp("clone")
    copy_working_tree(folder)
    texts = folder / "path" / "to" / "folder"
    texts.mkdir(parents=True)
    rng = random.Random(7)
    for i in range(120):
        text = " ".join(rng.choice(WORDS) + str(rng.randrange(1000)) for _ in range(3000))
        (texts / f"note-{i}.md").write_text(text)
    yield folder


def typed(command: str, clone: Path) -> subprocess.Popen[str]:
    """The command in a shell of its own, with the clone's sources."""
    return subprocess.Popen(
        ["/bin/sh", "-c", f"exec {command}"],
        cwd=clone,
        env=clean_environment(PYTHONPATH=str(clone)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(command: str, clone: Path) -> str:
    said, _ = (process := typed(command, clone)).communicate()
    assert process.returncode == 0, f"{command}\n{said}"
    return said


def test_every_command_of_the_readme_does_what_it_says(clone: Path) -> None:
    assert SMALLER.keys() <= set(commands())
    for command in commands():
        if LOOKED_UP.match(command):
            run(f"make -n {command.removeprefix('make ')}", clone)
        elif command.startswith("make ui"):
            ends_with_ctrl_c(command, clone)
        else:
            run(SMALLER.get(command, command), clone)
    assert json.loads((clone / "runs" / "first" / "verdict.json").read_text())["strategies"][0]["seeds"] == [
        101,
        102,
        103,
    ], "the README extends its sweep to three seeds"


def ends_with_ctrl_c(command: str, clone: Path) -> None:
    """A server: it prints its address and ends when it is interrupted."""
    process = typed(command, clone)
    assert process.stdout is not None
    for line in process.stdout:
        if "http://127.0.0.1:" in line:
            break
    os.killpg(process.pid, signal.SIGINT)
    process.communicate()
    assert process.returncode is not None
