"""A sitting at one sweep: from command to verdict, with lease, signals, terminal and MLflow around the driver."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from rich.console import Console

from search_spaces import Space, SpaceErrors, corpus_warnings, frozen_differences, with_overrides
from sweeps.cluster.connection import cluster_address, joined_ray
from sweeps.errors import (
    EXIT_DONE,
    EXIT_RESUMABLE,
    EXIT_SOME_FAILED,
    BadInputError,
)
from sweeps.ledger.destinations import require_folder
from sweeps.ledger.free_space import require_room
from sweeps.ledger.lease import DRIVER_LEASE, Lease
from sweeps.ledger.provenance import code_fingerprint
from sweeps.ledger.reading import LedgerReader
from sweeps.ledger.space import current_space, identity_of
from sweeps.ledger.storage import Storage
from sweeps.ledger.sweep_folder import Ledger
from sweeps.packing.shares import Packing, cpus_wanted, fit_arms, packing_for, predicted_peaks, resource_plan
from sweeps.plan.phases import next_cells
from sweeps.running.begin import audit_table, begin
from sweeps.running.driver import Driver, failed_cells
from sweeps.running.finish import finish
from sweeps.running.live_table import open_watch, time_taken
from sweeps.running.mlflow import Followed, following, register
from sweeps.running.ray_tune import local_ray
from sweeps.running.signals import Grace, resumable, stopped_by_signals
from sweeps.training_config import at_home_anywhere
from sweeps.training_data import Material, corpus_facts, material_for
from sweeps.trial.precision import as_trained, precision_note

if TYPE_CHECKING:
    from moe.token_build import Progress
    from sweeps.cluster.machines import ClusterFacts

T = TypeVar("T")

CHECKPOINT_EVERY_S: Final = 60.0


@dataclass(frozen=True, kw_only=True)
class Sitting:
    """What a sitting was asked to do, apart from the space: nothing here decides a number."""

    runs_uri: str
    quiet: bool = False
    exclusive: bool = False
    checkpoint_every_s: float = CHECKPOINT_EVERY_S
    allow_code_change: bool = False
    retry_failed: bool = False
    command: str | None = None
    overrides: tuple[str, ...] = ()


def run_new(space: Space, name: str, sitting: Sitting, console: Console) -> int:
    """Begin a sweep and run it to its verdict; returns the exit code."""
    runs = Storage(sitting.runs_uri)
    if runs.is_local:
        require_folder(runs.path, "--runs-dir")
    ledger = Ledger(runs, name)
    _require_new(ledger)
    with resumable(ledger), Grace(name, console) as grace, _cluster():
        return _begin_and_sit(ledger, at_home_anywhere(space), sitting, console, grace)


def _begin_and_sit(ledger: Ledger, space: Space, sitting: Sitting, console: Console, grace: Grace) -> int:
    material = _material(space, console, sitting, expected=None)
    space, fitted = fit_arms(space, vocab_size=material.tokens.vocab_size)
    for warning in [*fitted, *space.warnings(), *corpus_warnings(space, corpus_facts(material.tokens))]:
        _say(console, sitting, f"note: {warning}")
    require_room(ledger, space, vocab_size=material.tokens.vocab_size)
    looking = _beside(lambda: _look_ahead(space, material))
    with _own_ray(space):
        audit, peaks = looking.result()
        with Lease(ledger.storage, DRIVER_LEASE) as lease:
            _require_new(ledger)  # once more: another driver may have begun it while the corpus was read
            begin(ledger, space, material, audit=audit, peaks_gib=peaks, command=sitting.command)
            return _sit(ledger, lease, space, material, peaks, sitting, console, grace)


def _beside(work: Callable[[], T]) -> Future[T]:
    """Do ``work`` in a thread that nobody waits for when the process ends, unlike those of an executor."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - whoever asks for the result gets it
            future.set_exception(error)

    threading.Thread(target=run, name="beside", daemon=True).start()
    return future


def _look_ahead(space: Space, material: Material) -> tuple[dict[str, Any], dict[str, float]]:
    """The audit of the corpus and each arm's predicted peak in GiB, seconds of work while Ray starts.

    Raises before a sweep exists what it can never be: SpaceErrors for the audit's refusals, BadInputError for trials
    that this machine can never run.
    """
    audit = audit_table(space, material)
    peaks = predicted_peaks(space, vocab_size=material.tokens.vocab_size)
    if cluster_address() is None:
        packing_for(space, peaks)
    return audit, peaks


@contextmanager
def _cluster() -> Iterator[None]:
    """The cluster that ``RAY_ADDRESS`` names, until the block ends; nothing where it names none."""
    address = cluster_address()
    with nullcontext() if address is None else joined_ray(address):
        yield


@contextmanager
def _own_ray(space: Space) -> Iterator[None]:
    """A Ray of our own on this machine until the block ends, unless ``RAY_ADDRESS`` names a cluster."""
    if cluster_address() is not None:
        yield
        return
    with local_ray(cpus=cpus_wanted(space), declared_gpus=space.resources.declared_gpus):
        yield


def _require_new(ledger: Ledger) -> None:
    """Raises BadInputError where a sweep of this name is there, or what is left of one."""
    name = ledger.name
    if ledger.exists():
        raise BadInputError(
            f"a sweep named {name!r} is there already and is never overwritten; `sweeps resume {name}` goes on, "
            f"`sweeps extend {name}` adds to it, or choose another --name"
        )
    strangers = set(ledger.storage.names()) - {DRIVER_LEASE, "plan"}  # these two a beginning that was cut short leaves
    if strangers:
        raise BadInputError(
            f"{ledger.storage.uri} holds no sweep and is not empty ({', '.join(sorted(strangers)[:5])}); "
            "a deletion may have been cut short: remove the rest of it, or choose another --name"
        )


def resume(name: str, sitting: Sitting, console: Console, extend: Callable[[Ledger], object] | None = None) -> int:
    """Run what has no outcome yet; returns the exit code. A finished sweep is left as it is.

    ``extend`` writes more to the plan first, once the sweep is held.
    """
    ledger = Ledger(Storage(sitting.runs_uri), name)
    beginning = ledger.beginning()
    ledger.require_current()
    lease = Lease(ledger.storage, DRIVER_LEASE)
    dead = lease.acquire()
    try:
        _with_resources(current_space(ledger), sitting.overrides)  # a wrong wish is refused before anything is written
        if dead is not None:
            _say(console, sitting, f"the driver before this one ({dead}) is gone; taking its place")
        failed = failed_cells(ledger) if sitting.retry_failed else ()
        if failed or extend is not None:
            _check_code(ledger, beginning, sitting)  # a refusal leaves the ledger as it was
        for planned, outcome in failed:
            ledger.cell_folder(planned.cell_id).forget_failure()
            _say(console, sitting, f"{planned} runs again after: {outcome['reason']}")
        if extend is not None:
            extend(ledger)
        if is_finished(ledger):
            _say(console, sitting, f"sweep {name} is finished; nothing to run")
            return _last_words(ledger, console)
        _check_code(ledger, beginning, sitting)
        _tell_of_other_kernels(beginning, console, sitting)
        with resumable(ledger), Grace(name, console) as grace, _cluster():
            return _go_on(ledger, lease, sitting, console, grace)
    finally:
        lease.release()


def _go_on(ledger: Ledger, lease: Lease, sitting: Sitting, console: Console, grace: Grace) -> int:
    space = _with_resources(current_space(ledger), sitting.overrides)
    material = _material(space, console, sitting, expected=ledger.beginning()["fingerprints"])
    require_room(ledger, space, vocab_size=material.tokens.vocab_size)
    note = precision_note(space, ledger)
    if note is not None:
        _say(console, sitting, f"note: {note}")
    peaks = _peaks(ledger, space, vocab_size=material.tokens.vocab_size)
    with _own_ray(space):
        return _sit(ledger, lease, space, material, peaks, sitting, console, grace)


def _peaks(ledger: Ledger, space: Space, *, vocab_size: int) -> dict[str, float]:
    """Peak GiB of each arm as it was frozen; those of arms that an extension added are predicted now."""
    frozen = {entry["name"]: entry["predicted_peak_gib"] for entry in ledger.beginning()["strategies"]}
    known = {arm: gib for arm, gib in frozen.items() if gib is not None}
    if all(arm.name in frozen for arm in space.strategies):
        return known
    return predicted_peaks(as_trained(space, ledger), vocab_size=vocab_size) | known


def _with_resources(space: Space, overrides: Sequence[str]) -> Space:
    """What may change between a run and its resumption; raises SpaceErrors, naming every difference that may not."""
    changed = with_overrides(space, overrides)
    problems = frozen_differences(space, changed)
    if problems:
        raise SpaceErrors(problems, source="--set")
    return changed


def is_finished(ledger: Ledger) -> bool:
    """Whether every planned cell has its outcome, nothing follows from them, and the verdict was written since."""
    results = LedgerReader(ledger).results()
    ended = [result.outcome is not None for result in results.cells]
    identity = identity_of(results.beginning)
    if not all(ended) or next_cells(current_space(ledger), identity, results, ledger.planned_cells()).cells:
        return False
    from sweeps.verdict.decision import decide

    verdict = ledger.verdict()
    return verdict is not None and verdict == decide(results).as_dict()


def _sit(
    ledger: Ledger,
    lease: Lease,
    space: Space,
    material: Material,
    peaks_gib: Mapping[str, float],
    sitting: Sitting,
    console: Console,
    grace: Grace,
) -> int:
    if cluster_address() is None:
        peaks_gib = _calibrated(as_trained(space, ledger), peaks_gib, None, console, sitting)
        packing = packing_for(space, peaks_gib)
        for warning in resource_plan(space, peaks_gib).warnings:
            _say(console, sitting, f"note: {warning}")
    else:
        packing = _packing_on_cluster(ledger, space, peaks_gib, console, sitting)
    slots = max(packing.slots.values())
    _say(console, sitting, f"sweep {ledger.name}: {slots} trials at once, results in {ledger.storage.uri}")
    watch = open_watch(console, space, ledger.name, slots, quiet=sitting.quiet)
    followed = Followed()
    driver = Driver(
        ledger=ledger,
        space=space,
        identity=material.identity,
        packing=packing,
        watcher=watch,
        checkpoint_every_s=sitting.checkpoint_every_s,
        wake_tracking=followed.wake,
        require_held=lease.require_held,
        exclusive=sitting.exclusive,
    )
    followed.plan = driver.plan
    with following(followed, ledger, sitting.runs_uri, watch.say):
        began_s = time.time()
        with stopped_by_signals(driver, grace), watch.shown():
            driver.run()
        took = ledger.add_sitting(began_s=began_s, first_estimate_s=watch.first_estimate_s, interrupted=driver.stopping)
        if driver.stopping:
            followed.plan = None
            console.print(f"Interrupted; what is durable is kept. Go on with: sweeps resume {ledger.name}")
            return EXIT_RESUMABLE
        _say(console, sitting, time_taken(took["wall_s"], took["first_estimate_s"]))
        finish(ledger, console, keep=space.keep, quiet=sitting.quiet)
        followed.plan = None
        followed.wake()
    register(ledger, sitting.runs_uri, console, quiet=sitting.quiet)
    return _last_words(ledger, console)


def _last_words(ledger: Ledger, console: Console) -> int:
    """Name what failed, with the command that tries again; returns the exit code."""
    failed = failed_cells(ledger)
    for planned, outcome in failed:
        console.print(f"{planned} {outcome['outcome']}: {outcome['reason']}", markup=False, highlight=False)
    if failed:
        console.print(f"Run them again with: sweeps resume {ledger.name} --retry-failed")
    return EXIT_SOME_FAILED if failed else EXIT_DONE


def _packing_on_cluster(
    ledger: Ledger, space: Space, peaks_gib: Mapping[str, float], console: Console, sitting: Sitting
) -> Packing:
    """Look at every node before anything is spent, then share the cluster out.

    Raises BadInputError with every problem at once.
    """
    from sweeps.cluster.machines import cluster_facts
    from sweeps.cluster.preflight import preflight, render
    from sweeps.tracking.store import tracking_store

    found = preflight(
        storage_uri=ledger.storage.uri,
        tracking_uri=tracking_store(sitting.runs_uri).uri,
    )
    if not sitting.quiet:
        console.print(render(found))
    facts = cluster_facts(found.gpu_gib_by_node)
    if not found.problems:
        peaks_gib = _calibrated(as_trained(space, ledger), peaks_gib, facts, console, sitting)
    shared = resource_plan(space, peaks_gib, facts=facts)
    problems = [*found.problems, *shared.problems]
    if problems:
        raise BadInputError("the cluster is not ready:\n" + "\n".join(f"  {problem}" for problem in problems))
    for warning in shared.warnings:
        _say(console, sitting, f"note: {warning}")
    return packing_for(space, peaks_gib, facts=facts)


def _calibrated(
    space: Space, peaks_gib: Mapping[str, float], facts: ClusterFacts | None, console: Console, sitting: Sitting
) -> Mapping[str, float]:
    """Peaks as one real step on a GPU found them, or as they were predicted."""
    from sweeps.trial.probe import calibrated_peaks

    found = calibrated_peaks(space, peaks_gib, facts)
    for note in found.notes:
        _say(console, sitting, f"note: {note}")
    return found.peaks_gib


def _check_code(ledger: Ledger, beginning: Mapping[str, Any], sitting: Sitting) -> None:
    """Refuse other training code than the sweep began with, unless that is wished and then written down."""
    known = [beginning["fingerprints"]["code"], *ledger.code_changes()]
    now = code_fingerprint()
    if now == known[-1]:
        return
    if not sitting.allow_code_change:
        raise BadInputError(
            f"the code of moe has changed since the sweep began (it was {known[-1]}, now it is {now}), so new numbers "
            "may not be comparable with old ones; bring the old code back, or accept the new one with "
            "--allow-code-change, which is written down"
        )
    ledger.add_code_change(now)


def _tell_of_other_kernels(beginning: Mapping[str, Any], console: Console, sitting: Sitting) -> None:
    from moe import kernels

    before, now = (beginning.get("hardware") or {}).get("kernels"), kernels.load().found
    if before not in {None, now}:
        _say(console, sitting, f"note: kernels were '{before}' when the sweep began, now '{now}': last digits differ")


def _material(space: Space, console: Console, sitting: Sitting, *, expected: Mapping[str, Any] | None) -> Material:
    """Tokens and exam, with a progress line while they are built."""
    from moe.errors import CorpusError

    with ExitStack() as stack:
        status = None if sitting.quiet else stack.enter_context(console.status("reading the corpus"))

        def show(progress: Progress) -> None:
            if progress.message is not None:
                _say(console, sitting, progress.message)
            if status is not None:
                status.update(f"{progress.stage} {progress.done_bytes / 2**20:.0f} MiB")

        try:
            return material_for(space, expected=expected, on_progress=show)
        except CorpusError as error:
            raise BadInputError(str(error)) from error


def _say(console: Console, sitting: Sitting, line: str) -> None:
    if not sitting.quiet:
        console.print(line, markup=False, highlight=False, soft_wrap=not console.is_terminal)
