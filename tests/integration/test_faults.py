"""A sweep that cannot be lost: whatever is done to it, ``resume`` ends it with the numbers of an undisturbed one.

In short form each fault strikes once or twice; ``SWEEPS_FAULTS=full`` strikes the driver at twenty random moments.
"""

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from sweeps.ledger.lease import CELL_LEASE, DRIVER_LEASE
from sweeps.ledger.reading import LedgerReader
from sweeps.ledger.storage import Storage
from sweeps.ledger.sweep_folder import Ledger
from sweeps.running.driver import MAX_DEATHS
from tests.integration.conftest import FAULT_TABLE
from tests.integration.sweeping import Losses, Sweeps, end_with_children, holder_of, holders, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(900)]

MOMENTS = 20 if os.environ.get("SWEEPS_FAULTS") == "full" else 3
IS_ROOT = os.geteuid() == 0

End = tuple[Losses, dict[tuple[str, int], tuple[object, ...]]]
NoteStrike = Callable[[str, list[float]], None]


class Reference(NamedTuple):
    """How the sweep of ``slow.toml`` ends when nothing happens to it, and how long it takes."""

    end: End
    wall_s: float


def end_of(sweeps: Sweeps, name: str) -> End:
    """What must be the same to the last bit whatever happened: outcomes, and the losses of every record."""
    results = LedgerReader(Ledger(Storage(str(sweeps.runs)), name)).results()
    curves = {
        (str(result.cell.cell_id), record["tokens_seen"]): (record["train_loss"], record["val_loss"])
        for result in results.cells
        for record in result.records
    }
    return sweeps.losses(name), curves


@pytest.fixture(scope="module")
def undisturbed() -> list[Reference]:
    """One sweep without a fault for all tests, once the first of them has asked."""
    return []


@pytest.fixture
def reference(sweeps: Sweeps, undisturbed: list[Reference]) -> Reference:
    """How the sweep of ``slow.toml`` ends when nothing happens to it."""
    if not undisturbed:
        sweeps("run", "--space", "slow.toml", "--name", "undisturbed")
        undisturbed.append(Reference(end_of(sweeps, "undisturbed"), wall_s(sweeps, "undisturbed")))
    return undisturbed[0]


def durable_files(runs: Path, name: str) -> dict[Path, int]:
    """Segments that count and outcomes with their times of writing, as they are now."""
    listed = {
        manifest.parents[1] / "segments" / segment["name"]
        for manifest in (runs / name).glob("cells/*/checkpoint-*/manifest.json")
        for segment in json.loads(manifest.read_text())["segments"]
    }
    return {path: path.stat().st_mtime_ns for path in [*listed, *(runs / name).glob("cells/*/outcome.json")]}


def not_written_again(before: dict[Path, int]) -> None:
    """What was durable when the fault struck was neither run nor written again."""
    for path, written in before.items():
        assert path.stat().st_mtime_ns == written, f"{path} was written again"


def durable_tokens(runs: Path, name: str) -> dict[str, int]:
    """Tokens of the newest complete checkpoint of each cell that has one."""
    found: dict[str, int] = {}
    for manifest in (runs / name).glob("cells/*/checkpoint-*/manifest.json"):
        cell, tokens = manifest.parts[-3], int(manifest.parent.name.split("-")[1])
        if tokens:
            found[cell] = max(found.get(cell, 0), tokens)
    return found


def unsaved_s(runs: Path, name: str, struck_s: float, damaged: Iterable[Path] = (), of: str = "*") -> list[float]:
    """Seconds of work, at most, of each cell under way (or ``of`` one) that no whole checkpoint held."""
    found = []
    for cell in (runs / name / "cells").glob(of):
        lease = holder_of(Storage(str(cell)), CELL_LEASE)
        if lease is None or (cell / "outcome.json").exists():
            continue
        manifests = set(cell.glob("checkpoint-*/manifest.json")) - {path / "manifest.json" for path in damaged}
        found.append(max(0.0, struck_s - max([lease["began_s"], *(path.stat().st_mtime for path in manifests)])))
    return found


@pytest.fixture
def note_strike(request: pytest.FixtureRequest) -> NoteStrike:
    """Tell the table at the end of a fault, and of the seconds of work that each cell has to repeat for it."""
    table = request.config.stash.setdefault(FAULT_TABLE, {})

    def note(fault: str, repeated_s: list[float]) -> None:
        table.setdefault(fault, []).append(sum(repeated_s))

    return note


def started(sweeps: Sweeps, *words: str) -> subprocess.Popen[str]:
    """A running sweep whose first cells train."""
    process = sweeps.start(*words)
    wait_for(lambda: any((sweeps.runs / "first" / "cells").glob("*/lease/*.json")) or process.poll() is not None)
    assert process.poll() is None, process.communicate()[0]
    return process


def wait_until_at_work(sweeps: Sweeps, name: str, process: subprocess.Popen[str]) -> None:
    """Until the process holds the sweep, or has ended."""
    folder = Storage(str(sweeps.runs / name))

    def is_at_work() -> bool:
        holder = holder_of(folder, DRIVER_LEASE)
        return process.poll() is not None or (holder is not None and holder["pid"] == process.pid)

    wait_for(is_at_work)


def wall_s(sweeps: Sweeps, name: str) -> float:
    """How long the one sitting of a sweep took."""
    [sitting] = (sweeps.runs / name / "sittings").glob("*.json")
    return float(json.loads(sitting.read_text())["wall_s"])


def struck(sweeps: Sweeps, name: str, moments_s: Iterator[float], note_strike: NoteStrike) -> int:
    """Run a sweep to its end, killing its driver at each of ``moments_s`` after it has taken the sweep.

    Returns how often it was struck. What was durable at each strike is neither run nor written again.
    """
    strikes = []
    words = ["run", "--space", "slow.toml", "--name", name]
    for moment_s in moments_s:
        process = sweeps.start(*words)
        wait_until_at_work(sweeps, name, process)
        time.sleep(moment_s)
        if process.poll() is not None:
            process.communicate()
            break
        strikes.append(durable_files(sweeps.runs, name))
        note_strike("kill -9 of the driver", unsaved_s(sweeps.runs, name, time.time()))
        end_with_children(process)
        words = ["resume", name]
    sweeps("resume", name)
    for before in strikes:
        not_written_again(before)
    return len(strikes)


@pytest.mark.timeout(2400)
def test_the_driver_killed_at_random_moments(sweeps: Sweeps, reference: Reference, note_strike: NoteStrike) -> None:
    rng, strikes, number = random.Random(11), 0, 0
    while strikes < MOMENTS:  # a sweep is over after a few: another one is struck then
        number += 1
        assert number <= 2 * MOMENTS, "sweeps are over before anything strikes them"
        # a resumption needs some seconds before it trains, and only half of a sweep's time lies behind a strike
        moments_s = (rng.uniform(0.5, 3 + 0.7 * reference.wall_s) for _ in range(MOMENTS - strikes))
        strikes += struck(sweeps, f"struck-{number}", moments_s, note_strike)
        assert end_of(sweeps, f"struck-{number}") == reference.end


def test_a_killed_worker_costs_its_cell_no_more_than_the_work_since_its_checkpoint(
    sweeps: Sweeps, reference: Reference, note_strike: NoteStrike
) -> None:
    process = started(sweeps, "run", "--space", "slow.toml", "--name", "first")
    victims = 0
    while victims < 2 and process.poll() is None:
        for pid, cell_id in holders(str(sweeps.runs), "first").items():
            try:
                worker = psutil.Process(pid)
            except psutil.NoSuchProcess:
                continue
            if psutil.Process(process.pid) in worker.parents():
                unsaved = unsaved_s(sweeps.runs, "first", time.time(), of=cell_id)
                worker.kill()
                note_strike("kill -9 of a worker", unsaved)
                victims += 1
                break
        time.sleep(6)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert victims >= 1
    assert "the worker process died" in said
    assert end_of(sweeps, "first") == reference.end


def test_sigterm_ends_a_sweep_in_order(sweeps: Sweeps, reference: Reference, note_strike: NoteStrike) -> None:
    process = started(sweeps, "run", "--space", "slow.toml", "--name", "first")
    time.sleep(1)
    asked_s = time.time()
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=30)
    assert time.time() - asked_s < 20
    note_strike("SIGTERM", unsaved_s(sweeps.runs, "first", asked_s))
    assert process.returncode == 130, said
    assert "sweeps resume first" in said
    assert durable_tokens(sweeps.runs, "first"), "running cells were saved"
    sweeps("resume", "first")
    assert end_of(sweeps, "first") == reference.end


def test_a_second_signal_leaves_at_once(sweeps: Sweeps, reference: Reference, note_strike: NoteStrike) -> None:
    process = started(sweeps, "run", "--space", "slow.toml", "--name", "first")
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    note_strike("two SIGINTs", unsaved_s(sweeps.runs, "first", time.time()))
    process.send_signal(signal.SIGINT)
    process.wait(timeout=10)
    said, _ = process.communicate(timeout=60)  # Ray's own processes hold the pipe a little longer
    assert process.returncode == 130, said
    assert "go on with: sweeps resume first" in said.lower()
    sweeps("resume", "first")
    assert end_of(sweeps, "first") == reference.end


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def drop_a_byte_in_state(checkpoint: Path) -> None:
    state = max(checkpoint.iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(state.read_bytes())
    data[len(data) // 2] ^= 1
    state.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda checkpoint: truncate(max(checkpoint.iterdir(), key=lambda path: path.stat().st_size)),
        lambda checkpoint: truncate(checkpoint / "manifest.json"),
        drop_a_byte_in_state,
    ],
    ids=["truncated state", "truncated manifest", "one byte changed"],
)
def test_a_damaged_newest_checkpoint_is_set_aside_and_the_one_before_serves(
    sweeps: Sweeps, reference: Reference, damage: Callable[[Path], None], note_strike: NoteStrike
) -> None:
    process = started(sweeps, "run", "--space", "slow.toml", "--name", "first")
    wait_for(lambda: len(durable_tokens(sweeps.runs, "first")) >= 2)
    end_with_children(process)
    struck_s = time.time()
    unfinished = {
        cell: tokens
        for cell, tokens in durable_tokens(sweeps.runs, "first").items()
        if not (sweeps.runs / "first" / "cells" / cell / "outcome.json").exists()
    }
    newest = [
        checkpoint
        for cell, tokens in unfinished.items()
        for checkpoint in (sweeps.runs / "first" / "cells" / cell).glob(f"checkpoint-{tokens:015d}-*")
    ]
    note_strike("newest checkpoint damaged, kill -9", unsaved_s(sweeps.runs, "first", struck_s, damaged=newest))
    for checkpoint in newest:
        damage(checkpoint)
    (sweeps.runs / "first" / ".tmp-sweep.json-1-dead").write_text('{"schema": 1, "swe')
    sweeps("resume", "first")
    assert end_of(sweeps, "first") == reference.end


@pytest.fixture
def small_disk(sweeps: Sweeps) -> Iterator[Path]:
    """A file system of twelve megabytes for the runs of this test."""
    sweeps.runs.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(sweeps.runs)]
    mounted = subprocess.run(words, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"this machine lacks the privilege to mount a small disk: {mounted.stderr.strip()}")
    yield sweeps.runs
    subprocess.run(["umount", str(sweeps.runs)], check=True)


def test_a_full_disk_ends_the_sweep_with_the_reason_and_resume_goes_on_once_there_is_room(
    sweeps: Sweeps, reference: Reference, small_disk: Path, note_strike: NoteStrike
) -> None:
    sweeps.environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{sweeps.folder}/mlflow.db"
    process = started(sweeps, "run", "--space", "slow.toml", "--name", "first")
    filler = small_disk / "filler"
    with filler.open("wb") as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(b"\0" * 65536)
            file.flush()
    note_strike("full disk", unsaved_s(sweeps.runs, "first", time.time()))
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "No space left on device" in said
    assert "sweeps resume first" in said
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=60m", str(small_disk)], check=True)
    sweeps("resume", "first")
    assert end_of(sweeps, "first") == reference.end


def test_too_little_free_space_is_seen_before_the_start(sweeps: Sweeps, small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(b"\0" * (11 * 2**20))
    said = sweeps("run", "--space", "slow.toml", "--name", "first", code=2)
    assert "free" in said
    assert not (small_disk / "first" / "sweep.json").exists()


@pytest.mark.skipif(not IS_ROOT, reason="this user lacks the privilege to mount a read-only folder")
def test_a_read_only_folder_is_named(sweeps: Sweeps, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    said = sweeps("run", "--space", "slow.toml", "--name", "first", code=2)
    assert "cannot be written by this user; choose another --runs-dir" in said
    assert "Traceback" not in said
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)


def test_a_cell_whose_worker_always_dies_ends_as_failed_and_the_others_go_on(sweeps: Sweeps) -> None:
    process = started(sweeps, "run", "--space", "slow.toml", "--name", "first")
    victim = next((sweeps.runs / "first" / "cells").glob("*/lease")).parent
    killed: set[int] = set()
    while len(killed) < MAX_DEATHS and process.poll() is None:
        holder = holder_of(Storage(str(victim)), CELL_LEASE)
        if holder is not None and holder["pid"] not in killed:
            with suppress(psutil.NoSuchProcess):
                psutil.Process(holder["pid"]).kill()
            killed.add(holder["pid"])
        time.sleep(0.01)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 3, said
    assert "failed: the worker process died (killed, or its node was lost)" in said
    assert "Run them again with: sweeps resume first --retry-failed" in said
    outcomes = {cell: found["outcome"] for cell, found in sweeps.outcomes("first").items()}
    assert [cell for cell, outcome in outcomes.items() if outcome == "failed"] == [victim.name]
    assert len(list((victim / "attempts").glob("*.json"))) == MAX_DEATHS
    sweeps("resume", "first", "--retry-failed")
    assert "failed" not in {found["outcome"] for found in sweeps.outcomes("first").values()}


def test_a_strange_file_among_the_records_is_left_alone(sweeps: Sweeps, reference: Reference) -> None:
    process = started(sweeps, "run", "--space", "slow.toml", "--name", "first")
    cell = next((sweeps.runs / "first" / "cells").glob("*/lease")).parent
    end_with_children(process)
    (cell / "segments").mkdir(exist_ok=True)
    (cell / "segments" / "not-a-segment.json").write_text("{}")
    sweeps("resume", "first")
    assert end_of(sweeps, "first") == reference.end
    assert (cell / "segments" / "not-a-segment.json").exists()
