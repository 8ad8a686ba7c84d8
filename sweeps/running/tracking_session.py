"""MLflow beside a session: a thread keeps it up to date, and at the end it gets the winner's weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from rich.console import Console

from sweeps.errors import BadInputError, SweepHeldError
from sweeps.ledger.lease import DRIVER_LEASE, living_holder
from sweeps.ledger.sweep_folder import Ledger
from sweeps.plan.queue import Plan
from sweeps.running.finish import view_of
from sweeps.shown_commands import shown_command, with_shown_commands

CLOSE_S: Final = 30.0
START_AFTER_S: Final = 8.0  # importing MLflow takes a core some seconds, in which the first workers start


@dataclass
class Tracking:
    """What MLflow's thread follows: ``plan`` holds what runs now, None once nothing does; ``wake`` reports a change."""

    plan: Plan | None = None
    wake: Callable[[], None] = lambda: None


@contextmanager
def tracked(ledger: Ledger, runs_uri: str, say: Callable[[str], None]) -> Iterator[Tracking]:
    """While the block runs MLflow is updated in the background, and once more at the end, however it ends."""
    from sweeps.tracking.projector import Projector
    from sweeps.tracking.store import tracking_store
    from sweeps.tracking.thread import TrackingThread

    tracking = Tracking()
    view = view_of(ledger, lambda: tracking.plan)
    store = tracking_store(runs_uri)
    thread = TrackingThread(Projector(store), view, say, sync_command=shown_command("sync", ledger.name))
    tracking.wake = thread.wake
    thread.start(after_s=START_AFTER_S)
    try:
        yield tracking
    finally:
        tracking.plan = None
        thread.close(CLOSE_S)


def require_unheld(ledger: Ledger) -> None:
    """Raises SweepHeldError where a living driver runs the sweep: it keeps MLflow up to date itself."""
    holder = living_holder(ledger.storage, DRIVER_LEASE)
    if holder is not None:
        raise SweepHeldError(f"sweep {ledger.name} is run by {holder}, which keeps MLflow up to date itself")


def register(ledger: Ledger, runs_uri: str, console: Console, *, quiet: bool) -> None:
    """Register the winner in MLflow; a store that is down costs the entry, never the sweep."""
    from sweeps.running.winner import register_winner
    from sweeps.tracking.projector import is_outage
    from sweeps.tracking.store import tracking_store

    try:
        uri = register_winner(ledger, tracking_store(runs_uri))
    except Exception as error:
        if not isinstance(error, BadInputError) and not is_outage(error):
            raise
        line = f"The winner is not registered ({error}); try again with: {shown_command('sync', ledger.name)}"
        console.print(with_shown_commands(line), markup=False, soft_wrap=True)
        return
    if uri is not None and not quiet:
        line = f"The winner's weights: {uri} in MLflow, or {shown_command('export', ledger.name)} --out DIR"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
