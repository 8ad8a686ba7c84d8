"""Muon for hidden matrices and AdamW for the rest, under one decision to step or to skip."""

# N matrices in a batch, R rows, C columns

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from moe.config import OptimizerConfig
from moe.newton_schulz import orthogonalise

if TYPE_CHECKING:
    from moe.device import Device
    from moe.model import WeightGroups
    from moe.precision import Precision

# Matrices of one shape are orthogonalised together up to this many elements: that saves launches on CUDA and half the
# time on small matrices on a CPU; larger batches lose more to fresh memory for the temporaries than they save.
_BATCH_ELEMENTS = 2**19


def shape_factor(rows: int, columns: int) -> float:
    """By how much the rate of a matrix is multiplied: sqrt(max(1, rows / columns)).

    The "original" adjustment of Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/), also the default of
    ``torch.optim.Muon``: a tall matrix gets an update of the same RMS per output as a square one.
    """
    return math.sqrt(max(1.0, rows / columns))


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised by Newton-Schulz (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/).

    Takes matrices [R, C] and stacks of matrices [E, R, C]; every matrix of a stack is orthogonalised by itself.
    The update of a matrix is ``lr * shape_factor(R, C)`` times its orthogonalised Nesterov momentum; weight decay is
    decoupled. ``newton_schulz_dtype`` is never fp16.

    Raises:
        ValueError: a parameter is neither a matrix nor a stack of matrices.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        newton_schulz_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        if newton_schulz_dtype == torch.float16:
            raise ValueError("newton_schulz_dtype=float16 is refused: use bfloat16 where it is fast, float32 elsewhere")
        self.newton_schulz_dtype = newton_schulz_dtype
        for group in self.param_groups:
            for param in group["params"]:
                if param.ndim not in {2, 3}:
                    raise ValueError(
                        f"Muon takes matrices [R, C] and stacks [E, R, C], not shape {tuple(param.shape)}; "
                        "give the parameter to AdamW"
                    )

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None, "Muon takes no closure"
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            if not params:
                continue
            updates = self._nesterov([param.grad for param in params], params, group["momentum"])
            if group["weight_decay"] != 0.0:
                torch._foreach_mul_(params, 1.0 - group["lr"] * group["weight_decay"])
            for batch in _batches_of_one_shape(params):
                self._move([params[i] for i in batch], [updates[i] for i in batch], group["lr"])

    def _nesterov(self, grads: list[Tensor], params: list[Tensor], momentum: float) -> Sequence[Tensor]:
        buffers = []
        for param in params:
            state = self.state[param]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(param)
            buffers.append(state["momentum_buffer"])
        torch._foreach_lerp_(buffers, grads, 1.0 - momentum)
        return torch._foreach_lerp(grads, buffers, momentum)

    def _move(self, params: list[Tensor], updates: list[Tensor], lr: float) -> None:
        rows, columns = params[0].shape[-2:]
        views = [param.view(-1, rows, columns) for param in params]
        stacks = [update.view(-1, rows, columns) for update in updates]
        directions_NRC = orthogonalise(
            torch.cat(stacks) if len(stacks) > 1 else stacks[0], dtype=self.newton_schulz_dtype
        )
        directions = torch.split(directions_NRC.to(params[0].dtype), [view.shape[0] for view in views])
        torch._foreach_add_(views, directions, alpha=-lr * shape_factor(rows, columns))


def _batches_of_one_shape(params: Sequence[Tensor]) -> list[list[int]]:
    """Indices of parameters whose matrices have one shape, in batches of at most ``_BATCH_ELEMENTS`` elements.

    A stack that is larger by itself is a batch of its own: it is one tensor already.
    """
    by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, param in enumerate(params):
        by_shape[tuple(param.shape[-2:])].append(i)
    batches: list[list[int]] = []
    for indices in by_shape.values():
        room = 0
        for i in indices:
            if params[i].numel() > room:
                batches.append([])
                room = _BATCH_ELEMENTS
            batches[-1].append(i)
            room -= params[i].numel()
    return batches


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
    """The number format of Muon's iteration: bf16 where the device is known to be fast in it, else fp32; never fp16.

    bf16 on CUDA from compute capability 8.0 whatever the training precision, as in Jordan et al. 2024; on a CPU with
    bf16 training, which only pays where there are bf16 units (measured on such a core, 4.5 M parameters in 80 matrices:
    65 ms in fp32, 41 in bf16); fp32 everywhere else.
    """
    if device.has_fast_bf16 or (device.kind == "cpu" and precision.name == "bf16"):
        return torch.bfloat16
    return torch.float32


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
