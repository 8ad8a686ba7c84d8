"""Which number format the matrix multiplications of training run in, and why.

Weights, optimizer states, norms, router, softmax and losses are fp32 in every precision (mixed precision after
Micikevicius et al. 2018, arXiv 1710.03740). bf16 has fp32's range and needs no loss scaling; fp16 does.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch

from moe.config import PrecisionName
from moe.device import BF16_CPU_INSTRUCTIONS, Device
from moe.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Precision:
    """The precision actually used.

    ``autocast_dtype`` is None in fp32. ``needs_scaler`` is true in fp16 only. ``reason`` is a sentence for people.
    """

    name: Literal["fp32", "bf16", "fp16"]
    device_kind: Literal["cpu", "cuda"]
    autocast_dtype: torch.dtype | None
    needs_scaler: bool
    reason: str

    def autocast(self) -> AbstractContextManager[Any]:
        """A fresh context for one forward; does nothing in fp32."""
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self.device_kind, dtype=self.autocast_dtype)

    def make_scaler(self) -> torch.amp.GradScaler | None:
        """The one scaler that all optimizers share in fp16, and None in the other precisions."""
        return torch.amp.GradScaler(self.device_kind) if self.needs_scaler else None


def resolve_precision(name: PrecisionName, device: Device) -> Precision:
    """The precision to use for ``name`` on ``device``, with the reason for it.

    ``auto`` is bf16 on a CPU that multiplies it natively (AVX-512 BF16 or AMX) and on CUDA from compute capability 8.0,
    fp32 on other CPUs and fp16 on older GPUs. It depends on what the device can do and not on its measured speed, so
    that a run that is resumed on the same kind of device decides alike.

    Raises:
        ConfigError: the name is unknown, or bf16 was requested on a GPU that would only emulate it.
    """
    if name == "auto":
        chosen, reason = _choose(device)
    elif name in {"fp32", "bf16", "fp16"}:
        chosen, reason = name, f"{name} was requested"
    else:
        raise ConfigError(f"precision={name!r} is unknown; choose auto, fp32, bf16 or fp16")
    if chosen == "bf16" and device.kind == "cuda" and not device.has_fast_bf16:
        raise ConfigError(
            f"precision='bf16' needs compute capability 8.0 or newer, and {device.name} has {_capability(device)}; "
            "choose precision='auto' or 'fp16'"
        )
    return Precision(
        name=chosen,
        device_kind=device.kind,
        autocast_dtype={"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[chosen],
        needs_scaler=chosen == "fp16",
        reason=reason,
    )


def _choose(device: Device) -> tuple[Literal["fp32", "bf16", "fp16"], str]:
    if device.kind == "cpu":
        if device.has_fast_bf16:
            instructions = " and ".join(device.bf16_instructions)
            return "bf16", f"bf16, because the CPU multiplies it natively ({instructions})"
        return "fp32", f"fp32, because the CPU has neither {' nor '.join(BF16_CPU_INSTRUCTIONS)}"
    if device.has_fast_bf16:
        return "bf16", f"bf16, because {device.name} has compute capability {_capability(device)} (8.0 or newer)"
    return (
        "fp16",
        f"fp16, because {device.name} has compute capability {_capability(device)} (below 8.0: no bf16 units)",
    )


def _capability(device: Device) -> str:
    assert device.compute_capability is not None
    return "{}.{}".format(*device.compute_capability)
