"""How a sitting ends before its end: by a signal, or by a world that fails; always with the command that goes on."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final

from rich.console import Console

from sweeps.engine.driver import Driver
from sweeps.errors import EXIT_RESUMABLE, DamagedError, WorldError

GRACE_S: Final = 15.0
"""How long running segments may take to save after a first signal."""


@contextmanager
def resumable(name: str) -> Iterator[None]:
    """Whatever ends a sitting from outside, SIGTERM like SIGINT, ends it with the command that goes on."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except DamagedError:
        raise  # a person must mend it first, and the message says so
    except WorldError as error:
        raise WorldError(f"{error}\nWhat is durable is kept. Go on with: sweeps resume {name}") from error
    except (KeyboardInterrupt, SystemExit):  # Ray, once it runs, makes the latter of a SIGTERM
        raise WorldError(f"interrupted; what is durable is kept. Go on with: sweeps resume {name}") from None
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def stopped_by_signals(driver: Driver, console: Console) -> Iterator[None]:
    """The first SIGINT or SIGTERM ends the sitting in order, a second one at once."""
    is_asked = False
    timers: list[threading.Timer] = []

    def at_once() -> None:
        try:
            console.show_cursor()
            print(f"\nleft at once; go on with: sweeps resume {driver.ledger.name}", file=sys.stderr, flush=True)
        finally:
            os._exit(EXIT_RESUMABLE)

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        nonlocal is_asked
        if is_asked:
            at_once()
        is_asked = True  # first of all: a second signal may come while this one is still being answered
        timer = threading.Timer(GRACE_S, at_once)  # before the storage is asked for anything: it may not answer
        timer.daemon = True
        timer.start()
        timers.append(timer)
        with suppress(RuntimeError):  # a line that was being printed when the signal came cannot be printed into
            driver.watcher.say("stopping: running trials save and return (again to leave at once)")
        driver.stop()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()  # the trials have returned in time
        for number, handler in before.items():
            signal.signal(number, handler)
