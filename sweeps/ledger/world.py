"""The one seam to what lies outside of a process: clocks, sleep, threads, random tokens, identity, storage.

``RealWorld`` is this machine. ``tests/simulation`` has another one, with virtual time and faults at every operation.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Protocol

from sweeps.ledger.backends import Backend, LocalDisk, ObjectStore

PATIENCE_S: Final = 60.0
"""How long an operation of a storage that is away is retried by a process that would otherwise lose work."""


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process, identified among all others: a pid says nothing without its PID namespace and boot."""

    host: str
    boot_id: str
    pid_namespace: str
    pid: int
    start_ticks: int


class Event(Protocol):
    """What ``threading.Event`` does."""

    def set(self) -> None:
        """Let everybody who waits go on."""
        ...

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set; returns whether it is."""
        ...


class Task(Protocol):
    """Work that runs beside the caller, as in a thread."""

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended, at most ``timeout`` seconds."""
        ...


class World(Protocol):
    """What a process can see and do outside of itself."""

    def time_s(self) -> float:
        """Seconds since the epoch, by a clock that may be wrong and may jump."""
        ...

    def monotonic_s(self) -> float:
        """Seconds of a clock that never jumps, for comparisons within this process alone; it runs while asleep."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait."""
        ...

    def spawn(self, work: Callable[[], None], name: str) -> Task:
        """Run ``work`` beside the caller; the process does not wait for it when it ends."""
        ...

    def event(self) -> Event:
        """Make an event that is not set."""
        ...

    def random_token(self, n_bytes: int) -> str:
        """Hexadecimal digits that nobody else draws."""
        ...

    def process(self) -> Process:
        """Who the caller is."""
        ...

    def is_running(self, process: Process) -> bool | None:
        """Whether a process runs; None where this process cannot know: another host, boot or PID namespace."""
        ...

    def backend(self, uri: str) -> Backend:
        """Open what a storage at a local path, ``s3://`` or ``gs://`` is made of."""
        ...


class RealWorld:
    """This machine."""

    def time_s(self) -> float:
        """Return the wall clock."""
        return time.time()

    def monotonic_s(self) -> float:
        """Return the time since boot; ``time.monotonic`` stands still while a laptop sleeps."""
        return time.clock_gettime(_BOOTTIME)

    def sleep(self, seconds: float) -> None:
        """Sleep."""
        time.sleep(seconds)

    def spawn(self, work: Callable[[], None], name: str) -> Task:
        """Start a daemon thread."""
        thread = threading.Thread(target=work, name=name, daemon=True)
        thread.start()
        return thread

    def event(self) -> Event:
        """Make a ``threading.Event``."""
        return threading.Event()

    def random_token(self, n_bytes: int) -> str:
        """Draw from the system's generator."""
        return secrets.token_hex(n_bytes)

    def process(self) -> Process:
        """Return this process as ``/proc`` shows it."""
        pid = os.getpid()
        return Process(
            host=socket.gethostname(),
            boot_id=_boot_id(),
            pid_namespace=_pid_namespace(),
            pid=pid,
            start_ticks=_start_ticks(pid) or 0,
        )

    def is_running(self, process: Process) -> bool | None:
        """Look the process up if it shares this one's boot and PID namespace, and ``/proc`` does not hide it."""
        if (process.boot_id, process.pid_namespace) != (_boot_id(), _pid_namespace()):
            return None
        ticks = _start_ticks(process.pid)
        return None if ticks is None and _is_hidden(process.pid) else ticks == process.start_ticks

    def backend(self, uri: str) -> Backend:
        """Open a disk for a path, an object store for a URI."""
        return ObjectStore(uri) if "://" in uri else LocalDisk(Path(uri))


_BOOTTIME = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # Linux has it; macOS's CLOCK_MONOTONIC is as good


@cache
def _boot_id() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    import psutil

    return f"{socket.gethostname()} {psutil.boot_time():.0f}"


def _pid_namespace() -> str:
    with suppress(OSError):
        return str(Path("/proc/self/ns/pid").readlink())
    return ""  # systems without PID namespaces


def _is_hidden(pid: int) -> bool:
    """Whether another user's process has this pid; mounted with ``hidepid``, ``/proc`` does not show it."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def _start_ticks(pid: int) -> int | None:
    """When a process started, in ticks since boot; None where there is none, or it was killed and never reaped."""
    import psutil

    with suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in ("Z", "X") else int(fields[19])
    if Path("/proc/self/stat").exists():
        return None
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else round(process.create_time() * 100)
    return None
