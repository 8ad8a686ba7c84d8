"""The matrix products of a layer's experts over rows sorted by expert: in blocks, or grouped on a GPU.

Both ways save the pre-activations and compute SiLU again in the backward pass.
"""

# D model, F expert width, H = 2F, E experts, R rows sorted by expert, S rows of a block

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional

from moe.matmul import fast_matmuls

BLOCK_BYTES = 2**22  # pre-activations worked on at once: near a core's second-level cache (measured)

# Fewest rows whose product has the same bits, row by row, as any larger one (measured on MKL, and on oneDNN for the
# sums that it does not split): a token's output then does not depend on how many others share its expert. oneDNN
# also builds one kernel per row count, so there its counts are kept few.
ROW_MULTIPLE_MKL = 16
ROW_MULTIPLE_ONEDNN = 64
# 16 bytes of bf16: how a group must be aligned where the rows are what is summed over.
ROW_MULTIPLE_GROUPED = 8
_GROUPED_WIDTH_MULTIPLE = 8  # 16 bytes of bf16

_silu_out = torch.ops.aten.silu.out
_silu_backward_out = torch.ops.aten.silu_backward.grad_input


class SortedRows(NamedTuple):
    """Inputs of the experts, R rows sorted by expert; rows past the last end are never read."""

    x_RD: Tensor
    ends_E: Tensor  # int32 on the rows' device, the row after each expert's last


class Weights(NamedTuple):
    """Stacked weights in the type of the products, or their gradients in the type of the parameters."""

    gate_up_EHD: Tensor
    down_EDF: Tensor


class ExpertProducts(Protocol):
    """``down[e] @ (silu(gate) * up)`` with ``gate, up = gate_up[e] @ x`` for the rows of every expert e.

    An expert's rows are padded to a multiple of ``row_multiple``, and are ``least_rows`` at least.
    """

    row_multiple: int
    least_rows: int

    def forward(self, rows: SortedRows, weights: Weights) -> tuple[Tensor, Tensor]:
        """Outputs [R, D] and pre-activations [R, H], which ``backward`` or ``release`` wants back."""

    def backward(
        self, grad_RD: Tensor, rows: SortedRows, weights: Weights, hidden_RH: Tensor, weight_dtype: torch.dtype
    ) -> tuple[Tensor, Weights]:
        """Gradients of the rows and of the weights; ``grad_RD`` is zero in the rows that only pad."""

    def release(self, hidden_RH: Tensor) -> None:
        """Take note that nobody needs these pre-activations any more."""


class BufferPool:
    """Large buffers kept from step to step, on CPU.

    There a large tensor's memory goes back to the system when it is freed, and every page of the next one costs a
    fault: 9 ms for the 32 MiB of one layer, where the product that fills them takes 11. CUDA's allocator keeps memory
    by itself, and shares it among the layers.
    """

    def __init__(self) -> None:
        self._free: list[Tensor] = []

    def take(self, n_rows: int, width: int, like: Tensor) -> Tensor:
        """An uninitialised [n_rows, width] tensor of the type and device of ``like``."""
        size = n_rows * width
        while self._free:
            buffer = self._free.pop()
            if buffer.dtype == like.dtype and buffer.device == like.device and buffer.numel() >= size:
                return buffer[:size].view(n_rows, width)
        return like.new_empty(size).view(n_rows, width)

    def give_back(self, tensor: Tensor) -> None:
        """Keep the memory of a tensor that ``take`` returned."""
        base = tensor._base
        assert base is not None
        if base.device.type == "cpu":
            self._free.append(base)


class Block(NamedTuple):
    """Rows of one expert that are worked on together."""

    expert: int
    rows: slice
    is_first: bool  # of its expert


class BlockedProducts:
    """One product per block of an expert's rows, the block's elementwise work done while it is in cache.

    Reads the segments' ends on the host: free on CPU, a synchronisation on CUDA, where a block is a whole segment.
    """

    least_rows = 0

    def __init__(self, row_multiple: int, pool: BufferPool) -> None:
        self.row_multiple = row_multiple
        self._pool = pool

    def forward(self, rows: SortedRows, weights: Weights) -> tuple[Tensor, Tensor]:
        """As the protocol says."""
        hidden_RH = self._pool.take(len(rows.x_RD), weights.gate_up_EHD.shape[1], rows.x_RD)
        out_RD = torch.empty_like(rows.x_RD)
        blocks, longest = _blocks(rows.ends_E, hidden_RH)
        buffer_SF = hidden_RH.new_empty(longest, weights.down_EDF.shape[2])
        with fast_matmuls(hidden_RH.device):
            for expert, at, _ in blocks:
                hidden_SH = torch.mm(rows.x_RD[at], weights.gate_up_EHD[expert].T, out=hidden_RH[at])
                gate_SF, up_SF = hidden_SH.chunk(2, dim=1)
                act_SF = _silu_out(gate_SF, out=buffer_SF[: len(gate_SF)]).mul_(up_SF)
                torch.mm(act_SF, weights.down_EDF[expert].T, out=out_RD[at])
        return out_RD, hidden_RH

    def backward(
        self, grad_RD: Tensor, rows: SortedRows, weights: Weights, hidden_RH: Tensor, weight_dtype: torch.dtype
    ) -> tuple[Tensor, Weights]:
        """As the protocol says."""
        grad_x_RD = torch.empty_like(rows.x_RD)
        grads = Weights(*(torch.empty_like(weight, dtype=weight_dtype) for weight in weights))
        blocks, longest = _blocks(rows.ends_E, hidden_RH)
        for idle in set(range(len(rows.ends_E))) - {block.expert for block in blocks}:
            grads.gate_up_EHD[idle].zero_()
            grads.down_EDF[idle].zero_()
        buffers = [hidden_RH.new_empty(longest, weights.down_EDF.shape[2]) for _ in range(3)]
        hidden_buffer_SH = hidden_RH.new_empty(longest, hidden_RH.shape[1])
        with fast_matmuls(hidden_RH.device):
            for expert, at, is_first in blocks:
                grad_SD = grad_RD[at]
                gate_SF, up_SF = hidden_RH[at].chunk(2, dim=1)
                silu_SF, act_SF, grad_act_SF = (buffer[: len(grad_SD)] for buffer in buffers)
                grad_hidden_SH = hidden_buffer_SH[: len(grad_SD)]
                grad_gate_SF, grad_up_SF = grad_hidden_SH.chunk(2, dim=1)

                torch.mm(grad_SD, weights.down_EDF[expert], out=grad_act_SF)
                _silu_out(gate_SF, out=silu_SF)
                torch.mul(silu_SF, up_SF, out=act_SF)
                _accumulate(grads.down_EDF[expert], grad_SD.T, act_SF, is_first=is_first)
                torch.mul(grad_act_SF, silu_SF, out=grad_up_SF)
                _silu_backward_out(grad_act_SF.mul_(up_SF), gate_SF, grad_input=grad_gate_SF)
                _accumulate(grads.gate_up_EHD[expert], grad_hidden_SH.T, rows.x_RD[at], is_first=is_first)
                torch.mm(grad_hidden_SH, weights.gate_up_EHD[expert], out=grad_x_RD[at])
        return grad_x_RD, grads

    def release(self, hidden_RH: Tensor) -> None:
        """As the protocol says."""
        self._pool.give_back(hidden_RH)


def _blocks(ends_E: Tensor, hidden_RH: Tensor) -> tuple[list[Block], int]:
    """The blocks of all experts in order, and the rows of the longest."""
    row_bytes = hidden_RH.shape[1] * hidden_RH.element_size()
    size = max(64, BLOCK_BYTES // row_bytes // 64 * 64) if hidden_RH.device.type == "cpu" else len(hidden_RH)
    # Fake tensors predict memory: they have no number to read, and one block stands for all.
    ends = [min(size, -(-len(hidden_RH) // len(ends_E)))] if isinstance(ends_E, FakeTensor) else ends_E.tolist()
    blocks = [
        Block(expert, slice(first, min(first + size, end)), first == start)
        for expert, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True))
        for first in range(start, end, size)
    ]
    return blocks, max(block.rows.stop - block.rows.start for block in blocks)


def _accumulate(total: Tensor, a: Tensor, b: Tensor, *, is_first: bool) -> None:
    """Add ``a @ b`` to ``total``, or put it there, in the type of ``total``."""
    if total.dtype == a.dtype:
        torch.addmm(total, a, b, beta=0 if is_first else 1, out=total)
    elif is_first:
        total.copy_(a @ b)
    else:
        total.add_(a @ b)


class GroupedProducts:
    """One ``grouped_mm`` per product for all experts: offsets stay on the device and the host never waits."""

    row_multiple = ROW_MULTIPLE_GROUPED
    least_rows = 1  # an expert whose group is empty would have its weight gradient left unwritten

    def forward(self, rows: SortedRows, weights: Weights) -> tuple[Tensor, Tensor]:
        """As the protocol says."""
        hidden_RH = functional.grouped_mm(rows.x_RD, weights.gate_up_EHD.mT, offs=rows.ends_E)
        gate_RF, up_RF = hidden_RH.chunk(2, dim=1)
        act_RF = functional.silu(gate_RF).mul_(up_RF)
        return functional.grouped_mm(act_RF, weights.down_EDF.mT, offs=rows.ends_E), hidden_RH

    def backward(
        self, grad_RD: Tensor, rows: SortedRows, weights: Weights, hidden_RH: Tensor, weight_dtype: torch.dtype
    ) -> tuple[Tensor, Weights]:
        """As the protocol says."""
        gate_RF, up_RF = hidden_RH.chunk(2, dim=1)
        silu_RF = functional.silu(gate_RF)
        grad_act_RF = functional.grouped_mm(grad_RD, weights.down_EDF, offs=rows.ends_E)
        grad_down_EDF = functional.grouped_mm(grad_RD.T, silu_RF * up_RF, offs=rows.ends_E)
        grad_hidden_RH = torch.empty_like(hidden_RH)
        grad_gate_RF, grad_up_RF = grad_hidden_RH.chunk(2, dim=1)
        torch.mul(grad_act_RF, silu_RF, out=grad_up_RF)
        _silu_backward_out(grad_act_RF.mul_(up_RF), gate_RF, grad_input=grad_gate_RF)
        grad_gate_up_EHD = functional.grouped_mm(grad_hidden_RH.T, rows.x_RD, offs=rows.ends_E)
        grad_x_RD = functional.grouped_mm(grad_hidden_RH, weights.gate_up_EHD, offs=rows.ends_E)
        return grad_x_RD, Weights(grad_gate_up_EHD.to(weight_dtype), grad_down_EDF.to(weight_dtype))

    def release(self, hidden_RH: Tensor) -> None:
        """Nothing to do: CUDA's caching allocator keeps memory by itself."""


def choose_products(
    device: torch.device, dtype: torch.dtype, pool: BufferPool, widths: Sequence[int] = ()
) -> ExpertProducts:
    """The fastest way that this device has for products in this type: the one place where it is chosen.

    On CUDA, bf16 is grouped: ``moe.precision`` gives bf16 to GPUs from compute capability 8.0 on and to no older one,
    and those are the GPUs that ``grouped_mm`` is made for. fp16 and fp32 go expert by expert. On CPU ``grouped_mm``
    is a loop without blocks. ``widths`` are the model's and the experts': rows of a grouped product begin at multiples
    of 16 bytes, so others than multiples of 8 go expert by expert too.
    """
    if device.type == "cuda":
        grouped = dtype == torch.bfloat16 and not any(width % _GROUPED_WIDTH_MULTIPLE for width in widths)
        return GroupedProducts() if grouped else BlockedProducts(ROW_MULTIPLE_GROUPED, pool)
    return BlockedProducts(ROW_MULTIPLE_MKL if dtype == torch.float32 else ROW_MULTIPLE_ONEDNN, pool)
