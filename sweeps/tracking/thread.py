"""The driver's background thread that keeps MLflow up to date, so that nothing waits for MLflow."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from sweeps.tracking.projection import SweepView
from sweeps.tracking.projector import Projector, is_outage, reason_of
from sweeps.tracking.store import damage, damaged_message

FIRST_RETRY_S = 1.0
LONGEST_RETRY_S = 30.0
LOOK_EVERY_S = 30.0
"""A cell that trains for hours between two rungs writes durable records about once a minute, without ``wake``."""


class TrackingThread:
    """Reads the ledger and projects it when woken, at most once in ``min_interval_s``, and every ``look_every_s``.

    ``wake`` sets a flag and returns: a hundred wake-ups while MLflow is slow or away are one pass when it is back,
    because a pass always shows the newest state. Nothing queues up, so nothing is lost by a full queue.
    """

    def __init__(
        self,
        projector: Projector,
        read: Callable[[], SweepView],
        say: Callable[[str], None],
        *,
        min_interval_s: float = 2.0,
        look_every_s: float = LOOK_EVERY_S,
        first_retry_s: float = FIRST_RETRY_S,
        sync_command: str = "sweeps sync",
    ) -> None:
        """Take what is called in this thread: ``read`` returns the newest view, ``say`` prints one line.

        ``sync_command`` is the command that is shown when the sweep ends before MLflow has caught up.
        """
        self._projector = projector
        self._read = read
        self._say = say
        self._min_interval_s = min_interval_s
        self._look_every_s = look_every_s
        self._first_retry_s = first_retry_s
        self._sync_command = sync_command
        self._retry_s = first_retry_s
        self._is_down = False
        self._was_down = False
        self._dirty = threading.Event()
        self._closing = threading.Event()
        self._up_to_date = False
        self._after_s = 0.0
        # A daemon: a store that hangs in a request must not keep the driver from ending.
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)

    def start(self, *, after_s: float = 0.0) -> TrackingThread:
        """Start the thread, whose first pass comes after ``after_s`` or with ``close``, and return self."""
        self._dirty.set()
        self._after_s = after_s
        self._thread.start()
        return self

    def wake(self) -> None:
        """Note that the ledger has changed; returns at once (microseconds)."""
        self._dirty.set()

    def close(self, timeout_s: float) -> bool:
        """Project the newest state once more, end, and return whether MLflow is up to date; say so where it is not.

        Waits ``timeout_s`` at most. While the store is down one last attempt is made at once, and then no other.
        """
        self._dirty.set()
        self._closing.set()
        self._thread.join(timeout_s)
        up_to_date = self._up_to_date and not self._thread.is_alive()
        if not up_to_date:
            where = self._projector.store.label
            self._say(f"MLflow at {where} is behind the sweep; `{self._sync_command}` brings it up to date")
        return up_to_date

    def _run(self) -> None:
        self._closing.wait(self._after_s)
        looked_s = time.monotonic()
        while True:
            closing = self._closing.is_set()
            woken = closing or self._dirty.wait(timeout=min(0.5, self._look_every_s))
            if not woken and time.monotonic() - looked_s < self._look_every_s:
                continue
            looked_s = time.monotonic()
            self._dirty.clear()
            if closing and self._was_down:  # a late answer to a request given up on could have doubled a run
                self._projector.forget()
            self._up_to_date = self._attempt()
            if closing:
                return
            if self._up_to_date:
                self._closing.wait(self._min_interval_s)
            else:
                self._dirty.set()
                self._closing.wait(self._retry_s)
                self._retry_s = min(self._retry_s * 2, LONGEST_RETRY_S)

    def _attempt(self) -> bool:
        view = None
        try:
            view = self._read()
            self._projector.apply(view)
        except Exception as error:  # noqa: BLE001 - a sweep never ends because its view cannot be drawn
            self._report_down(error, is_ours=view is None or not is_outage(error))
            return False
        if self._is_down:
            self._is_down = False
            self._say(f"MLflow at {self._projector.store.label} is back, and up to date with the sweep")
        self._retry_s = self._first_retry_s
        return True

    def _report_down(self, error: Exception, *, is_ours: bool) -> None:
        if self._is_down:
            return
        self._is_down = self._was_down = True
        store = self._projector.store
        damaged = None if is_ours else damage(store)
        if damaged is not None:
            self._say(f"{damaged_message(store, damaged, self._sync_command)}; the sweep goes on")
            return
        what = f"cannot follow: {type(error).__name__}" if is_ours else "does not answer"
        self._say(
            f"MLflow at {store.label} {what} ({reason_of(error)}); the sweep goes on and the view catches up later"
        )
