"""A tiny sweep that runs for real: real Ray, real training, a made-up corpus, seconds instead of minutes."""

import random
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.integration.sweeping import TINY_SPACE, Sweeps

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
