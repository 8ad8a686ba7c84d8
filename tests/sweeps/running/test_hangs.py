"""Which workers are taken to hang, by a clock that the tests move."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sweeps.errors import StorageError
from sweeps.ledger.lease import CELL_LEASE, Lease, LeaseWatch
from sweeps.ledger.storage import Storage
from sweeps.ledger.world import RealWorld, Task
from sweeps.running.hangs import HangWatch

EVERY_S = 5.0


class Clock(RealWorld):
    """A clock that tests move; what is spawned never runs, so leases beat when a test says so."""

    now_s = 1_000.0

    def monotonic_s(self) -> float:
        return self.now_s

    def spawn(self, work: Callable[[], None], name: str) -> Task:
        return super().spawn(lambda: None, name)


class Scene:
    """A driver that looks every few seconds at the one cell that a worker has."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.storage = Storage(str(folder), world=self.clock)
        self.lease = Lease(self.storage, CELL_LEASE)
        self.watch = HangWatch(self.clock, lambda _: LeaseWatch(self.storage, CELL_LEASE))

    def passes(self, seconds: float, *, beats: bool = False) -> float | None:
        """Let time pass; returns how much of it had passed when the worker was taken to hang, None where it was not."""
        began_s = self.clock.now_s
        while self.clock.now_s < began_s + seconds:
            self.clock.now_s += EVERY_S
            if beats:
                self.lease._write(released=False)
            if self.watch.hung({"cell"}):
                return self.clock.now_s - began_s
        return None

    def reports(self, pause_s: float = EVERY_S, times: int = 1) -> None:
        """Let the worker report so often, with its heartbeats."""
        for _ in range(times):
            assert self.passes(pause_s, beats=True) is None
            self.watch.reported("cell")


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_a_worker_that_neither_reports_nor_beats_hangs_after_a_minute_and_a_half(scene: Scene) -> None:
    scene.lease.acquire()
    scene.reports(times=3)
    found_s = scene.passes(600)
    assert found_s is not None
    assert 90 <= found_s <= 110
    assert scene.watch.ended("cell") == f"its worker hung: no report for {found_s:.0f} s, no heartbeat for 65 s"
    assert scene.watch.hung({"cell"}) == [], "the next worker of the cell begins anew"


def test_a_long_exam_is_no_hang_and_silence_without_end_is_one(scene: Scene) -> None:
    scene.lease.acquire()
    scene.reports(times=3)
    assert scene.passes(1_750, beats=True) is None
    assert scene.passes(100, beats=True) is not None
    assert scene.watch.ended("cell") == "its worker hung: no report for 1805 s"


def test_who_reports_seldom_may_be_silent_for_longer(scene: Scene) -> None:
    scene.lease.acquire()
    scene.reports(pause_s=600, times=2)
    assert scene.passes(5_900, beats=True) is None
    assert scene.passes(200, beats=True) is not None


def test_compiling_and_building_token_files_before_the_first_report_is_no_hang(scene: Scene) -> None:
    scene.lease.acquire()
    assert scene.passes(7_000, beats=True) is None
    assert scene.passes(300, beats=True) is not None


def test_a_worker_that_has_yet_to_take_the_lease_of_a_dead_one_is_given_time(scene: Scene) -> None:
    scene.lease.acquire()  # by the dead one
    assert scene.passes(600) is None
    assert scene.passes(400) is not None


def test_a_worker_that_never_takes_a_lease_hangs(scene: Scene) -> None:
    assert scene.passes(900) is None
    assert scene.passes(100) is not None


def test_the_time_in_which_the_driver_slept_counts_for_nothing(scene: Scene) -> None:
    scene.lease.acquire()
    scene.reports(times=3)
    assert scene.passes(60) is None
    scene.clock.now_s += 36_000
    assert scene.passes(80) is None
    assert scene.passes(60) is not None


def test_a_storage_that_does_not_answer_says_nothing_of_a_worker(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.lease.acquire()
    scene.reports(times=3)

    def away(*_: object) -> None:
        raise StorageError("the network is down")

    with monkeypatch.context() as outage:
        outage.setattr(Storage, "names", away)
        assert scene.passes(600) is None
    assert scene.passes(50) is None
    assert scene.passes(60) is not None
