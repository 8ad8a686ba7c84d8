"""What a Ray worker does: train one cell from its newest complete checkpoint to the next rung.

The worker writes to the cell's ledger folder and returns; it is stopped from outside only where it hangs. Between two
reports it looks for the driver's request to stop (an object in the sweep's folder), saves, and returns early.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sweeps.errors import BadInputError, StorageError, SweepHeldError
from sweeps.ledger.cell_folder import CellWriter
from sweeps.ledger.lease import CELL_LEASE, STALE_AFTER_S, Lease
from sweeps.ledger.models import Outcome
from sweeps.ledger.storage import Storage
from sweeps.ledger.sweep_folder import Ledger, PlannedCell
from sweeps.ledger.world import PATIENCE_S, World
from sweeps.packing.shares import allocator_share
from sweeps.trial.device_load import device_name, running_trial

if TYPE_CHECKING:
    from moe.report import Report
    from moe.trainer import Trainer

ORPHAN_WAIT_S = STALE_AFTER_S + 15.0  # long enough for an orphaned worker to finish or go stale
_LOOK_FOR_REQUEST_EVERY_S = 1.0


@dataclass(frozen=True, kw_only=True)
class SegmentJob:
    """What the driver asks of a worker: plain values only, so that Ray can ship it.

    ``stop_request`` names the object in the sweep's folder that asks it to save and return. ``avoid`` holds addresses
    of nodes that it must not run on, ``given_up`` the number of the cell's newest claim whose worker the driver lost.
    """

    runs_uri: str
    sweep: str
    cell_id: str
    until_tokens: int
    threads: int
    checkpoint_every_s: float
    gpu_fraction: float
    stop_request: str
    avoid: tuple[str, ...] = ()
    given_up: int = 0

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> SegmentJob:
        """Read back what ``vars(job)`` made a Ray config of."""
        return cls(**config)


def run_segment(config: dict[str, Any], after_report: Callable[[Report], None] = lambda _report: None) -> None:
    """Ray Tune's trainable: train one segment and report how it ended.

    ``after_report`` is called in the worker between two reports; a sweep has nothing to do there.

    Nothing is raised for what the driver can deal with: the last report's ``ended`` says ``done``, ``stopped`` or
    ``error`` (of this cell) or ``world_fault`` (of what is around it), and the cell's folder holds the rest.
    """
    from ray import tune

    from moe.errors import CheckpointError, CorpusError

    job = SegmentJob.from_config(config)

    def on_report(report: Report) -> None:
        tune.report({**report.as_record(), "ended": None})
        after_report(report)

    try:
        ended = train_segment(
            job,
            on_report=on_report,
            on_note=lambda line: tune.report({"note": line, "ended": None}),
        )
        tune.report({"ended": ended})
    except (StorageError, CheckpointError, CorpusError, SweepHeldError, BadInputError, OSError) as error:
        # the environment's faults: OSError may be a full /tmp, CorpusError a node without the text
        tune.report({"ended": "world_fault", "reason": str(error)})
    except Exception as error:  # noqa: BLE001 - one bad cell must not end the sweep; the driver decides on a retry
        reason = f"{type(error).__name__}: {error}"
        tune.report({"ended": "error", "reason": reason, "traceback": traceback.format_exc()})


def train_segment(
    job: SegmentJob,
    on_report: Callable[[Report], None],
    on_note: Callable[[str], None] = lambda _line: None,
    world: World | None = None,
) -> str:
    """Train a cell to the job's rung; returns ``done`` or ``stopped``. Divergence and out of memory are outcomes.

    ``on_note`` is given what a user should hear of, in one line.
    """
    from moe.errors import Diverged, OutOfMemory
    from sweeps.training_data import cache_dir

    ledger = Ledger(Storage(job.runs_uri, world=world, patience_s=PATIENCE_S), job.sweep)
    planned = ledger.planned(job.cell_id)
    folder = ledger.cell_folder(job.cell_id)
    lease = Lease(folder.storage, CELL_LEASE)
    lease.acquire(wait_s=ORPHAN_WAIT_S, given_up=job.given_up)
    try:
        if folder.outcome() is not None:
            return "done"  # the previous holder finished the cell meanwhile
        with running_trial(cache_dir(), device_name(job.gpu_fraction)) as count_trials:
            trainer = build_trainer(ledger, planned, job)
            writer = CellWriter(folder, lease.token, confirm=lease.confirm)
            segment = _Segment(ledger, writer, trainer, job, count_trials, require_held=lease.require_held)
            segment.restore(on_note)
            try:
                return segment.train(planned, on_report)
            except (Diverged, OutOfMemory) as end:
                outcome: Outcome = "diverged" if isinstance(end, Diverged) else "oom"
                segment.write_records()
                writer.end(planned.cell, outcome, tokens_seen=end.tokens_seen, reason=end.reason)
                return "done"
    finally:
        lease.release()


def build_trainer(ledger: Ledger, planned: PlannedCell, job: SegmentJob) -> Trainer:
    """A trainer at zero tokens for this cell, on this worker's share of the machine."""
    from moe.device import Device, device_memory_gib, limit_memory, set_threads
    from sweeps.ledger.space import current_space
    from sweeps.training_config import train_config
    from sweeps.training_data import load_training_data
    from sweeps.trial.precision import as_trained, require_precision

    set_threads(job.threads)
    gpu_gib = device_memory_gib()
    if job.gpu_fraction and gpu_gib is not None:
        limit_memory(allocator_share(job.gpu_fraction, gpu_gib))
    space = current_space(ledger)
    data = load_training_data(space, beginning=ledger.beginning())
    config = train_config(as_trained(space, ledger), planned.cell, vocab_size=data.tokens.vocab_size)
    if not job.gpu_fraction:
        config = replace(config, device="cpu")  # a GPU may be visible to a trial that was given no share of it
    require_precision(config.precision, Device.resolve(config.device))
    return data.trainer(config)


class _Segment:
    """One stretch of one cell: restore, train, make durable points, finish."""

    def __init__(
        self,
        ledger: Ledger,
        writer: CellWriter,
        trainer: Trainer,
        job: SegmentJob,
        count_trials: Callable[[], int | None],
        require_held: Callable[[], None] = lambda: None,
    ) -> None:
        self._storage = ledger.storage
        self._now_s = ledger.storage.world.monotonic_s
        self._writer = writer
        self._trainer = trainer
        self._job = job
        self._count_trials = count_trials
        self._counted = count_trials()
        self._require_held = require_held
        self._durable_tokens = 0
        self._durable_records = 0
        self._is_asked_to_stop = False
        self._last_look_s = self._last_save_s = self._now_s()

    def restore(self, note: Callable[[str], None]) -> None:
        """Load the newest checkpoint that is intact; ``note`` is given a line for each that is damaged."""
        self._durable_tokens = self._writer.adopt(self._trainer.load, note)
        self._durable_records = len(self._trainer.records)
        if self._trainer.tokens_seen != self._durable_tokens:  # another holder committed what cannot be read
            raise StorageError(f"checkpoints of {self._job.cell_id} changed while they were read")

    def train(self, planned: PlannedCell, on_report: Callable[[Report], None]) -> str:
        """Train until the rung, the budget, or the driver's request to stop; durable points in between by time."""
        while self._trainer.tokens_seen < self._job.until_tokens:
            for report in self._trainer.run(self._job.until_tokens, pause=self._is_pause_due):
                self._trainer.records[-1].update(self._circumstances())
                on_report(report)
                if self._is_pause_due():
                    break
            if self._trainer.tokens_seen < planned.cell.budget_tokens:
                self.make_durable()
            if self._is_asked_to_stop and self._trainer.tokens_seen < self._job.until_tokens:
                return "stopped"
        if self._trainer.tokens_seen >= planned.cell.budget_tokens:
            self._complete(planned)
        return "done"

    def _is_pause_due(self) -> bool:
        """Whether the driver asks to stop (looked up about once a second) or a durable point is due."""
        now_s = self._now_s()
        if now_s - self._last_look_s > _LOOK_FOR_REQUEST_EVERY_S:
            self._last_look_s = now_s
            self._is_asked_to_stop = self._storage.exists(self._job.stop_request)
        return self._is_asked_to_stop or now_s - self._last_save_s > self._job.checkpoint_every_s

    def make_durable(self) -> None:
        """Write the records since the last durable point, then a checkpoint: only then do they count."""
        self._last_save_s = self._now_s()
        if self._trainer.tokens_seen == self._durable_tokens:
            return
        self.write_records()
        self._writer.save(self._trainer.tokens_seen, self._trainer.save)
        self._durable_tokens = self._trainer.tokens_seen
        self._durable_records = len(self._trainer.records)

    def write_records(self) -> None:
        """Write the records since the last durable point; raises SweepHeldError where another worker has the cell."""
        self._require_held()
        fresh = self._trainer.records[self._durable_records :]
        if fresh:
            self._writer.write_records(self._durable_tokens, int(fresh[-1]["tokens_seen"]), fresh)

    def _complete(self, planned: PlannedCell) -> None:
        """Score the test exam where the cell's phase asks for it, then write checkpoint and outcome.

        Raises Diverged where the test loss is not finite.
        """
        from moe.errors import Diverged

        facts: dict[str, Any] = {}
        if planned.cell.phase != "explore":
            scores = self._trainer.test_scores()
            if not math.isfinite(scores.test_loss):
                raise Diverged(self._trainer.tokens_seen, f"the test loss is {scores.test_loss}")
            facts = {"test_loss": scores.test_loss, "scores": scores.as_dict()}
            self._trainer.records[-1]["test_loss"] = scores.test_loss
            self._trainer.records[-1]["exam_time_s"] = self._trainer.exam_time_s  # the test exam is an exam too
        self.make_durable()
        last = self._trainer.records[-1]
        for key in ("val_loss", "tokens_per_s", "peak_mem_allocated_gib", "train_time_s", "exam_time_s", "precision"):
            facts[key] = last[key]
        facts["skipped_steps"] = last["skipped_steps"]
        self._writer.end(planned.cell, "completed", tokens_seen=self._trainer.tokens_seen, **facts)

    def _circumstances(self) -> dict[str, Any]:
        """The load during this record, so that only comparable timings are compared.

        None if another trial started or ended since the last record: the speed fits neither count.
        """
        before, self._counted = self._counted, self._count_trials()
        return {
            "concurrent_trials": self._counted if before == self._counted else None,
            "gpu_fraction": self._job.gpu_fraction or None,
            "threads": self._job.threads,
        }
