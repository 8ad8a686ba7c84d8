"""The gradient of one optimizer step, whatever the number of micro-steps that it is made in."""

# B micro-batch rows, T time, L layers, E experts

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from moe.device import Device, is_out_of_memory, release_cached_memory
from moe.errors import OutOfMemory
from moe.report import GradientSums
from moe.stopwatch import Stopwatch

if TYPE_CHECKING:
    from moe.model import MoELanguageModel, StepLoss
    from moe.precision import Precision


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Inputs and next-token targets [B, T], with the document of every token where attention must not cross one."""

    tokens_BT: Tensor
    targets_BT: Tensor
    document_ids_BT: Tensor | None = None

    def split(self, n_parts: int) -> Iterator[MicroBatch]:
        """The same rows in ``n_parts`` parts whose row counts differ by at most one."""
        ids = self.document_ids_BT
        ids_parts = [None] * n_parts if ids is None else ids.tensor_split(n_parts)
        for tokens, targets, part_ids in zip(
            self.tokens_BT.tensor_split(n_parts), self.targets_BT.tensor_split(n_parts), ids_parts, strict=True
        ):
            yield MicroBatch(tokens_BT=tokens, targets_BT=targets, document_ids_BT=part_ids)


class GradientAccumulation:
    """Makes a step's gradient out of micro-batches, in smaller parts once memory has run out.

    ``n_parts`` is how many parts a micro-batch is split into, and ``splits`` how often that was raised; both belong
    to the state of a run.
    """

    def __init__(
        self,
        model: MoELanguageModel,
        precision: Precision,
        device: Device,
        *,
        lb_loss_coef: float,
        z_loss_coef: float,
    ) -> None:
        self.n_parts = 1
        self.splits = 0
        self._model = model
        self._precision = precision
        self._device = device
        self._lb_loss_coef = lb_loss_coef
        self._z_loss_coef = z_loss_coef

    def backward(
        self,
        micro_batches: Sequence[MicroBatch],
        *,
        scaler: torch.amp.GradScaler | None,
        zero_grad: Callable[[], None],
        tokens_seen: int,
    ) -> GradientSums:
        """Leaves the gradient of the mean loss over all tokens of ``micro_batches`` in the parameters.

        Where memory runs out, everything of the attempt is thrown away (no weight has moved, gradients and counts
        start from zero) and the whole step is done again in twice as many near-equal parts.

        Raises:
            OutOfMemory: there is no room for a single row either.
        """
        while True:
            zero_grad()
            try:
                return self._attempt(micro_batches, scaler)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            # Outside of the handler: until it ends, the error's traceback keeps the attempt's activations alive.
            zero_grad()
            release_cached_memory()
            self._split_further(micro_batches[0].tokens_BT.shape, tokens_seen, reason)

    def _split_further(self, shape_BT: torch.Size, tokens_seen: int, reason: str) -> None:
        n_rows, seq_len = shape_BT
        if self.n_parts >= n_rows:
            raise OutOfMemory(
                tokens_seen,
                f"no memory for one row of seq_len={seq_len} on {self._device.name} ({reason}); choose a shorter "
                "seq_len, a smaller model or a device with more memory",
            )
        self.n_parts = min(2 * self.n_parts, n_rows)
        self.splits += 1

    def _attempt(self, micro_batches: Sequence[MicroBatch], scaler: torch.amp.GradScaler | None) -> GradientSums:
        parts = [part for micro_batch in micro_batches for part in micro_batch.split(self.n_parts)]
        n_step_tokens = sum(part.tokens_BT.numel() for part in parts)
        counting = Stopwatch(self._device)
        later_counts = self._count_later_parts(parts, counting)
        other_counts: list[Tensor | None] = [sum_counts(later_counts)] if later_counts else [None] * len(parts)
        facts, counts = [], []
        for i, part in enumerate(parts):
            loss = self._loss(part, other_counts[i])
            total = self._share_of_loss(loss, n_step_tokens)
            (total if scaler is None else scaler.scale(total)).backward()  # type: ignore[no-untyped-call]
            facts.append(_facts(loss, n_step_tokens))
            counts.append(loss.expert_counts_LE)
            if i == 0 and later_counts:
                step_counts_LE = sum_counts([*counts, *later_counts])
                other_counts += [step_counts_LE - own_LE for own_LE in later_counts]
        return GradientSums(
            means=torch.stack(facts).sum(dim=0),
            n_tokens=n_step_tokens,
            expert_counts_LE=sum_counts(counts),
            counting=counting,
        )

    def _loss(self, part: MicroBatch, other_counts_LE: Tensor | None) -> StepLoss:
        with self._precision.autocast():
            return self._model.loss(
                part.tokens_BT,
                part.targets_BT,
                document_ids_BT=part.document_ids_BT,
                other_counts_LE=other_counts_LE,
            )

    def _count_later_parts(self, parts: Sequence[MicroBatch], counting: Stopwatch) -> list[Tensor]:
        """Expert counts of all parts but the first, where the load-balancing loss needs the whole step's beforehand.

        Empty where there is one part (it counts itself) or where the loss has no weight: it costs a forward pass of
        all parts but one, which is timed apart, for arms of one micro-step do without.
        """
        if self._lb_loss_coef == 0.0 or len(parts) == 1:
            return []
        with counting, self._precision.autocast():
            return [
                self._model.count_experts(part.tokens_BT, document_ids_BT=part.document_ids_BT) for part in parts[1:]
            ]

    def _share_of_loss(self, loss: StepLoss, n_step_tokens: int) -> Tensor:
        """A part's summand of the step's loss: parts add up to the loss of the undivided step."""
        total = loss.ce_sum / n_step_tokens
        share = loss.n_tokens / n_step_tokens
        if self._lb_loss_coef != 0.0:
            total = total + (self._lb_loss_coef * share) * loss.lb_loss
        if self._z_loss_coef != 0.0:
            total = total + (self._z_loss_coef * share) * loss.z_loss
        return total


@torch.no_grad()
def _facts(loss: StepLoss, n_step_tokens: int) -> Tensor:
    """Summands of the step's means, on the device: cross-entropy, load balancing, z, router entropy."""
    share = loss.n_tokens / n_step_tokens
    per_token = torch.stack([loss.ce_sum / loss.n_tokens, loss.lb_loss, loss.z_loss, loss.router_entropy])
    return per_token.double() * share


def sum_counts(counts: Sequence[Tensor]) -> Tensor:
    """Expert counts [L, E] of several parts together."""
    return torch.stack(list(counts)).sum(dim=0)
