"""Root-mean-square normalisation in as few passes over memory as torch allows."""

# R rows, D normalised dimension

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import FunctionCtx, once_differentiable


def blocks(n_rows: int, row_bytes: int, block_bytes: int | None, like: Tensor) -> Iterator[slice]:
    """Slices of ``n_rows`` rows that are worked on one after another: all at once where ``block_bytes`` is None.

    For fake tensors, which predict memory, the first block stands for all.
    """
    size = n_rows if block_bytes is None else max(1, block_bytes // row_bytes)
    for start in range(0, min(size, n_rows) if isinstance(like, FakeTensor) else n_rows, size):
        yield slice(start, min(start + size, n_rows))


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """``1 / sqrt(mean(x^2) + eps)`` over the last dimension, which is kept with size 1."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def _normalised(x_RD: Tensor, weight_D: Tensor, eps: float, block_bytes: int | None) -> tuple[Tensor, Tensor]:
    """Rows scaled to unit root mean square and weighted, and their scales [R, 1]."""
    scale_R1 = inverse_rms(x_RD, eps)
    out_RD = torch.empty_like(x_RD)
    for rows in blocks(len(x_RD), x_RD.shape[1] * x_RD.element_size(), block_bytes, x_RD):
        torch.mul(x_RD[rows], scale_R1[rows], out=out_RD[rows]).mul_(weight_D)
    return out_RD, scale_R1


def _gradients(
    all_grad_RD: Tensor, all_x_RD: Tensor, weight_D: Tensor, all_scale_R1: Tensor, block_bytes: int | None
) -> tuple[Tensor, Tensor]:
    """Gradients of the rows and of the weight."""
    grad_x_RD, grad_weight_D = torch.empty_like(all_x_RD), torch.zeros_like(weight_D)
    for rows in blocks(len(all_x_RD), all_x_RD.shape[1] * all_x_RD.element_size(), block_bytes, all_x_RD):
        grad_RD, scale_R1 = all_grad_RD[rows], all_scale_R1[rows]
        unit_RD = all_x_RD[rows] * scale_R1
        product_RD = grad_RD * unit_RD
        grad_weight_D += product_RD.sum(dim=0)
        projection_R1 = (product_RD @ weight_D).div_(-len(weight_D))[:, None]
        torch.mul(grad_RD, weight_D, out=grad_x_RD[rows]).addcmul_(unit_RD, projection_R1).mul_(scale_R1)
    return grad_x_RD, grad_weight_D


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x_RD: Tensor, weight_D: Tensor, eps: float, block_bytes: int | None) -> Tensor:
        out_RD, scale_R1 = _normalised(x_RD, weight_D, eps, block_bytes)
        ctx.block_bytes = block_bytes  # type: ignore[attr-defined]
        ctx.save_for_backward(x_RD, weight_D, scale_R1)
        return out_RD

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_RD: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x_RD, weight_D, scale_R1 = ctx.saved_tensors  # type: ignore[attr-defined]
        block_bytes = ctx.block_bytes  # type: ignore[attr-defined]
        return *_gradients(grad_RD, x_RD, weight_D, scale_R1, block_bytes), None, None


class RmsNorm(nn.Module):
    """Root-mean-square normalisation over the last dimension (arXiv 1910.07467), in fp32 also under autocast."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x_RD: Tensor, block_bytes: int | None = None) -> Tensor:
        """Normalise the rows of [R, D], in blocks of ``block_bytes`` or all at once; returns fp32."""
        with torch.autocast(x_RD.device.type, enabled=False):
            out: Tensor = _RmsNorm.apply(  # type: ignore[no-untyped-call]
                x_RD.to(self.weight.dtype), self.weight, self.eps, block_bytes
            )
        return out
