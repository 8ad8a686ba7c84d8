"""A sweep that cannot be lost: whatever is done to it, ``resume`` ends it with the numbers of an undisturbed one.

In short form each fault strikes once or twice; ``SWEEPS_FAULTS=full`` strikes the driver at twenty random moments.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from sweeps.ledger.lease import CELL_LEASE, DRIVER_LEASE
from sweeps.ledger.storage import Storage
from sweeps.running.faults import MAX_DEATHS
from tests.integration.conftest import FAULT_TABLE, NoteCost
from tests.integration.counting import Strike
from tests.integration.sweeping import (
    Sweeps,
    durable_tokens,
    end_with_children,
    holder_of,
    holders,
    unfinished_checkpoints,
    wait_for,
)
from tests.programs import needs

pytestmark = [pytest.mark.slow, pytest.mark.faults]

MOMENTS = 20 if os.environ.get("SWEEPS_FAULTS") == "full" else 2
IS_ROOT = os.geteuid() == 0

NoteStrike = Callable[[str, list[float]], None]


def durable_files(sweep: Path) -> dict[Path, int]:
    """Segments that count and outcomes with their times of writing, as they are now."""
    listed = {
        commit.parents[1] / "segments" / segment["name"]
        for commit in sweep.glob("cells/*/commits/*.json")
        for segment in json.loads(commit.read_text())["segments"]
    }
    return {path: path.stat().st_mtime_ns for path in [*listed, *sweep.glob("cells/*/outcome.json")]}


def not_written_again(before: dict[Path, int]) -> None:
    """What was durable when the fault struck was neither run nor written again."""
    for path, written in before.items():
        assert path.stat().st_mtime_ns == written, f"{path} was written again"


def unsaved_s(sweep: Path, struck_s: float, damaged: Iterable[Path] = (), of: str = "*") -> list[float]:
    """Seconds of work, at most, of each cell under way (or ``of`` one) that no whole checkpoint held."""
    found = []
    for cell in (sweep / "cells").glob(of):
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


def started(sweeps: Sweeps) -> subprocess.Popen[str]:
    """The sweep ``first``, running, with a cell in training."""
    process = sweeps.start("run", "--space", "space.toml", "--name", "first")
    wait_for(lambda: any((sweeps.runs / "first" / "cells").glob("*/lease/*.json")), "a running trial", process)
    return process


def takes_the_sweep(sweeps: Sweeps, name: str, process: subprocess.Popen[str]) -> bool:
    """Whether the process holds the sweep, or has ended."""
    holder = holder_of(Storage(str(sweeps.runs / name)), DRIVER_LEASE)
    return process.poll() is not None or (holder is not None and holder["pid"] == process.pid)


def struck(sweeps: Sweeps, name: str, moments: Sequence[int], note_strike: NoteStrike) -> int:
    """Run a sweep to its end, killing its driver whenever so many files as in ``moments`` are durable.

    Returns how often it was struck. What was durable at each strike is neither run nor written again.
    """
    strikes = []
    sweep = sweeps.runs / name
    words = ["run", "--space", "space.toml", "--name", name]
    for files in moments:
        process = sweeps.start(*words)
        wait_for(lambda: takes_the_sweep(sweeps, name, process), "a driver at work")  # noqa: B023 - at once
        wait_for(lambda: len(durable_files(sweep)) >= files or process.poll() is not None)  # noqa: B023
        time.sleep(random.Random(files).uniform(0.0, 1.0))  # somewhere between two files, too
        if process.poll() is not None:
            process.communicate()
            break
        strikes.append(durable_files(sweep))
        note_strike("kill -9 of the driver", unsaved_s(sweep, time.time()))
        end_with_children(process)
        words = ["resume", name]
    sweeps("resume", name)
    for before in strikes:
        not_written_again(before)
    return len(strikes)


def test_the_driver_killed_at_random_moments(sweeps: Sweeps, undisturbed: Sweeps, note_strike: NoteStrike) -> None:
    rng, strikes, number = random.Random(11), 0, 0
    files_in_all = len(durable_files(undisturbed.runs / "first"))
    while strikes < MOMENTS:  # a sweep is over after a few: another one is struck then
        number += 1
        assert number <= 2 * MOMENTS, "sweeps are over before anything strikes them"
        moments = sorted(rng.randrange(files_in_all - 4) for _ in range(min(3, MOMENTS - strikes)))
        strikes += struck(sweeps, f"struck-{number}", moments, note_strike)
        assert sweeps.end_of(f"struck-{number}") == undisturbed.end_of("first")


def test_a_killed_worker_costs_its_cell_no_more_than_the_work_since_its_checkpoint(
    sweeps: Sweeps, undisturbed: Sweeps, note_strike: NoteStrike
) -> None:
    process = started(sweeps)
    for _ in range(2):
        cell = kill_a_worker(sweeps, process, note_strike)
        wait_for(lambda: is_taken_over(sweeps, cell), "another worker for the cell", process)  # noqa: B023 - at once
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert "the worker process died" in said
    assert sweeps.end_of("first") == undisturbed.end_of("first")


def alive(pid: int) -> psutil.Process | None:
    """The process, unless it is dead or only waits to be reaped."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process
    except psutil.NoSuchProcess:
        return None


def kill_a_worker(sweeps: Sweeps, process: subprocess.Popen[str], note_strike: NoteStrike) -> str:
    """Kill the worker of some cell; returns the cell."""
    killed: list[str] = []

    def kill_one() -> bool:
        for pid, cell in holders(str(sweeps.runs), "first").items():
            with contextlib.suppress(psutil.NoSuchProcess):
                if (worker := alive(pid)) is not None and psutil.Process(process.pid) in worker.parents():
                    unsaved = unsaved_s(sweeps.runs / "first", time.time(), of=cell)
                    worker.kill()
                    note_strike("kill -9 of a worker", unsaved)
                    killed.append(cell)
                    return True
        return False

    wait_for(kill_one, "a worker to kill", process)
    return killed[0]


@contextlib.contextmanager
def stopped(worker: psutil.Process) -> Iterator[None]:
    """A worker that stands still, and can be killed."""
    worker.suspend()
    yield


FREEZER = Path("/sys/fs/cgroup/freezer")


@contextlib.contextmanager
def uninterruptible(worker: psutil.Process) -> Iterator[None]:
    """A worker in uninterruptible sleep, as in a driver or a mount that never answers: no signal ends it until then."""
    group = FREEZER / f"sweeps-test-{worker.pid}"
    group.mkdir()
    try:
        (group / "cgroup.procs").write_text(str(worker.pid))
        (group / "freezer.state").write_text("FROZEN")
        wait_for(lambda: worker.status() == psutil.STATUS_DISK_SLEEP, "uninterruptible sleep")
        yield
        assert worker.status() == psutil.STATUS_DISK_SLEEP, "it was still there at the end"
    finally:
        (group / "freezer.state").write_text("THAWED")
        wait_for(lambda: not (group / "cgroup.procs").read_text().strip(), "the end of the worker, which was killed")
        group.rmdir()


needs_freezer = pytest.mark.skipif(
    not (IS_ROOT and (FREEZER / "cgroup.procs").exists() and MOMENTS > 2),
    reason="uninterruptible sleep takes minutes (SWEEPS_FAULTS=full has it), and root with the freezer of cgroup v1",
)


@pytest.mark.parametrize(
    ("name", "hangs"),
    [
        ("SIGSTOP of a worker", stopped),
        pytest.param("a worker in uninterruptible sleep", uninterruptible, marks=needs_freezer),
    ],
)
def test_a_worker_that_hangs_is_replaced_and_nothing_is_held_against_its_cell(
    sweeps: Sweeps,
    undisturbed: Sweeps,
    note_strike: NoteStrike,
    note_cost: NoteCost,
    name: str,
    hangs: Callable[[psutil.Process], contextlib.AbstractContextManager[None]],
) -> None:
    process = started(sweeps)
    had: dict[int, set[str]] = {}
    found: list[tuple[psutil.Process, str]] = []

    def one_at_work() -> bool:
        for pid, cell in holders(str(sweeps.runs), "first").items():
            had.setdefault(pid, set()).add(cell)
            folder = sweeps.runs / "first" / "cells" / cell
            lease = holder_of(Storage(str(folder)), CELL_LEASE)
            began = list((folder / "commits").glob("*.json"))
            reports = len(began) == 1 and time.time() - began[0].stat().st_mtime > 1.0  # it began, and soon reported
            if reports and len(had[pid]) > 1 and lease is not None and pid == lease["pid"] and (worker := alive(pid)):
                found.append((worker, cell))
                return True
        return False

    wait_for(one_at_work, "a worker to stop", process)
    [(worker, cell)] = found
    with hangs(worker):
        note_strike(name, unsaved_s(sweeps.runs / "first", time.time(), of=cell))
        strike = Strike(str(sweeps.runs), "first", cell)
        strike.wait_for_progress(process)
        said, _ = process.communicate()
    assert process.returncode == 0, said
    [line] = [line for line in said.splitlines() if "its worker hung" in line]
    assert "is not its own: its worker hung: no report for" in line
    assert not (sweeps.runs / "first" / "cells" / cell / "attempts").exists()
    note_cost(name, strike)
    assert sweeps.end_of("first") == undisturbed.end_of("first")


def is_taken_over(sweeps: Sweeps, cell: str) -> bool:
    """Whether a living worker has the cell, or it has ended."""
    if (sweeps.runs / "first" / "cells" / cell / "outcome.json").exists():
        return True
    return any(held == cell and alive(pid) for pid, held in holders(str(sweeps.runs), "first").items())


def test_sigterm_ends_a_sweep_in_order(sweeps: Sweeps, undisturbed: Sweeps, note_strike: NoteStrike) -> None:
    process = started(sweeps)
    asked_s = time.time()
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate()
    note_strike("SIGTERM", unsaved_s(sweeps.runs / "first", asked_s))
    assert process.returncode == 130, said
    assert "sweeps resume first" in said.lower()
    assert len(sweeps.outcomes("first")) < len(undisturbed.outcomes("first")), "it did not run to its end"
    if "left at once" not in said:  # as it does when a machine is too busy to save in the time of grace
        assert durable_tokens(sweeps.runs / "first"), "running cells were saved"
    sweeps("resume", "first")
    assert sweeps.end_of("first") == undisturbed.end_of("first")


def test_a_second_signal_leaves_at_once(sweeps: Sweeps, undisturbed: Sweeps, note_strike: NoteStrike) -> None:
    process = started(sweeps)
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)  # two signals at once count as one
    note_strike("two SIGINTs", unsaved_s(sweeps.runs / "first", time.time()))
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate()  # Ray's own processes hold the pipe a little longer
    assert process.returncode == 130, said
    assert "sweeps resume first" in said
    sweeps("resume", "first")
    assert sweeps.end_of("first") == undisturbed.end_of("first")


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
def test_a_damaged_newest_checkpoint_is_set_aside_and_costs_no_number(
    sweeps: Sweeps, undisturbed: Sweeps, killed: Sweeps, damage: Callable[[Path], None], note_strike: NoteStrike
) -> None:
    sweeps.copy(killed)
    newest = unfinished_checkpoints(sweeps.runs / "first")
    struck_s = max(path.stat().st_mtime for path in newest)
    note_strike("newest checkpoint damaged, kill -9", unsaved_s(sweeps.runs / "first", struck_s, damaged=newest))
    for checkpoint in newest:
        damage(checkpoint)
    (sweeps.runs / "first" / ".tmp-sweep.json-1-dead").write_text('{"schema": 1, "swe')
    said = sweeps("resume", "first")
    ended = {cell: found["outcome"] for cell, found in sweeps.outcomes("first").items()}
    trained_on = {path.parent.name for path in newest if ended[path.parent.name] != "stopped_early"}
    noted = " ".join(line for line in said.splitlines() if "set aside" in line)
    assert all(cell in noted for cell in trained_on), said
    assert sweeps.end_of("first") == undisturbed.end_of("first")


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


@needs("mount", "umount")
def test_a_full_disk_ends_the_sweep_with_the_reason_and_resume_goes_on_once_there_is_room(
    sweeps: Sweeps, undisturbed: Sweeps, small_disk: Path, note_strike: NoteStrike
) -> None:
    sweeps.environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{sweeps.folder}/mlflow.db"
    process = started(sweeps)
    filler = small_disk / "filler"
    with filler.open("wb") as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(b"\0" * 65536)
            file.flush()
    note_strike("full disk", unsaved_s(sweeps.runs / "first", time.time()))
    said, _ = process.communicate()
    assert process.returncode == 130, said
    assert "No space left on device" in said
    assert "sweeps resume first" in said
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=60m", str(small_disk)], check=True)
    sweeps("resume", "first")
    assert sweeps.end_of("first") == undisturbed.end_of("first")


@needs("mount", "umount")
def test_too_little_free_space_is_seen_before_the_start(sweeps: Sweeps, small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(b"\0" * (11 * 2**20))
    said = sweeps("run", "--space", "space.toml", "--name", "first", code=2)
    assert "free" in said
    assert not (small_disk / "first" / "sweep.json").exists()


@needs("mount", "umount")
@pytest.mark.skipif(not IS_ROOT, reason="this user lacks the privilege to mount a read-only folder")
def test_a_read_only_folder_is_named(sweeps: Sweeps, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    said = sweeps("run", "--space", "space.toml", "--name", "first", code=2)
    assert "cannot be written by this user; choose another --runs-dir" in said
    assert "Traceback" not in said
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)


def test_a_cell_whose_worker_always_dies_ends_as_failed_and_the_others_go_on(sweeps: Sweeps) -> None:
    process = started(sweeps)
    cells = sweeps.runs / "first" / "cells"
    victim = next(cells.glob("*/lease")).parent
    killed: set[int] = set()
    while len(killed) < MAX_DEATHS and process.poll() is None:
        holder = holder_of(Storage(str(victim)), CELL_LEASE)
        if holder is not None and holder["pid"] not in killed:
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(holder["pid"]).kill()
            killed.add(holder["pid"])
        time.sleep(0.01)
    said, _ = process.communicate()
    assert process.returncode == 3, said
    assert "failed: the worker process died (killed, or its node was lost)" in said
    assert "sweeps resume first --retry-failed" in said
    outcomes = {cell: found["outcome"] for cell, found in sweeps.outcomes("first").items()}
    assert [cell for cell, outcome in outcomes.items() if outcome == "failed"] == [victim.name]
    assert len(list((victim / "attempts").glob("*.json"))) == MAX_DEATHS
    sweeps("resume", "first", "--retry-failed")
    assert "failed" not in {found["outcome"] for found in sweeps.outcomes("first").values()}


def test_an_unknown_file_among_the_commits_stops_the_sweep_until_it_is_gone(
    sweeps: Sweeps, undisturbed: Sweeps, killed: Sweeps
) -> None:
    sweeps.copy(killed)
    commits = unfinished_checkpoints(sweeps.runs / "first")[0].parent / "commits"
    (commits / "not-a-commit.json").write_text("{}")
    said = sweeps("resume", "first", code=130)
    assert "commits/not-a-commit.json is not a file of this program; move it out of the sweep" in said
    (commits / "not-a-commit.json").unlink()
    sweeps("resume", "first")
    assert sweeps.end_of("first") == undisturbed.end_of("first")


def test_a_record_that_counts_and_was_changed_stops_the_sweep_until_it_is_restored(
    sweeps: Sweeps, undisturbed: Sweeps, killed: Sweeps
) -> None:
    sweeps.copy(killed)
    segment = next((unfinished_checkpoints(sweeps.runs / "first")[0].parent / "segments").iterdir())
    whole = segment.read_bytes()
    segment.write_bytes(whole.replace(b"loss", b"lose"))
    said = sweeps("resume", "first", code=2)
    assert f"{segment.name} is damaged: " in said
    assert "restore it from a copy" in said
    segment.write_bytes(whole)
    sweeps("resume", "first")
    assert sweeps.end_of("first") == undisturbed.end_of("first")
