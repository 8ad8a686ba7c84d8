"""Root-mean-square normalisation, forward and backward in as few passes over memory as eager torch allows."""

# R rows, D normalised dimension

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """``1 / sqrt(mean(x^2) + eps)`` over the last dimension, which is kept with size 1."""
    return x.square().mean(dim=-1, keepdim=True).add_(eps).rsqrt_()


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x_RD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        scale_R1 = inverse_rms(x_RD, eps)
        ctx.save_for_backward(x_RD, weight_D, scale_R1)
        return (x_RD * scale_R1).mul_(weight_D)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_RD: Tensor) -> tuple[Tensor, Tensor, None]:
        x_RD, weight_D, scale_R1 = ctx.saved_tensors  # type: ignore[attr-defined]
        unit_RD = x_RD * scale_R1
        product_RD = grad_RD * unit_RD
        grad_weight_D = product_RD.sum(dim=0)
        projection_R1 = (product_RD @ weight_D).div_(x_RD.shape[-1])[:, None]
        grad_x_RD = (grad_RD * weight_D).sub_(unit_RD.mul_(projection_R1)).mul_(scale_R1)
        return grad_x_RD, grad_weight_D, None


class RmsNorm(nn.Module):
    """Root-mean-square normalisation over the last dimension (arXiv 1910.07467), in fp32 also under autocast."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x_RD: Tensor) -> Tensor:
        """Normalise the rows of [R, D]; returns fp32."""
        with torch.autocast(x_RD.device.type, enabled=False):
            out: Tensor = _RmsNorm.apply(  # type: ignore[no-untyped-call]
                x_RD.to(self.weight.dtype), self.weight, self.eps
            )
        return out
