"""A tiny sweep that runs for real: real Ray, real training, a made-up corpus, seconds instead of minutes."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

TINY_SPACE = """
description = "two arms that train in a second"
budget_tokens = {budget}
rungs_tokens = [{rung}]
early_stopping = {{ kind = "asha", keep = [1] }}
corpus = "files:{corpus}"
tokenizer = "bytes"

[[strategies]]
name = "short"
micro_batch_size = 4
seq_len = 16

[[strategies]]
name = "long"
micro_batch_size = 1
seq_len = 64

[rates]
lr = [0.01, 0.02]
adamw_ratio = 0.3
max_widenings = 0

[seeds]
explore = 1
confirm = 3

[model]
d_model = 16
n_layers = 1
n_heads = 2
d_expert = 16
n_experts = 2
top_k = 1

[exam]
rows_validation = 4
rows_test = 6
"""

WORDS = ["river", "stone", "lantern", "winter", "quiet", "harbour", "letter", "garden", "thunder", "silver", "walked"]


FAULT_TABLE = pytest.StashKey[dict[str, list[float]]]()
"""By fault: the seconds of work that each strike made the sweep do again, all cells together."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table of the fault suite; that nothing durable was lost is what its tests assert."""
    table = terminalreporter.config.stash.get(FAULT_TABLE, {})
    if not table:
        return
    terminalreporter.section("faults")
    terminalreporter.line(f"{'fault':<36}{'strikes':>9}{'repeated s, mean':>18}{'most':>7}")
    for fault, repeated_s in table.items():
        mean_s, most_s = sum(repeated_s) / len(repeated_s), max(repeated_s)
        terminalreporter.line(f"{fault:<36}{len(repeated_s):>9}{mean_s:>18.1f}{most_s:>7.1f}")


class Sweeps:
    """Runs the console script in a process of its own, on runs and caches of this test alone."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder = folder
        self.runs = folder / "runs"
        self.started: list[subprocess.Popen[str]] = []
        ours = ("RAY_", "MLFLOW_", "SWEEPS_")
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(ours)},
            "SWEEPS_RUNS_DIR": str(self.runs),
            "SWEEPS_CACHE_DIR": str(cache),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
        }

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start ``sweeps WORDS`` and return at once."""
        process = subprocess.Popen(
            [sys.executable, "-m", "sweeps", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment,
            cwd=self.folder,
        )
        self.started.append(process)
        return process

    def __call__(self, *words: str, code: int = 0, timeout_s: float = 240) -> str:
        """Run ``sweeps WORDS`` to its end, expect its exit code, return what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "sweeps", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment,
            cwd=self.folder,
            timeout=timeout_s,
            check=False,
        )
        assert done.returncode == code, f"exit code {done.returncode}, not {code}:\n{done.stdout}"
        return done.stdout

    def outcomes(self, name: str) -> dict[str, dict[str, Any]]:
        """Every outcome of a sweep by cell id."""
        import json

        found = (self.runs / name / "cells").glob("*/outcome.json")
        return {path.parent.name: json.loads(path.read_text()) for path in found}


def losses(outcomes: dict[str, dict[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """What must be equal to the last bit between an undisturbed sweep and a disturbed one."""
    return {
        cell_id: (found["outcome"], found["tokens_seen"], found["val_loss"], found["test_loss"])
        for cell_id, found in outcomes.items()
    }


def wait_for(condition: Callable[[], bool], *, timeout_s: float = 120) -> None:
    """Poll until ``condition`` holds; fails after ``timeout_s``."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "what the test waits for did not happen"
        time.sleep(0.05)


def end_with_children(process: subprocess.Popen[str], number: int = signal.SIGKILL) -> None:
    """Send a signal to a process that this test started; its Ray goes down with it."""
    process.send_signal(number)
    process.communicate(timeout=60)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 made-up documents of a few hundred bytes, no two alike."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(7)
    for number in range(240):
        text = " ".join(rng.choice(WORDS) + str(rng.randrange(1000)) for _ in range(60))
        (folder / f"{number:03d}.txt").write_text(text)
    return folder


@pytest.fixture(scope="session")
def token_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def sweeps(tmp_path: Path, corpus: Path, token_cache: Path) -> Iterator[Sweeps]:
    """The console script, with ``space.toml`` (seconds) and ``slow.toml`` (long enough to be killed) in its folder."""
    for name, budget in (("space", 4096), ("slow", 32768)):
        text = TINY_SPACE.format(budget=budget, rung=budget // 2, corpus=corpus)
        (tmp_path / f"{name}.toml").write_text(text)
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    made = Sweeps(tmp_path, token_cache)
    yield made
    for process in made.started:
        if process.poll() is None:
            process.kill()
            process.communicate()
    for child in psutil.Process().children(recursive=True):
        if child.pid not in before:
            child.kill()
