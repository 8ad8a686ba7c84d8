"""The model of ``bench.step``, and a loop over masks that takes part beside those of ``moe.contestants``."""

from __future__ import annotations

from torch import Tensor

from bench.reference_mask_loop import MaskLoopLanguageModel
from moe.config import ModelConfig
from moe.contestants import CPU, OPTIMIZER, Contestant, groups_by_role
from moe.device_choices import choose
from moe.model import MoELanguageModel
from moe.optim import build_optimizers
from moe.precision import Precision

LB_LOSS_COEF = 0.01


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


def make_ours(config: ModelConfig) -> MoELanguageModel:
    return MoELanguageModel(config, seed=0)


def mask_loop(config: ModelConfig, precision: Precision, matmul_precision: str) -> Contestant:
    model = MaskLoopLanguageModel(config)
    model.copy_weights(make_ours(config))

    def loss_of(tokens_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
        ce, lb_loss = model(tokens_BT, targets_BT)
        return ce, ce + LB_LOSS_COEF * lb_loss

    optimizers = build_optimizers(groups_by_role(model), OPTIMIZER, choose(CPU, precision))
    return Contestant("mask loop", loss_of, optimizers, precision, matmul_precision)
