"""What depends on the device, decided in one place: a pure function from what a device is to how training runs on it.

| device | expert products | attention under autocast | head rows at once | Newton-Schulz | autocast |
|---|---|---|---|---|---|
| CPU with native bf16 | blocks | fp32 | near the second-level cache | the training precision's, fp32 or bf16 | bf16 |
| CPU without | blocks | fp32 | near the second-level cache | fp32 | none |
| CUDA 7.x | expert by expert | fp16, memory-efficient | 8,192 or more | fp32, stacked | fp16, scaled |
| CUDA 8.x, 11.x, 12.x | expert by expert | bf16, flash | 8,192 or more | bf16, stacked | bf16 |
| CUDA 9.0, 10.0 | grouped | bf16, flash or cuDNN | 8,192 or more | bf16, stacked | bf16 |

The record is an argument of the model, the optimizers and the trainer, so a GPU's choices also run on CPU tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from moe.device import Device

if TYPE_CHECKING:
    from moe.precision import Precision

ExpertWay = Literal["blocks", "expert by expert", "grouped"]

# torch has a kernel for ``grouped_mm`` on these alone; elsewhere it copies the offsets to the host and loops
# (aten/src/ATen/native/GroupedMMUtils.h), and no other is planned (pytorch#186620).
GROUPED_COMPUTE_CAPABILITIES = frozenset({(9, 0), (10, 0)})
_GROUPED_WIDTH_MULTIPLE = 8  # 16 bytes of bf16: how the rows of a grouped product must be aligned

# Logits at once on a CPU: 4 MiB in fp32, near a core's second-level cache and still a large product. Measured for
# 4,096 tokens and 4,096 words: half of it is 3% slower in fp32 and 23% in bf16, four times it 2% and 40%.
_CPU_LOGITS = 2**20
_CPU_LEAST_HEAD_ROWS = 64
# A product of 8,192 rows fills every GPU in the table of ``moe.flops``, and the launches of a chunk no longer count.
GPU_LEAST_HEAD_ROWS = 8192
_GPU_LOGIT_BYTES = 6  # fp32, and 16 bits of its gradient
_GPU_LOGITS_SHARE = 1 / 64

# On CPU rows are worked on in blocks that stay in a core's second-level cache from one pass to the next: measured, a
# product of two arrays costs 0.1 ns an element there and 0.3 ns beyond it.
_CPU_ELEMENTWISE_BYTES = 2**19

# On a CPU, matrices of one shape are orthogonalised together up to this many elements: half the time on small
# matrices; larger batches lose more to fresh memory for the temporaries than they save.
_CPU_MUON_ELEMENTS = 2**19
# On a GPU a call of Newton-Schulz holds some six 16-bit or fp32 copies of its matrices, 24 bytes an element at most.
_GPU_MUON_BYTES = 24
_GPU_MUON_SHARE = 1 / 8
_GPU_MUON_ELEMENTS = 2**27  # where the memory is not known


@dataclass(frozen=True, kw_only=True)
class DeviceChoices:
    """How one model trains on one device.

    ``attention_dtype`` is the type of queries, keys and values under autocast; without it (in the exam) they stay in
    fp32. ``attention_kernel`` names what torch is expected to pick there, for people and for the GPU check.
    ``expert_way`` holds for products in bf16; ``products_way`` says it for any type. ``elementwise_bytes`` is the size
    of a block of elementwise work, None for everything at once. ``tokens_on_device`` says that training windows are
    gathered on the device.
    """

    autocast_dtype: torch.dtype | None
    needs_scaler: bool
    expert_way: ExpertWay
    attention_dtype: torch.dtype
    attention_kernel: str
    least_head_rows: int
    head_logits: int
    fused_head: bool
    elementwise_bytes: int | None
    newton_schulz_dtype: torch.dtype
    newton_schulz_elements: int
    tokens_on_device: bool

    def head_rows(self, vocab_size: int) -> int:
        """How many tokens have their logits at once: a multiple of ``least_head_rows``."""
        return max(1, self.head_logits // vocab_size // self.least_head_rows) * self.least_head_rows

    def products_way(self, dtype: torch.dtype, widths: Sequence[int] = ()) -> ExpertWay:
        """The way of the experts' products in ``dtype``, ``widths`` being the model's and the experts'.

        A grouped product takes bf16 alone, and rows that begin at multiples of 16 bytes.
        """
        if self.expert_way != "grouped":
            return self.expert_way
        fits = dtype == torch.bfloat16 and not any(width % _GROUPED_WIDTH_MULTIPLE for width in widths)
        return "grouped" if fits else "expert by expert"


def choose(device: Device, precision: Precision) -> DeviceChoices:
    """The row of the table for ``device`` and ``precision``; a pure function of its arguments."""
    return choices_for(device, precision.autocast_dtype, needs_scaler=precision.needs_scaler)


def choices_for(device: Device, autocast_dtype: torch.dtype | None, *, needs_scaler: bool = False) -> DeviceChoices:
    """As ``choose``, with the type that autocast is given."""
    if device.compute_capability is None:
        return DeviceChoices(
            autocast_dtype=autocast_dtype,
            needs_scaler=needs_scaler,
            expert_way="blocks",
            # On CPU the backward pass of torch's attention is up to three times slower in bf16 than in fp32.
            attention_dtype=torch.float32,
            attention_kernel="flash for CPU",
            least_head_rows=_CPU_LEAST_HEAD_ROWS,
            head_logits=_CPU_LOGITS,
            fused_head=False,
            elementwise_bytes=_CPU_ELEMENTWISE_BYTES,
            newton_schulz_dtype=torch.bfloat16 if autocast_dtype == torch.bfloat16 else torch.float32,
            newton_schulz_elements=_CPU_MUON_ELEMENTS,
            tokens_on_device=False,
        )
    grouped = device.compute_capability in GROUPED_COMPUTE_CAPABILITIES
    memory_bytes = device.memory_bytes
    return DeviceChoices(
        autocast_dtype=autocast_dtype,
        needs_scaler=needs_scaler,
        expert_way="grouped" if grouped else "expert by expert",
        attention_dtype=autocast_dtype or torch.float32,
        attention_kernel=_attention_kernel(device, autocast_dtype, grouped=grouped),
        least_head_rows=GPU_LEAST_HEAD_ROWS,
        head_logits=0 if memory_bytes is None else int(memory_bytes * _GPU_LOGITS_SHARE) // _GPU_LOGIT_BYTES,
        fused_head=True,
        elementwise_bytes=None,
        # In bf16 whatever the training precision, as in Jordan et al. 2024.
        newton_schulz_dtype=torch.bfloat16 if device.has_fast_bf16 else torch.float32,
        newton_schulz_elements=(
            _GPU_MUON_ELEMENTS if memory_bytes is None else int(memory_bytes * _GPU_MUON_SHARE) // _GPU_MUON_BYTES
        ),
        tokens_on_device=True,
    )


def _attention_kernel(device: Device, dtype: torch.dtype | None, *, grouped: bool) -> str:
    if dtype is None or not device.has_fast_bf16:
        return "memory-efficient"
    return "flash or cuDNN" if grouped else "flash"


def choices_of(tensor: Tensor) -> DeviceChoices:
    """The choices for the device that holds ``tensor`` and for the autocast that is on: for a model given none."""
    kind = tensor.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    if kind != "cuda":
        return choices_for(Device(kind="cpu"), dtype)
    capability = torch.cuda.get_device_capability(tensor.device)
    return choices_for(Device(kind="cuda", name="a GPU", compute_capability=capability), dtype)
