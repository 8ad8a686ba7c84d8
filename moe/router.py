"""The router: which experts see a token, how much each counts, and the two losses that keep it healthy."""

# N tokens, D model, E experts, K top-k

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Routing(NamedTuple):
    """Where tokens go. All floating-point members are fp32, whatever the training precision."""

    experts_NK: Tensor  # int64, the experts of each token, best first
    weights_NK: Tensor  # their softmax probabilities, renormalised to one
    counts_E: Tensor  # int64, slots (token times one of its K choices) per expert
    probs_sum_E: Tensor  # softmax probabilities summed over tokens
    z_sum: Tensor  # squared log-sum-exp of the router's logits, summed over tokens
    entropy_sum: Tensor  # entropy of the softmax in nats, summed over tokens, detached


class Router(nn.Module):
    """A linear gate in fp32 with softmax over all experts, the K best renormalised (Qwen3-MoE's router)."""

    def __init__(self, d_model: int, n_experts: int, top_k: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.weight = nn.Parameter(torch.empty(n_experts, d_model))

    def forward(self, x_ND: Tensor) -> Routing:
        """Route tokens [N, D]."""
        with torch.autocast(x_ND.device.type, enabled=False):
            logits_NE = x_ND.to(self.weight.dtype) @ self.weight.T
            log_norm_N = logits_NE.logsumexp(dim=-1)
            log_probs_NE = logits_NE - log_norm_N[:, None]
            probs_NE = log_probs_NE.exp()
            top_NK, experts_NK = probs_NE.topk(self.top_k, dim=-1)
            with torch.no_grad():
                counts_E = _counts(experts_NK, len(self.weight))
                entropy_sum = -(probs_NE * log_probs_NE).sum()
            return Routing(
                experts_NK=experts_NK,
                weights_NK=top_NK / top_NK.sum(dim=-1, keepdim=True),
                counts_E=counts_E,
                probs_sum_E=probs_NE.sum(dim=0),
                z_sum=log_norm_N.square().sum(),
                entropy_sum=entropy_sum,
            )


def _counts(experts_NK: Tensor, n_experts: int) -> Tensor:
    """Slots of each expert [E], by comparison: nothing is added in an order that a GPU is free to choose."""
    numbers_E = torch.arange(n_experts, device=experts_NK.device)
    return (experts_NK.flatten()[:, None] == numbers_E).sum(dim=0)


def load_balancing_loss(counts_E: Tensor, probs_sum_E: Tensor, n_tokens: int) -> Tensor:
    """``E * sum_e f_e * P_e`` (Switch Transformer, arXiv 2101.03961, eq. 4): 1 when balanced, E when collapsed.

    ``f_e`` is the share of slots that went to expert e, a constant counted over the whole optimizer step
    (Qiu et al. 2025, arXiv 2501.11873); ``P_e`` is the mean probability of e over the ``n_tokens`` of this micro-step.
    """
    frequency_E = counts_E.to(probs_sum_E.dtype) / counts_E.sum()
    return counts_E.numel() * (frequency_E * probs_sum_E).sum() / n_tokens
