"""What decides one training run: the model, its optimizers, its schedule, its batches.

Every class is frozen and keyword-only. What can be derived is a property, and nothing here touches torch, so a
config can be built, hashed and compared anywhere.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from moe.errors import ConfigError

PrecisionName = Literal["auto", "fp32", "bf16", "fp16"]
Arrangement = Literal["shuffled", "grouped"]
_SEEDS_BELOW = 2**63  # what both torch's and numpy's generators take


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a decoder-only Mixture-of-Experts language model (architecture of Qwen3-MoE).

    ``d_expert`` is the width of one SwiGLU expert, ``n_kv_heads`` the number of key and value heads (equal to
    ``n_heads`` without grouped-query attention). Embedding and output head are one tied matrix.
    """

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_expert: int
    n_experts: int
    top_k: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    init_std: float = 0.02
    lb_loss_coef: float = 0.01
    z_loss_coef: float = 0.0

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.n_heads


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """A strategy's shape: what one optimizer step is made of."""

    micro_batch_size: int
    seq_len: int
    grad_accum_steps: int = 1

    @property
    def tokens_per_micro_step(self) -> int:
        """Target tokens of one forward and backward."""
        return self.micro_batch_size * self.seq_len

    @property
    def tokens_per_step(self) -> int:
        """Target tokens of one optimizer step."""
        return self.tokens_per_micro_step * self.grad_accum_steps


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Hidden matrices at ``lr`` by Muon or AdamW (``kind``); embeddings, router and norms at ``adamw_lr`` by AdamW."""

    lr: float
    adamw_lr: float
    kind: Literal["muon", "adamw"] = "muon"
    muon_momentum: float = 0.95
    muon_weight_decay: float = 0.0
    adamw_betas: tuple[float, float] = (0.9, 0.95)
    adamw_eps: float = 1e-8
    adamw_weight_decay: float = 0.0
    clip_grad_norm: float = 1.0


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Linear warm-up, plateau, linear decay to zero, all in tokens; the horizon is the full budget, never a rung."""

    budget_tokens: int
    warmup_tokens: int
    decay_tokens: int


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides the numbers of one training run, given a corpus and an exam.

    ``block_len`` is S, the longest arm's ``seq_len``: the length of the blocks that every arm's windows are cut from.
    ``exam_at_tokens`` are the points of the budget (rungs, and the budget itself) at which the model sits the
    validation exam. ``report_every_tokens`` only decides how often a report is made, never a weight.
    ``deterministic`` demands of a GPU that equal inputs give equal bits; a CPU's do anyway.
    """

    model: ModelConfig
    batch: BatchConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    seed: int
    block_len: int
    precision: PrecisionName = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    arrangement: Arrangement = "shuffled"
    document_attention: bool = False
    exam_at_tokens: tuple[int, ...] = ()
    report_every_tokens: int = 65_536
    deterministic: bool = True

    def as_dict(self) -> dict[str, Any]:
        """Plain nested dict of every field, for JSON."""
        return asdict(self)


def check_config(config: TrainConfig) -> None:
    """Passes a config that can be trained.

    Raises:
        ConfigError: it cannot; the message names every problem at once.
    """
    shape = ("micro_batch_size", "seq_len", "grad_accum_steps")
    no_step = [*_below_one(config.batch, shape), *_below_one(config, ("block_len",))]
    problems = [
        *_problems_of_model(config.model),
        *_problems_of_optimizer(config.optimizer),
        *_problems_of_reports_and_seed(config),
        *(no_step or [*_problems_of_blocks(config), *_problems_of_clock(config)]),
    ]
    if problems:
        raise ConfigError("; ".join(problems))


def _below_one(holder: Any, names: tuple[str, ...]) -> list[str]:
    return [
        f"{name}={getattr(holder, name)} must be at least 1; choose a positive integer"
        for name in names
        if getattr(holder, name) < 1
    ]


def _problems_of_model(model: ModelConfig) -> list[str]:
    names = ("vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "d_expert", "n_experts", "top_k")
    problems = _below_one(model, names)
    if problems:
        return problems
    if model.d_model % model.n_heads:
        problems.append(f"d_model={model.d_model} is not a multiple of n_heads={model.n_heads}; choose n_heads that is")
    elif model.head_dim % 2:
        problems.append(
            f"d_model={model.d_model} over n_heads={model.n_heads} gives heads of odd width {model.head_dim}, and RoPE "
            "turns pairs; choose fewer or more heads"
        )
    if model.n_heads % model.n_kv_heads:
        problems.append(
            f"n_heads={model.n_heads} is not a multiple of n_kv_heads={model.n_kv_heads}; "
            "choose n_kv_heads that divides it"
        )
    if model.top_k > model.n_experts:
        problems.append(f"top_k={model.top_k} exceeds n_experts={model.n_experts}; choose top_k <= n_experts")
    problems += _not_positive(model, {"rope_theta": "10000.0", "norm_eps": "1e-06", "init_std": "0.02"})
    return problems + _negative(model, ("lb_loss_coef", "z_loss_coef"))


def _not_positive(holder: Any, examples: dict[str, str]) -> list[str]:
    return [
        f"{name}={getattr(holder, name)} must be finite and above 0; choose one such as {example}"
        for name, example in examples.items()
        if not 0.0 < getattr(holder, name) < math.inf
    ]


def _negative(holder: Any, names: tuple[str, ...]) -> list[str]:
    return [
        f"{name}={getattr(holder, name)} must be finite and not negative; choose 0.0 to switch it off"
        for name in names
        if not 0.0 <= getattr(holder, name) < math.inf
    ]


def _problems_of_blocks(config: TrainConfig) -> list[str]:
    if config.block_len % config.batch.seq_len == 0:
        return []
    return [
        f"block_len={config.block_len} is not a multiple of seq_len={config.batch.seq_len}; "
        "choose seq_len that divides block_len"
    ]


def _problems_of_optimizer(optimizer: OptimizerConfig) -> list[str]:
    problems = _not_positive(optimizer, {"lr": "0.01", "adamw_lr": "0.003", "adamw_eps": "1e-08"})
    problems += _negative(optimizer, ("muon_weight_decay", "adamw_weight_decay"))
    if not 0.0 <= optimizer.muon_momentum < 1.0:
        problems.append(f"muon_momentum={optimizer.muon_momentum} is not in [0, 1); choose one such as 0.95")
    if not all(0.0 <= beta < 1.0 for beta in optimizer.adamw_betas):
        problems.append(f"adamw_betas={optimizer.adamw_betas} are not in [0, 1); choose some such as (0.9, 0.95)")
    if not optimizer.clip_grad_norm > 0.0:
        problems.append(f"clip_grad_norm={optimizer.clip_grad_norm} must be above 0; choose inf to never clip")
    return problems


def _problems_of_clock(config: TrainConfig) -> list[str]:
    step, schedule = config.batch.tokens_per_step, config.schedule
    points = {"budget_tokens": schedule.budget_tokens}
    points |= {
        f"exam_at_tokens[{i}]": point
        for i, point in enumerate(config.exam_at_tokens)
        if point != schedule.budget_tokens  # what is wrong with the budget is said once
    }
    problems = [
        f"{name}={point} is not a positive multiple of the {step} tokens of a step; choose {_nearest(point, step)}"
        for name, point in points.items()
        if point < 1 or point % step
    ]
    problems += [
        f"{name}={point} exceeds budget_tokens={schedule.budget_tokens}; choose a point within the budget"
        for name, point in points.items()
        if point > schedule.budget_tokens
    ]
    if min(schedule.warmup_tokens, schedule.decay_tokens) < 0 or (
        schedule.warmup_tokens + schedule.decay_tokens > schedule.budget_tokens
    ):
        problems.append(
            f"warmup_tokens={schedule.warmup_tokens} and decay_tokens={schedule.decay_tokens} must not be negative and "
            f"must fit into budget_tokens={schedule.budget_tokens} together; shorten one of them"
        )
    return problems


def _nearest(point: int, step: int) -> str:
    below = point // step * step
    return f"{below} or {below + step}" if below > 0 else str(step)


def _problems_of_reports_and_seed(config: TrainConfig) -> list[str]:
    problems = []
    if config.report_every_tokens < 1:
        problems.append(
            f"report_every_tokens={config.report_every_tokens} must be at least 1; choose one such as 65536"
        )
    if not 0 <= config.seed < _SEEDS_BELOW:
        problems.append(f"seed={config.seed} is not from 0 to 2^63 - 1; choose one such as 1")
    return problems
