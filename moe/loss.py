"""Cross-entropy of a linear head, in chunks: tokens times vocabulary numbers are never held.

The gradient of a chunk is taken while its logits are there, as Liger Kernel does (arXiv 2410.10989): three products
a chunk instead of four, and a backward pass that only scales.
"""

# N tokens, D model, V vocabulary, C tokens of one chunk

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import FunctionCtx, once_differentiable

from moe.device_choices import DeviceChoices
from moe.matmul import compute_dtype, fast_matmuls, product_in_fp32


def _softmax_and_losses(logits_CV: Tensor, targets_C: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax [C, V], in place of the logits, and cross-entropies [C].

    The log of the normaliser is taken at the likeliest token, whose probability is at least 1 / V: exact however
    unlikely the target is, without a second pass of exponentials.
    """
    largest_C = logits_CV.amax(dim=-1)
    target_C = logits_CV.gather(1, targets_C[:, None])[:, 0]
    probs_CV = torch.softmax(logits_CV, dim=-1, out=logits_CV)
    return probs_CV, largest_C - target_C - probs_CV.amax(dim=-1).log_()


def _gradient_and_losses(logits_CV: Tensor, targets_C: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of the logits [C, V], in their place, and cross-entropies [C]."""
    probs_CV, loss_C = _softmax_and_losses(logits_CV, targets_C)
    index_C1 = targets_C[:, None]
    return probs_CV.scatter_(1, index_C1, probs_CV.gather(1, index_C1).sub_(1.0)), loss_C


class _Sums(NamedTuple):
    """The summed loss, and its gradients where they are wanted: of the tokens [N, D] and of the weight [V, D]."""

    total: Tensor
    grad_ND: Tensor | None = None
    grad_VD: Tensor | None = None


def _cached_sums(
    x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, dtype: torch.dtype, rows: int, keep: bool
) -> _Sums:
    """For a CPU: logits in the type of the products, softmax in fp32, a chunk at a time in the cache."""
    n_tokens, rows = len(x_ND), min(len(x_ND), rows)
    cast_ND, cast_VD = x_ND.to(dtype), weight_VD.to(dtype)
    cast_CV = cast_ND.new_empty(rows, len(weight_VD))
    full_CV = cast_CV if dtype == x_ND.dtype else x_ND.new_empty(cast_CV.shape)
    total = x_ND.new_zeros(())
    grad_ND = torch.empty_like(cast_ND) if keep else None
    grad_VD = torch.zeros_like(weight_VD) if keep else None
    last = rows if isinstance(x_ND, FakeTensor) else n_tokens  # one chunk stands for all when memory is predicted
    for start in range(0, last, rows):
        chunk = slice(start, min(start + rows, n_tokens))
        x_CD, targets_C = cast_ND[chunk], targets_N[chunk]
        product_CV = torch.mm(x_CD, cast_VD.T, out=cast_CV[: len(x_CD)])
        grad_logits_CV, loss_C = _gradient_and_losses(_copied(product_CV, full_CV[: len(x_CD)]), targets_C)
        total += loss_C.sum()
        if grad_ND is None or grad_VD is None:
            continue
        grad_CV = _copied(grad_logits_CV, product_CV)
        torch.mm(grad_CV, cast_VD, out=grad_ND[chunk])
        if grad_VD.dtype == dtype:
            grad_VD.addmm_(grad_CV.T, x_CD)
        else:
            grad_VD += grad_CV.T @ x_CD
    return _Sums(total, grad_ND, grad_VD)


def _fused_sums(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, dtype: torch.dtype, rows: int, keep: bool) -> _Sums:
    """For a GPU: logits in fp32 out of the product itself, few launches a chunk, and no addition without an order.

    The gradient ``exp(log p)`` is rounded to the type of the products as it is written, and is ``expm1(log p)`` at the
    target.
    """
    n_tokens, rows = len(x_ND), min(len(x_ND), rows)
    cast_ND, cast_VD = x_ND.to(dtype), weight_VD.to(dtype)
    logits_CV = x_ND.new_empty(rows, len(weight_VD))
    log_prob_N1 = x_ND.new_empty(n_tokens, 1)
    grad_CV = logits_CV if dtype == x_ND.dtype else cast_ND.new_empty(logits_CV.shape)
    grad_ND = torch.empty_like(cast_ND) if keep else None
    grad_VD = torch.empty_like(weight_VD) if keep else None
    summand_VD = torch.empty_like(weight_VD) if keep and n_tokens > rows else None
    for start in range(0, n_tokens, rows):
        chunk = slice(start, min(start + rows, n_tokens))
        x_CD, index_C1, target_C1 = cast_ND[chunk], targets_N[chunk, None], log_prob_N1[chunk]
        log_probs_CV = _log_probs(x_CD, cast_VD, out=logits_CV[: len(x_CD)])
        torch.gather(log_probs_CV, 1, index_C1, out=target_C1)
        if grad_ND is None or grad_VD is None:
            continue
        grad_logits_CV = torch.exp(log_probs_CV, out=grad_CV[: len(x_CD)])
        grad_logits_CV.scatter_(1, index_C1, target_C1.expm1().to(dtype))
        torch.mm(grad_logits_CV, cast_VD, out=grad_ND[chunk])
        if start == 0:
            product_in_fp32(grad_logits_CV.T, x_CD, out=grad_VD)
        else:
            assert summand_VD is not None
            grad_VD += product_in_fp32(grad_logits_CV.T, x_CD, out=summand_VD)
    return _Sums(-log_prob_N1.sum(), grad_ND, grad_VD)


def _log_probs(x_CD: Tensor, weight_VD: Tensor, *, out: Tensor) -> Tensor:
    logits_CV = product_in_fp32(x_CD, weight_VD.T, out=out)
    log_probs_CV: Tensor = torch.log_softmax(logits_CV, dim=-1, out=logits_CV)
    return log_probs_CV


class _LinearCrossEntropySum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        dtype: torch.dtype,
        choices: DeviceChoices,
        keep: bool,
    ) -> Tensor:
        sums_of = _fused_sums if choices.fused_head else _cached_sums
        with fast_matmuls(x_ND.device):
            sums = sums_of(x_ND, weight_VD, targets_N, dtype, choices.head_rows(len(weight_VD)), keep)
        if sums.grad_ND is not None and sums.grad_VD is not None:
            ctx.save_for_backward(sums.grad_ND, sums.grad_VD)
        return sums.total

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_ND, grad_VD = ctx.saved_tensors  # type: ignore[attr-defined]
        return grad_ND.to(grad_VD.dtype) * grad, grad_VD.mul_(grad), None, None, None, None


def _copied(source: Tensor, target: Tensor) -> Tensor:
    """``target`` with the numbers of ``source``; where they have one type they are one tensor already."""
    return source if target.dtype == source.dtype else target.copy_(source)


def cross_entropy_sum(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, choices: DeviceChoices) -> Tensor:
    """Sum over tokens of the cross-entropy of ``x_ND @ weight_VD.T`` in nats: a scalar in fp32.

    Under autocast the products are in its type; softmax, sums and the weight's gradient stay in fp32.
    """
    dtype = compute_dtype(x_ND.device) or x_ND.dtype
    total: Tensor = _LinearCrossEntropySum.apply(  # type: ignore[no-untyped-call]
        x_ND, weight_VD, targets_N, dtype, choices, torch.is_grad_enabled()
    )
    return total


@torch.no_grad()
def token_cross_entropies(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, choices: DeviceChoices) -> Tensor:
    """Cross-entropy of every token in nats [N], fp32, without gradient."""
    rows = min(len(x_ND), choices.head_rows(len(weight_VD)))
    losses = []
    with fast_matmuls(x_ND.device):
        for x_CD, targets_C in zip(torch.split(x_ND, rows), torch.split(targets_N, rows), strict=True):
            losses.append(_softmax_and_losses(x_CD @ weight_VD.T, targets_C)[1])
    return torch.cat(losses)
