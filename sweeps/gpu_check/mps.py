"""NVIDIA's Multi-Process Service, which lets kernels of several processes run on one GPU at the same time."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CONTROL = "nvidia-cuda-mps-control"
PIPES, LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"
DEADLINE_S = 30.0


def why_no_mps() -> str | None:
    """Why no daemon can be started here; None where one can."""
    if shutil.which(CONTROL) is None:
        return f"there is no {CONTROL} on this machine"
    if os.environ.get(PIPES):
        return f"{PIPES} is set: MPS is on already, for all that was measured"
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") != "0":
        return "CUDA_VISIBLE_DEVICES is set, and MPS numbers the GPUs anew; run on GPU 0"
    return None


@contextmanager
def mps_daemon(folder: Path) -> Iterator[None]:
    """A daemon of its own for all processes that are started in the block.

    Raises:
        OSError, subprocess.SubprocessError: it does not start.
    """
    program = shutil.which(CONTROL)
    assert program is not None, "ask why_no_mps first"
    ours = {PIPES: str(folder / "pipes"), LOGS: str(folder / "logs")}
    for path in ours.values():
        Path(path).mkdir(parents=True)
    os.environ.update(ours)
    try:
        subprocess.run([program, "-d"], check=True, timeout=DEADLINE_S)  # noqa: S603 - NVIDIA's own program
        yield
    finally:
        try:
            subprocess.run([program], input=b"quit\n", timeout=DEADLINE_S, check=False)  # noqa: S603
        finally:
            for name in ours:
                os.environ.pop(name, None)
