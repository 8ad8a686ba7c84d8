"""What rates an arm tried, and whether the best lies at the edge of its grid, where a better one may be beyond."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from search_spaces.extension import widened_rate
from sweeps.ledger.results import RETRIED_OUTCOMES, CellResult, SweepResults, finite

Side = Literal["low", "high"]

OPTUNA_EDGE_SHARE = 0.05
"""A searched rate within this share of the range's width (in the logarithm) of a bound counts as an edge."""
DEFAULT_GRID_RATIO = 2.0
"""The step of widening where a grid of one rate has no ratio of its own."""
UNFINISHED_EVIDENCE = ("stopped_early", "diverged")
"""Outcomes that say how a rate did without its final loss; one that failed or ran out of memory says nothing."""


@dataclass(frozen=True, kw_only=True)
class TriedRate:
    """One rate of an arm and what its explore cells gave. ``mean`` is over seeds that reached the full budget."""

    lr: float
    adamw_lr: float | None
    losses: Mapping[int, float]
    outcomes: tuple[str, ...]

    @property
    def mean(self) -> float | None:
        """Mean validation loss over the explore seeds that reached the full budget, in nats per token."""
        return sum(self.losses.values()) / len(self.losses) if self.losses else None

    @property
    def is_evidence(self) -> bool:
        """Whether its cells say how the rate did: a final loss, or an end that bounds the grid."""
        return bool(self.losses) or any(outcome in UNFINISHED_EVIDENCE for outcome in self.outcomes)

    @property
    def has_failed(self) -> bool:
        """Whether a cell failed or ran out of memory."""
        return any(outcome in RETRIED_OUTCOMES for outcome in self.outcomes)


@dataclass(frozen=True, kw_only=True)
class Edge:
    """An arm whose best rate lies at the end of what was tried, and the rate that would widen the search."""

    strategy: str
    rate: Literal["lr", "adamw_lr"]
    side: Side
    best: float
    next_rate: float

    @property
    def option(self) -> str:
        """The option of ``sweeps extend`` that adds the missing rate."""
        return f"--{self.rate.replace('_', '-')} {self.next_rate:g}"


def tried_rates(cells: Iterable[CellResult]) -> tuple[TriedRate, ...]:
    """Return what was tried, by ascending rate: pairs of ``lr`` and AdamW's rate with their losses at full budget."""
    by_rate: dict[tuple[float, float | None], list[CellResult]] = {}
    for result in cells:
        if result.cell.lr is not None:
            by_rate.setdefault((result.cell.lr, result.cell.adamw_lr), []).append(result)
    return tuple(
        TriedRate(
            lr=lr,
            adamw_lr=adamw_lr,
            losses={r.cell.seed: loss for r in found if r.reached_budget and (loss := finite(r.val_loss)) is not None},
            outcomes=tuple(r.outcome or "unfinished" for r in found),
        )
        for (lr, adamw_lr), found in sorted(by_rate.items(), key=lambda item: (item[0][0], item[0][1] or 0.0))
    )


def edges_of(results: SweepResults, strategy: str, best: TriedRate, tried: tuple[TriedRate, ...]) -> Iterable[Edge]:
    """The ends of what was tried at which the best rate of an arm lies."""

    def edge(rate: Literal["lr", "adamw_lr"], side: Side, value: float, next_rate: float) -> Edge:
        next_rate = float(f"{next_rate:.4g}")
        return Edge(strategy=strategy, rate=rate, side=side, best=value, next_rate=next_rate)

    evidence = [rate for rate in tried if rate.is_evidence]
    search = results.space.get("search")
    if isinstance(search, Mapping) and search.get("kind") == "optuna":
        added = [rate.lr for rate in evidence]
        low, high = min([float(search["lr_low"]), *added]), max([float(search["lr_high"]), *added])
        for side in _bound_sides(best.lr, low, high):
            yield edge("lr", side, best.lr, best.lr * DEFAULT_GRID_RATIO ** (1 if side == "high" else -1))
        ratio_low, ratio_high = search.get("adamw_ratio_low"), search.get("adamw_ratio_high")
        if ratio_low and ratio_high and best.adamw_lr is not None:
            for side in _bound_sides(best.adamw_lr / best.lr, float(ratio_low), float(ratio_high)):
                factor = DEFAULT_GRID_RATIO ** (1 if side == "high" else -1)
                yield edge("adamw_lr", side, best.adamw_lr, best.adamw_lr * factor)
        return
    for side, next_rate in _grid_sides(best.lr, sorted({rate.lr for rate in evidence})):
        yield edge("lr", side, best.lr, next_rate)
    own_grid = sorted({rate.adamw_lr for rate in evidence if rate.lr == best.lr and rate.adamw_lr is not None})
    if best.adamw_lr is not None and len(own_grid) > 1:
        for side, next_rate in _grid_sides(best.adamw_lr, own_grid):
            yield edge("adamw_lr", side, best.adamw_lr, next_rate)


def _grid_sides(best: float, grid: list[float]) -> Iterable[tuple[Side, float]]:
    ends: tuple[tuple[Side, bool], ...] = (("low", best <= grid[0]), ("high", best >= grid[-1]))
    for side, at_end in ends:
        if at_end and len(grid) > 1:
            yield side, widened_rate(grid, side)
        elif at_end:
            yield side, best * DEFAULT_GRID_RATIO ** (1 if side == "high" else -1)


def _bound_sides(value: float, low: float, high: float) -> Iterable[Side]:
    width = math.log(high / low)
    if math.log(value / low) <= OPTUNA_EDGE_SHARE * width:
        yield "low"
    if math.log(high / value) <= OPTUNA_EDGE_SHARE * width:
        yield "high"
