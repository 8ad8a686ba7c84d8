"""The one place that asks which device there is, what it can do, and whether it has run out of memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from moe.errors import ConfigError, DeviceMissing

# Matrix units for bf16 came with compute capability 8.0 (NVIDIA, "CUDA C++ Programming Guide", arithmetic throughput).
BF16_COMPUTE_CAPABILITY = (8, 0)

# The instruction sets in which an x86 CPU multiplies bf16, as ``torch.cpu.get_capabilities`` names them.
BF16_CPU_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")

# What is said where no OutOfMemoryError is raised: by torch's CPU allocator (c10/core/impl/alloc_cpu.cpp), by CUDA
# outside of torch's allocator (cudaErrorMemoryAllocation), and by cuBLAS, which allocates for its handle.
_OUT_OF_MEMORY_MESSAGES = (
    "DefaultCPUAllocator: not enough memory",
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


@dataclass(frozen=True, kw_only=True)
class Device:
    """A processor that trains one model: its kind, its name, and what decides the code path on it.

    ``compute_capability`` is CUDA's (major, minor) and None on a CPU. ``bf16_instructions`` are those of
    ``BF16_CPU_INSTRUCTIONS`` that a CPU has; none on a GPU.
    """

    kind: Literal["cpu", "cuda"]
    name: str = "cpu"
    compute_capability: tuple[int, int] | None = None
    bf16_instructions: tuple[str, ...] = ()

    @classmethod
    def resolve(cls, name: str = "auto") -> Device:
        """The device called ``name``: ``cpu``, ``cuda``, or ``auto`` (CUDA where there is one).

        Raises:
            DeviceMissing: ``cuda`` was asked for and torch sees no CUDA device.
            ConfigError: ``name`` is none of the three.
        """
        if name not in {"auto", "cpu", "cuda"}:
            raise ConfigError(f"device={name!r} is unknown; choose auto, cpu or cuda")
        if name == "cpu" or not torch.cuda.is_available():
            if name == "cuda":
                raise DeviceMissing(
                    "device='cuda' was asked for and torch sees no CUDA device here; choose device='auto' or 'cpu', or "
                    "run on a machine with a GPU and a CUDA build of torch"
                )
            found = torch.cpu.get_capabilities()
            return cls(kind="cpu", bf16_instructions=tuple(name for name in BF16_CPU_INSTRUCTIONS if found.get(name)))
        index = torch.cuda.current_device()
        return cls(
            kind="cuda",
            name=torch.cuda.get_device_name(index),
            compute_capability=torch.cuda.get_device_capability(index),
        )

    @property
    def torch_device(self) -> torch.device:
        """The same device in torch's words."""
        return torch.device(self.kind)

    @property
    def has_fast_bf16(self) -> bool:
        """Whether the device multiplies bf16 natively: by what it can do, never by a measured speed."""
        if self.compute_capability is None:
            return bool(self.bf16_instructions)
        return self.compute_capability >= BF16_COMPUTE_CAPABILITY

    def synchronize(self) -> None:
        """Waits until the device has done all that it was given. Returns at once on a CPU."""
        if self.kind == "cuda":
            torch.cuda.synchronize()

    def release_cached_memory(self) -> None:
        """Gives unused blocks of CUDA's caching allocator back, so that a retry meets less fragmentation."""
        if self.kind == "cuda":
            torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory ran out: torch's own error, Python's, CUDA's, cuBLAS's or the CPU's."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _OUT_OF_MEMORY_MESSAGES)


def set_threads(n_threads: int) -> None:
    """Sets torch's CPU threads for one operation. The same count must be kept for bitwise equal numbers.

    Raises:
        ConfigError: ``n_threads`` is below one.
    """
    if n_threads < 1:
        raise ConfigError(f"threads={n_threads} must be at least 1; choose the cores that one trial may use")
    torch.set_num_threads(n_threads)


def device_memory_gib() -> float | None:
    """Memory of this process's GPU in GiB, None without CUDA."""
    if not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory / 2**30


def limit_memory(gpu_share: float) -> None:
    """Binds this process's CUDA allocator to a share of the GPU, so that trials on one GPU cannot starve each other.

    Beyond it an allocation fails as out of memory. Does nothing without CUDA.
    """
    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(gpu_share)
