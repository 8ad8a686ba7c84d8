"""Who takes part in ``bench.step``: ours, ``transformers`` and a loop over masks, one job and optimizers for all."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench.reference_mask_loop import MaskLoopLanguageModel
from moe.config import ModelConfig, OptimizerConfig
from moe.device import Device
from moe.device_choices import choose
from moe.export import qwen3_moe_config
from moe.model import MoELanguageModel, WeightGroups
from moe.optim import Optimizers, build_optimizers
from moe.precision import Precision

LB_LOSS_COEF = 0.01
OPTIMIZER = OptimizerConfig(lr=0.01, adamw_lr=0.003)
CPU = Device.resolve("cpu")

LossOf = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # tokens and targets to cross-entropy and the whole loss


def model_config(vocab_size: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab_size,
        d_model=128,
        n_layers=4,
        n_heads=4,
        n_kv_heads=4,
        d_expert=512,
        n_experts=8,
        top_k=2,
        lb_loss_coef=LB_LOSS_COEF,
    )


@dataclass
class Contestant:
    """A model with its optimizers and a way to its loss."""

    name: str
    loss_of: LossOf
    optimizers: Optimizers
    precision: Precision
    matmul_precision: str = "highest"
    loss: float = float("nan")

    def step(self, tokens_BT: Tensor, targets_BT: Tensor) -> float:
        """One full step; returns its seconds."""
        torch.set_float32_matmul_precision(self.matmul_precision)
        started_s = time.perf_counter()
        with self.precision.autocast():
            ce, total = self.loss_of(tokens_BT, targets_BT)
        total.backward()  # type: ignore[no-untyped-call]
        self.loss = float(ce.detach())
        outcome = self.optimizers.step_or_skip(None, OPTIMIZER.clip_grad_norm)
        self.optimizers.zero_grad()
        seconds = time.perf_counter() - started_s
        torch.set_float32_matmul_precision("highest")
        assert not outcome.skipped
        return seconds


def make_ours(config: ModelConfig) -> MoELanguageModel:
    return MoELanguageModel(config, seed=0)


def ours(config: ModelConfig, precision: Precision) -> Contestant:
    model = make_ours(config)

    def loss_of(tokens_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
        loss = model.loss(tokens_BT, targets_BT)
        ce = loss.ce_sum / loss.n_tokens
        return ce, ce + LB_LOSS_COEF * loss.lb_loss

    optimizers = build_optimizers(model.weight_groups(), OPTIMIZER, choose(CPU, precision))
    return Contestant("ours", loss_of, optimizers, precision)


def groups_by_role(model: nn.Module) -> WeightGroups:
    """Our rule for models of others: matrices between hidden vectors under Muon, the rest under AdamW."""
    muon: list[tuple[str, nn.Parameter]] = []
    adamw: list[tuple[str, nn.Parameter]] = []
    for name, parameter in model.named_parameters():
        hidden = parameter.ndim > 1 and "embed" not in name and "gate.weight" not in name
        (muon if hidden else adamw).append((name, parameter))
    return WeightGroups(muon=muon, adamw=adamw)


def mask_loop(config: ModelConfig, precision: Precision, matmul_precision: str) -> Contestant:
    model = MaskLoopLanguageModel(config)
    model.copy_weights(make_ours(config))

    def loss_of(tokens_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
        ce, lb_loss = model(tokens_BT, targets_BT)
        return ce, ce + LB_LOSS_COEF * lb_loss

    optimizers = build_optimizers(groups_by_role(model), OPTIMIZER, choose(CPU, precision))
    return Contestant("mask loop", loss_of, optimizers, precision, matmul_precision)


def transformers_model(
    config: ModelConfig, precision: Precision, family: str, experts: str, matmul_precision: str
) -> Contestant:
    from transformers import MixtralConfig, MixtralForCausalLM, Qwen3MoeForCausalLM

    hf_config: Any = qwen3_moe_config(config)
    if family == "mixtral":
        hf_config = MixtralConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            intermediate_size=config.d_expert,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads,
            num_local_experts=config.n_experts,
            num_experts_per_tok=config.top_k,
            tie_word_embeddings=True,
        )
    hf_config.use_cache = False
    hf_config.output_router_logits = True  # the load-balancing loss belongs to the job
    hf_config.router_aux_loss_coef = LB_LOSS_COEF
    hf_config._attn_implementation = "sdpa"
    hf_config._experts_implementation = experts
    model: Any = (MixtralForCausalLM if family == "mixtral" else Qwen3MoeForCausalLM)(hf_config)
    if family != "mixtral":
        state = {f"model.{name}": weight for name, weight in make_ours(config).state_dict().items()}
        model.load_state_dict(state, strict=False)
    assert model.config._experts_implementation == experts

    def loss_of(tokens_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
        out = model(input_ids=tokens_BT, labels=targets_BT, shift_labels=targets_BT)
        return out.loss - LB_LOSS_COEF * out.aux_loss, out.loss

    optimizers = build_optimizers(groups_by_role(model), OPTIMIZER, choose(CPU, precision))
    return Contestant(f"{family} {experts}", loss_of, optimizers, precision, matmul_precision)
