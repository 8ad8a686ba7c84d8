"""Signals: counted one by one, answered without the main thread, and the last word never waited for."""

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

SPEECHLESS = """
import fcntl, os
from rich.console import Console
from sweeps.running.signals import Grace

flags = fcntl.fcntl(2, fcntl.F_GETFL)
fcntl.fcntl(2, fcntl.F_SETFL, flags | os.O_NONBLOCK)
try:
    while True:
        os.write(2, b"x" * 4096)
except BlockingIOError:
    fcntl.fcntl(2, fcntl.F_SETFL, flags)
Grace("first", Console(stderr=True)).end_at_once()
"""


class Sitting:
    """A driver and a grace that only note what they are asked."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.began, self.stopped, self.ended = threading.Event(), threading.Event(), threading.Event()
        self.driver: Any = SimpleNamespace(
            stopping=False, stop=self.stopped.set, watcher=SimpleNamespace(say=self.said.append)
        )
        self.grace: Any = SimpleNamespace(begin=self.began.set, end_at_once=self.ended.set)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_first_signal_asks_to_stop_and_a_second_one_ends_at_once(number: signal.Signals) -> None:
    sitting = Sitting()
    before = signal.getsignal(number)
    with stopped_by_signals(sitting.driver, sitting.grace):
        signal.raise_signal(number)
        assert sitting.stopped.wait(PATIENCE_S)
        assert sitting.began.is_set()
        assert sitting.driver.stopping
        assert not sitting.ended.is_set()
        signal.raise_signal(number)
        assert sitting.ended.wait(PATIENCE_S)
    assert signal.getsignal(number) == before
    assert sitting.said == ["stopping: running trials save and return (again to leave at once)"]


def test_a_signal_of_the_last_moment_is_known_when_the_block_has_ended() -> None:
    sitting = Sitting()
    with stopped_by_signals(sitting.driver, sitting.grace):
        signal.raise_signal(signal.SIGINT)
    assert sitting.driver.stopping


def test_without_a_signal_nothing_is_asked_for() -> None:
    sitting = Sitting()
    with stopped_by_signals(sitting.driver, sitting.grace):
        pass
    assert not sitting.driver.stopping
    assert not sitting.began.is_set()


def test_a_terminal_that_takes_no_output_does_not_hold_up_the_end() -> None:
    process = subprocess.Popen([sys.executable, "-c", SPEECHLESS], stderr=subprocess.PIPE)
    try:
        assert process.wait(timeout=PATIENCE_S) == EXIT_RESUMABLE
    finally:
        process.kill()
        process.communicate()
