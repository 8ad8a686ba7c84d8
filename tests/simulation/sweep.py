"""A whole sweep in a simulated world: real driver, plan, ledger, lease and worker, with a trainer that is a formula."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from moe.errors import Diverged
from search_spaces import Identity, Space, explore_cells, load_space, with_overrides
from sweeps.errors import StorageError, SweepHeldError, WorldError
from sweeps.ledger.backends import Backend
from sweeps.ledger.cell_folder import CellFolder
from sweeps.ledger.lease import DRIVER_LEASE, Lease
from sweeps.ledger.reading import LedgerReader
from sweeps.ledger.results import SweepResults
from sweeps.ledger.storage import Storage
from sweeps.ledger.sweep_folder import Ledger
from sweeps.ledger.world import PATIENCE_S
from sweeps.packing.shares import Packing
from sweeps.plan.phases import first_cells
from sweeps.plan.queue import Plan
from sweeps.running.driver import Driver
from sweeps.trial import trainable
from sweeps.trial.trainable import SegmentJob, train_segment
from tests.simulation.world import RUNS, Faults, SimProcess, Simulation, SimWorld

IDENTITY = Identity(corpus_fingerprint="c", tokenizer_fingerprint="t", exam_fingerprint="e")
PRINTS = {"corpus": "c", "tokenizer": "t", "exam": "e", "code": "d"}
HOSTS = ("host-0", "host-1", "host-2")
SLOTS = 3
REPORTS = 8
STEP_S = 2.0
CHECKPOINT_EVERY_S = 7.0
LIMIT_S = 40_000.0


class BrokenPromiseError(AssertionError):
    """What must never be."""


def small_space() -> Space:
    """Two arms of the smoke preset, two rates each, one explore and two confirm seeds, one rung."""
    space = load_space(preset="smoke")
    space = with_overrides(space, ["seeds.explore=1", "seeds.confirm=2", "rates.max_widenings=0"])
    return space.model_copy(update={"strategies": space.strategies[:2]})


def loss_of(cell_id: str, tokens: int) -> float:
    """What a cell's loss is at this point, whoever trains it."""
    digest = hashlib.sha256(f"{cell_id} {tokens}".encode()).digest()
    return 5.0 + int.from_bytes(digest[:4], "big") / 2**32


class ToyTrainer:
    """Trains by waiting; its state is the tokens seen and the records."""

    def __init__(self, world: SimWorld, cell: Any, exams: tuple[int, ...]) -> None:
        self._world = world
        self._cell = cell
        self._exams = exams
        self.tokens_seen = 0
        self.exam_time_s = 0.0
        self.records: list[dict[str, Any]] = []

    def run(self, until_tokens: int, *, pause: Callable[[], bool]) -> Iterator[Any]:
        every = self._cell.budget_tokens // REPORTS
        while self.tokens_seen < until_tokens:
            self._world.sleep(STEP_S)
            self.tokens_seen += every
            if int(self._cell.cell_id, 16) % 7 == 0 and self.tokens_seen > self._cell.budget_tokens * 3 // 4:
                raise Diverged(self.tokens_seen, "the loss is nan")
            loss = loss_of(self._cell.cell_id, self.tokens_seen)
            self.records.append(
                {
                    "tokens_seen": self.tokens_seen,
                    "train_loss": loss,
                    "val_loss": loss if self.tokens_seen in self._exams else None,
                    "timestamp_s": self._world.time_s(),
                    "tokens_per_s": 100.0,
                    "peak_mem_allocated_gib": 1.0,
                    "train_time_s": 1.0,
                    "exam_time_s": 0.0,
                    "precision": "fp32",
                    "skipped_steps": 0,
                }
            )
            yield self.records[-1]

    def test_scores(self) -> Any:
        loss = loss_of(self._cell.cell_id, -1)
        return SimpleNamespace(test_loss=loss, as_dict=lambda: {"test_loss": loss})

    def save(self, folder: Path) -> None:
        (folder / "state.json").write_text(json.dumps({"tokens": self.tokens_seen, "records": self.records}))

    def load(self, folder: Path) -> None:
        state = json.loads((folder / "state.json").read_text())
        self.tokens_seen, self.records = state["tokens"], state["records"]


class Silent:
    """Nobody listens."""

    def on_report(self, cell_id: str, record: Mapping[str, Any]) -> None: ...
    def on_change(self, plan: Plan) -> None: ...
    def say(self, line: str) -> None: ...


class Plain(Backend):
    """The stored objects as they are, for whoever checks."""

    def __init__(self, sim: Simulation) -> None:
        self._sim = sim

    def read(self, key: str) -> bytes:
        if key not in self._sim.objects:
            raise FileNotFoundError(key)
        return self._sim.objects[key]

    def write(self, key: str, data: bytes) -> None:
        self._sim.objects[key] = data

    create = write

    def exists(self, key: str) -> bool:
        return key in self._sim.objects or bool(self._sim.listing(key))

    def names(self, key: str) -> list[str]:
        return list(self._sim.listing(key))

    def delete(self, key: str) -> None:
        raise AssertionError("whoever checks deletes nothing")

    def is_away(self, error: OSError) -> bool:
        return False


@dataclass
class Invariants:
    """Looks at every object that is written or deleted; raises BrokenPromiseError where one breaks a promise."""

    sim: Simulation
    counted: dict[tuple[str, str], list[tuple[float, int]]] = field(default_factory=dict)
    outcomes: dict[str, bytes] = field(default_factory=dict)
    counted_s: list[float] = field(default_factory=list)

    def look(self, verb: str, key: str) -> None:
        parts = key.split("/")
        if parts[1:2] != ["cells"]:
            if verb == "delete" and parts[1] in ("plan", "sweep.json"):
                raise BrokenPromiseError(f"{key} was deleted")
            return
        if parts[-1] == "outcome.json":
            if key in self.outcomes:
                raise BrokenPromiseError(f"{key} was {verb}d again")
            self.outcomes[key] = self.sim.objects[key]
        if verb == "create" and (parts[-1] == "outcome.json" or parts[3] == "commits"):
            self.counted_s.append(self.sim.now_s)
        if parts[-1] == "outcome.json" or parts[3] in ("commits", "segments"):
            self._look_at_records(parts[2])

    def _look_at_records(self, cell_id: str) -> None:
        """What counted once counts for ever: the same records, with more after them.

        An outcome may bring its own: who slept between its last look and its outcome has trained the same cell to its
        end, with the same losses at other times.
        """
        folder = CellFolder(Storage(RUNS, backend=Plain(self.sim)).child(f"first/cells/{cell_id}"))
        mark = "train_loss" if folder.outcome() is not None else "timestamp_s"
        try:
            now = [(record[mark], int(record["tokens_seen"])) for record in folder.records()]
        except StorageError as error:
            raise BrokenPromiseError(f"records of {cell_id} that count cannot be read: {error}") from error
        tokens = [seen for _, seen in now]
        if tokens != sorted(set(tokens)):
            raise BrokenPromiseError(f"records of {cell_id} are doubled or out of order: {tokens}")
        before = self.counted.get((cell_id, mark), [])
        if now[: len(before)] != before and not self.sim.faults.partial_listing:
            raise BrokenPromiseError(f"records of {cell_id} counted to {before[-1:]}, and now to {now[-1:]}")
        self.counted[cell_id, mark] = now
        if mark == "timestamp_s":
            losses = [(record["train_loss"], int(record["tokens_seen"])) for record in folder.records()]
            self.counted[cell_id, "train_loss"] = losses


class SimulatedSweep:
    """One schedule: an operator who resumes the sweep whenever its driver seems gone, until it is finished."""

    def __init__(self, seed: int, faults: Faults | None = None) -> None:
        rng = random.Random(seed)
        self.sim = Simulation(rng.getrandbits(64), Faults.draw(rng) if faults is None else faults)
        self.space = small_space()
        self.invariants = Invariants(self.sim)
        self.redone = 0

    def run(self) -> SweepResults:
        """The sweep at its end; raises BrokenPromiseError, or AssertionError where it never ends."""
        with mock.patch.object(trainable, "build_trainer", self._build_trainer), _no_device_load():
            plain = Ledger(Storage(RUNS, backend=Plain(self.sim)), "first")
            plain.add_cells(first_cells(self.space, explore_cells(self.space, IDENTITY)), because="the first grid")
            beginning = {"space": self.space.resolved(), "strategies": [], "fingerprints": PRINTS, "sweep_id": "1"}
            plain.begin({**beginning, "created_s": 0.0})
            self.sim.on_effect.append(self.invariants.look)
            try:
                self._operate()
            finally:
                self.sim.close()
        for _, error in ((p, p.error) for p in self.sim._processes):
            if error is not None and not isinstance(error, WorldError | SweepHeldError):
                raise BrokenPromiseError(f"a process ended with {type(error).__name__}: {error}") from error
        return LedgerReader(plain).results()

    def _operate(self) -> None:
        while True:
            driver = self.sim.start(self.sim.rng.choice(HOSTS), self._drive)
            self.sim.run(lambda driver=driver: self._seems_over(driver), LIMIT_S)  # type: ignore[misc]
            if driver.result == "finished":
                return
            wait_until_s = self.sim.now_s + self.sim.rng.uniform(1, 20)
            self._tick(wait_until_s)

    def _tick(self, until_s: float) -> None:
        timer = self.sim.start("operator", lambda world: world.sleep(until_s - self.sim.now_s))
        self.sim.run(lambda: timer.ended, LIMIT_S)

    def _seems_over(self, driver: SimProcess) -> bool:
        return driver.ended or driver.paused_until_s > self.sim.now_s + 30.0

    def _drive(self, world: SimWorld) -> str:
        ledger = Ledger(Storage(RUNS, world=world, patience_s=PATIENCE_S), "first")
        lease = Lease(ledger.storage, DRIVER_LEASE)
        lease.acquire()
        try:
            arms = [arm.name for arm in self.space.strategies]
            Driver(
                ledger=ledger,
                space=self.space,
                identity=IDENTITY,
                packing=Packing(threads=1, gpu_fraction=dict.fromkeys(arms), slots=dict.fromkeys(arms, SLOTS)),
                watcher=Silent(),
                checkpoint_every_s=CHECKPOINT_EVERY_S,
                wake_tracking=lambda: None,
                engine=lambda desk, *_args, slots, **_kwargs: self._engine(world, desk, slots),
                require_held=lease.require_held,
            ).run()
            return "finished"
        finally:
            lease.release()

    def _engine(self, world: SimWorld, desk: Any, slots: int) -> None:
        """Ray in a few lines: workers on any host; one that does not answer for long is given up, dead or not.

        Where workers hang, the driver is the one who says so, and killing them may take effect or not.
        """
        running: dict[str, SimProcess] = {}
        while True:
            job: Any = None
            while len(running) < slots and isinstance(job := desk.take(), SegmentJob):
                hosts = [host for host in HOSTS if host not in job.avoid]
                running[job.cell_id] = self.sim.start(self.sim.rng.choice(hosts), self._worker(job))
                for host in job.avoid:
                    self.sim.count(f"left {host} alone")
            if job == "finished" and not running:
                return
            world.sleep(0.5)
            hung = desk.hung(running) if self.sim.faults.hang else ()
            for cell_id in hung:
                if self.sim.rng.random() < 0.5:
                    self.sim.kill_soon(running[cell_id])
            for cell_id, worker in list(running.items()):
                while worker.reports:
                    desk.report(cell_id, worker.reports.pop(0))
                silent = worker.paused_until_s > self.sim.now_s + 10.0 and not self.sim.faults.hang
                if worker.ended or silent or cell_id in hung:
                    del running[cell_id]
                    desk.done(cell_id, worker.result if worker.ended and worker.alive else None)

    def _worker(self, job: SegmentJob) -> Callable[[SimWorld], dict[str, Any]]:
        def work(world: SimWorld) -> dict[str, Any]:
            try:
                ended = train_segment(job, on_report=world.me.reports.append, world=world)
                return {"ended": ended, "node_ip": world.me.host}
            except (StorageError, SweepHeldError, OSError) as error:
                return {"ended": "world_fault", "reason": str(error), "node_ip": world.me.host}

        return work

    def _build_trainer(self, ledger: Ledger, planned: Any, _job: SegmentJob) -> Any:
        world = ledger.storage.world
        assert isinstance(world, SimWorld)
        ended = f"first/cells/{planned.cell_id}/outcome.json"
        if ended in self.sim.objects and self.sim.created_s[ended] < world.me.last_operation_s:
            raise BrokenPromiseError(f"{planned} has its outcome and is trained again")
        return ToyTrainer(world, planned.cell, (*self.space.rungs_tokens, planned.cell.budget_tokens))


@contextmanager
def _no_device_load() -> Iterator[None]:
    @contextmanager
    def alone(*_: object) -> Iterator[Callable[[], int]]:
        yield lambda: 1

    with mock.patch.object(trainable, "running_trial", alone):
        yield


def what_counts(results: SweepResults) -> dict[str, Any]:
    """What must be the same whatever happened: every cell, how it ended, its losses and all its records."""
    return {
        str(result.cell.cell_id): (
            result.outcome,
            result.tokens_seen,
            result.val_loss,
            result.test_loss,
            [(record["tokens_seen"], record["train_loss"], record["val_loss"]) for record in result.records],
        )
        for result in results.cells
    }
