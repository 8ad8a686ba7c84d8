"""Leases: one driver, one worker; dead ones are replaced, and who slept is fenced off."""

import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from sweeps.errors import StorageError, SweepHeldError
from sweeps.ledger.lease import HEARTBEAT_S, STALE_AFTER_S, TRUSTED_S, Lease, claims, living_holder
from sweeps.ledger.storage import Storage
from sweeps.ledger.world import Process, RealWorld, Task


class Host(RealWorld):
    """A machine with a clock of its own, moved by its sleeps, where heartbeats happen when a test says so."""

    def __init__(self, name: str, *, pid: int = 7, boot_id: str | None = None, wall_s: float = 0.0) -> None:
        self.me = Process(host=name, boot_id=boot_id or name, pid_namespace="", pid=pid, start_ticks=1)
        self.now_s = 1_000.0
        self.wall_s = wall_s
        self.dead: set[int] = set()
        self.while_asleep = lambda: None

    def time_s(self) -> float:
        return self.wall_s + self.now_s

    def monotonic_s(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.while_asleep()

    def spawn(self, work: object, name: str) -> Task:
        thread = threading.Thread(target=lambda: None)
        thread.start()
        return thread

    def process(self) -> Process:
        return self.me

    def is_running(self, process: Process) -> bool | None:
        return process.pid not in self.dead if process.boot_id == self.me.boot_id else None


def lease_of(tmp_path: Path, world: Host) -> Lease:
    return Lease(Storage(str(tmp_path), world=world), "driver")


def beat(lease: Lease) -> None:
    if lease._check_held(lease._beating):
        lease._write(released=False)


def test_a_second_driver_is_refused_at_once_with_host_and_pid_of_the_first(tmp_path: Path) -> None:
    first, second = Host("here", pid=7), Host("here", pid=8)
    lease_of(tmp_path, first).acquire()
    with pytest.raises(SweepHeldError, match="held by pid 7 on here: two cannot work on it at once"):
        lease_of(tmp_path, second).acquire()
    assert second.now_s == 1_000.0


def test_a_lease_of_a_dead_process_is_taken_over_at_once_and_the_dead_is_named(tmp_path: Path) -> None:
    lease_of(tmp_path, Host("here", pid=7)).acquire()
    second = Host("here", pid=8)
    second.dead = {7}
    dead = lease_of(tmp_path, second).acquire()
    assert dead is not None
    assert dead.pid == 7
    assert second.now_s == 1_000.0


def test_a_lease_that_was_given_back_is_free_and_its_number_rises(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path), world=Host("here"))
    tokens = []
    for _ in range(3):
        lease = Lease(storage, "driver")
        assert lease.acquire() is None
        tokens.append(lease.token)
        lease.release()
    assert [token.partition("-")[0] for token in tokens] == ["000001", "000002", "000003"]
    assert claims(storage, "driver") == [3]
    assert living_holder(storage, "driver") is None


def test_a_silent_holder_on_another_host_is_stale_by_the_clock_of_who_waits(tmp_path: Path) -> None:
    lease_of(tmp_path, Host("far", wall_s=1e9)).acquire()  # whose clock is thirty years ahead
    near = Host("near")
    dead = lease_of(tmp_path, near).acquire()
    assert dead is not None
    assert STALE_AFTER_S < near.now_s - 1_000 < STALE_AFTER_S + 2


def test_a_living_holder_that_was_given_up_is_superseded_at_once_and_a_later_one_is_not(tmp_path: Path) -> None:
    cut_off, second, third = Host("here", pid=7), Host("here", pid=8), Host("here", pid=9)
    given_up = lease_of(tmp_path, cut_off)
    given_up.acquire()
    lease_of(tmp_path, second).acquire(given_up=1)
    assert second.now_s == 1_000.0
    beat(given_up)
    with pytest.raises(SweepHeldError, match="taken over by pid 8 on here"):
        given_up.require_held()
    with pytest.raises(SweepHeldError, match="held by pid 8 on here"):
        lease_of(tmp_path, third).acquire(given_up=1)


@pytest.mark.parametrize("wait_s", [0.0, 45.0])
def test_a_holder_whose_clock_is_wrong_and_who_beats_is_alive(tmp_path: Path, wait_s: float) -> None:
    far, near = Host("far", wall_s=-1e9), Host("near")
    held = lease_of(tmp_path, far)
    held.acquire()
    beats: list[float] = []

    def pass_time() -> None:
        if near.now_s - (beats[-1] if beats else 1_000) > HEARTBEAT_S:
            beats.append(near.now_s)
            far.now_s = near.now_s
            beat(held)

    near.while_asleep = pass_time
    with pytest.raises(SweepHeldError, match="held by pid 7 on far"):
        lease_of(tmp_path, near).acquire(wait_s=wait_s)
    assert near.now_s - 1_000 < wait_s + 2 * HEARTBEAT_S + 1


def test_a_process_of_another_pid_namespace_is_not_dead_because_its_pid_is_not_to_be_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = RealWorld()
    me = world.process()
    assert world.is_running(me) is True
    assert world.is_running(replace(me, pid_namespace="pid:[1]", pid=2**22 - 1)) is None
    assert world.is_running(replace(me, boot_id="another boot")) is None
    assert world.is_running(replace(me, pid=2**22 - 1)) is False
    assert world.is_running(replace(me, start_ticks=me.start_ticks - 1)) is False, "the pid was given out again"

    def of_another_user(pid: int, signal: int) -> None:
        raise PermissionError(pid, signal)

    monkeypatch.setattr("os.kill", of_another_user)
    assert world.is_running(replace(me, pid=2**22 - 1)) is None, "/proc hides the processes of others"


def test_a_killed_holder_that_nobody_reaped_is_dead() -> None:
    world = RealWorld()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        code = f"from sweeps.ledger.world import _start_ticks; print(_start_ticks({other.pid}))"
        ticks = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        holder = replace(world.process(), pid=other.pid, start_ticks=ticks)
        assert world.is_running(holder) is True
        other.kill()
        while "Z" not in Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2][:3]:
            time.sleep(0.01)
        assert world.is_running(holder) is False


def test_a_process_that_lives_and_beats_no_more_is_taken_over_too(tmp_path: Path) -> None:
    lease_of(tmp_path, Host("here", pid=7)).acquire()
    second = Host("here", pid=8)
    assert lease_of(tmp_path, second).acquire(wait_s=45) is not None
    assert second.now_s - 1_000 > STALE_AFTER_S


def test_a_damaged_lease_is_not_a_free_one(tmp_path: Path) -> None:
    far = Host("far")
    held = lease_of(tmp_path, far)
    held.acquire()
    claim = tmp_path / "driver" / "000001.json"
    claim.write_bytes(claim.read_bytes().replace(b'"far"', b'"fur"'))
    near = Host("near")

    def repair() -> None:
        if near.now_s > 1_000 + HEARTBEAT_S:
            beat(held)

    near.while_asleep = repair
    with pytest.raises(SweepHeldError, match="held by pid 7 on far"):
        lease_of(tmp_path, near).acquire()


def test_a_damaged_lease_that_nobody_repairs_goes_stale(tmp_path: Path) -> None:
    (tmp_path / "driver").mkdir()
    (tmp_path / "driver" / "000004.json").write_text("{")
    near = Host("near")
    lease = lease_of(tmp_path, near)
    lease.acquire()
    assert lease.token.startswith("000005-")
    assert near.now_s - 1_000 > STALE_AFTER_S


def test_of_many_takers_at_once_one_gets_the_lease(tmp_path: Path) -> None:
    lease_of(tmp_path, Host("here", pid=7)).acquire()
    start, held = threading.Barrier(6), []

    def take(pid: int) -> None:
        world = Host("here", pid=pid)
        world.dead = {7}
        lease = lease_of(tmp_path, world)
        start.wait()
        try:
            lease.acquire()
        except SweepHeldError:
            return
        held.append(pid)

    takers = [threading.Thread(target=take, args=(pid,)) for pid in range(10, 16)]
    for taker in takers:
        taker.start()
    for taker in takers:
        taker.join()
    assert len(held) == 1


def test_a_taker_that_slept_between_looking_and_claiming_does_not_get_a_number_of_the_past(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Lease(Storage(str(tmp_path), world=Host("slow")), "driver")
    create = Storage.create_json
    others = []

    def late(self: Storage, name: str, value: object) -> None:
        monkeypatch.setattr(Storage, "create_json", create)
        for _ in range(2):
            others.append(lease_of(tmp_path, Host("other")))
            others[-1].acquire()
            if len(others) == 1:
                others[-1].release()
        create(self, name, value)  # type: ignore[arg-type]

    monkeypatch.setattr(Storage, "create_json", late)
    assert not slow._claim(1)
    assert claims(slow._storage, "driver") == [2]


def test_who_was_silent_for_too_long_looks_before_it_trusts_its_lease(tmp_path: Path) -> None:
    slow, quick = Host("slow"), Host("quick")
    lease = lease_of(tmp_path, slow)
    lease.acquire()
    lease_of(tmp_path, quick).acquire()
    lease.require_held()  # it has looked a moment ago, by its own clock
    slow.now_s += TRUSTED_S + 1
    with pytest.raises(SweepHeldError, match=r"was taken over by pid 7 on quick while this process .* was silent"):
        lease.require_held()
    lease.release()
    assert claims(Storage(str(tmp_path)), "driver") == [2], "the lease of the other is left alone"


def test_who_was_silent_and_not_superseded_goes_on(tmp_path: Path) -> None:
    slow = Host("slow")
    lease = lease_of(tmp_path, slow)
    lease.acquire()
    slow.now_s += 10 * STALE_AFTER_S
    lease.require_held()


def test_before_what_no_fencing_protects_the_storage_is_asked(tmp_path: Path) -> None:
    lease = lease_of(tmp_path, Host("slow"))
    lease.acquire()
    lease_of(tmp_path, Host("quick")).acquire()
    with pytest.raises(SweepHeldError, match="taken over by pid 7 on quick"):
        lease.confirm()


def test_a_claim_that_is_gone_is_a_lost_lease(tmp_path: Path) -> None:
    lease = lease_of(tmp_path, Host("here"))
    lease.acquire()
    (tmp_path / "driver" / "000001.json").unlink()
    beat(lease)
    with pytest.raises(SweepHeldError, match="was taken over by another process"):
        lease.require_held()
    assert not (tmp_path / "driver" / "000001.json").exists()


def test_the_heartbeat_of_a_real_process_moves_on_and_survives_an_outage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.ledger.lease.HEARTBEAT_S", 0.01)
    storage = Storage(str(tmp_path))
    claim = tmp_path / "driver" / "000001.json"
    with Lease(storage, "driver"):
        monkeypatch.setattr(os, "scandir", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        time.sleep(0.05)
        monkeypatch.undo()
        before = claim.read_bytes()
        deadline_s = time.monotonic() + 20
        while claim.read_bytes() == before and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert claim.read_bytes() != before


def test_a_storage_that_cannot_be_read_does_not_say_that_nobody_holds_the_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_self: Storage, _name: str = "") -> list[str]:
        raise StorageError("cannot list: the network is down")

    monkeypatch.setattr(Storage, "names", away)
    with pytest.raises(StorageError, match="the network is down"):
        lease_of(tmp_path, Host("here")).acquire()
