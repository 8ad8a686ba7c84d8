"""The driver: holds one sweep, lets the engine run what the plan says, and brings it to its verdict.

It is the desk that the engine asks. Everything it decides it writes to the ledger first, so that it can be killed at
any moment.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from search_spaces import Identity, OptunaSearch, Space
from sweeps.errors import StorageError, SweepHeldError, WorldError
from sweeps.ledger.reading import LedgerReader, read_cell
from sweeps.ledger.results import RETRIED_OUTCOMES
from sweeps.ledger.sweep_folder import Ledger, PlannedCell
from sweeps.packing.shares import Packing
from sweeps.plan.phases import next_cells
from sweeps.plan.queue import Dropped, Plan, Segment, StoppingRule, progress_of
from sweeps.running.ray_tune import Trainable, run_trials
from sweeps.trial.trainable import STOP_WISH, SegmentJob, run_segment

MAX_ATTEMPTS = 3  # of one cell without getting further: a preempted node may strike twice, a bug strikes always


class Watcher(Protocol):
    """Who is told what happens: the terminal."""

    def on_report(self, cell_id: str, record: Mapping[str, Any]) -> None:
        """A running cell reported."""
        ...

    def on_change(self, plan: Plan) -> None:
        """A cell started, ended, or was added."""
        ...

    def say(self, line: str) -> None:
        """One line for the user."""
        ...


@dataclass(kw_only=True)
class Driver:
    """One run or resume of one sweep.

    ``wake_tracking`` is called when the ledger has changed; ``require_held`` raises SweepHeldError once another driver
    has taken the sweep: from then on nothing is written. With ``exclusive`` each judged cell runs alone.
    """

    ledger: Ledger
    space: Space
    identity: Identity
    packing: Packing
    watcher: Watcher
    checkpoint_every_s: float
    wake_tracking: Callable[[], None]
    trainable: Trainable = run_segment
    exclusive: bool = False
    require_held: Callable[[], None] = lambda: None
    plan: Plan = field(init=False)
    stopping: bool = field(init=False, default=False)
    _world_error: WorldError | None = field(init=False, default=None)
    _group: tuple[str, ...] = field(init=False, default=())
    _open_groups: set[tuple[str, str, str]] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """Read from the ledger how far every cell is."""
        self.plan = Plan(stopping_rule(self.space), self.ledger.planned_cells())
        self._results = LedgerReader(self.ledger).results()
        self._cells = {str(result.cell.cell_id): result for result in self._results.cells}
        for cell_id, result in self._cells.items():
            self.plan.ended(cell_id, progress_of(result))

    def run(self) -> None:
        """Run every cell that has no outcome, phase after phase; returns early where a stop was asked for.

        Raises WorldError where storage failed: what was durable is kept.
        """
        self.ledger.storage.delete(STOP_WISH)
        self._settle()
        while not self.stopping and self.plan.next() != "finished":
            for share, arms in self.packing.groups().items():
                if isinstance(self.plan.next(arms), Segment):
                    self._group = arms
                    run_trials(
                        self,
                        share,
                        slots=self.packing.slots[arms[0]],
                        storage_uri=self._engine_uri(),
                        trainable=self.trainable,
                    )
                if self.stopping or self._world_error:
                    break
                for cell_id in self.plan.running:  # the engine ended without a word about them
                    self.done(cell_id, None)
            if self._world_error:
                raise self._world_error

    def stop(self) -> None:
        """Ask running segments to save and return, and hand out no others."""
        self.stopping = True
        self._ask_to_save()

    def _ask_to_save(self) -> None:
        try:
            self.ledger.storage.write_json(STOP_WISH, {"asked_s": time.time()})
        except StorageError as error:
            self.watcher.say(f"running trials cannot be asked to save: {error}")

    def _end_with(self, error: WorldError) -> None:
        """The world failed: running segments save if they can, no others are handed out, ``run`` raises the first."""
        if self._world_error is None:
            self._world_error = error
            self._ask_to_save()

    def _is_lost(self) -> bool:
        """Whether another driver has the sweep; the segments that still run here are not asked to save for it."""
        try:
            self.require_held()
        except SweepHeldError as error:
            self._world_error = self._world_error or WorldError(str(error))
            return True
        return False

    # What the engine asks and tells.

    def take(self) -> SegmentJob | Literal["wait", "finished"]:
        """The next segment for a free worker of the group that runs now."""
        if self.stopping or self._world_error or self._is_lost():
            return "finished"
        segment = self.plan.next(self._group)
        if not isinstance(segment, Segment):
            return segment
        if self.exclusive and self._would_share(segment):
            return "wait"
        cell = segment.planned.cell
        self.plan.started(segment.planned.cell_id)
        self.watcher.on_change(self.plan)
        return SegmentJob(
            runs_uri=self.ledger.storage.uri.rpartition("/")[0],
            sweep=self.ledger.name,
            cell_id=segment.planned.cell_id,
            until_tokens=segment.until_tokens,
            threads=self.packing.threads,
            checkpoint_every_s=self.checkpoint_every_s,
            gpu_fraction=self.packing.gpu_fraction[cell.strategy] or 0.0,
        )

    def _would_share(self, segment: Segment) -> bool:
        """Whether a judged cell would run beside another one, this one or one that runs already."""
        running = [self.plan.planned(cell_id).cell for cell_id in self.plan.running]
        return bool(running) and any(cell.phase != "explore" for cell in (segment.planned.cell, *running))

    def report(self, cell_id: str, record: Mapping[str, Any]) -> None:
        """A running segment reported, or has something to say."""
        if "note" in record:
            self.watcher.say(f"{self.plan.planned(cell_id)}: {record['note']}")
        else:
            self.watcher.on_report(cell_id, record)

    def done(self, cell_id: str, result: Mapping[str, Any] | None) -> None:
        """A segment ended: read what its folder says, and plan on.

        Raises nothing for a storage that fails: Ray would wrap it into an error of its own.
        """
        if self._is_lost():
            return
        planned = self.plan.planned(cell_id)
        how = "worker_died" if result is None else str(result.get("ended"))
        self.plan.ended(cell_id, self.plan.progress(cell_id))
        if how == "stop_sweep":
            assert result is not None
            self._end_with(WorldError(str(result["reason"])))
            return
        try:
            if how in ("worker_died", "error") and not self.stopping:
                self._note_failure(planned, how, result)
            self._refresh(planned)
            self._give_back(planned)
            self._settle()
        except StorageError as error:
            self._end_with(error)
        self.wake_tracking()

    def _note_failure(self, planned: PlannedCell, how: str, result: Mapping[str, Any] | None) -> None:
        folder = self.ledger.cell_folder(planned.cell_id)
        if folder.outcome() is not None:
            return  # it died after the last thing that it had to do
        reason = "the worker process died (killed, or its node was lost)" if result is None else str(result["reason"])
        folder.add_attempt(how, reason, None if result is None else result.get("traceback"))
        since = folder.attempts_here()
        same = [attempt for attempt in since if attempt["kind"] == "error" and attempt["reason"] == reason]
        if len(since) >= MAX_ATTEMPTS or len(same) >= 2:
            folder.write_outcome(planned.cell, "failed", tokens_seen=since[-1]["tokens_seen"], reason=reason)
            self.watcher.say(f"{planned} failed after {len(since)} tries: {reason}")
        else:
            self.watcher.say(f"{planned} is tried again from its checkpoint: {reason}")

    def _refresh(self, planned: PlannedCell) -> None:
        """Take over what the cell's folder says now."""
        result = read_cell(planned, self.ledger.cell_folder(planned.cell_id))
        self._cells[planned.cell_id] = result
        self.plan.ended(planned.cell_id, progress_of(result))

    def _give_back(self, planned: PlannedCell) -> None:
        """With ``keep = best`` an explore cell that has ended needs its checkpoints no more, and the storage does."""
        outcome = self.plan.progress(planned.cell_id).outcome
        if self.space.keep == "best" and planned.cell.phase == "explore" and outcome not in (None, *RETRIED_OUTCOMES):
            self.ledger.cell_folder(planned.cell_id).checkpoints.delete_all()

    def _settle(self) -> None:
        """Write what follows from the losses recorded so far: drops, then cells that can now be planned."""
        for dropped in self.plan.dropped():
            self._drop(dropped)
        groups = self.plan.open_groups()
        if self._open_groups is None or self._open_groups - groups:
            self._plan_on()
            groups = self.plan.open_groups()
        self._open_groups = groups
        self.watcher.on_change(self.plan)

    def _plan_on(self) -> None:
        """Plan what follows from the groups of cells that have all ended."""
        results = replace(self._results, cells=tuple(self._cells.values()))
        added = next_cells(self.space, self.identity, results, self.plan.cells)
        if added.margin is not None:
            self.ledger.fix_margin(added.margin)
        if added.cells:
            self.ledger.add_cells(added.cells, because=added.because)
            self.plan.add(added.cells)
            for planned in added.cells:
                self._refresh(planned)
            if added.because:
                self.watcher.say(added.because)

    def _drop(self, dropped: Dropped) -> None:
        planned = dropped.planned
        progress = self.plan.progress(planned.cell_id)
        folder = self.ledger.cell_folder(planned.cell_id)
        folder.write_outcome(
            planned.cell,
            "stopped_early",
            tokens_seen=progress.tokens_seen,
            val_loss=progress.exam_losses[dropped.rung_tokens],
            reason=dropped.reason,
        )
        folder.checkpoints.delete_all()
        self._refresh(planned)
        self.watcher.say(f"{planned} stopped early: {dropped.reason}")

    def _engine_uri(self) -> str | None:
        return None if self.ledger.storage.is_local else self.ledger.storage.child("ray").uri


def stopping_rule(space: Space) -> StoppingRule:
    """The space's early stopping as the plan knows it."""
    if space.early_stopping.kind == "none":
        return StoppingRule()
    suggestions = space.search.trials_per_arm if isinstance(space.search, OptunaSearch) else 0
    return StoppingRule(rungs_tokens=space.rungs_tokens, keep=space.early_stopping, suggestions=suggestions)


def failed_cells(ledger: Ledger) -> Sequence[tuple[PlannedCell, Mapping[str, Any]]]:
    """Cells that failed or ran out of memory, with their outcomes."""
    found = []
    for planned in ledger.planned_cells():
        outcome = ledger.cell_folder(planned.cell_id).outcome()
        if outcome is not None and outcome["outcome"] in RETRIED_OUTCOMES:
            found.append((planned, outcome))
    return found
