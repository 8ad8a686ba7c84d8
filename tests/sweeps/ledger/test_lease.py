"""Leases: one driver, one worker, and dead ones are replaced."""

import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from sweeps.errors import StorageError, SweepHeldError
from sweeps.ledger.lease import Lease, read_holder
from sweeps.ledger.storage import Storage


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def write_holder(storage: Storage, *, host: str, pid: int, heartbeat_s: float, started_s: float = 0.0) -> None:
    storage.write_json(
        "driver.json",
        {"host": host, "pid": pid, "process_started_s": started_s, "token": "other", "heartbeat_s": heartbeat_s},
    )


def test_a_second_driver_is_refused_with_host_and_pid_of_the_first(storage: Storage) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        started_s = psutil.Process(other.pid).create_time()
        write_holder(storage, host=socket.gethostname(), pid=other.pid, heartbeat_s=0, started_s=started_s)
        with pytest.raises(SweepHeldError, match=f"held by pid {other.pid} on {socket.gethostname()}"):
            Lease(storage, "driver.json").acquire()
        other.kill()


def test_a_lease_of_a_dead_process_is_taken_over_and_the_dead_is_named(storage: Storage) -> None:
    write_holder(storage, host=socket.gethostname(), pid=2**22 - 1, heartbeat_s=time.time())
    lease = Lease(storage, "driver.json")
    dead = lease.acquire()
    assert dead is not None
    assert dead.pid == 2**22 - 1
    lease.release()
    assert read_holder(storage, "driver.json") is None


def test_a_silent_holder_on_another_host_is_stale_and_a_beating_one_is_not(storage: Storage) -> None:
    write_holder(storage, host="elsewhere", pid=1, heartbeat_s=time.time())
    with pytest.raises(SweepHeldError, match="held by pid 1 on elsewhere"):
        Lease(storage, "driver.json").acquire()
    write_holder(storage, host="elsewhere", pid=1, heartbeat_s=time.time() - 31)
    lease = Lease(storage, "driver.json")
    lease.acquire()
    lease.release()


def test_a_killed_holder_that_nobody_reaped_is_dead(storage: Storage) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        started_s = psutil.Process(other.pid).create_time()
        write_holder(storage, host=socket.gethostname(), pid=other.pid, heartbeat_s=time.time(), started_s=started_s)
        other.kill()
        while psutil.Process(other.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        lease = Lease(storage, "driver.json")
        dead = lease.acquire()
        assert dead is not None
        assert dead.pid == other.pid
        lease.release()


def test_a_storage_that_cannot_be_read_does_not_say_that_nobody_holds_the_lease(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_self: Storage, name: str) -> bytes:
        raise StorageError(f"cannot read {name}: the network is down")

    monkeypatch.setattr(Storage, "read_bytes", away)
    with pytest.raises(StorageError, match="the network is down"):
        Lease(storage, "driver.json").acquire()


def test_waiting_takes_the_lease_once_the_holder_is_gone(storage: Storage) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1)"]) as other:
        started_s = psutil.Process(other.pid).create_time()
        write_holder(storage, host=socket.gethostname(), pid=other.pid, heartbeat_s=time.time(), started_s=started_s)
        threading.Thread(target=other.wait, daemon=True).start()  # reaped when it ends, as a shell would
        lease = Lease(storage, "driver.json")
        lease.acquire(wait_s=10)
        lease.release()


def test_who_was_silent_for_too_long_learns_that_the_lease_is_lost_and_leaves_it_alone(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.ledger.lease.HEARTBEAT_S", 0.05)
    lease = Lease(storage, "driver.json")
    lease.acquire()
    lease.require_held()
    write_holder(storage, host="elsewhere", pid=7, heartbeat_s=time.time())
    assert lease._thread is not None
    lease._thread.join(timeout=10)
    with pytest.raises(SweepHeldError, match=r"was taken over by pid 7 on elsewhere while this process .* was silent"):
        lease.require_held()
    lease.release()
    holder = read_holder(storage, "driver.json")
    assert holder is not None
    assert holder.token == "other"
