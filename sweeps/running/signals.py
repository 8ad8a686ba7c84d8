"""How a session ends early: by a signal, or by a failing storage or cluster; always with the command that resumes."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Final, NoReturn, Self

from rich.console import Console

from sweeps.errors import EXIT_RESUMABLE, BadInputError, DamagedError, WorldError
from sweeps.ledger.sweep_folder import Ledger
from sweeps.running.driver import Driver
from sweeps.shown_commands import shown_command

GRACE_PERIOD_S: Final = 13.0
"""How long a session may take after a first signal to save, update MLflow, and end its Ray."""

LAST_MESSAGE_S: Final = 1.0


class Interruption:
    """While the block runs, whatever interrupts the session ends it with the command that resumes its ``ledger``.

    SIGTERM counts like SIGINT. Before a sweep exists there is no such command, and an unreachable storage or cluster
    is bad input; so is another thread than the main one.
    """

    def __init__(self, console: Console) -> None:
        self.ledger: Ledger | None = None
        self._console = console
        self._timer = threading.Timer(GRACE_PERIOD_S, self.exit_now)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            raise BadInputError("a sweep runs in the main thread of its program, which is where Ctrl-C arrives")
        self._handler_before = signal.signal(signal.SIGTERM, _raise_interrupt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        signal.signal(signal.SIGTERM, self._handler_before)
        has_started = self.ledger is not None and self.ledger.exists()
        if isinstance(error, DamagedError):
            return  # a person must repair it first, and the message says so
        if isinstance(error, WorldError):
            if not has_started:
                raise BadInputError(str(error)) from error
            raise WorldError(f"{error}\nFinished work is kept. Resume with: {self._command()}") from error
        if isinstance(error, KeyboardInterrupt | SystemExit):  # Ray, once joined to a cluster, raises the latter
            if not has_started:
                raise WorldError("interrupted before the sweep began; nothing is left of it") from None
            raise WorldError(f"interrupted; finished work is kept. Resume with: {self._command()}") from None

    def start_grace_period(self) -> None:
        """End at once when the session has not ended within the grace period."""
        self._timer.start()

    def exit_now(self) -> NoReturn:
        """End the process with a message, which is not waited for where the terminal takes none."""
        last_resort = threading.Timer(LAST_MESSAGE_S, os._exit, [EXIT_RESUMABLE])
        last_resort.daemon = True
        last_resort.start()
        try:
            self._console.show_cursor()
            print(f"\nended at once; resume with: {self._command()}", file=sys.stderr, flush=True)
        finally:
            os._exit(EXIT_RESUMABLE)

    def _command(self) -> str:
        return shown_command("resume", *(() if self.ledger is None else (self.ledger.name,)))


def _raise_interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def stopped_by_signals(driver: Driver, interruption: Interruption) -> Iterator[None]:
    """The first SIGINT or SIGTERM ends the session in order, a second one at once.

    A thread answers them: the main one may be inside of Ray for seconds, where two signals would count as one.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    wakeup_before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    before = {number: signal.signal(number, _leave_it_to_the_thread) for number in (signal.SIGINT, signal.SIGTERM)}
    answering = threading.Thread(target=_answer, args=(reader, driver, interruption), name="signals", daemon=True)
    answering.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup_before)
        writer.close()
        answering.join()  # a signal of the last moment is answered before anybody checks whether there was one
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave_it_to_the_thread(_number: int, _frame: FrameType | None) -> None:
    """Python writes to the wakeup descriptor only for signals that have a handler."""


def _answer(reader: socket.socket, driver: Driver, interruption: Interruption) -> None:
    is_stopping = False
    with reader:
        while number := reader.recv(1):
            if number[0] not in (signal.SIGINT, signal.SIGTERM):
                continue
            if is_stopping:
                interruption.exit_now()
            else:
                is_stopping = True
                interruption.start_grace_period()  # first of all: neither terminal nor storage may answer
                driver.stopping = True  # here and now: ``stop`` writes to the storage too
                threading.Thread(target=_stop, args=(driver,), name="stop", daemon=True).start()


def _stop(driver: Driver) -> None:
    driver.stop()
    driver.watcher.say("stopping: running trials save and return (again to end at once)")
