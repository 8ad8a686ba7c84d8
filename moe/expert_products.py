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
from moe.swiglu import swiglu, swiglu_backward

BLOCK_BYTES = 2**22  # pre-activations worked on at once, or up to half more: near a core's caches (measured)

# Fewest rows whose product has the same bits, row by row, as any larger one (measured on MKL, and on oneDNN for the
# sums that it does not split): a token's output then does not depend on how many others share its expert. oneDNN
# also generates code for each row count, so there its counts are kept few.
ROW_MULTIPLE_MKL = 16
ROW_MULTIPLE_ONEDNN = 64
# 16 bytes of bf16: how a group must be aligned where the rows are what is summed over.
ROW_MULTIPLE_GROUPED = 8
_GROUPED_WIDTH_MULTIPLE = 8  # 16 bytes of bf16


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

    def forward(self, rows: SortedRows, weights: Weights, *, keep: bool) -> tuple[Tensor, Tensor | None]:
        """Outputs [R, D] and, to keep for ``backward``, pre-activations [R, H], which ``release`` wants back."""

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
    """Rows of one expert that are worked on together; blocks follow each other without gaps."""

    expert: int
    n_rows: int
    is_first: bool  # of its expert


class Blocks(NamedTuple):
    """All blocks of a layer's rows."""

    blocks: list[Block]
    sizes: list[int]  # rows of every block, and of what is left at the end
    longest: int

    def of(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Views of the rows of every block, and one more of the rest."""
        return torch.split(rows, self.sizes)


class BlockedProducts:
    """One product per block of an expert's rows, the block's elementwise work done while it is in cache.

    Reads the segments' ends on the host: free on CPU, a synchronisation on CUDA, where a block is a whole segment.
    """

    least_rows = 0

    def __init__(self, row_multiple: int, pool: BufferPool) -> None:
        self.row_multiple = row_multiple
        self._pool = pool

    def forward(self, rows: SortedRows, weights: Weights, *, keep: bool) -> tuple[Tensor, Tensor | None]:
        """As the protocol says."""
        n_hidden, n_inner = weights.gate_up_EHD.shape[1], weights.down_EDF.shape[2]
        hidden_RH = self._pool.take(len(rows.x_RD), n_hidden, rows.x_RD) if keep else None
        out_RD = torch.empty_like(rows.x_RD)
        cut = _blocks(rows, n_hidden)
        act_buffer_SF = out_RD.new_empty(cut.longest, n_inner)
        if hidden_RH is None:
            buffer_SH = out_RD.new_empty(cut.longest, n_hidden)
            gate_ups: Sequence[Tensor] = [buffer_SH[: block.n_rows] for block in cut.blocks]
        else:
            gate_ups = cut.of(hidden_RH)
        gate_up_weights, down_weights = weights.gate_up_EHD.mT.unbind(), weights.down_EDF.mT.unbind()
        with fast_matmuls(out_RD.device):
            for (expert, n_rows, _), x_SD, gate_up_SH, out_SD in zip(
                cut.blocks, cut.of(rows.x_RD), gate_ups, cut.of(out_RD), strict=False
            ):
                torch.mm(x_SD, gate_up_weights[expert], out=gate_up_SH)
                act_SF = swiglu(gate_up_SH, out_SF=act_buffer_SF[:n_rows])
                torch.mm(act_SF, down_weights[expert], out=out_SD)
        return out_RD, hidden_RH

    def backward(
        self, grad_RD: Tensor, rows: SortedRows, weights: Weights, hidden_RH: Tensor, weight_dtype: torch.dtype
    ) -> tuple[Tensor, Weights]:
        """As the protocol says."""
        grad_x_RD = torch.empty_like(rows.x_RD)
        grads = Weights(*(torch.empty_like(weight, dtype=weight_dtype) for weight in weights))
        n_hidden, n_inner = weights.gate_up_EHD.shape[1], weights.down_EDF.shape[2]
        cut = _blocks(rows, n_hidden)
        for idle in set(range(len(rows.ends_E))) - {block.expert for block in cut.blocks}:
            grads.gate_up_EHD[idle].zero_()
            grads.down_EDF[idle].zero_()
        grad_act_buffer_SF, act_buffer_SF = (hidden_RH.new_empty(cut.longest, n_inner) for _ in range(2))
        grad_hidden_buffer_SH = hidden_RH.new_empty(cut.longest, n_hidden)
        gate_ups, downs = (weight.unbind() for weight in weights)
        grad_gate_ups, grad_downs = (grad.unbind() for grad in grads)
        with fast_matmuls(hidden_RH.device):
            for (expert, n_rows, is_first), x_SD, hidden_SH, grad_SD, grad_x_SD in zip(
                cut.blocks, *(cut.of(each) for each in (rows.x_RD, hidden_RH, grad_RD, grad_x_RD)), strict=False
            ):
                act_SF, grad_hidden_SH = act_buffer_SF[:n_rows], grad_hidden_buffer_SH[:n_rows]
                grad_act_SF = torch.mm(grad_SD, downs[expert], out=grad_act_buffer_SF[:n_rows])
                swiglu_backward(hidden_SH, grad_act_SF, act_SF=act_SF, grad_gate_up_SH=grad_hidden_SH)
                _accumulate(grad_downs[expert], grad_SD.T, act_SF, is_first=is_first)
                _accumulate(grad_gate_ups[expert], grad_hidden_SH.T, x_SD, is_first=is_first)
                torch.mm(grad_hidden_SH, gate_ups[expert], out=grad_x_SD)
        return grad_x_RD, grads

    def release(self, hidden_RH: Tensor) -> None:
        """As the protocol says."""
        self._pool.give_back(hidden_RH)


def _blocks(rows: SortedRows, n_hidden: int) -> Blocks:
    """Every expert's rows in blocks, the last one of which takes up to half of another block with it."""
    n_rows = len(rows.x_RD)
    row_bytes = n_hidden * rows.x_RD.element_size()
    size = max(64, BLOCK_BYTES // row_bytes // 64 * 64) if rows.x_RD.device.type == "cpu" else n_rows
    # Fake tensors predict memory: they have no number to read, and one block stands for all.
    if isinstance(rows.ends_E, FakeTensor):
        share = -(-n_rows // len(rows.ends_E))
        ends = [share if share <= size + size // 2 else size]
    else:
        ends = rows.ends_E.tolist()
    blocks = []
    for expert, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        left = end - start
        while left:
            taken = size if left > size + size // 2 else left
            blocks.append(Block(expert, taken, is_first=left == end - start))
            left -= taken
    sizes = [block.n_rows for block in blocks]
    return Blocks(blocks, [*sizes, n_rows - sum(sizes)], max(sizes))


def _accumulate(total: Tensor, a: Tensor, b: Tensor, *, is_first: bool) -> None:
    """Add ``a @ b`` to ``total``, or store it there, in the type of ``total``."""
    if total.dtype != a.dtype:
        total.copy_(a @ b) if is_first else total.add_(a @ b)
    elif is_first:
        torch.mm(a, b, out=total)
    else:
        total.addmm_(a, b)


class GroupedProducts:
    """One ``grouped_mm`` per product for all experts: offsets stay on the device and the host never waits."""

    row_multiple = ROW_MULTIPLE_GROUPED
    least_rows = 1  # an expert whose group is empty would have its weight gradient left unwritten

    def forward(self, rows: SortedRows, weights: Weights, *, keep: bool) -> tuple[Tensor, Tensor | None]:
        """As the protocol says."""
        hidden_RH = functional.grouped_mm(rows.x_RD, weights.gate_up_EHD.mT, offs=rows.ends_E)
        act_RF = swiglu(hidden_RH, out_SF=hidden_RH.new_empty(len(hidden_RH), weights.down_EDF.shape[2]))
        out_RD = functional.grouped_mm(act_RF, weights.down_EDF.mT, offs=rows.ends_E)
        return out_RD, hidden_RH if keep else None

    def backward(
        self, grad_RD: Tensor, rows: SortedRows, weights: Weights, hidden_RH: Tensor, weight_dtype: torch.dtype
    ) -> tuple[Tensor, Weights]:
        """As the protocol says."""
        grad_act_RF = functional.grouped_mm(grad_RD, weights.down_EDF, offs=rows.ends_E)
        act_RF, grad_hidden_RH = torch.empty_like(grad_act_RF), torch.empty_like(hidden_RH)
        swiglu_backward(hidden_RH, grad_act_RF, act_SF=act_RF, grad_gate_up_SH=grad_hidden_RH)
        grad_down_EDF = functional.grouped_mm(grad_RD.T, act_RF, offs=rows.ends_E)
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
