"""A tiny sweep that runs for real: real Ray, real training, a made-up corpus, seconds instead of minutes.

What takes long is made once a session and shared: ``undisturbed`` ran to its end, ``killed`` was ended in the middle,
``resumed`` went on from there. Tests read them; a test that changes one takes a copy.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import psutil
import pytest

from tests.integration.counting import Cost, Strike
from tests.integration.sweeping import Sweeps, kill_when, unfinished_checkpoints

WORDS = ["river", "stone", "lantern", "winter", "quiet", "harbour", "letter", "garden", "thunder", "silver", "walked"]


FAULT_TABLE = pytest.StashKey[dict[str, list[float]]]()
"""By fault: the seconds of work that each strike made the sweep do again, all cells together."""


COST_TABLE = pytest.StashKey[dict[str, list[tuple[Cost, float]]]]()
"""By fault: what each strike cost, and the seconds until something new counted."""

NoteCost = Callable[[str, Strike], None]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The tables of the fault suite; that nothing durable was lost is what its tests assert."""
    _costs(terminalreporter)
    table = terminalreporter.config.stash.get(FAULT_TABLE, {})
    if not table:
        return
    terminalreporter.section("faults")
    terminalreporter.line(f"{'fault':<36}{'strikes':>9}{'repeated s, mean':>18}{'most':>7}")
    for fault, repeated_s in table.items():
        mean_s, most_s = sum(repeated_s) / len(repeated_s), max(repeated_s)
        terminalreporter.line(f"{fault:<36}{len(repeated_s):>9}{mean_s:>18.1f}{most_s:>7.1f}")


def _costs(terminalreporter: pytest.TerminalReporter) -> None:
    table = terminalreporter.config.stash.get(COST_TABLE, {})
    if table:
        terminalreporter.section("what a fault cost")
        terminalreporter.line("| fault | tries | lost | doubled | redone | seconds: median | longest |")
    for fault, tries in table.items():
        lost, doubled, redone = (
            sum(getattr(cost, kind) for cost, _ in tries) for kind in ("lost", "doubled", "redone")
        )
        seconds = [seconds for _, seconds in tries]
        middle, longest = median(seconds), max(seconds)
        terminalreporter.line(
            f"| {fault} | {len(tries)} | {lost} | {doubled} | {redone} | {middle:.0f} | {longest:.0f} |"
        )


@pytest.fixture
def note_cost(request: pytest.FixtureRequest) -> NoteCost:
    """Tell the table at the end what a fault cost; a test asserts that nothing was lost, doubled or redone."""
    table = request.config.stash.setdefault(COST_TABLE, {})

    def note(fault: str, strike: Strike) -> None:
        found = strike.cost()
        table.setdefault(fault, []).append((found, strike.seconds))
        assert found == Cost(lost=0, doubled=0, redone=0)

    return note


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


@contextmanager
def sweeps_in(folder: Path, corpus: Path, cache: Path) -> Iterator[Sweeps]:
    """Every process that is started meanwhile ends with it."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    made = Sweeps(folder, corpus, cache)
    try:
        yield made
    finally:
        made.end()
        for child in psutil.Process().children(recursive=True):
            if child.pid not in before:
                child.kill()


@contextmanager
def _unchanged(sweeps: Sweeps) -> Iterator[None]:
    """A shared sweep is the same after all tests as before them, but for claims of its lease."""

    def written() -> dict[Path, int]:
        sweep = sweeps.runs / "first"
        paths = [path for path in sweep.rglob("*") if path.is_file() and path.parent != sweep / "driver"]
        return {path: path.stat().st_mtime_ns for path in paths}

    before = written()
    yield
    assert written() == before, "a test changed a sweep that others read; let it take a copy"


@pytest.fixture
def sweeps(tmp_path: Path, corpus: Path, token_cache: Path) -> Iterator[Sweeps]:
    """The command line on runs of this test alone."""
    with sweeps_in(tmp_path, corpus, token_cache) as made:
        yield made


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, corpus: Path, token_cache: Path) -> Iterator[Sweeps]:
    """The sweep ``first`` of ``space.toml``, run to its verdict; what it printed is in ``first.txt``. Read only."""
    with sweeps_in(tmp_path_factory.mktemp("undisturbed"), corpus, token_cache) as made:
        (made.folder / "first.txt").write_text(made("run", "--space", "space.toml", "--name", "first"))
        with _unchanged(made):
            yield made


@pytest.fixture(scope="session")
def killed(tmp_path_factory: pytest.TempPathFactory, corpus: Path, token_cache: Path) -> Iterator[Sweeps]:
    """The same sweep, killed once a cell had ended and another one had a checkpoint to go on from. Read only."""
    with sweeps_in(tmp_path_factory.mktemp("killed"), corpus, token_cache) as made:
        process = made.start("run", "--space", "space.toml", "--name", "first")
        sweep = made.runs / "first"
        kill_when(
            lambda: any(sweep.glob("cells/*/outcome.json")) and bool(unfinished_checkpoints(sweep)),
            "a cell that has ended and one amid its training",
            process,
        )
        with _unchanged(made):
            yield made


@pytest.fixture(scope="session")
def resumed(
    tmp_path_factory: pytest.TempPathFactory, corpus: Path, token_cache: Path, killed: Sweeps
) -> Iterator[Sweeps]:
    """The killed sweep, resumed to its verdict. Read only."""
    with sweeps_in(tmp_path_factory.mktemp("resumed"), corpus, token_cache) as made:
        made.copy(killed)
        made("resume", "first")
        with _unchanged(made):
            yield made
