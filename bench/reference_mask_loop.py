"""The MoE language model that tutorials show: a module per expert, and a loop over boolean masks.

Written for the benchmark as the thing to be faster than: the same architecture and the same weights as ``moe``'s, in
the plainest correct PyTorch.
"""

# B batch, T time, D model, N = B*T tokens, E experts, K top-k

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from moe.config import ModelConfig
from moe.model import MoELanguageModel


class Expert(nn.Module):
    def __init__(self, d_model: int, d_expert: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(d_model, d_expert, bias=False)
        self.up_proj = nn.Linear(d_model, d_expert, bias=False)
        self.down_proj = nn.Linear(d_expert, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class MaskLoopMoE(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.top_k = config.top_k
        self.gate = nn.Linear(config.d_model, config.n_experts, bias=False)
        self.experts = nn.ModuleList(Expert(config.d_model, config.d_expert) for _ in range(config.n_experts))

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
        probs_NE = self.gate(x_ND).float().softmax(dim=-1)
        weights_NK, chosen_NK = probs_NE.topk(self.top_k, dim=-1)
        weights_NK = weights_NK / weights_NK.sum(dim=-1, keepdim=True)
        out_ND = torch.zeros_like(x_ND)
        for e, expert in enumerate(self.experts):
            for k in range(self.top_k):
                mask_N = chosen_NK[:, k] == e
                if mask_N.any():
                    mixed = weights_NK[mask_N, k, None] * expert(x_ND[mask_N])
                    out_ND[mask_N] += mixed.to(out_ND.dtype)
        one_hot_NKE = functional.one_hot(chosen_NK, len(self.experts)).float()
        lb_loss = len(self.experts) * (one_hot_NKE.mean(dim=(0, 1)) * probs_NE.mean(dim=0)).sum()
        return out_ND.view_as(x_BTD), lb_loss


def rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


class MaskLoopLayer(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d_model = config.d_model
        self.n_heads, self.head_dim = config.n_heads, config.head_dim
        self.norm1 = nn.RMSNorm(d_model, eps=config.norm_eps)
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, d_model, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.o_proj = nn.Linear(d_model, d_model, bias=False)
        self.q_norm = nn.RMSNorm(self.head_dim, eps=config.norm_eps)
        self.k_norm = nn.RMSNorm(self.head_dim, eps=config.norm_eps)
        self.norm2 = nn.RMSNorm(d_model, eps=config.norm_eps)
        self.moe = MaskLoopMoE(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        b, t, d = x.shape
        h = self.norm1(x)
        shape = (b, t, self.n_heads, self.head_dim)
        q = self.q_norm(self.q_proj(h).view(shape)).transpose(1, 2)
        k = self.k_norm(self.k_proj(h).view(shape)).transpose(1, 2)
        v = self.v_proj(h).view(shape).transpose(1, 2)
        q, k = q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin
        attended = functional.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype), is_causal=True)
        x = x + self.o_proj(attended.transpose(1, 2).reshape(b, t, d))
        mixed, lb_loss = self.moe(self.norm2(x))
        return x + mixed, lb_loss


class MaskLoopLanguageModel(nn.Module):
    """Returns the mean cross-entropy and the load-balancing loss of a batch."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.n_kv_heads == config.n_heads, "tutorials show plain multi-head attention"
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(MaskLoopLayer(config) for _ in range(config.n_layers))
        self.norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
        c = self.config.head_dim
        angle = torch.arange(tokens_BT.shape[1])[:, None] / self.config.rope_theta ** (torch.arange(0, c, 2) / c)
        cos, sin = torch.cat((angle, angle), dim=-1).cos(), torch.cat((angle, angle), dim=-1).sin()
        x = self.embed(tokens_BT)
        lb_losses = []
        for layer in self.layers:
            x, lb_loss = layer(x, cos, sin)
            lb_losses.append(lb_loss)
        logits = functional.linear(self.norm(x), self.embed.weight)
        ce = functional.cross_entropy(logits.flatten(0, 1).float(), targets_BT.flatten())
        return ce, torch.stack(lb_losses).mean()

    @torch.no_grad()
    def copy_weights(self, ours: MoELanguageModel) -> None:
        """The same numbers as ``ours``, so that both must compute the same loss."""
        state = dict(ours.named_parameters())
        self.embed.weight.copy_(state["embed_tokens.weight"])
        self.norm.weight.copy_(state["norm.weight"])
        layers: list[Any] = list(self.layers)
        for i, layer in enumerate(layers):
            for name in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"):
                getattr(layer, name).weight.copy_(state[f"layers.{i}.self_attn.{name}.weight"])
            layer.norm1.weight.copy_(state[f"layers.{i}.input_layernorm.weight"])
            layer.norm2.weight.copy_(state[f"layers.{i}.post_attention_layernorm.weight"])
            layer.moe.gate.weight.copy_(state[f"layers.{i}.mlp.gate.weight"])
            for e, expert in enumerate(layer.moe.experts):
                gate, up = state[f"layers.{i}.mlp.experts.gate_up_proj"][e].chunk(2)
                expert.gate_proj.weight.copy_(gate)
                expert.up_proj.weight.copy_(up)
                expert.down_proj.weight.copy_(state[f"layers.{i}.mlp.experts.down_proj"][e])
