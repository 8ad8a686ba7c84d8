"""MLflow beside a sitting: it follows in a thread, and has the winner's weights at the end."""

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

CLOSE_S: Final = 30.0
AFTER_S: Final = 8.0  # importing MLflow takes a core some seconds, in which the first workers start


@dataclass
class Followed:
    """MLflow's view of this sitting: ``plan`` says what runs now, None once nothing does and the verdict is there."""

    plan: Plan | None = None
    ledger_changed: Callable[[], None] = lambda: None

    def wake(self) -> None:
        """Tell MLflow's thread, once there is one, that the ledger has changed."""
        self.ledger_changed()


@contextmanager
def following(followed: Followed, ledger: Ledger, runs_uri: str, say: Callable[[str], None]) -> Iterator[None]:
    """MLflow follows in the background; at the end it is brought up to date, whatever happened."""
    from sweeps.tracking.projector import Projector
    from sweeps.tracking.store import tracking_store
    from sweeps.tracking.thread import TrackingThread

    view = view_of(ledger, lambda: followed.plan)
    store = tracking_store(runs_uri)
    thread = TrackingThread(Projector(store), view, say, sync_command=f"sweeps sync {ledger.name}")
    followed.ledger_changed = thread.wake
    thread.start(after_s=AFTER_S)
    try:
        yield
    finally:
        followed.plan = None
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
        console.print(f"The winner is not registered ({error}); `sweeps sync {ledger.name}` tries again", markup=False)
        return
    if uri is not None and not quiet:
        line = f"The winner's weights: {uri} in MLflow, or `sweeps export {ledger.name} --out DIR`"
        console.print(line, markup=False, highlight=False, soft_wrap=not console.is_terminal)
