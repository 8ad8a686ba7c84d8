"""Muon: momentum whose matrices are orthogonalised, for the weights between hidden vectors."""

# N matrices in a batch, R rows, C columns, E matrices in a stack

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from moe.newton_schulz import add_orthogonalised_, orthogonalise
from moe.optimizer import Optimizer


def shape_factor(rows: int, columns: int) -> float:
    """By how much the rate of a matrix is multiplied: sqrt(max(1, rows / columns)).

    The "original" adjustment of Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/), also the default of
    ``torch.optim.Muon``: a tall matrix gets an update of the same RMS per output as a square one.
    """
    return math.sqrt(max(1.0, rows / columns))


class Muon(Optimizer):
    """Momentum, orthogonalised by Newton-Schulz (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/).

    Takes matrices [R, C] and stacks of matrices [E, R, C]; every matrix of a stack is orthogonalised by itself.
    The update of a matrix is ``lr * shape_factor(R, C)`` times its orthogonalised Nesterov momentum; weight decay is
    decoupled. ``newton_schulz_dtype`` is never fp16. Matrices of one shape are orthogonalised together, up to
    ``batch_elements`` elements.

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
        batch_elements: int = 2**19,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        if newton_schulz_dtype == torch.float16:
            raise ValueError("newton_schulz_dtype=float16 is refused: use bfloat16 where it is fast, float32 elsewhere")
        self.newton_schulz_dtype = newton_schulz_dtype
        self.batch_elements = batch_elements
        for param in self.params:
            if param.ndim not in {2, 3}:
                raise ValueError(
                    f"Muon takes matrices [R, C] and stacks [E, R, C], not shape {tuple(param.shape)}; "
                    "give the parameter to AdamW"
                )

    @torch.no_grad()
    def step(self) -> None:
        """One update of every parameter that has a gradient."""
        [group] = self.param_groups
        params = [param for param in group["params"] if param.grad is not None]
        if not params:
            return
        updates = self._nesterov([param.grad for param in params], params, group["momentum"])
        if group["weight_decay"] != 0.0:
            torch._foreach_mul_(params, 1.0 - group["lr"] * group["weight_decay"])
        for batch in _batches_of_one_shape(params, self.batch_elements):
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
        factor, dtype = -lr * shape_factor(rows, columns), self.newton_schulz_dtype
        if len(views) == 1:
            add_orthogonalised_(views[0], stacks[0], factor=factor, dtype=dtype)
            return
        directions_NRC = orthogonalise(torch.cat(stacks), dtype=dtype).to(params[0].dtype)
        torch._foreach_add_(views, torch.split(directions_NRC, [len(view) for view in views]), alpha=factor)


def _batches_of_one_shape(params: Sequence[Tensor], batch_elements: int) -> list[list[int]]:
    """Indices of parameters whose matrices have one shape, in batches of at most ``batch_elements`` elements.

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
                room = batch_elements
            batches[-1].append(i)
            room -= params[i].numel()
    return batches
