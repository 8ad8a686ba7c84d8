"""Signals: counted one by one, answered without the main thread, and the last message never waited for."""

import signal
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from sweeps.errors import EXIT_RESUMABLE
from sweeps.running.signals import stopped_by_signals

PATIENCE_S = 1200.0

BLOCKED_TERMINAL = """
import fcntl, os
from rich.console import Console
from sweeps.running.signals import Interruption

flags = fcntl.fcntl(2, fcntl.F_GETFL)
fcntl.fcntl(2, fcntl.F_SETFL, flags | os.O_NONBLOCK)
try:
    while True:
        os.write(2, b"x" * 4096)
except BlockingIOError:
    fcntl.fcntl(2, fcntl.F_SETFL, flags)
Interruption(Console(stderr=True)).exit_now()
"""


class Session:
    """A driver and an interruption that only note what is called."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.began, self.stopped, self.ended = threading.Event(), threading.Event(), threading.Event()
        self.driver: Any = SimpleNamespace(
            stopping=False, stop=self.stopped.set, watcher=SimpleNamespace(say=self.said.append)
        )
        self.interruption: Any = SimpleNamespace(start_grace_period=self.began.set, exit_now=self.ended.set)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_first_signal_asks_to_stop_and_a_second_one_ends_at_once(number: signal.Signals) -> None:
    session = Session()
    before = signal.getsignal(number)
    with stopped_by_signals(session.driver, session.interruption):
        signal.raise_signal(number)
        assert session.stopped.wait(PATIENCE_S)
        assert session.began.is_set()
        assert session.driver.stopping
        assert not session.ended.is_set()
        signal.raise_signal(number)
        assert session.ended.wait(PATIENCE_S)
    assert signal.getsignal(number) == before
    assert session.said == ["stopping: running trials save and return (again to end at once)"]


def test_a_signal_of_the_last_moment_is_known_when_the_block_has_ended() -> None:
    session = Session()
    with stopped_by_signals(session.driver, session.interruption):
        signal.raise_signal(signal.SIGINT)
    assert session.driver.stopping


def test_without_a_signal_nothing_is_asked_for() -> None:
    session = Session()
    with stopped_by_signals(session.driver, session.interruption):
        pass
    assert not session.driver.stopping
    assert not session.began.is_set()


def test_a_terminal_that_takes_no_output_does_not_hold_up_the_end() -> None:
    process = subprocess.Popen([sys.executable, "-c", BLOCKED_TERMINAL], stderr=subprocess.PIPE)
    try:
        assert process.wait(timeout=PATIENCE_S) == EXIT_RESUMABLE
    finally:
        process.kill()
        process.communicate()
