"""Machines of their own on this one, as far as Ray and a sweep can tell: network, processes, name and ``/tmp/ray``."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.integration.ray_cluster import RayCluster, ray_cluster
from tests.integration.sweeping import PATIENCE_S

PROGRAMS = ("unshare", "nsenter", "mount", "hostname")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One of them: its name and address, and the words that run a command there."""

    name: str
    address: str
    prefix: tuple[str, ...]
    first_pid: int

    def power_off(self) -> None:
        """End every process of the machine at once, as when it loses power."""
        os.kill(self.first_pid, signal.SIGKILL)  # process 1 there, with which the kernel ends all others

    def run(self, command: str, environment: Mapping[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run a shell's line there, as somebody who is logged in types it."""
        return subprocess.run(
            [*self.prefix, "/bin/sh", "-c", f"cd {shlex.quote(str(cwd))} && {command}"],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )


@contextmanager
def machines(folder: Path, count: int) -> Iterator[tuple[Machine, ...]]:
    """So many machines on one network, until the block ends; all their processes end with them. Needs root."""
    with ray_cluster(folder) as network, ExitStack() as stack:
        yield tuple(stack.enter_context(_machine(network, f"machine-{number}")) for number in range(1, count + 1))


@contextmanager
def _machine(network: RayCluster, name: str) -> Iterator[Machine]:
    into_network, address = network.namespace()
    lives = f"hostname {name} && mkdir -p /tmp/ray && mount -t tmpfs none /tmp/ray && exec sleep infinity"
    unshared = ("unshare", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child")
    holder = subprocess.Popen([*into_network, *unshared, "sh", "-c", lives])
    try:
        first = _first_process(holder)
        words = ("nsenter", "--target", str(first), "--net", "--mount", "--pid", "--uts")
        yield Machine(name=name, address=address, prefix=words, first_pid=first)
    finally:
        holder.kill()  # its child is process 1 there, with which the kernel ends all others
        holder.wait()


def _first_process(holder: subprocess.Popen[bytes]) -> int:
    """The pid here of process 1 there, once the machine is made."""
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        children = psutil.Process(holder.pid).children()
        if children and children[0].name() == "sleep":
            return children[0].pid
        assert holder.poll() is None, "a machine could not be made"
        time.sleep(0.05)
    raise TimeoutError("a machine did not come up")
