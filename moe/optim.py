"""Muon for hidden matrices and AdamW for the rest, under one decision to step or to skip."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from moe.config import OptimizerConfig
from moe.muon import Muon

if TYPE_CHECKING:
    from moe.device import Device
    from moe.model import WeightGroups
    from moe.precision import Precision


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    """What became of one step: the global gradient norm before clipping, and whether all optimizers skipped it."""

    grad_norm: float
    skipped: bool


class Optimizers:
    """Muon and AdamW as one: all of them step, or none does."""

    def __init__(self, muon: torch.optim.Optimizer, adamw: torch.optim.Optimizer) -> None:
        self.muon = muon
        self.adamw = adamw
        self._each = {"muon": muon, "adamw": adamw}
        self._full_lr = {name: float(optimizer.param_groups[0]["lr"]) for name, optimizer in self._each.items()}
        self.params: list[Tensor] = [
            param for optimizer in self._each.values() for group in optimizer.param_groups for param in group["params"]
        ]

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
        """Muon's rate now."""
        return float(self.muon.param_groups[0]["lr"])

    @property
    def adamw_lr(self) -> float:
        """AdamW's rate now."""
        return float(self.adamw.param_groups[0]["lr"])

    def step(self) -> None:
        """Steps every optimizer without looking at the gradients."""
        for optimizer in self._each.values():
            optimizer.step()

    def step_or_skip(self, scaler: torch.amp.GradScaler | None, clip_grad_norm: float) -> StepOutcome:
        """Unscales, looks for overflow, clips by the global norm, and then steps all optimizers or none.

        With a scaler, an inf or NaN in any optimizer's gradients skips all of them and shrinks the scale once.
        Without one, a gradient norm that is not finite skips all of them too. The norm is taken after unscaling, and
        no gradient is multiplied by anything when the step is skipped. One synchronisation with the device.
        """
        grads = [param.grad for param in self.params if param.grad is not None]
        overflow_counts = self._unscale(scaler) if scaler is not None else []
        grad_norm, *overflows = torch.stack([_global_norm(grads), *overflow_counts]).tolist()
        overflow = any(count > 0 for count in overflows)
        if not overflow and not math.isfinite(grad_norm):
            # Finite gradients above 1e19 overflow when squared in fp32: a last look with fp64's range.
            grad_norm = float(_global_norm([grad.double() for grad in grads]))
        skipped = overflow or not math.isfinite(grad_norm)
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
            scaler.unscale_(optimizer)
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


def newton_schulz_dtype(device: Device, precision: Precision) -> torch.dtype:
    """The number format of Muon's iteration: bf16 or fp32, never fp16.

    On CUDA it is bf16 from compute capability 8.0 on, whatever the training precision, as in Jordan et al. 2024. On a
    CPU it follows the training precision.
    """
    in_bf16 = device.has_fast_bf16 if device.kind == "cuda" else precision.name == "bf16"
    return torch.bfloat16 if in_bf16 else torch.float32


def build_optimizers(groups: WeightGroups, config: OptimizerConfig, device: Device, precision: Precision) -> Optimizers:
    """Muon over ``groups.muon`` and fused AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) over the rest."""
    muon = Muon(
        [param for _, param in groups.muon],
        lr=config.lr,
        momentum=config.muon_momentum,
        weight_decay=config.muon_weight_decay,
        newton_schulz_dtype=newton_schulz_dtype(device, precision),
    )
    adamw = torch.optim.AdamW(
        [param for _, param in groups.adamw],
        lr=config.adamw_lr,
        betas=config.adamw_betas,
        eps=config.adamw_eps,
        weight_decay=config.adamw_weight_decay,
        fused=True,
    )
    return Optimizers(muon, adamw)
