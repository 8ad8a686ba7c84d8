"""How many trials train on a device at this moment, counted: each holds a file of its node locked while it trains.

The kernel gives a lock back with its process, so that a trial that was killed is not counted. Files are in the token
cache's folder, which every node has for itself and can lock in; the host's name stands in their path where it is
shared after all.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

CPU = "cpu"


def device_name(gpu_fraction: float) -> str:
    """What a trial shares with its neighbours: the GPU that Ray gave it, or without one the machine's CPUs."""
    return f"gpu {os.environ.get('CUDA_VISIBLE_DEVICES', '')}" if gpu_fraction else CPU


@contextmanager
def running_trial(cache_dir: Path, device: str) -> Iterator[Callable[[], int]]:
    """While the block runs, this trial is one of those on ``device``; yields what counts them, this one included."""
    folder = cache_dir / "trials" / quote(socket.gethostname(), safe="") / quote(device, safe="")
    folder.mkdir(parents=True, exist_ok=True)
    own = folder / f"{os.getpid()}-{secrets.token_hex(4)}"
    hidden = own.with_name(f".{own.name}")
    with hidden.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        hidden.replace(own)  # locked before anybody sees it
        try:
            yield lambda: 1 + sum(_trains(other) for other in folder.iterdir() if _is_another(other, own))
        finally:
            own.unlink(missing_ok=True)


def _is_another(found: Path, own: Path) -> bool:
    return found != own and not found.name.startswith(".")


def _trains(trial: Path) -> bool:
    """Whether the process that made the file lives; what a dead one left is deleted."""
    try:
        with trial.open() as seen:
            fcntl.flock(seen, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared, so that two who count do not see each other
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    trial.unlink(missing_ok=True)
    return False
