"""One session on a sweep, from the command to the verdict: ``run_new`` begins a sweep, ``resume`` continues one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console

from search_spaces import Identity, Space, SpaceErrors, corpus_warnings, frozen_differences, with_overrides
from sweeps.cluster.connection import local_ray
from sweeps.cluster.machines import Machines, machines_at_hand
from sweeps.errors import BadInputError
from sweeps.ledger.destinations import require_folder
from sweeps.ledger.free_space import require_room
from sweeps.ledger.identifiers import require_name
from sweeps.ledger.lease import DRIVER_LEASE, Lease
from sweeps.ledger.names import fresh_name
from sweeps.ledger.provenance import code_fingerprint
from sweeps.ledger.reading import LedgerReader
from sweeps.ledger.space import current_space, identity_of
from sweeps.ledger.storage import Storage
from sweeps.ledger.sweep_folder import Ledger
from sweeps.ledger.world import PATIENCE_S
from sweeps.packing.duration import find_speed
from sweeps.packing.hours import within_hours
from sweeps.packing.memory import predicted_peaks
from sweeps.packing.shares import Packing, pack, require_runnable
from sweeps.plan.phases import next_cells
from sweeps.running.begin import SpaceChoice, audit_table, begin, require_new
from sweeps.running.driver import Driver, failed_cells
from sweeps.running.finish import finish
from sweeps.running.live_table import open_watch, time_taken
from sweeps.running.on_end import Word, word_at_end
from sweeps.running.signals import Interruption, stopped_by_signals
from sweeps.running.tracking_session import register, tracked
from sweeps.shown_commands import shown_command
from sweeps.tracking.store import tracking_store
from sweeps.training_config import with_absolute_paths
from sweeps.training_data import TrainingData, corpus_facts, load_training_data
from sweeps.trial.precision import as_trained, in_resolved_precision, precision_note
from sweeps.trial.probe import calibrated_peaks

if TYPE_CHECKING:
    from moe.token_build import Progress

CHECKPOINT_EVERY_S: Final = 60.0

Extend = Callable[[Ledger, Space], Space]
"""Writes more to a sweep's plan and returns the extended space."""


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """How a session runs, apart from the space: nothing here decides a number."""

    runs_uri: str
    console: Console
    quiet: bool = False
    exclusive: bool = False
    checkpoint_every_s: float = CHECKPOINT_EVERY_S
    allow_code_change: bool = False
    retry_failed: bool = False
    command: str | None = None
    overrides: tuple[str, ...] = ()
    on_end: str | None = None

    def say(self, line: str) -> None:
        """Print one line, unless the session is quiet."""
        if not self.quiet:
            self.console.print(line, markup=False, highlight=False, soft_wrap=not self.console.is_terminal)


def run_new(choice: SpaceChoice, name: str | None, options: SessionOptions) -> Ledger:
    """Begin a sweep and run it to its verdict; returns its ledger, whose failed cells were named.

    Raises WorldError where it was interrupted; ``resume`` continues it.
    """
    with word_at_end(options.on_end, options.say) as word:
        return _run_new(choice, name, options, word)


def _run_new(choice: SpaceChoice, name: str | None, options: SessionOptions, word: Word) -> Ledger:
    runs = Storage(options.runs_uri)
    if runs.is_local:
        require_folder(runs.path, "--runs-dir")
    tracking_store(options.runs_uri)  # an impossible one is reported before anything is spent
    with Interruption(options.console) as interruption, machines_at_hand() as found:
        space, label = choice.load(found)
        name = fresh_name(runs, label) if name is None else name
        require_name(name)
        ledger = Ledger(runs, name)
        require_new(ledger)
        interruption.ledger = word.ledger = ledger
        space = with_absolute_paths(space)
        data = _training_data(space, options, beginning=None)
        vocab_size = data.tokens.vocab_size
        machines = found.declaring(space.resources.declared_gpus)
        space = in_resolved_precision(space, machines)
        notes: tuple[str, ...] = ()
        options.say("predicting the memory of each arm")
        peaks_gib = predicted_peaks(space, machines.device, vocab_size=vocab_size)
        packing = _packing(space, peaks_gib, machines, options)
        if choice.hours is not None:
            fitted = within_hours(choice.hours, space, data, find_speed(space, data, packing, machines))
            space, notes = fitted.space, (fitted.why,)
            data = _training_data(space, options, beginning=None)  # a data set of the hub is read as far as it takes
        found_later = (*data.tokens.notes, *corpus_warnings(space, corpus_facts(data.tokens)))
        for note in (*notes, *space.warnings(), *found_later):
            options.say(f"note: {note}")
        require_room(ledger, space, vocab_size=vocab_size)
        audit = audit_table(space, data)
        with _ray(space, machines, packing, options), _driver_lease(ledger) as lease:
            require_new(ledger)  # again: another driver may have started it meanwhile
            begin(ledger, space, data, audit=audit, peaks_gib=peaks_gib, command=options.command)
            _run(ledger, lease, space, data.identity, packing, options, interruption)
    return ledger


def resume(name: str, options: SessionOptions, extend: Extend | None = None) -> Ledger:
    """Run what has no outcome yet; returns the ledger, whose failed cells were named. A finished sweep stays as it is.

    ``extend`` writes more to the plan first, once the sweep is held. Raises WorldError where it was interrupted.
    """
    with word_at_end(options.on_end, options.say) as word:
        word.ledger = ledger = Ledger(Storage(options.runs_uri), name)
        _resume(ledger, options, extend)
        return ledger


def _resume(ledger: Ledger, options: SessionOptions, extend: Extend | None) -> None:
    tracking_store(options.runs_uri)  # an impossible one is reported before anything is spent
    beginning = ledger.beginning()
    ledger.require_current()
    with Interruption(options.console) as interruption, _held(ledger, options) as lease:
        interruption.ledger = ledger
        space = _with_resources(current_space(ledger), options.overrides)
        failed = failed_cells(ledger) if options.retry_failed else ()
        if failed or extend is not None:
            _require_known_code(ledger, options)  # before anything is written: a refusal leaves the ledger unchanged
        for planned, outcome in failed:
            ledger.cell_folder(planned.cell_id).forget_failure()
            options.say(f"{planned} runs again after: {outcome['reason']}")
        if extend is not None:
            space = extend(ledger, space)
        if is_finished(ledger, space):
            options.say(f"sweep {ledger.name} is finished; nothing to run")
            _name_failures(ledger, options)
            return
        _require_known_code(ledger, options)
        data = _training_data(space, options, beginning=beginning)
        vocab_size = data.tokens.vocab_size
        require_room(ledger, space, vocab_size=vocab_size)
        with machines_at_hand() as found:
            machines = found.declaring(space.resources.declared_gpus)
            note = precision_note(space, ledger, machines)
            if note is not None:
                options.say(f"note: {note}")
            trained = as_trained(space, ledger)
            peaks_gib = _peaks(beginning, trained, machines, vocab_size=vocab_size)
            packing = _packing(trained, peaks_gib, machines, options)
            with _ray(space, machines, packing, options):
                _run(ledger, lease, space, data.identity, packing, options, interruption)


def is_finished(ledger: Ledger, space: Space) -> bool:
    """Whether every planned cell has its outcome, nothing follows from them, and the verdict was written since."""
    results = LedgerReader(ledger).results()
    if any(result.outcome is None for result in results.cells):
        return False
    if next_cells(space, identity_of(results.beginning), results, ledger.planned_cells()).cells:
        return False
    from sweeps.verdict.decision import decide

    verdict = ledger.verdict()
    return verdict is not None and verdict == decide(results).as_dict()


def _run(
    ledger: Ledger,
    lease: Lease,
    space: Space,
    identity: Identity,
    packing: Packing,
    options: SessionOptions,
    interruption: Interruption,
) -> None:
    """Let the driver run every cell, then decide; raises KeyboardInterrupt where it was stopped before."""
    options.say(f"sweep {ledger.name}: {packing.workers} trials at once, results in {ledger.storage.uri}")
    watch = open_watch(options.console, space, ledger.name, packing.workers, quiet=options.quiet)
    with tracked(ledger, options.runs_uri, watch.say) as tracking:
        driver = Driver(
            ledger=ledger,
            space=space,
            identity=identity,
            packing=packing,
            watcher=watch,
            checkpoint_every_s=options.checkpoint_every_s,
            wake_tracking=tracking.wake,
            require_held=lease.require_held,
            exclusive=options.exclusive,
        )
        tracking.plan = driver.plan
        began_s = time.time()
        with stopped_by_signals(driver, interruption), watch.shown():
            driver.run()
        took = ledger.add_session(began_s=began_s, first_estimate_s=watch.first_estimate_s, interrupted=driver.stopping)
        tracking.plan = None
        if driver.stopping:
            raise KeyboardInterrupt  # `Interruption` says that work is kept, and the command that resumes
        options.say(f"{time_taken(took['wall_s'], took['first_estimate_s'])}; writing verdict and report")
        finish(ledger, space, options.console, quiet=options.quiet)
        tracking.wake()
    register(ledger, options.runs_uri, options.console, quiet=options.quiet)
    _name_failures(ledger, options)


def _name_failures(ledger: Ledger, options: SessionOptions) -> None:
    """Name the cells that failed, with the command that runs them again."""
    failed = failed_cells(ledger)
    for planned, outcome in failed:
        line = f"{planned} {outcome['outcome']}: {outcome['reason']}"
        options.console.print(line, markup=False, highlight=False, soft_wrap=True)
    if failed:
        retried_by = shown_command("resume", ledger.name, "--retry-failed")
        options.console.print(f"Run them again with: {retried_by}", soft_wrap=True)


def _training_data(space: Space, options: SessionOptions, *, beginning: Mapping[str, Any] | None) -> TrainingData:
    """Tokens and exam, with a progress line while they are built."""
    from moe.errors import CorpusError

    with ExitStack() as stack:
        status = None if options.quiet else stack.enter_context(options.console.status("reading the corpus"))

        def show(progress: Progress) -> None:
            if progress.message is not None:
                options.say(progress.message)
            if status is not None:
                status.update(f"{progress.stage} {progress.done_bytes / 2**20:.0f} MiB")

        try:
            return load_training_data(space, beginning=beginning, on_progress=show)
        except CorpusError as error:
            raise BadInputError(str(error)) from error


def _peaks(beginning: Mapping[str, Any], space: Space, machines: Machines, *, vocab_size: int) -> dict[str, float]:
    """Peak GiB of each arm as it was frozen; those of arms that an extension added are predicted now."""
    frozen = {entry["name"]: entry["predicted_peak_gib"] for entry in beginning["strategies"]}
    known = {arm: gib for arm, gib in frozen.items() if gib is not None}
    if all(arm.name in frozen for arm in space.strategies):
        return known
    return predicted_peaks(space, machines.device, vocab_size=vocab_size) | known


def _packing(space: Space, peaks_gib: Mapping[str, float], machines: Machines, options: SessionOptions) -> Packing:
    """How trials share the machines, after a look at every node of a cluster and a measurement on a GPU.

    Raises BadInputError with every problem at once.
    """
    problems = () if machines.address is None else _preflight(options)
    if not problems:
        measured = calibrated_peaks(space, peaks_gib, machines)
        peaks_gib = measured.peaks_gib
        for note in measured.notes:
            options.say(f"note: {note}")
    packing = pack(space, peaks_gib, machines)
    require_runnable(packing, problems)
    for warning in packing.warnings:
        options.say(f"note: {warning}")
    return packing


def _preflight(options: SessionOptions) -> Sequence[str]:
    """Show what every node of the cluster has; returns the problems."""
    from sweeps.cluster.preflight import preflight, render

    found = preflight(storage_uri=options.runs_uri, tracking_uri=tracking_store(options.runs_uri).uri)
    if not options.quiet:
        options.console.print(render(found))
    for warning in found.warnings:
        options.say(f"note: {warning}")
    return found.problems


@contextmanager
def _ray(space: Space, machines: Machines, packing: Packing, options: SessionOptions) -> Iterator[None]:
    """A private Ray on this machine until the block ends, unless the machines are a cluster that is joined already."""
    if machines.address is not None:
        yield
        return
    options.say("starting Ray on this machine, which takes some seconds")
    with local_ray(cpus=packing.workers * packing.threads, declared_gpus=space.resources.declared_gpus):
        yield


def _driver_lease(ledger: Ledger) -> Lease:
    return Lease(ledger.storage.patient(PATIENCE_S), DRIVER_LEASE)


@contextmanager
def _held(ledger: Ledger, options: SessionOptions) -> Iterator[Lease]:
    """The sweep's lease until the block ends; raises SweepHeldError where another driver is alive."""
    lease = _driver_lease(ledger)
    dead = lease.acquire()
    try:
        if dead is not None:
            options.say(f"the previous driver ({dead}) has died; continuing in its place")
        yield lease
    finally:
        lease.release()


def _with_resources(space: Space, overrides: Sequence[str]) -> Space:
    """What may change between a run and its resumption; raises SpaceErrors, naming every difference that may not."""
    changed = with_overrides(space, overrides)
    problems = frozen_differences(space, changed)
    if problems:
        raise SpaceErrors(problems, source="--set")
    return changed


def _require_known_code(ledger: Ledger, options: SessionOptions) -> None:
    """Refuse other training code than the sweep began with, unless the user accepts it, which is then recorded."""
    known = [ledger.beginning()["fingerprints"]["code"], *ledger.code_changes()]
    now = code_fingerprint()
    if now == known[-1]:
        return
    if not options.allow_code_change:
        raise BadInputError(
            f"the code of moe has changed since the sweep began (it was {known[-1]}, now it is {now}), so new numbers "
            "may not be comparable with old ones; restore the old code, or accept the new one with "
            "--allow-code-change, which is recorded"
        )
    ledger.add_code_change(now)
