"""SwiGLU experts with stacked weights: tokens sorted by expert, one autograd function a layer.

Tokens are gathered into rows sorted by expert (stably, so that the same inputs give the same bits) and come back by
the inverse gather, which sums a token's K rows without atomic additions. Routing weights are applied on that way back,
where a row is D wide: the gradient of a weight is then the product of the row's output, which is saved, with the
gradient of its token, and the wider activations are passed over two times less.
"""

# N tokens, D model, F expert width, H = 2F, E experts, K top-k, R rows sorted by expert (N*K, and padding)

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional

from moe.device_choices import DeviceChoices
from moe.expert_products import BufferPool, ExpertProducts, Kept, SortedRows, Weights, choose_products
from moe.matmul import compute_dtype


class Dispatch(NamedTuple):
    """Which row holds which token. Rows that pad name token 0, and no slot points at them."""

    token_R: Tensor  # int64, a row's token
    row_NK: Tensor  # int64, the row of a token's k-th slot
    ends_E: Tensor  # int32, the row after each expert's last


def dispatch(experts_NK: Tensor, counts_E: Tensor, *, row_multiple: int, least_rows: int) -> Dispatch:
    """Sort slots by expert, stably, each expert's segment padded to a multiple of ``row_multiple`` rows.

    The number of rows depends on shapes alone (the most that padding can make), so nothing waits for the device.
    """
    (n_tokens, top_k), n_experts = experts_NK.shape, len(counts_E)
    n_slots, device = n_tokens * top_k, experts_NK.device
    order = experts_NK.flatten().argsort(stable=True)
    padded_E = (counts_E.clamp(min=least_rows) + (row_multiple - 1)) // row_multiple * row_multiple
    ends_E = padded_E.cumsum(0)
    shift_E = (ends_E - padded_E) - (counts_E.cumsum(0) - counts_E)
    row_of_sorted = torch.arange(n_slots, device=device) + shift_E.repeat_interleave(counts_E, output_size=n_slots)
    n_rows = -(-(n_slots + n_experts * (row_multiple - 1 + least_rows)) // row_multiple) * row_multiple
    token_R = torch.zeros(n_rows, dtype=torch.int64, device=device).scatter_(0, row_of_sorted, order // top_k)
    row_NK = torch.empty_like(order).scatter_(0, order, row_of_sorted).view(n_tokens, top_k)
    return Dispatch(token_R, row_NK, ends_E.to(torch.int32))


def _rows_of(x_ND: Tensor, plan: Dispatch) -> Tensor:
    """Inputs sorted by expert [R, D].

    In fp16 the rows that pad are zeros: an expert that token 0 does not go to may overflow on it, and its gradient, a
    sum over all rows, would hold 0 * inf.
    """
    x_RD = x_ND.index_select(0, plan.token_R)
    if x_RD.dtype == torch.float16:
        padding_R = torch.ones_like(plan.token_R, dtype=torch.bool).index_fill_(0, plan.row_NK.flatten(), False)
        x_RD.masked_fill_(padding_R[:, None], 0.0)
    return x_RD


def _sum_of_rows(rows_RD: Tensor, row_NK: Tensor, weights_NK: Tensor | None) -> Tensor:
    return functional.embedding_bag(row_NK, rows_RD, mode="sum", per_sample_weights=weights_NK)


def _gradient_of_rows(grad_ND: Tensor, out_RD: Tensor, token_R: Tensor, weight_R: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the experts' outputs [R, D], and of the weights that they are summed with [R]."""
    grad_RD = grad_ND.index_select(0, token_R)
    grad_weight_R = (grad_RD * out_RD).sum(dim=1, dtype=weight_R.dtype)
    return grad_RD.mul_(weight_R.to(grad_RD.dtype)[:, None]), grad_weight_R


class _MixtureOfExperts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x_ND: Tensor,
        weights_NK: Tensor,
        gate_up_EHD: Tensor,
        down_EDF: Tensor,
        plan: Dispatch,
        products: ExpertProducts,
        dtype: torch.dtype,
        keep: bool,
    ) -> Tensor:
        cast_ND, weights = x_ND.to(dtype), Weights(gate_up_EHD.to(dtype), down_EDF.to(dtype))
        rows = SortedRows(_rows_of(cast_ND, plan), plan.ends_E)
        out_RD, kept = products.forward(rows, weights, keep=keep)
        if kept is not None:
            ctx.save_for_backward(cast_ND, weights_NK, *weights, *plan, out_RD, kept.hidden_RH)
            ctx.products, ctx.ends = products, kept.ends  # type: ignore[attr-defined]
            ctx.weight_dtype = gate_up_EHD.dtype  # type: ignore[attr-defined]
        return _sum_of_rows(out_RD.to(weights_NK.dtype), plan.row_NK, weights_NK)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_ND: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, weights_NK, gate_up, down, *plan_parts, out_RD, hidden_RH = ctx.saved_tensors  # type: ignore[attr-defined]
        products: ExpertProducts = ctx.products  # type: ignore[attr-defined]
        plan, slots = Dispatch(*plan_parts), plan_parts[1].flatten()
        rows = SortedRows(_rows_of(x_ND, plan), plan.ends_E)
        weight_R = weights_NK.new_zeros(len(plan.token_R)).scatter_(0, slots, weights_NK.flatten())
        grad_RD, grad_weight_R = _gradient_of_rows(grad_ND.to(x_ND.dtype), out_RD, plan.token_R, weight_R)
        grad_x_RD, grads = products.backward(
            grad_RD,
            rows,
            Weights(gate_up, down),
            Kept(hidden_RH, ctx.ends),  # type: ignore[attr-defined]
            ctx.weight_dtype,  # type: ignore[attr-defined]
        )
        products.release(hidden_RH)
        grad_x_ND = _sum_of_rows(grad_x_RD, plan.row_NK, None).to(grad_ND.dtype)
        grad_weights_NK = grad_weight_R.index_select(0, slots).view_as(weights_NK)
        return grad_x_ND, grad_weights_NK, *grads, None, None, None, None


class Experts(nn.Module):
    """E SwiGLU experts: ``gate_up_proj`` [E, 2F, D], gate first, and ``down_proj`` [E, D, F], as Qwen3-MoE has them."""

    def __init__(self, n_experts: int, d_model: int, d_expert: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(n_experts, 2 * d_expert, d_model))
        self.down_proj = nn.Parameter(torch.empty(n_experts, d_model, d_expert))
        self._pool = BufferPool()

    def forward(
        self, x_ND: Tensor, weights_NK: Tensor, experts_NK: Tensor, counts_E: Tensor, choices: DeviceChoices
    ) -> Tensor:
        """Weighted sum of the K chosen experts' outputs for every token, [N, D] in the weights' type (fp32)."""
        dtype = compute_dtype(x_ND.device) or x_ND.dtype
        products = choose_products(choices, dtype, self._pool, (x_ND.shape[-1], self.down_proj.shape[-1]))
        return mixture_of_experts(
            x_ND, weights_NK, experts_NK, counts_E, Weights(self.gate_up_proj, self.down_proj), products, dtype
        )


def mixture_of_experts(
    x_ND: Tensor,
    weights_NK: Tensor,
    experts_NK: Tensor,
    counts_E: Tensor,
    weights: Weights,
    products: ExpertProducts,
    dtype: torch.dtype,
) -> Tensor:
    """As ``Experts.forward``, with the implementation and the type of its products given."""
    plan = dispatch(experts_NK, counts_E, row_multiple=products.row_multiple, least_rows=products.least_rows)
    with torch.autocast(x_ND.device.type, enabled=False):
        out: Tensor = _MixtureOfExperts.apply(  # type: ignore[no-untyped-call]
            x_ND, weights_NK, *weights, plan, products, dtype, torch.is_grad_enabled()
        )
    return out
