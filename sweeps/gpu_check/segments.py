"""Cells of sweeps that nobody keeps, trained by the trainable of a sweep on Ray, some steps each.

What a driver decides is left out: which segments run, and with which share of a GPU, is given. Results are read from
the ledger, as a verdict's are.
"""

from __future__ import annotations

import hashlib
import math
import os
import signal
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from search_spaces import Rate, Space, cell_at
from sweeps.ledger.reading import read_cell
from sweeps.ledger.results import CellResult
from sweeps.ledger.storage import Storage
from sweeps.ledger.sweep_folder import Ledger, PlannedCell
from sweeps.packing.shares import Share
from sweeps.running.begin import begin
from sweeps.running.ray_tune import Engine, Trainable, run_trials
from sweeps.training_data import load_training_data
from sweeps.trial.trainable import SegmentJob, run_segment

if TYPE_CHECKING:
    from moe.gpu_criteria import StepFacts
    from moe.report import Report

RATE = Rate(lr=0.01, adamw_lr=0.003)
SEGMENT_DEADLINE_S = 600.0
GATE_DEADLINE_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Order:
    """A cell to be trained: about ``steps`` steps of ``arm`` of ``space``, whose precision is resolved.

    With ``with_test_exam`` it is scored on the test exam at the end, as confirm cells are.
    """

    preset: str
    space: Space
    arm: str
    steps: int
    seed: int = 1
    with_test_exam: bool = False

    @property
    def name(self) -> str:
        """The arm, and whose it is."""
        return f"{self.preset} {self.arm}"

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one step of the arm."""
        return self.space.strategy(self.arm).tokens_per_step

    @property
    def budget_tokens(self) -> int:
        """The steps, rounded up to whole blocks."""
        unit = math.lcm(self.tokens_per_step, self.space.block_len)
        return -(-self.steps * self.tokens_per_step // unit) * unit

    @property
    def half_tokens(self) -> int:
        """A rung half-way."""
        return self.budget_tokens // self.tokens_per_step // 2 * self.tokens_per_step


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What became of an order: the cell in the ledger, how its last segment ended, and a hash of its weights."""

    order: Order
    result: CellResult
    problem: str | None = None
    weights: str | None = None

    def facts(self, predicted_peak_gib: float, device: str, gpu_gib: float | None) -> StepFacts:
        """The measurements in its records."""
        from moe.gpu_criteria import StepFacts, step_facts

        name, precision = self.order.name, self.order.space.precision
        if self.problem is not None:
            return StepFacts(arm=name, precision=precision, error=self.problem)
        return step_facts(
            name,
            precision,
            self.result.records,
            tokens_per_step=self.order.tokens_per_step,
            predicted_peak_gib=predicted_peak_gib,
            device=device,
            gpu_gib=gpu_gib,
        )


@dataclass(kw_only=True)
class Laboratory:
    """Trains orders on the Ray that is connected.

    ``folder`` takes their sweeps; the checkpoints of a cell go once it has ended.
    """

    folder: Path
    engine: Engine = run_trials
    _count: int = field(init=False, default=0)

    def run(
        self,
        orders: Sequence[Order],
        *,
        share: Share,
        slots: int = 1,
        trainable: Trainable = run_segment,
        rungs: Callable[[Order], Sequence[int]] = lambda order: [order.budget_tokens],
        keeps_weights: bool = False,
    ) -> list[Trained]:
        """Train each order in segments up to its ``rungs``, ``slots`` orders at once; returns what became of them."""
        planned = self._begin(orders)
        ended: dict[str, Trained] = {}

        def read(cell_id: str, last: Mapping[str, Any] | None) -> None:
            order, ledger, cell = planned[cell_id]
            folder = ledger.cell_folder(cell_id)
            result = read_cell(cell, folder)
            weights = folder.load_newest(weights_hash) if keeps_weights and result.reached_budget else None
            folder.delete_checkpoints()
            ended[cell_id] = Trained(order=order, result=result, problem=_problem(result, last), weights=weights)

        jobs = [
            _job(ledger, cell_id, share, until)
            for cell_id, (order, ledger, _) in planned.items()
            for until in rungs(order)
        ]
        self.engine(Handout(jobs, read), share, slots=slots, storage_uri=None, trainable=trainable)
        return [
            ended.get(cell_id)
            or Trained(order=order, result=CellResult(cell=cell.cell), problem="it was never trained")
            for cell_id, (order, _, cell) in planned.items()
        ]

    def scratch(self) -> Path:
        """A fresh folder."""
        self._count += 1
        folder = self.folder / f"{self._count:03}"
        folder.mkdir(parents=True)
        return folder

    def _begin(self, orders: Sequence[Order]) -> dict[str, tuple[Order, Ledger, PlannedCell]]:
        """A sweep for each space, in a fresh folder, with a cell for each order; by the ids of the cells."""
        runs = Storage(str(self.scratch()))
        ledgers: dict[str, Ledger] = {}
        planned = {}
        for order in orders:
            data = load_training_data(order.space)
            name = f"{order.preset}-{order.space.precision}"
            if name not in ledgers:
                ledgers[name] = Ledger(runs, name)
                begin(ledgers[name], order.space, data, audit={}, peaks_gib={}, command=None)
            cell = cell_at(
                order.space,
                data.identity,
                phase="time" if order.with_test_exam else "explore",
                strategy=order.arm,
                rate=RATE,
                seed=order.seed,
                budget_tokens=order.budget_tokens,
            )
            entry = PlannedCell(cell=cell, reason="time" if order.with_test_exam else "grid", may_stop_early=False)
            ledgers[name].add_cells([entry], because="a check of this GPU")
            planned[entry.cell_id] = (order, ledgers[name], entry)
        assert len(planned) == len(orders), "every order is another cell"
        return planned


class Handout:
    """Gives an engine segments in order, those of one cell one after another, and ends one that takes too long.

    ``on_end`` is given each cell when its last segment has ended, with the last report: None where its worker died.
    """

    def __init__(self, jobs: Iterable[SegmentJob], on_end: Callable[[str, Mapping[str, Any] | None], None]) -> None:
        self._left = list(jobs)
        self._since_s: dict[str, float] = {}
        self._on_end = on_end

    def take(self) -> SegmentJob | Literal["wait", "finished"]:
        """The next segment whose cell is not at work."""
        for job in self._left:
            if job.cell_id not in self._since_s:
                self._left.remove(job)
                self._since_s[job.cell_id] = time.monotonic()
                return job
        return "wait" if self._left else "finished"

    def report(self, cell_id: str, record: Mapping[str, Any]) -> None:
        """Records are read from the ledger."""

    def hung(self, at_work: Collection[str]) -> Collection[str]:
        """The cells that have been at work for too long."""
        now_s = time.monotonic()
        return [cell_id for cell_id in at_work if now_s - self._since_s.get(cell_id, now_s) > SEGMENT_DEADLINE_S]

    def nowhere(self) -> None:
        """No segment avoids a node."""
        raise AssertionError("this machine cannot be left alone")

    def done(self, cell_id: str, result: Mapping[str, Any] | None) -> None:
        """A segment ended."""
        del self._since_s[cell_id]
        if all(job.cell_id != cell_id for job in self._left):
            self._on_end(cell_id, result)


def waiting_for_each_other(n_trials: int, folder: Path) -> Trainable:
    """The trainable of a sweep, whose first report waits until so many trials have made theirs.

    Workers start seconds apart, and trials that are to be timed together must train at the same time.
    """

    def trainable(config: dict[str, Any]) -> None:
        own = folder / config["cell_id"]

        def wait(_report: Report) -> None:
            if own.exists():
                return
            own.touch()
            deadline_s = time.monotonic() + GATE_DEADLINE_S
            while len(list(folder.iterdir())) < n_trials and time.monotonic() < deadline_s:
                time.sleep(0.01)

        run_segment(config, after_report=wait)

    return trainable


def killed_once(after_tokens: int, marker: Path) -> Trainable:
    """The trainable of a sweep, whose worker is killed -9 once at the first report beyond ``after_tokens``."""

    def trainable(config: dict[str, Any]) -> None:
        def kill(report: Report) -> None:
            if report.tokens_seen > after_tokens and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)

        run_segment(config, after_report=kill)

    return trainable


def weights_hash(checkpoint: Path) -> str:
    """A hash of all weights in a checkpoint."""
    from moe.checkpoint import read_model

    digest = hashlib.blake2b(digest_size=16)
    for name, weight in read_model(checkpoint)[1].items():
        digest.update(name.encode())
        digest.update(weight.numpy().tobytes())
    return digest.hexdigest()


def _job(ledger: Ledger, cell_id: str, share: Share, until_tokens: int) -> SegmentJob:
    return SegmentJob(
        runs_uri=ledger.runs_uri,
        sweep=ledger.name,
        cell_id=cell_id,
        until_tokens=until_tokens,
        threads=share.threads,
        checkpoint_every_s=SEGMENT_DEADLINE_S,
        gpu_fraction=share.gpu_fraction,
        stop_request="stop.json",
    )


def _problem(result: CellResult, last: Mapping[str, Any] | None) -> str | None:
    """Why a cell did not reach its budget; None where it did."""
    if result.reached_budget:
        return None
    if result.outcome is not None:
        return f"{result.outcome}: {result.reason}"
    return "its worker died" if last is None else str(last.get("reason", "it ended early")).splitlines()[-1]
