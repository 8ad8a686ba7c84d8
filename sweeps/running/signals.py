"""How a sitting ends before its end: by a signal, or by a world that fails; always with the command that goes on."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final, NoReturn, Self

from rich.console import Console

from sweeps.errors import EXIT_RESUMABLE, BadInputError, DamagedError, WorldError
from sweeps.ledger.sweep_folder import Ledger
from sweeps.running.driver import Driver

GRACE_S: Final = 13.0
"""How long a sitting may take after a first signal to save, tell MLflow, and end its Ray."""

LAST_WORD_S: Final = 1.0


@contextmanager
def resumable(ledger: Ledger) -> Iterator[None]:
    """Whatever ends a sitting from outside, SIGTERM like SIGINT, ends it with the command that goes on.

    Where no sweep has begun yet there is none, and a world that fails is bad input.
    """

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except DamagedError:
        raise  # a person must mend it first, and the message says so
    except WorldError as error:
        if not ledger.exists():
            raise BadInputError(str(error)) from error
        raise WorldError(f"{error}\nWhat is durable is kept. Go on with: sweeps resume {ledger.name}") from error
    except (KeyboardInterrupt, SystemExit):  # Ray, once it has joined a cluster, makes the latter of a SIGTERM
        if not ledger.exists():
            raise WorldError("interrupted before the sweep began; nothing is left of it") from None
        raise WorldError(f"interrupted; what is durable is kept. Go on with: sweeps resume {ledger.name}") from None
    finally:
        signal.signal(signal.SIGTERM, before)


class Grace:
    """The time a sitting has to end in order once a signal has asked for it; when it is over it ends at once."""

    def __init__(self, name: str, console: Console) -> None:
        self._name = name
        self._console = console
        self._timer = threading.Timer(GRACE_S, self.end_at_once)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def begin(self) -> None:
        """Start the clock."""
        self._timer.start()

    def end_at_once(self) -> NoReturn:
        """Leave without another word to anybody but the user, and with none where the terminal takes none."""
        speechless = threading.Timer(LAST_WORD_S, os._exit, [EXIT_RESUMABLE])
        speechless.daemon = True
        speechless.start()
        try:
            self._console.show_cursor()
            print(f"\nleft at once; go on with: sweeps resume {self._name}", file=sys.stderr, flush=True)
        finally:
            os._exit(EXIT_RESUMABLE)


@contextmanager
def stopped_by_signals(driver: Driver, grace: Grace) -> Iterator[None]:
    """The first SIGINT or SIGTERM ends the sitting in order, a second one at once.

    A thread answers them: the main one may be inside of Ray for seconds, where two signals would count as one.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    wakeup_before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    before = {number: signal.signal(number, _leave_it_to_the_thread) for number in (signal.SIGINT, signal.SIGTERM)}
    answering = threading.Thread(target=_answer, args=(reader, driver, grace), name="signals", daemon=True)
    answering.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup_before)
        writer.close()
        answering.join()  # a signal of the last moment is answered before anybody asks whether there was one
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave_it_to_the_thread(_number: int, _frame: FrameType | None) -> None:
    """Python tells the wakeup descriptor only of signals that have a handler."""


def _answer(reader: socket.socket, driver: Driver, grace: Grace) -> None:
    is_asked = False
    with reader:
        while number := reader.recv(1):
            if number[0] not in (signal.SIGINT, signal.SIGTERM):
                continue
            if is_asked:
                grace.end_at_once()
            else:
                is_asked = True
                grace.begin()  # first of all: neither terminal nor storage may answer
                driver.stopping = True  # here and now: ``stop`` writes to the storage too
                threading.Thread(target=_stop, args=(driver,), name="stop", daemon=True).start()


def _stop(driver: Driver) -> None:
    driver.stop()
    driver.watcher.say("stopping: running trials save and return (again to leave at once)")
