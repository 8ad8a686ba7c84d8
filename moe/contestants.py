"""One training step, ours beside that of ``transformers``: the same job, weights and optimizers, timed alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from moe.config import ModelConfig, OptimizerConfig
from moe.device import Device
from moe.device_choices import choose
from moe.export import qwen3_moe_config
from moe.model import MoELanguageModel, WeightGroups
from moe.optim import Optimizers, build_optimizers
from moe.precision import Precision

OPTIMIZER = OptimizerConfig(lr=0.01, adamw_lr=0.003)
CPU = Device.resolve("cpu")

LossOf = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # tokens and targets to cross-entropy and the whole loss


@dataclass
class Contestant:
    """A model with its optimizers and a way to its loss.

    ``masters`` holds fp32 weights for a model whose own are in 16 bits: the optimizers step on them.
    """

    name: str
    loss_of: LossOf
    optimizers: Optimizers
    precision: Precision
    matmul_precision: str = "highest"
    masters: Masters | None = None
    device: Device = CPU
    loss: float = float("nan")

    def __post_init__(self) -> None:
        """Make the scaler that fp16 needs."""
        self._scaler = self.precision.make_scaler()

    def step(self, tokens_BT: Tensor, targets_BT: Tensor) -> float:
        """One full step; returns its seconds."""
        torch.set_float32_matmul_precision(self.matmul_precision)
        self.device.synchronize()
        started_s = time.perf_counter()
        with self.precision.autocast():
            ce, total = self.loss_of(tokens_BT, targets_BT)
        (total if self._scaler is None else self._scaler.scale(total)).backward()  # type: ignore[no-untyped-call]
        self.loss = float(ce.detach())
        if self.masters is not None:
            self.masters.take_gradients()
        outcome = self.optimizers.step_or_skip(self._scaler, OPTIMIZER.clip_grad_norm)
        self.optimizers.zero_grad()
        if self.masters is not None:
            self.masters.give_weights()
        self.device.synchronize()
        seconds = time.perf_counter() - started_s
        torch.set_float32_matmul_precision("highest")
        assert self._scaler is not None or not outcome.skipped
        return seconds


class Masters:
    """fp32 copies of the weights of a model in 16 bits."""

    def __init__(self, model: nn.Module) -> None:
        self.of = {parameter: nn.Parameter(parameter.detach().float()) for parameter in model.parameters()}

    def take_gradients(self) -> None:
        """Move the model's gradients to the copies."""
        for parameter, master in self.of.items():
            if parameter.grad is not None:
                master.grad, parameter.grad = parameter.grad.float(), None

    @torch.no_grad()
    def give_weights(self) -> None:
        """Write the copies back into the model."""
        for parameter, master in self.of.items():
            parameter.copy_(master)

    def groups(self, groups: WeightGroups) -> WeightGroups:
        """The copies in the place of the weights that they stand for."""
        muon, adamw = ([(name, self.of[weight]) for name, weight in group] for group in (groups.muon, groups.adamw))
        return WeightGroups(muon=muon, adamw=adamw)


def ours(config: ModelConfig, precision: Precision, device: Device = CPU) -> Contestant:
    """Our step."""
    choices = choose(device, precision)
    model = MoELanguageModel(config, seed=0, choices=choices).to(device.torch_device)

    def loss_of(tokens_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
        loss = model.loss(tokens_BT, targets_BT)
        ce = loss.ce_sum / loss.n_tokens
        return ce, ce + config.lb_loss_coef * loss.lb_loss

    optimizers = build_optimizers(model.weight_groups(), OPTIMIZER, choices)
    return Contestant("ours", loss_of, optimizers, precision, device=device)


def groups_by_role(model: nn.Module) -> WeightGroups:
    """Our rule for models of others: matrices between hidden vectors under Muon, the rest under AdamW."""
    muon: list[tuple[str, nn.Parameter]] = []
    adamw: list[tuple[str, nn.Parameter]] = []
    for name, parameter in model.named_parameters():
        hidden = parameter.ndim > 1 and "embed" not in name and "gate.weight" not in name
        (muon if hidden else adamw).append((name, parameter))
    return WeightGroups(muon=muon, adamw=adamw)


def transformers_model(
    config: ModelConfig,
    precision: Precision,
    *,
    family: str = "qwen3_moe",
    experts: str = "eager",
    matmul_precision: str = "highest",
    weights_dtype: torch.dtype = torch.float32,
    device: Device = CPU,
) -> Contestant:
    """The step of ``transformers``, with its eager or grouped experts; 16-bit weights have fp32 masters.

    Raises:
        ImportError: there is no ``transformers`` here.
    """
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
    hf_config.router_aux_loss_coef = config.lb_loss_coef
    hf_config._attn_implementation = "sdpa"
    hf_config._experts_implementation = experts
    model: Any = (MixtralForCausalLM if family == "mixtral" else Qwen3MoeForCausalLM)(hf_config)
    if family != "mixtral":
        state = MoELanguageModel(config, seed=0).state_dict()
        model.load_state_dict({f"model.{name}": weight for name, weight in state.items()}, strict=False)
    assert model.config._experts_implementation == experts
    model.to(device.torch_device, weights_dtype)
    masters = None if weights_dtype == torch.float32 else Masters(model)
    groups = groups_by_role(model) if masters is None else masters.groups(groups_by_role(model))

    def loss_of(tokens_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
        out = model(input_ids=tokens_BT, labels=targets_BT, shift_labels=targets_BT)
        return out.loss - config.lb_loss_coef * out.aux_loss, out.loss

    optimizers = build_optimizers(groups, OPTIMIZER, choose(device, precision))
    kept = "" if masters is None else ", 16-bit weights"
    return Contestant(f"{family} {experts}{kept}", loss_of, optimizers, precision, matmul_precision, masters, device)
