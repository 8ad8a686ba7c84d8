"""A lease: an object with a heartbeat that says who works on something, on storages that know no locks.

A lease is stale when its process is gone (same host: looked up by pid and start time) or when its heartbeat has been
silent for ``STALE_AFTER_S`` (another host). A stale lease is taken over. Two takers at one moment are told apart by
reading back what was written: the last writer holds it. Who finds at a heartbeat that somebody else holds the lease (it
was asleep, or its storage away, for too long) has lost it, and ``require_held`` says so.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from dataclasses import asdict, dataclass
from types import TracebackType

import psutil

from sweeps.errors import DamagedError, StorageError, SweepHeldError
from sweeps.ledger.storage import Storage

DRIVER_LEASE = "driver.json"  # of a sweep, in its folder
HEARTBEAT_S = 5.0
STALE_AFTER_S = 30.0
_SETTLE_S = 0.05  # between writing a lease and reading it back


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who holds a lease, and when they last said so (seconds since the epoch)."""

    host: str
    pid: int
    process_started_s: float
    token: str
    heartbeat_s: float

    def is_stale(self, now_s: float) -> bool:
        """Whether the holder can be taken for dead."""
        if self.host == socket.gethostname():
            return not _is_running(self.pid, self.process_started_s)
        return now_s - self.heartbeat_s > STALE_AFTER_S

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host}"


class Lease:
    """Held from ``acquire`` to ``release``, or as a context manager; a thread keeps the heartbeat."""

    def __init__(self, storage: Storage, name: str) -> None:
        self._storage = storage
        self._name = name
        self._token = secrets.token_hex(8)
        self._ended = threading.Event()
        self._taken_by: Holder | None = None
        self._thread: threading.Thread | None = None

    def acquire(self, *, wait_s: float = 0.0) -> Holder | None:
        """Take the lease and return the dead holder it was taken over from, if any.

        Waits up to ``wait_s`` for a live holder to go; raises SweepHeldError, naming host and pid, if it does not.
        """
        deadline_s = time.monotonic() + wait_s
        while True:
            holder = read_holder(self._storage, self._name)
            if holder is None or holder.is_stale(time.time()):
                self._beat()
                time.sleep(_SETTLE_S)
                settled = read_holder(self._storage, self._name)
                if settled is not None and settled.token == self._token:
                    self._thread = threading.Thread(target=self._keep_beating, name=f"lease {self._name}", daemon=True)
                    self._thread.start()
                    return holder
                holder = settled or holder
            if time.monotonic() >= deadline_s:
                raise SweepHeldError(
                    f"{self._storage.uri} is held by {holder}: two cannot work on it at once; "
                    "wait until that one ends, or end it"
                )
            time.sleep(0.2)

    def require_held(self) -> None:
        """Raises SweepHeldError, naming host and pid, where the newest heartbeat found that somebody took the lease."""
        if self._taken_by is not None:
            raise SweepHeldError(
                f"{self._storage.uri} was taken over by {self._taken_by} while this process (pid {os.getpid()} on "
                f"{socket.gethostname()}) was silent for more than {STALE_AFTER_S:.0f} s; leave it to that one"
            )

    def release(self) -> None:
        """Give the lease back; a lease that somebody else took over meanwhile is left alone."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(timeout=HEARTBEAT_S)
            self._thread = None
            holder = read_holder(self._storage, self._name)
            if holder is not None and holder.token == self._token:
                self._storage.delete(self._name)

    def __enter__(self) -> Lease:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _beat(self) -> None:
        holder = Holder(
            host=socket.gethostname(),
            pid=os.getpid(),
            process_started_s=psutil.Process().create_time(),
            token=self._token,
            heartbeat_s=time.time(),
        )
        self._storage.write_json(self._name, asdict(holder))

    def _keep_beating(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            try:
                holder = read_holder(self._storage, self._name)
                if holder is not None and holder.token != self._token:
                    self._taken_by = holder
                    return
                self._beat()
            except StorageError:
                continue  # a missed beat is not a lost lease: the next one may land, and work goes on


def read_holder(storage: Storage, name: str) -> Holder | None:
    """Who holds the lease ``name``, dead or alive; None where nobody does or the object is damaged.

    Raises StorageError where the storage cannot be read: an outage does not say that nobody is there.
    """
    try:
        return Holder(**storage.read_json(name))
    except (FileNotFoundError, DamagedError, TypeError):
        return None


def living_holder(storage: Storage, name: str) -> Holder | None:
    """Who holds the lease ``name`` and is not taken for dead, or None."""
    holder = read_holder(storage, name)
    return None if holder is None or holder.is_stale(time.time()) else holder


def _is_running(pid: int, started_s: float) -> bool:
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:  # killed, and never reaped where a container's PID 1 does not
            return False
        return abs(process.create_time() - started_s) < 1.0
    except psutil.Error:
        return False
