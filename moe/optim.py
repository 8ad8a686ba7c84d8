"""Muon (or AdamW) for hidden matrices and AdamW for the rest, under one decision to step or to skip."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from moe.adamw import AdamW
from moe.config import OptimizerConfig
from moe.device import read_on_host
from moe.muon import Muon
from moe.optimizer import Optimizer

if TYPE_CHECKING:
    from moe.device_choices import DeviceChoices
    from moe.model import WeightGroups


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    """What became of one step: the global gradient norm before clipping, and whether all optimizers skipped it."""

    grad_norm: float
    skipped: bool


@dataclass(frozen=True, kw_only=True)
class StepNumbers:
    """What the host learns of a step before it decides: ``facts`` as they were handed in, the norm, and overflows."""

    facts: list[float]
    grad_norm: float
    overflow: bool


class Optimizers:
    """The optimizer of the hidden matrices and that of the rest as one: both step, or neither does."""

    def __init__(self, hidden: Optimizer, rest: Optimizer) -> None:
        self.hidden = hidden
        self.rest = rest
        self._each = {"muon" if isinstance(hidden, Muon) else "hidden": hidden, "adamw": rest}
        self._full_lr = {name: float(optimizer.param_groups[0]["lr"]) for name, optimizer in self._each.items()}
        self.params = [param for optimizer in self._each.values() for param in optimizer.params]

    def zero_grad(self) -> None:
        """Frees every gradient."""
        for param in self.params:
            param.grad = None

    def set_lr(self, factor: float) -> None:
        """Sets each optimizer's rate to ``factor`` times its full rate."""
        for name, optimizer in self._each.items():
            for group in optimizer.param_groups:
                group["lr"] = factor * self._full_lr[name]

    @property
    def lr(self) -> float:
        """The hidden matrices' rate now."""
        return float(self.hidden.param_groups[0]["lr"])

    @property
    def adamw_lr(self) -> float:
        """The rate of the rest now."""
        return float(self.rest.param_groups[0]["lr"])

    def step(self) -> None:
        """Steps every optimizer without looking at the gradients."""
        for optimizer in self._each.values():
            optimizer.step()

    def step_or_skip(self, scaler: torch.amp.GradScaler | None, clip_grad_norm: float) -> StepOutcome:
        """``look`` and ``decide`` in one."""
        return self.decide(self.look(scaler), scaler, clip_grad_norm)

    def look(self, scaler: torch.amp.GradScaler | None, facts: Tensor | None = None) -> StepNumbers:
        """Unscale, look for overflow, take the global norm after unscaling, and read all of it on the host at once.

        ``facts`` are numbers that the host wants too: they come with the same read, the only one of a step.
        """
        grads = [param.grad for param in self.params if param.grad is not None]
        overflow_counts = self._unscale(scaler) if scaler is not None else []
        numbers = torch.stack([_global_norm(grads), *overflow_counts])
        if facts is not None:
            numbers = torch.cat((numbers.to(facts.dtype), facts))
        grad_norm, *rest = read_on_host(numbers)
        overflows, read_facts = rest[: len(overflow_counts)], rest[len(overflow_counts) :]
        return StepNumbers(facts=read_facts, grad_norm=grad_norm, overflow=any(count > 0 for count in overflows))

    def decide(self, found: StepNumbers, scaler: torch.amp.GradScaler | None, clip_grad_norm: float) -> StepOutcome:
        """Clip by the global norm and step all optimizers, or none.

        With a scaler, an inf or NaN in any optimizer's gradients skips all of them and shrinks the scale once.
        Without one, a gradient norm that is not finite skips all of them too. No gradient is multiplied by anything
        when the step is skipped.
        """
        grads = [param.grad for param in self.params if param.grad is not None]
        grad_norm = found.grad_norm
        if not found.overflow and not math.isfinite(grad_norm):
            # Finite gradients above 1e19 overflow when squared in fp32: a last look with fp64's range.
            grad_norm = read_on_host(_global_norm([grad.double() for grad in grads]))
        skipped = found.overflow or not math.isfinite(grad_norm)
        if not skipped:
            if grad_norm > clip_grad_norm:
                torch._foreach_mul_(grads, clip_grad_norm / grad_norm)
            self.step()
        if scaler is not None:
            scaler.update()
        return StepOutcome(grad_norm=grad_norm, skipped=skipped)

    def _unscale(self, scaler: torch.amp.GradScaler) -> list[Tensor]:
        counts: list[Tensor] = []
        for optimizer in self._each.values():
            scaler.unscale_(optimizer)  # type: ignore[arg-type]  # it asks for groups of parameters alone
            # GradScaler.step would look at this for its own optimizer alone, and step the other one.
            counts.extend(scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"].values())
        return counts

    def state_dict(self) -> dict[str, Any]:
        """Every optimizer's state under its name."""
        return {name: optimizer.state_dict() for name, optimizer in self._each.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a state made by ``state_dict``."""
        for name, optimizer in self._each.items():
            optimizer.load_state_dict(state[name])


def _global_norm(grads: list[Tensor]) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
    return norm


def build_optimizers(groups: WeightGroups, config: OptimizerConfig, choices: DeviceChoices) -> Optimizers:
    """Muon or AdamW over ``groups.muon``, AdamW over the rest."""
    matrices = [param for _, param in groups.muon]
    hidden: Optimizer
    if config.kind == "muon":
        hidden = Muon(
            matrices,
            lr=config.lr,
            momentum=config.muon_momentum,
            weight_decay=config.muon_weight_decay,
            newton_schulz_dtype=choices.newton_schulz_dtype,
            batch_elements=choices.newton_schulz_elements,
        )
    else:
        hidden = _adamw(matrices, config.lr, config)
    return Optimizers(hidden, _adamw([param for _, param in groups.adamw], config.adamw_lr, config))


def _adamw(params: list[torch.nn.Parameter], lr: float, config: OptimizerConfig) -> AdamW:
    return AdamW(
        params,
        lr=lr,
        betas=config.adamw_betas,
        eps=config.adamw_eps,
        weight_decay=config.adamw_weight_decay,
    )
