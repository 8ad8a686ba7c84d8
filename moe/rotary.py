"""Rotary positions (arXiv 2104.09864), fused with the normalisation of queries and keys that comes before them."""

# B batch, T time, J query and key heads, C head dimension

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from moe.norm import blocks, inverse_rms

RotaryTables = tuple[Tensor, Tensor]  # cosine and sine, [T, C / 2] each


class Rotary(nn.Module):
    """Tables of the angles: fp32, as long as the longest sequence yet, never saved."""

    def __init__(self, head_dim: int, theta: float) -> None:
        super().__init__()
        self.head_dim, self.theta = head_dim, theta
        self._tables: RotaryTables | None = None

    def forward(self, seq_len: int, device: torch.device) -> RotaryTables:
        """Cosine and sine [T, C / 2]."""
        if self._tables is None or len(self._tables[0]) < seq_len or self._tables[0].device != device:
            exponent = torch.arange(0, self.head_dim, 2, device=device, dtype=torch.float32) / self.head_dim
            angle = torch.arange(seq_len, device=device, dtype=torch.float32)[:, None] * (1.0 / self.theta**exponent)
            self._tables = angle.cos(), angle.sin()
        cos, sin = self._tables
        return cos[:seq_len], sin[:seq_len]


def _turn(x: Tensor, along: Tensor, across_first: Tensor, across_second: Tensor, *, out: Tensor) -> Tensor:
    """``(x1 * along1 - x2 * across1, x2 * along2 + x1 * across2)``, 1 and 2 being the halves of the last dimension."""
    first, second = x.chunk(2, dim=-1)
    torch.mul(x, along, out=out)
    out_first, out_second = out.chunk(2, dim=-1)
    out_first.addcmul_(second, across_first, value=-1)
    out_second.addcmul_(first, across_second)
    return out


def _turned_units(
    x_BTJC: Tensor, weight_JC: Tensor, tables: RotaryTables, eps: float, block_bytes: int | None
) -> tuple[Tensor, Tensor]:
    """``rotation(weight * unit)`` with ``unit = x / rms(x)``, per head, and ``1 / rms(x)`` [B, T, J, 1].

    The weight is folded into the tables.
    """
    cos, sin = tables
    scale_BTJ1 = inverse_rms(x_BTJC, eps)
    first, second = weight_JC.chunk(2, dim=-1)
    along_TJC = torch.cat((cos, cos), dim=-1)[:, None] * weight_JC
    across = sin[:, None] * second, sin[:, None] * first
    out_BTJC = torch.empty(x_BTJC.shape, dtype=x_BTJC.dtype, device=x_BTJC.device)
    for at in _blocks(x_BTJC, block_bytes):
        t = at[1]
        _turn(x_BTJC[at], along_TJC[t], across[0][t], across[1][t], out=out_BTJC[at]).mul_(scale_BTJ1[at])
    return out_BTJC, scale_BTJ1


def _gradients(
    grad_BTJC: Tensor,
    saved: tuple[Tensor, Tensor, RotaryTables, Tensor],
    block_bytes: int | None,
    *,
    grad_x_BTJC: Tensor,
) -> Tensor:
    """The gradient of x, into ``grad_x_BTJC``, and of the weight, returned; ``saved`` are x, weight, tables, scales."""
    x_BTJC, weight_JC, (cos, sin), scale_BTJ1 = saved
    along_T1C, across = torch.cat((cos, cos), dim=-1)[:, None], -sin[:, None]
    grad_weight_JC = torch.zeros_like(weight_JC)
    for at in _blocks(x_BTJC, block_bytes):
        t, x, scale, grad_x = at[1], x_BTJC[at], scale_BTJ1[at], grad_x_BTJC[at]
        _turn(grad_BTJC[at], along_T1C[t], across[t], across[t], out=grad_x)
        product = grad_x * x
        grad_weight_JC += (product * scale).sum(dim=(0, 1))
        projection = (product * weight_JC).sum(dim=-1, keepdim=True).mul_(scale.square()).div_(-x.shape[-1])
        grad_x.mul_(weight_JC).addcmul_(x, projection).mul_(scale)
    return grad_weight_JC


class _PositionedHeads(torch.autograd.Function):
    """Queries and keys, normalised and turned, and values as they are, out of one product's heads [B, T, J + G, C]."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        heads_BTHC: Tensor,
        weight_JC: Tensor,
        cos: Tensor,
        sin: Tensor,
        eps: float,
        block_bytes: int | None,
    ) -> tuple[Tensor, Tensor]:
        n_qk = len(weight_JC)
        x_BTJC = heads_BTHC[:, :, :n_qk].to(weight_JC.dtype)
        out_BTJC, scale_BTJ1 = _turned_units(x_BTJC, weight_JC, (cos, sin), eps, block_bytes)
        ctx.block_bytes = block_bytes  # type: ignore[attr-defined]
        ctx.save_for_backward(x_BTJC, weight_JC, cos, sin, scale_BTJ1)
        ctx.heads = heads_BTHC.shape, heads_BTHC.dtype  # type: ignore[attr-defined]
        return out_BTJC, heads_BTHC[:, :, n_qk:]

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_BTJC: Tensor, grad_v_BTGC: Tensor) -> tuple[Tensor | None, ...]:
        x_BTJC, weight_JC, cos, sin, scale_BTJ1 = ctx.saved_tensors  # type: ignore[attr-defined]
        shape, dtype = ctx.heads  # type: ignore[attr-defined]
        grad_BTHC = grad_BTJC.new_empty(shape)
        n_qk, saved = len(weight_JC), (x_BTJC, weight_JC, (cos, sin), scale_BTJ1)
        block_bytes = ctx.block_bytes  # type: ignore[attr-defined]
        grad_weight_JC = _gradients(grad_BTJC, saved, block_bytes, grad_x_BTJC=grad_BTHC[:, :, :n_qk])
        grad_BTHC[:, :, n_qk:] = grad_v_BTGC
        return grad_BTHC.to(dtype), grad_weight_JC, None, None, None, None


def _blocks(x_BTJC: Tensor, block_bytes: int | None) -> Iterator[tuple[slice, slice]]:
    """Slices of batch and time that are worked on one after another."""
    n_rows, seq_len, n_heads, head_dim = x_BTJC.shape
    token_bytes = n_heads * head_dim * x_BTJC.element_size()
    for rows in blocks(n_rows, seq_len * token_bytes, block_bytes, x_BTJC):
        for times in blocks(seq_len, (rows.stop - rows.start) * token_bytes, block_bytes, x_BTJC):
            yield rows, times


def positioned_heads(
    heads_BTHC: Tensor, weight_JC: Tensor, tables: RotaryTables, eps: float, block_bytes: int | None = None
) -> tuple[Tensor, Tensor]:
    """Queries and keys [B, T, J, C] and values [B, T, G, C] of the heads of one product [B, T, J + G, C].

    Each query and key is scaled to unit root mean square, weighted by ``weight_JC``, turned by its position, and of
    the weight's type; values are a view of the heads.
    """
    out: tuple[Tensor, Tensor] = _PositionedHeads.apply(  # type: ignore[no-untyped-call]
        heads_BTHC, weight_JC, *tables, eps, block_bytes
    )
    return out
