"""The matrix products of a layer's experts over rows sorted by expert: in blocks, expert by expert, or grouped.

All ways save the pre-activations and compute SiLU again in the backward pass. ``moe.device_choices`` says which is
taken where.
"""

# D model, F expert width, H = 2F, E experts, R rows sorted by expert, S rows of a block

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional

from moe.device import read_on_host
from moe.device_choices import DeviceChoices
from moe.matmul import fast_matmuls, product_in_fp32
from moe.swiglu import swiglu, swiglu_backward

BLOCK_BYTES = 2**22  # pre-activations worked on at once, or up to half more: near a core's caches (measured)

# Fewest rows whose product has the same bits, row by row, as any larger one (measured on MKL, and on oneDNN for the
# sums that it does not split): a token's output then does not depend on how many others share its expert. oneDNN
# also generates code for each row count, so there its counts are kept few.
ROW_MULTIPLE_MKL = 16
ROW_MULTIPLE_ONEDNN = 64
# 16 bytes of bf16: how a group must be aligned where the rows are what is summed over.
ROW_MULTIPLE_GPU = 8


class SortedRows(NamedTuple):
    """Inputs of the experts, R rows sorted by expert; rows past the last end are never read."""

    x_RD: Tensor
    ends_E: Tensor  # int32 on the rows' device, the row after each expert's last


class Weights(NamedTuple):
    """Stacked weights in the type of the products, or their gradients in the type of the parameters."""

    gate_up_EHD: Tensor
    down_EDF: Tensor


class Kept(NamedTuple):
    """What a forward pass keeps for the backward pass; ``ends`` is ``ends_E`` as the host read it, if it did."""

    hidden_RH: Tensor
    ends: Sequence[int]


class ExpertProducts(Protocol):
    """``down[e] @ (silu(gate) * up)`` with ``gate, up = gate_up[e] @ x`` for the rows of every expert e.

    An expert's rows are padded to a multiple of ``row_multiple``, and are ``least_rows`` at least.
    """

    row_multiple: int
    least_rows: int

    def forward(self, rows: SortedRows, weights: Weights, *, keep: bool) -> tuple[Tensor, Kept | None]:
        """Outputs [R, D] and what ``backward`` needs, pre-activations [R, H] that are given to ``release`` after it."""

    def backward(
        self, grad_RD: Tensor, rows: SortedRows, weights: Weights, kept: Kept, weight_dtype: torch.dtype
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
    """One product per block of an expert's rows, the block's elementwise work done while it is in cache."""

    least_rows = 0

    def __init__(self, row_multiple: int, pool: BufferPool) -> None:
        self.row_multiple = row_multiple
        self._pool = pool

    def forward(self, rows: SortedRows, weights: Weights, *, keep: bool) -> tuple[Tensor, Kept | None]:
        """As the protocol says."""
        n_hidden, n_inner = weights.gate_up_EHD.shape[1], weights.down_EDF.shape[2]
        hidden_RH = self._pool.take(len(rows.x_RD), n_hidden, rows.x_RD) if keep else None
        out_RD = torch.empty_like(rows.x_RD)
        ends = _ends_on_host(rows)
        cut = _blocks(rows, ends, n_hidden)
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
        return out_RD, None if hidden_RH is None else Kept(hidden_RH, ends)

    def backward(
        self, grad_RD: Tensor, rows: SortedRows, weights: Weights, kept: Kept, weight_dtype: torch.dtype
    ) -> tuple[Tensor, Weights]:
        """As the protocol says."""
        grad_x_RD, hidden_RH = torch.empty_like(rows.x_RD), kept.hidden_RH
        grads = Weights(*(torch.empty_like(weight, dtype=weight_dtype) for weight in weights))
        n_hidden, n_inner = weights.gate_up_EHD.shape[1], weights.down_EDF.shape[2]
        cut = _blocks(rows, kept.ends, n_hidden)
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


def _ends_on_host(rows: SortedRows) -> list[int]:
    """The row after each expert's last. Fake tensors, which predict memory, have no numbers: their loads are equal."""
    if isinstance(rows.ends_E, FakeTensor):
        n_rows, n_experts = len(rows.x_RD), len(rows.ends_E)
        return [min(n_rows, -(-n_rows // n_experts) * (expert + 1)) for expert in range(n_experts)]
    ends: list[int] = read_on_host(rows.ends_E)
    return ends


def _blocks(rows: SortedRows, ends: Sequence[int], n_hidden: int) -> Blocks:
    """Every expert's rows in blocks, the last one of which takes up to half of another block with it."""
    n_rows = len(rows.x_RD)
    row_bytes = n_hidden * rows.x_RD.element_size()
    size = max(64, BLOCK_BYTES // row_bytes // 64 * 64)
    if isinstance(rows.ends_E, FakeTensor):  # one block stands for all
        ends = [ends[0] if ends[0] <= size + size // 2 else size]
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


class ExpertByExpertProducts:
    """One product per expert, elementwise work on all rows at once: for GPUs that have no grouped product.

    The host reads the segments' ends once, in the forward pass, and keeps them for the backward pass.
    """

    row_multiple = ROW_MULTIPLE_GPU
    least_rows = 0

    def forward(self, rows: SortedRows, weights: Weights, *, keep: bool) -> tuple[Tensor, Kept | None]:
        """As the protocol says."""
        ends = _ends_on_host(rows)
        x_RD, n_rows = rows.x_RD, len(rows.x_RD)
        hidden_RH = x_RD.new_empty(n_rows, weights.gate_up_EHD.shape[1])
        out_RD = torch.empty_like(x_RD)
        for expert, segment in _segments(ends):
            torch.mm(x_RD[segment], weights.gate_up_EHD[expert].T, out=hidden_RH[segment])
        act_RF = swiglu(hidden_RH, out_SF=x_RD.new_empty(n_rows, weights.down_EDF.shape[2]))
        for expert, segment in _segments(ends):
            torch.mm(act_RF[segment], weights.down_EDF[expert].T, out=out_RD[segment])
        return out_RD, Kept(hidden_RH, ends) if keep else None

    def backward(
        self, grad_RD: Tensor, rows: SortedRows, weights: Weights, kept: Kept, weight_dtype: torch.dtype
    ) -> tuple[Tensor, Weights]:
        """As the protocol says."""
        grads = Weights(*(torch.empty_like(weight, dtype=weight_dtype) for weight in weights))
        grad_x_RD, grad_hidden_RH = torch.empty_like(rows.x_RD), torch.empty_like(kept.hidden_RH)
        act_RF, grad_act_RF = (grad_RD.new_empty(len(grad_RD), weights.down_EDF.shape[2]) for _ in range(2))
        busy = list(_segments(kept.ends))
        for idle in set(range(len(grads.down_EDF))) - {expert for expert, _ in busy}:
            grads.gate_up_EHD[idle].zero_()
            grads.down_EDF[idle].zero_()
        for expert, segment in busy:
            torch.mm(grad_RD[segment], weights.down_EDF[expert], out=grad_act_RF[segment])
        swiglu_backward(kept.hidden_RH, grad_act_RF, act_SF=act_RF, grad_gate_up_SH=grad_hidden_RH)
        for expert, segment in busy:
            product_in_fp32(grad_RD[segment].T, act_RF[segment], out=grads.down_EDF[expert])
            product_in_fp32(grad_hidden_RH[segment].T, rows.x_RD[segment], out=grads.gate_up_EHD[expert])
            torch.mm(grad_hidden_RH[segment], weights.gate_up_EHD[expert], out=grad_x_RD[segment])
        return grad_x_RD, grads

    def release(self, hidden_RH: Tensor) -> None:
        """Nothing to do: CUDA's caching allocator keeps memory by itself."""


def _segments(ends: Sequence[int]) -> Iterator[tuple[int, slice]]:
    """The rows of every expert that has some."""
    for expert, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        if end > start:
            yield expert, slice(start, end)


class GroupedProducts:
    """One ``grouped_mm`` per product for all experts: offsets stay on the device and the host never waits."""

    row_multiple = ROW_MULTIPLE_GPU
    least_rows = 1  # an expert whose group is empty would have its weight gradient left unwritten

    def forward(self, rows: SortedRows, weights: Weights, *, keep: bool) -> tuple[Tensor, Kept | None]:
        """As the protocol says."""
        hidden_RH = functional.grouped_mm(rows.x_RD, weights.gate_up_EHD.mT, offs=rows.ends_E)
        act_RF = swiglu(hidden_RH, out_SF=hidden_RH.new_empty(len(hidden_RH), weights.down_EDF.shape[2]))
        out_RD = functional.grouped_mm(act_RF, weights.down_EDF.mT, offs=rows.ends_E)
        return out_RD, Kept(hidden_RH, ()) if keep else None

    def backward(
        self, grad_RD: Tensor, rows: SortedRows, weights: Weights, kept: Kept, weight_dtype: torch.dtype
    ) -> tuple[Tensor, Weights]:
        """As the protocol says."""
        hidden_RH = kept.hidden_RH
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
    choices: DeviceChoices, dtype: torch.dtype, pool: BufferPool, widths: Sequence[int] = ()
) -> ExpertProducts:
    """The way that is chosen for products in ``dtype``; ``widths`` are the model's and the experts'."""
    way = choices.products_way(dtype, widths)
    if way == "grouped":
        return GroupedProducts()
    if way == "expert by expert":
        return ExpertByExpertProducts()
    return BlockedProducts(ROW_MULTIPLE_MKL if dtype == torch.float32 else ROW_MULTIPLE_ONEDNN, pool)
