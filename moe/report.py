"""What a run says about itself at a report point, and the sums that it is made from."""

# L layers, E experts

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from moe.stopwatch import Stopwatch


@dataclass(frozen=True, kw_only=True)
class Report:
    """One point of a run's record.

    ``train_loss`` (nats per token), ``lb_loss``, ``z_loss``, ``grad_norm`` (before clipping, over the steps that were
    not skipped), ``expert_load_max_over_mean`` (the fullest expert of the worst layer), ``router_entropy`` (nats) and
    ``tokens_per_s`` are means over the training since the previous report. ``lr`` and ``adamw_lr`` are the last step's
    rates. ``skipped_steps``, ``micro_batch_splits``, ``train_time_s``, ``counting_time_s`` and ``exam_time_s``
    count from the beginning of the cell, across interruptions. ``counting_time_s`` is what steps of several
    micro-steps take to count their experts beforehand; it is no part of ``train_time_s`` and ``tokens_per_s``.
    ``val_common_loss`` is scored at the end of the budget, and wherever it is the arm's own view. None stands where
    there is nothing to say: no exam at this point, no scaler, no known peak of the hardware, no step that was not
    skipped.
    """

    tokens_seen: int
    step: int
    train_loss: float
    lb_loss: float
    z_loss: float
    grad_norm: float | None
    lr: float
    adamw_lr: float
    tokens_per_s: float
    mfu_pct: float | None
    peak_mem_allocated_gib: float
    loss_scale: float | None
    skipped_steps: int
    expert_load_max_over_mean: float
    router_entropy: float
    micro_batch_splits: int
    train_time_s: float
    counting_time_s: float
    exam_time_s: float
    val_loss: float | None
    val_bpb: float | None
    val_common_loss: float | None
    precision: str
    timestamp_s: float

    def as_record(self) -> dict[str, Any]:
        """The same as a flat dict of JSON's types, one record of a cell."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class GradientSums:
    """What the micro-steps of one optimizer step gave, on the device.

    ``means`` are the means over tokens of cross-entropy, load-balancing loss, z-loss and router entropy, fp64 [4];
    ``counting`` timed the pass that counts experts beforehand.
    """

    means: Tensor
    n_tokens: int
    expert_counts_LE: Tensor
    counting: Stopwatch

    def on_host(self, means: Sequence[float]) -> StepSums:
        """The same with the means as the host has read them."""
        train_loss, lb_loss, z_loss, router_entropy = means
        return StepSums(
            train_loss=train_loss,
            lb_loss=lb_loss,
            z_loss=z_loss,
            router_entropy=router_entropy,
            n_tokens=self.n_tokens,
            expert_counts_LE=self.expert_counts_LE,
        )


@dataclass(frozen=True, kw_only=True)
class StepSums:
    """What one optimizer step's forwards gave, on the host: means over its tokens, and the experts' slots [L, E]."""

    train_loss: float
    lb_loss: float
    z_loss: float
    router_entropy: float
    n_tokens: int
    expert_counts_LE: Tensor


@dataclass
class Tally:
    """Sums over the steps since the previous report; a checkpoint between two reports holds them."""

    n_tokens: int = 0
    steps_made: int = 0
    train_time_s: float = 0.0
    _weighted: dict[str, float] = field(default_factory=dict)
    _grad_norms: float = 0.0
    _expert_counts_LE: Tensor | None = None

    def add(self, sums: StepSums, *, grad_norm: float | None, step_time_s: float) -> None:
        """Counts one step in. ``grad_norm`` is None where the step was skipped."""
        self.n_tokens += sums.n_tokens
        self.train_time_s += step_time_s
        for name in ("train_loss", "lb_loss", "z_loss", "router_entropy"):
            self._weighted[name] = self._weighted.get(name, 0.0) + getattr(sums, name) * sums.n_tokens
        if grad_norm is not None:
            self.steps_made += 1
            self._grad_norms += grad_norm
        counts = sums.expert_counts_LE
        self._expert_counts_LE = counts if self._expert_counts_LE is None else self._expert_counts_LE + counts

    def state_dict(self) -> dict[str, Any]:
        """The sums as plain values and one tensor."""
        return dict(vars(self))

    @classmethod
    def from_state(cls, state: dict[str, Any], device: torch.device) -> Tally:
        """The tally that ``state_dict`` wrote, to be added to on ``device``."""
        tally = cls()
        vars(tally).update(state)
        if tally._expert_counts_LE is not None:
            tally._expert_counts_LE = tally._expert_counts_LE.to(device)
        return tally

    def add_time(self, seconds: float) -> None:
        """Adds training time that belongs to no single step."""
        self.train_time_s += seconds

    def mean(self, name: str) -> float:
        """Mean per token of a field of ``StepSums``."""
        return self._weighted[name] / self.n_tokens

    @property
    def grad_norm(self) -> float | None:
        """Mean over the steps that were made."""
        return self._grad_norms / self.steps_made if self.steps_made else None

    @property
    def expert_load_max_over_mean(self) -> float:
        """Slots of the fullest expert over the mean of its layer, in the worst layer: 1 is perfect balance."""
        assert self._expert_counts_LE is not None
        counts_LE = self._expert_counts_LE.double()
        return float((counts_LE.amax(dim=-1) / counts_LE.mean(dim=-1)).max())
