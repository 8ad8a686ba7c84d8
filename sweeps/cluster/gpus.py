"""The NVIDIA GPUs of the machine that this process runs on, as ``nvidia-smi`` lists them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

GIB = 2**30

NVIDIA_SMI_TIMEOUT_S = 20.0


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One NVIDIA GPU of this machine."""

    index: int
    uuid: str
    memory_gib: float


def listed_gpus() -> tuple[Gpu, ...]:
    """Every NVIDIA GPU of this machine; empty without ``nvidia-smi`` or a GPU.

    It is asked rather than torch, because a Ray task that holds no GPU sees none, and because a context costs memory.
    Ray counts the GPUs that trials may use; this only says how large they are.
    """
    return tuple(
        Gpu(index=int(row[0]), uuid=row[1], memory_gib=float(row[2]) / 1024)
        for row in _nvidia_smi("index", "uuid", "memory.total")
        if len(row) == 3 and row[0].isdecimal() and row[2].replace(".", "").isdecimal()
    )


def lowest_compute_capability() -> tuple[int, int] | None:
    """The lowest CUDA compute capability among this machine's GPUs; None where ``nvidia-smi`` names none."""
    versions = (row[0].partition(".")[::2] for row in _nvidia_smi("compute_cap"))
    found = [(int(major), int(minor)) for major, minor in versions if major.isdecimal() and minor.isdecimal()]
    return min(found, default=None)


def gpu_memories_gib() -> tuple[float, ...]:
    """Memory of every NVIDIA GPU of this machine in GiB, including hidden ones."""
    return tuple(gpu.memory_gib for gpu in listed_gpus())


def visible_gpus(gpus: Sequence[Gpu], visible_devices: str | None) -> tuple[Gpu, ...]:
    """The GPUs that ``CUDA_VISIBLE_DEVICES`` leaves, in its order; all of them where it is not set (None).

    As CUDA reads it (CUDA C++ programming guide, environment variables): indices, or UUIDs, of which a prefix that only
    one GPU has is enough; the list ends before its first entry that names no GPU. A slice of a GPU (``MIG-...``) is
    none of them. Indices are those of ``nvidia-smi``, which are CUDA's under ``CUDA_DEVICE_ORDER=PCI_BUS_ID`` and
    wherever all GPUs are of one kind.
    """
    if visible_devices is None:
        return tuple(gpus)
    found: list[Gpu] = []
    for entry in (word.strip() for word in visible_devices.split(",")):
        named = [gpu for gpu in gpus if (str(gpu.index) == entry if entry.isdecimal() else gpu.uuid.startswith(entry))]
        if not entry or len(named) != 1:
            break
        found += named
    return tuple(found)


def usable_gpu_memories_gib() -> tuple[float, ...]:
    """Memory of the GPUs that trials of a local Ray may use: those that torch can train on and nobody hides."""
    gpus = listed_gpus()
    if not gpus:
        return ()
    import torch

    count = torch.cuda.device_count()
    visible = visible_gpus(gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))
    if len(visible) < count:  # slices of GPUs, which only CUDA itself can size
        return tuple(torch.cuda.get_device_properties(number).total_memory / GIB for number in range(count))
    return tuple(gpu.memory_gib for gpu in visible[:count])


def _nvidia_smi(*fields: str) -> list[list[str]]:
    """These fields of every GPU; empty where there is no such program, or its driver does not answer (see doctor)."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT_S, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return []
    return [[word.strip() for word in line.split(",")] for line in answer.stdout.splitlines()]
