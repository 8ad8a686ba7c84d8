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
from typing import TextIO
from urllib.parse import quote

CPU = "cpu"


def device_name(gpu_fraction: float) -> str:
    """What a trial shares with its neighbours: the GPU that Ray gave it, or without one the machine's CPUs."""
    return f"gpu {os.environ.get('CUDA_VISIBLE_DEVICES', '')}" if gpu_fraction else CPU


@contextmanager
def running_trial(cache_dir: Path, device: str) -> Iterator[Callable[[], int | None]]:
    """While the block runs, this trial is one of those on ``device``; yields what counts them, this one included.

    In a folder that cannot be written or locked nobody is counted: None.
    """
    folder = cache_dir / "trials" / quote(socket.gethostname(), safe="") / quote(device, safe="")
    own = folder / f"{os.getpid()}-{secrets.token_hex(4)}"
    held = _locked(own)
    try:
        yield lambda: None if held is None else 1 + sum(_trains(other) for other in _others(own))
    finally:
        if held is not None:
            own.unlink(missing_ok=True)
            held.close()


def _locked(own: Path) -> TextIO | None:
    """The file, made and locked before anybody sees it."""
    hidden = own.with_name(f".{own.name}")
    try:
        own.parent.mkdir(parents=True, exist_ok=True)
        held = hidden.open("w")
        fcntl.flock(held, fcntl.LOCK_EX)
        hidden.replace(own)
    except OSError:
        return None
    return held


def _others(own: Path) -> list[Path]:
    return [found for found in own.parent.iterdir() if found != own and not found.name.startswith(".")]


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
