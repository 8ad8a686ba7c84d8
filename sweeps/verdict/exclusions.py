"""Arms that do not hold up the others: those that diverged, and those too far behind for a better rate to matter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sweeps.ledger.results import CellResult, SweepResults, finite
from sweeps.verdict.best_rate import Choice, edges
from sweeps.verdict.grid_edge import DEFAULT_GRID_RATIO, Edge

STEPS_BEYOND_THE_EDGE = 3.0
"""Loss is convex in log lr, so a step beyond the grid gains at most what the last one gained."""
ROUNDING = 1e-9
"""Nats per token by which sums of decimals may be off."""


@dataclass(frozen=True, kw_only=True)
class Exclusion:
    """An arm that can neither win nor tie: it diverged on confirm seeds, or at every rate that explore tried.

    ``seeds`` are the confirm seeds that diverged, none where it never got that far; ``finished`` are the test losses
    of its other seeds; ``lower_lr`` is a rate to try next.
    """

    arm: str
    seeds: tuple[int, ...]
    finished: tuple[float, ...]
    lr: float | None
    lower_lr: float | None

    @property
    def finished_mean(self) -> float | None:
        """Mean test loss of the seeds that finished."""
        return sum(self.finished) / len(self.finished) if self.finished else None

    def as_dict(self) -> dict[str, Any]:
        """Return the entry of ``verdict.json``."""
        return {
            "name": self.arm,
            "diverged_seeds": list(self.seeds),
            "lr": self.lr,
            "lower_lr": self.lower_lr,
            "finished_mean": self.finished_mean,
        }


@dataclass(frozen=True, kw_only=True)
class BehindAtEdge:
    """An arm whose best rate is the last one tried, and which more rates could not bring to the front.

    ``behind`` and ``last_gain`` are in nats per token: by how much the best arm is ahead, and what the last step of
    the grid gained.
    """

    edge: Edge
    behind: float
    last_gain: float


def exclusion_of(
    results: SweepResults, arm: str, cells: Mapping[int, CellResult], lr: float | None, choice: Choice | None
) -> Exclusion | None:
    """Return why an arm can neither win nor tie, None where it can."""
    seeds = tuple(sorted(seed for seed, result in cells.items() if result.outcome == "diverged"))
    explored = results.of("explore", arm)
    if not seeds:
        if not explored or choice is not None or any(result.outcome != "diverged" for result in explored):
            return None
        tried = [result.cell.lr for result in explored if result.cell.lr is not None]
        lowest = min(tried, default=None)
        return Exclusion(arm=arm, seeds=(), finished=(), lr=lowest, lower_lr=_lower(lowest, []))
    finished = tuple(
        loss for result in cells.values() if result.reached_budget and (loss := finite(result.test_loss)) is not None
    )
    tried = [rate.lr for rate in choice.tried] if choice else []
    return Exclusion(arm=arm, seeds=seeds, finished=finished, lr=lr, lower_lr=_lower(lr, tried))


def _lower(lr: float | None, tried: list[float]) -> float | None:
    """Halfway, in the logarithm, to the next lower rate that was tried, or one step of a grid below all of them."""
    if lr is None:
        return None
    below = max((rate for rate in tried if rate < lr * (1 - 1e-9)), default=None)
    return float(f"{lr / DEFAULT_GRID_RATIO if below is None else math.sqrt(lr * below):.3g}")


def behind_at_edge(
    results: SweepResults, chosen: Mapping[str, Choice], test_means: Mapping[str, float]
) -> tuple[BehindAtEdge, ...]:
    """Return the arms at an edge that are behind by more than three times what the last step of their grid gained.

    Behind on validation loss at the chosen rates, and on the mean test loss where there is one.
    """
    found: list[BehindAtEdge] = []
    for edge in edges(results):
        choice = chosen.get(edge.strategy)
        gain = _last_gain(choice, edge) if choice is not None else None
        if choice is None or gain is None:
            continue
        behind = choice.val_loss - min(other.val_loss for other in chosen.values())
        if edge.strategy in test_means:
            behind = min(behind, test_means[edge.strategy] - min(test_means.values()))
        if behind > STEPS_BEYOND_THE_EDGE * max(gain, 0.0) + ROUNDING:
            found.append(BehindAtEdge(edge=edge, behind=behind, last_gain=gain))
    return tuple(found)


def _last_gain(choice: Choice, edge: Edge) -> float | None:
    """What the step of the grid that led to the edge gained, in nats per token; None where there was no such step."""
    if edge.rate == "lr":
        losses = choice.curve.losses if edge.side == "high" else choice.curve.losses[::-1]
        at_end = choice.curve.chosen == (len(losses) - 1 if edge.side == "high" else 0)
        return losses[-2] - losses[-1] if at_end and len(losses) > 1 else None
    row = sorted(
        (rate.adamw_lr, rate.mean)
        for rate in choice.tried
        if rate.lr == choice.lr and rate.adamw_lr is not None and rate.mean is not None
    )
    losses = tuple(mean for _, mean in (row if edge.side == "high" else row[::-1]))
    return losses[-2] - losses[-1] if len(losses) > 1 else None
