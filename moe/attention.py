"""Causal self-attention with grouped queries, RMS-normalised queries and keys, and rotary positions."""

# B batch, T time, D model, H query heads, G key and value heads, J = H + G, C head dimension, N = B*T tokens

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from moe.config import ModelConfig
from moe.device_choices import DeviceChoices
from moe.matmul import Projection, compute_dtype, linear
from moe.norm import RmsNorm
from moe.rotary import RotaryTables, positioned_heads


def document_mask(document_ids_BT: Tensor) -> Tensor:
    """True where a token may attend: to itself and to earlier tokens of its own document, [B, 1, T, T]."""
    same_BTT = document_ids_BT[:, :, None] == document_ids_BT[:, None, :]
    return same_BTT.tril()[:, None]


class Attention(nn.Module):
    """Qwen3's attention: q, k and v projections, a norm per head on q and k, RoPE, causal softmax, o projection."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d_model, head_dim = config.d_model, config.head_dim
        self.n_heads, self.n_kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, head_dim
        self.q_proj = Projection(d_model, config.n_heads * head_dim)
        self.k_proj = Projection(d_model, config.n_kv_heads * head_dim)
        self.v_proj = Projection(d_model, config.n_kv_heads * head_dim)
        self.o_proj = Projection(config.n_heads * head_dim, d_model)
        self.q_norm = RmsNorm(head_dim, config.norm_eps)
        self.k_norm = RmsNorm(head_dim, config.norm_eps)

    def forward(self, x_ND: Tensor, tables: RotaryTables, mask: Tensor | None, choices: DeviceChoices) -> Tensor:
        """Attend within each of the B rows of T tokens that [N, D] holds, T being the tables' length.

        ``mask`` is one of ``document_mask``, or None for plain causality. Returns [N, D] in the type the products
        were computed in.
        """
        n_qk = self.n_heads + self.n_kv_heads
        weight = torch.cat((self.q_proj.weight, self.k_proj.weight, self.v_proj.weight))
        heads_BTHC = linear(x_ND, weight).view(-1, len(tables[0]), n_qk + self.n_kv_heads, self.head_dim)
        # Asked before autocast is switched off, after which nothing says what the products are in.
        dtype = x_ND.dtype if compute_dtype(x_ND.device) is None else choices.attention_dtype
        with torch.autocast(x_ND.device.type, enabled=False):
            qk_BTJC, v_BTGC = positioned_heads(
                heads_BTHC, self._norm_weight(), tables, self.q_norm.eps, choices.elementwise_bytes
            )
            out_BTHC = self._attend(qk_BTJC.to(dtype), v_BTGC.to(dtype), mask)
        out_ND: Tensor = self.o_proj(out_BTHC.reshape(len(x_ND), -1))
        return out_ND

    def _attend(self, qk_BTJC: Tensor, v_BTGC: Tensor, mask: Tensor | None) -> Tensor:
        q_BTHC, k_BTGC = torch.split(qk_BTJC, [self.n_heads, self.n_kv_heads], dim=2)
        out_BHTC = functional.scaled_dot_product_attention(
            q_BTHC.transpose(1, 2),
            k_BTGC.transpose(1, 2),
            v_BTGC.transpose(1, 2),
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=self.n_heads != self.n_kv_heads,
        )
        return out_BHTC.transpose(1, 2)

    def _norm_weight(self) -> Tensor:
        """The norms' weights of every query and key head, [J, C]."""
        return torch.cat((self.q_norm.weight.expand(self.n_heads, -1), self.k_norm.weight.expand(self.n_kv_heads, -1)))
