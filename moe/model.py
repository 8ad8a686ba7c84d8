"""A decoder-only Mixture-of-Experts language model with the architecture of Qwen3-MoE."""

# B batch, T time, D model, V vocabulary, L layers, E experts, K top-k, N = B*T tokens

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from moe.attention import Attention, document_mask
from moe.config import ModelConfig
from moe.device_choices import DeviceChoices, choices_of
from moe.experts import Experts
from moe.initial_weights import draw_weights
from moe.loss import cross_entropy_sum, token_cross_entropies
from moe.matmul import linear
from moe.norm import RmsNorm
from moe.rotary import Rotary, RotaryTables
from moe.router import Router, Routing, load_balancing_loss

NamedParameters = list[tuple[str, nn.Parameter]]


class StepLoss(NamedTuple):
    """What one micro-step's forward pass gives: three differentiable scalars, and facts about the routing.

    The loss of an optimizer step of ``n`` tokens is the sum over its micro-steps (or parts of one) of
    ``ce_sum / n + (lb_loss_coef * lb_loss + z_loss_coef * z_loss) * n_tokens / n``.
    """

    ce_sum: Tensor  # cross-entropy in nats, summed over tokens, fp32
    n_tokens: int
    lb_loss: Tensor  # load-balancing loss, mean over layers: 1 when balanced
    z_loss: Tensor  # squared log-sum-exp of the router's logits, mean over layers and tokens
    expert_counts_LE: Tensor  # int64, detached: slots (tokens times K) of each expert in this micro-step
    router_entropy: Tensor  # nats, detached, mean over layers and tokens


@dataclass(frozen=True, kw_only=True)
class WeightGroups:
    """Every parameter, once, by the optimizer that its role asks for.

    ``muon`` holds the matrices between hidden vectors: 2-D, or 3-D where experts are stacked along the first
    dimension. ``adamw`` holds the rest: the embedding (tied to the head), the routers' gates and the norms.
    """

    muon: NamedParameters
    adamw: NamedParameters


class Embedding(nn.Module):
    """Token vectors [V, D], which are also the head's rows."""

    def __init__(self, vocab_size: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, d_model))

    def forward(self, tokens_N: Tensor) -> Tensor:
        """Vectors [N, D] of tokens [N]."""
        return functional.embedding(tokens_N, self.weight)


class SparseMlp(nn.Module):
    """A router and its experts."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = Router(config.d_model, config.n_experts, config.top_k)
        self.experts = Experts(config.n_experts, config.d_model, config.d_expert)

    def forward(self, x_ND: Tensor, choices: DeviceChoices) -> tuple[Tensor, Routing]:
        """Mix the chosen experts' outputs for every token."""
        routing = self.gate(x_ND)
        return self.experts(x_ND, routing.weights_NK, routing.experts_NK, routing.counts_E, choices), routing


class Layer(nn.Module):
    """Pre-norm attention and pre-norm experts, each added to an fp32 residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(config.d_model, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RmsNorm(config.d_model, config.norm_eps)
        self.mlp = SparseMlp(config)

    def forward(
        self, x_ND: Tensor, tables: RotaryTables, mask: Tensor | None, choices: DeviceChoices
    ) -> tuple[Tensor, Routing]:
        """One layer; returns the residual stream and where the router sent the tokens."""
        block_bytes = choices.elementwise_bytes
        x_ND = x_ND + self.self_attn(self.input_layernorm(x_ND, block_bytes), tables, mask, choices)
        mixed_ND, routing = self.mlp(self.post_attention_layernorm(x_ND, block_bytes), choices)
        return x_ND + mixed_ND, routing


class MoELanguageModel(nn.Module):
    """Qwen3-MoE: pre-norm RMSNorm, RoPE, q/k norm per head, SwiGLU experts, softmax top-k router, tied embedding.

    ``seed`` decides the initial weights (``moe.initial_weights``), on every device and for every arm the same.
    Parameters have Qwen3-MoE's names, without its ``model.`` prefix.

    ``choices`` say how it computes; None stands for those of the device that its tensors are on.
    """

    def __init__(self, config: ModelConfig, *, seed: int, choices: DeviceChoices | None = None) -> None:
        super().__init__()
        self.config = config
        self._choices = choices
        self.embed_tokens = Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))
        self.norm = RmsNorm(config.d_model, config.norm_eps)
        self.rotary = Rotary(config.head_dim, config.rope_theta)
        draw_weights(self, seed=seed, std=config.init_std, n_layers=config.n_layers)

    def _choices_for(self, tokens_BT: Tensor) -> DeviceChoices:
        return self._choices or choices_of(tokens_BT)

    def _hidden(self, tokens_BT: Tensor, document_ids_BT: Tensor | None) -> tuple[Tensor, list[Routing]]:
        choices = self._choices_for(tokens_BT)
        tables = self.rotary(tokens_BT.shape[1], tokens_BT.device)
        mask = None if document_ids_BT is None else document_mask(document_ids_BT)
        x_ND = self.embed_tokens(tokens_BT.flatten())
        routings = []
        for layer in self.layers:
            x_ND, routing = layer(x_ND, tables, mask, choices)
            routings.append(routing)
        return self.norm(x_ND, choices.elementwise_bytes), routings

    def forward(self, tokens_BT: Tensor, *, document_ids_BT: Tensor | None = None) -> Tensor:
        """Logits [B, T, V] in fp32 (all of them: for training and scoring use ``loss`` and ``token_losses``).

        With ``document_ids_BT`` a token attends only to tokens of its own document.
        """
        x_ND, _ = self._hidden(tokens_BT, document_ids_BT)
        logits_NV = linear(x_ND, self.embed_tokens.weight)
        return logits_NV.to(self.embed_tokens.weight.dtype).view(*tokens_BT.shape, -1)

    def loss(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor,
        *,
        document_ids_BT: Tensor | None = None,
        other_counts_LE: Tensor | None = None,
    ) -> StepLoss:
        """Cross-entropy and router losses of one micro-step; ``targets_BT[b, t]`` is the token after ``[b, t]``.

        **Load balancing is counted over the whole optimizer step** (Qiu et al. 2025, arXiv 2501.11873), exactly.
        The loss is ``E * sum_e f_e * P_e`` with frequencies ``f_e`` that are constants and probabilities ``P_e`` that
        are means over tokens, hence linear in the micro-steps: micro-steps that all use the step's ``f_e`` add up,
        weighted by tokens, to the loss and gradient of the undivided step. ``other_counts_LE`` are the expert counts
        of all *other* micro-steps of the same optimizer step (this one's are added here); None says that there are
        none, which with ``grad_accum_steps = 1`` costs nothing. With more, the counts must be known before the first
        backward pass::

            counts = [model.count_experts(tokens) for tokens in step[1:]]      # no gradient, no head
            first = model.loss(*step[0], other_counts_LE=sum(counts))          # tells its own counts
            total = first.expert_counts_LE + sum(counts)
            for (tokens, targets), own in zip(step[1:], counts):
                model.loss(tokens, targets, other_counts_LE=total - own)

        With ``lb_loss_coef = 0`` the counts change no gradient and need not be made.
        """
        x_ND, routings = self._hidden(tokens_BT, document_ids_BT)
        n_tokens = tokens_BT.numel()
        counts_LE = torch.stack([routing.counts_E for routing in routings])
        step_counts_LE = counts_LE if other_counts_LE is None else counts_LE + other_counts_LE
        lb_L = [
            load_balancing_loss(counts_E, routing.probs_sum_E, n_tokens)
            for counts_E, routing in zip(step_counts_LE, routings, strict=True)
        ]
        return StepLoss(
            ce_sum=cross_entropy_sum(
                x_ND, self.embed_tokens.weight, targets_BT.flatten(), self._choices_for(tokens_BT)
            ),
            n_tokens=n_tokens,
            lb_loss=torch.stack(lb_L).mean(),
            z_loss=torch.stack([routing.z_sum for routing in routings]).mean() / n_tokens,
            expert_counts_LE=counts_LE,
            router_entropy=torch.stack([routing.entropy_sum for routing in routings]).mean() / n_tokens,
        )

    @torch.no_grad()
    def count_experts(self, tokens_BT: Tensor, *, document_ids_BT: Tensor | None = None) -> Tensor:
        """Expert counts [L, E] (int64) that ``loss`` would report for these tokens, under the same autocast."""
        _, routings = self._hidden(tokens_BT, document_ids_BT)
        return torch.stack([routing.counts_E for routing in routings])

    @torch.no_grad()
    def token_losses(self, tokens_BT: Tensor, targets_BT: Tensor, *, document_ids_BT: Tensor | None = None) -> Tensor:
        """Cross-entropy of every target in nats, [B, T], in fp32 even under autocast, without gradient."""
        with torch.autocast(tokens_BT.device.type, enabled=False):
            x_ND, _ = self._hidden(tokens_BT, document_ids_BT)
            losses_N = token_cross_entropies(
                x_ND, self.embed_tokens.weight, targets_BT.flatten(), self._choices_for(tokens_BT)
            )
            return losses_N.view_as(targets_BT)

    def weight_groups(self) -> WeightGroups:
        """All parameters by the optimizer their role asks for, in a fixed order."""
        muon: NamedParameters = []
        adamw: NamedParameters = [("embed_tokens.weight", self.embed_tokens.weight), ("norm.weight", self.norm.weight)]
        for i, layer in enumerate(self._layers()):
            attention, mlp = layer.self_attn, layer.mlp
            hidden = {
                "self_attn.q_proj.weight": attention.q_proj.weight,
                "self_attn.k_proj.weight": attention.k_proj.weight,
                "self_attn.v_proj.weight": attention.v_proj.weight,
                "self_attn.o_proj.weight": attention.o_proj.weight,
                "mlp.experts.gate_up_proj": mlp.experts.gate_up_proj,
                "mlp.experts.down_proj": mlp.experts.down_proj,
            }
            others = {
                "input_layernorm.weight": layer.input_layernorm.weight,
                "self_attn.q_norm.weight": attention.q_norm.weight,
                "self_attn.k_norm.weight": attention.k_norm.weight,
                "post_attention_layernorm.weight": layer.post_attention_layernorm.weight,
                "mlp.gate.weight": mlp.gate.weight,
            }
            muon += [(f"layers.{i}.{name}", weight) for name, weight in hidden.items()]
            adamw += [(f"layers.{i}.{name}", weight) for name, weight in others.items()]
        return WeightGroups(muon=muon, adamw=adamw)

    def _layers(self) -> Sequence[Layer]:
        return [layer for layer in self.layers if isinstance(layer, Layer)]
