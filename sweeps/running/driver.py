"""The driver: owns one sweep and has the engine run what the plan calls for until every cell has its outcome.

The engine requests segments and reports when they end. Every decision is written to the ledger first, so that the
driver can be killed at any moment.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, Protocol

from search_spaces import Identity, OptunaSearch, Space
from sweeps.errors import StorageError, SweepHeldError, WorldError
from sweeps.ledger.lease import CELL_LEASE, LeaseWatch, claims
from sweeps.ledger.reading import LedgerReader, read_cell
from sweeps.ledger.results import RETRIED_OUTCOMES
from sweeps.ledger.sweep_folder import Ledger, PlannedCell, cells_of
from sweeps.ledger.world import PATIENCE_S
from sweeps.packing.shares import Packing
from sweeps.plan.phases import next_cells
from sweeps.plan.queue import Dropped, Plan, Segment, StoppingRule, progress_of
from sweeps.running.faults import DeathLog, WorldFaults, is_its_own_fault
from sweeps.running.hangs import HangWatch
from sweeps.running.milestones import Milestones
from sweeps.running.ray_tune import Engine, Trainable, run_trials
from sweeps.trial.trainable import SegmentJob, run_segment

DEATH: Final = "the worker process died (killed, or its node was lost)"
_STOP_POLL_S: Final = 0.2


class Watcher(Protocol):
    """Receives what happens: the terminal."""

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
    has taken the sweep: from then on nothing is written. With ``exclusive`` a cell beyond explore runs alone.
    """

    ledger: Ledger
    space: Space
    identity: Identity
    packing: Packing
    watcher: Watcher
    checkpoint_every_s: float
    wake_tracking: Callable[[], None]
    trainable: Trainable = run_segment
    engine: Engine = run_trials
    exclusive: bool = False
    require_held: Callable[[], None] = lambda: None
    plan: Plan = field(init=False)
    stopping: bool = field(init=False, default=False)
    _world_error: WorldError | None = field(init=False, default=None)
    _group: tuple[str, ...] = field(init=False, default=())
    _open_groups: set[tuple[int, str, str]] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """Read from the ledger how far every cell is."""
        self.ledger = self.ledger.patient(PATIENCE_S)
        self._world = self.ledger.storage.world
        self.stop_request = f"stop-{self._world.random_token(4)}.json"
        self._faults = WorldFaults(self._world)
        self._deaths = DeathLog()
        self._given_up: dict[str, int] = {}  # by cell: claims whose worker was lost; it may live on, cut off from here
        self._hangs = HangWatch(self._world, self._lease_of)
        self._milestones = Milestones()
        self._pages = self.ledger.plan_pages()
        self.plan = Plan(stopping_rule(self.space), cells_of(self._pages))
        self._results = LedgerReader(self.ledger).results()
        known = {planned.cell_id for planned in self.plan.cells}
        self._cells = {cell_id: r for r in self._results.cells if (cell_id := str(r.cell.cell_id)) in known}
        for cell_id, result in self._cells.items():
            self.plan.ended(cell_id, progress_of(result))
        assert self._cells.keys() == known, "pages of the plan that were read cannot disappear"

    def run(self) -> None:
        """Run every cell that has no outcome, phase after phase; returns early where a stop was asked for.

        Raises WorldError where nothing works any more: what was durable is kept.
        """
        try:
            self._apply_decisions()
            while not self.stopping and self.plan.next() != "finished":
                self._run_groups()
                if self._world_error:
                    raise self._world_error
        except SweepHeldError as error:
            raise WorldError(str(error)) from error
        finally:
            self._withdraw_request()

    def _run_groups(self) -> None:
        for share, arms in self.packing.groups().items():
            self._wait_for_world()
            if self.stopping:
                return
            if isinstance(self.plan.next(arms), Segment):
                self._group = arms
                self.engine(
                    self,
                    share,
                    slots=self.packing.slots[arms[0]],
                    storage_uri=self._engine_uri(),
                    trainable=self.trainable,
                )
            if self.stopping or self._world_error:
                return
            for cell_id in self.plan.running:  # the engine ended without reporting these: their workers are dead
                self.done(cell_id, None)

    def _wait_for_world(self) -> None:
        while self._faults.wait_s() > 0 and not self.stopping:
            self._world.sleep(_STOP_POLL_S)

    def stop(self) -> None:
        """Ask running segments to save and return, and hand out no others."""
        self.stopping = True
        self._ask_to_save()

    def _ask_to_save(self) -> None:
        try:
            self.ledger.storage.patient(0).write_json(self.stop_request, {"asked_s": self._world.time_s()})
        except StorageError as error:
            self.watcher.say(f"running trials cannot be asked to save: {error}")

    def _withdraw_request(self) -> None:
        """Delete the request and, if the sweep is still held, those of drivers that had no time to."""
        storage = self.ledger.storage.patient(0)
        with suppress(StorageError):
            storage.delete(self.stop_request)
        with suppress(StorageError, SweepHeldError):
            self.require_held()
            for name in storage.names():
                if name.startswith("stop-"):
                    storage.delete(name)

    def _end_with(self, error: WorldError) -> None:
        """Let running segments save if they can and hand out no others; ``run`` raises the first such error."""
        if self._world_error is None:
            self._world_error = error
            self._ask_to_save()

    def _end_if_lost(self) -> bool:
        """Whether another driver has the sweep; the segments that still run here are not asked to save for it."""
        try:
            self.require_held()
        except SweepHeldError as error:
            self._world_error = self._world_error or WorldError(str(error))
            return True
        except StorageError as error:
            self._end_with(error)
            return True
        return False

    # What the engine asks and reports.

    def take(self) -> SegmentJob | Literal["wait", "finished"]:
        """The next segment for a free worker of the group that runs now."""
        if self.stopping or self._world_error or self._end_if_lost():
            return "finished"
        segment = self.plan.next(self._group)
        if not isinstance(segment, Segment):
            return segment
        if self._faults.wait_s() > 0:
            return "wait" if self.plan.running else "finished"  # ``run`` waits, and starts the engine again
        if self.exclusive and self._would_share(segment):
            return "wait"
        cell = segment.planned.cell
        self.plan.started(segment.planned.cell_id)
        self._faults.started(segment.planned.cell_id)
        self._deaths.started(segment.planned.cell_id)
        self.watcher.on_change(self.plan)
        return SegmentJob(
            runs_uri=self.ledger.storage.uri.rpartition("/")[0],
            sweep=self.ledger.name,
            cell_id=segment.planned.cell_id,
            until_tokens=segment.until_tokens,
            threads=self.packing.threads,
            checkpoint_every_s=self.checkpoint_every_s,
            gpu_fraction=self.packing.gpu_fraction[cell.strategy] or 0.0,
            stop_request=self.stop_request,
            avoid=tuple(sorted(self._faults.left_alone)),
            given_up=self._given_up.get(segment.planned.cell_id, 0),
        )

    def _would_share(self, segment: Segment) -> bool:
        """Whether a judged cell would run beside another one, this one or one that runs already."""
        running = [self.plan.planned(cell_id).cell for cell_id in self.plan.running]
        return bool(running) and any(cell.phase != "explore" for cell in (segment.planned.cell, *running))

    def report(self, cell_id: str, record: Mapping[str, Any]) -> None:
        """A running segment reported, or has something to say."""
        if "note" in record:
            self.watcher.say(f"{self.plan.planned(cell_id)}: {record['note']}")
            return
        self._deaths.reported(cell_id, record)
        self._hangs.reported(cell_id)
        self.watcher.on_report(cell_id, record)

    def hung(self, at_work: Collection[str]) -> Collection[str]:
        """Those of the cells that workers have now whose worker hangs; the engine ends it, and ``done`` follows."""
        return self._hangs.hung(at_work)

    def _lease_of(self, cell_id: str) -> LeaseWatch:
        return LeaseWatch(self.ledger.cell_folder(cell_id).storage.patient(0), CELL_LEASE)

    def nowhere(self) -> None:
        """No node is left for a segment that waits; the engine ends it, and ``done`` follows."""
        nodes = ", ".join(sorted(self._faults.left_alone))
        self._end_with(WorldError(f"no node is left: cells in succession failed on {nodes}, and no other node is up"))

    def done(self, cell_id: str, result: Mapping[str, Any] | None) -> None:
        """A segment ended: read what its folder says, and plan on.

        Raises nothing for a storage that fails: Ray would wrap it into an error of its own.
        """
        if self._end_if_lost():
            return
        planned = self.plan.planned(cell_id)
        hung, is_lost = self._hangs.ended(cell_id), result is None
        if result is None and hung is not None:
            result = {"ended": "world_fault", "reason": hung, **self._deaths.place(cell_id)}
        how = "worker_died" if result is None else str(result.get("ended"))
        self.plan.ended(cell_id, self.plan.progress(cell_id))
        try:
            if is_lost:
                self._given_up[cell_id] = max(claims(self.ledger.cell_folder(cell_id).storage, CELL_LEASE), default=0)
            if how == "world_fault":
                assert result is not None
                self._note_world_fault(planned, result)
            else:
                self._faults.ended_well(cell_id, None if result is None else result.get("node_ip"))
            if how in ("worker_died", "error") and not self.stopping and not self._world_error:
                self._note_failure(planned, how, result)
            self._refresh(planned)
            self._clean_up(planned)
            self._apply_decisions()
        except SweepHeldError as error:
            self._world_error = self._world_error or WorldError(str(error))
        except WorldError as error:
            self._end_with(error)
        self.wake_tracking()

    def _note_world_fault(self, planned: PlannedCell, result: Mapping[str, Any]) -> None:
        """The worker's environment failed: its cell is tried again later, and the session ends when nothing works."""
        reason, host, node = str(result["reason"]), result.get("hostname"), result.get("node_ip")
        was_left_alone = node in self._faults.left_alone
        self.plan.postpone(planned.cell_id)
        wait_s = self._faults.struck(planned.cell_id, node)
        if wait_s is None:
            raise WorldError(reason)
        where = "" if host is None else f" on {host}"
        self.watcher.say(f"{planned} is tried again in {wait_s:.0f} s, the fault{where} is not its own: {reason}")
        if node in self._faults.left_alone and not was_left_alone:
            self.watcher.say(
                f"node {node} is left alone until the next resume: two cells in succession failed there while others "
                "ended well elsewhere"
            )

    def _note_failure(self, planned: PlannedCell, how: str, result: Mapping[str, Any] | None) -> None:
        folder = self.ledger.cell_folder(planned.cell_id)
        if folder.outcome() is not None:
            return  # it died after writing its outcome
        reason = DEATH if result is None else str(result["reason"])
        reached, node = self._deaths.last(planned.cell_id)
        traceback = None if result is None else result.get("traceback")
        folder.add_attempt(how, reason, traceback=traceback, reached_tokens=reached, node=node)
        since = folder.attempts_here()
        if is_its_own_fault(since):
            self.require_held()
            folder.write_outcome(planned.cell, "failed", tokens_seen=since[-1]["tokens_seen"], reason=reason)
            self.watcher.say(f"{planned} failed after {len(since)} tries: {reason}")
        else:
            where = "" if node is None else f" on {node}"
            self.watcher.say(f"{planned} is tried again from its checkpoint: {reason}{where}")

    def _refresh(self, planned: PlannedCell) -> None:
        """Read the cell's folder again."""
        result = read_cell(planned, self.ledger.cell_folder(planned.cell_id))
        self._cells[planned.cell_id] = result
        self.plan.ended(planned.cell_id, progress_of(result))

    def _clean_up(self, planned: PlannedCell) -> None:
        """Delete what a finished cell no longer needs: with ``keep = best`` the checkpoints of explore cells."""
        outcome = self.plan.progress(planned.cell_id).outcome
        if outcome in (None, *RETRIED_OUTCOMES):
            return
        folder = self.ledger.cell_folder(planned.cell_id)
        folder.collect()
        if self.space.keep == "best" and planned.cell.phase == "explore":
            folder.delete_checkpoints()

    def _apply_decisions(self) -> None:
        """Write what follows from the losses recorded so far: early stops, then new cells."""
        for dropped in self.plan.dropped():
            self._drop(dropped)
        groups = self.plan.open_groups()
        if self._open_groups is None or self._open_groups - groups:
            self._plan_next()
            groups = self.plan.open_groups()
        self._open_groups = groups
        self.watcher.on_change(self.plan)

    def _plan_next(self) -> None:
        """Plan what follows from the groups of cells that have all ended.

        If a driver presumed dead has added pages since, they are read first.
        """
        while True:
            results = replace(self._results, cells=tuple(self._cells.values()))
            added = next_cells(self.space, self.identity, results, self.plan.cells)
            self.require_held()
            if added.margin is not None:
                self.ledger.fix_margin(added.margin)
            if self.ledger.add_cells_to(self._pages, added.cells, because=added.because):
                break
            self._add_planned(self.ledger.planned_cells())
        self._add_planned(added.cells)
        for line in (added.because if added.cells else "", *self._milestones.reached(results)):
            if line:
                self.watcher.say(line)

    def _add_planned(self, cells: Sequence[PlannedCell]) -> None:
        fresh = [planned for planned in cells if planned.cell_id not in self._cells]
        self.plan.add(fresh)
        for planned in fresh:
            self._refresh(planned)
        self._pages = self.ledger.plan_pages()

    def _drop(self, dropped: Dropped) -> None:
        planned = dropped.planned
        progress = self.plan.progress(planned.cell_id)
        folder = self.ledger.cell_folder(planned.cell_id)
        self.require_held()
        folder.write_outcome(
            planned.cell,
            "stopped_early",
            tokens_seen=progress.tokens_seen,
            val_loss=progress.exam_losses[dropped.rung_tokens],
            reason=dropped.reason,
        )
        folder.delete_checkpoints()
        self._refresh(planned)
        self.watcher.say(f"{planned} stopped early: {dropped.reason}")

    def _engine_uri(self) -> str | None:
        return None if self.ledger.storage.is_local else self.ledger.storage.child("ray").uri


def stopping_rule(space: Space) -> StoppingRule:
    """The space's early stopping as the plan knows it."""
    if space.early_stopping.kind == "none":
        return StoppingRule()
    suggestions = space.search.trials_per_arm if isinstance(space.search, OptunaSearch) else 0
    rungs = {budget: space.rungs_at(budget) for budget in space.budgets_tokens}
    return StoppingRule(rungs_tokens=rungs, keep=space.early_stopping, suggestions=suggestions)


def failed_cells(ledger: Ledger) -> Sequence[tuple[PlannedCell, Mapping[str, Any]]]:
    """Cells that failed or ran out of memory, with their outcomes."""
    found = []
    for planned in ledger.planned_cells():
        outcome = ledger.cell_folder(planned.cell_id).outcome()
        if outcome is not None and outcome["outcome"] in RETRIED_OUTCOMES:
            found.append((planned, outcome))
    return found
