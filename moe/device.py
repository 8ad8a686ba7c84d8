"""The one place that asks which device there is, what it can do, and whether it has run out of memory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from moe.errors import ConfigError, DeviceMissing

# Matrix units for bf16 came with compute capability 8.0 (NVIDIA, "CUDA C++ Programming Guide", arithmetic throughput).
BF16_COMPUTE_CAPABILITY = (8, 0)

# The instruction sets in which an x86 CPU multiplies bf16, as ``torch.cpu.get_capabilities`` names them.
BF16_CPU_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")

_CUBLAS_SETTING = "CUBLAS_WORKSPACE_CONFIG"
_REPRODUCIBLE_WORKSPACES = (":4096:8", ":16:8")

# What is said where no OutOfMemoryError is raised: by torch's CPU allocator (c10/core/impl/alloc_cpu.cpp), by CUDA
# outside of torch's allocator (cudaErrorMemoryAllocation), and by cuBLAS and cuDNN, which allocate for themselves.
_OUT_OF_MEMORY_MESSAGES = (
    "DefaultCPUAllocator: not enough memory",
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    # A handle could not be made: on a GPU that is full, or shared and full, that is what is missing.
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


@dataclass(frozen=True, kw_only=True)
class Device:
    """A processor that trains one model: its kind, its name, and what decides the code path on it.

    ``compute_capability`` is CUDA's (major, minor) and None on a CPU. ``bf16_instructions`` are those of
    ``BF16_CPU_INSTRUCTIONS`` that a CPU has; none on a GPU. ``memory_bytes`` is all the memory that a GPU has, whatever
    is free of it and whatever share this process may use, so that choices by memory are the same in every run; None
    where it is not known.
    """

    kind: Literal["cpu", "cuda"]
    name: str = "cpu"
    compute_capability: tuple[int, int] | None = None
    bf16_instructions: tuple[str, ...] = ()
    memory_bytes: int | None = None

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
        prepare_cublas()
        index = torch.cuda.current_device()
        return cls(
            kind="cuda",
            name=torch.cuda.get_device_name(index),
            compute_capability=torch.cuda.get_device_capability(index),
            memory_bytes=torch.cuda.get_device_properties(index).total_memory,
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


def prepare_cublas() -> None:
    """Give cuBLAS workspaces of its own per stream, as reproducible products require.

    cuBLAS reads the setting when a process first uses it ("Results reproducibility" in NVIDIA's manual of cuBLAS), so
    this comes before a device is touched. A setting that is as good stays.
    """
    if os.environ.get(_CUBLAS_SETTING) not in _REPRODUCIBLE_WORKSPACES:
        os.environ[_CUBLAS_SETTING] = _REPRODUCIBLE_WORKSPACES[0]


def set_arithmetic(device: Device, *, deterministic: bool) -> None:
    """Set how this process's GPU computes; does nothing for a CPU, whose results are reproducible anyway.

    With ``deterministic``, operations that would add in no fixed order take another way or raise. Sums of 16-bit
    products are kept in fp32 either way.
    """
    if device.kind != "cuda":
        return
    torch.use_deterministic_algorithms(deterministic)
    # Memory is filled so that reading what was never written is noticed; nothing here reads it, and it costs a pass.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False


def device_identity(device: Device) -> dict[str, str]:
    """What the bits of a deterministic run depend on beside its config: nothing is named of a CPU."""
    if device.kind == "cpu":
        return {}
    return {
        "deterministic": "yes",
        "GPU": device.name,
        "torch": str(torch.__version__),  # a class of torch's own, which a checkpoint cannot hold
        "CUDA": str(torch.version.cuda),
    }


def read_on_host(tensor: Tensor) -> Any:
    """The numbers of a tensor as Python's: the one place where the host waits for the device during a step."""
    return tensor.tolist()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory ran out: torch's own error, Python's, CUDA's, cuBLAS's or the CPU's."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _OUT_OF_MEMORY_MESSAGES)


def release_cached_memory() -> None:
    """Give unused blocks of CUDA's caching allocator back, so that a retry meets less fragmentation."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


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
