"""Full learning curves of every rate of every arm: recorded ones from a CSV, and simulated ones with a known truth."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

RECORDED = Path(__file__).resolve().parents[1] / "tests" / "data" / "laptop_curves.csv"
COLUMNS = ("strategy", "lr", "seed", "tokens_seen", "val_loss")

Truth = Literal["slow_start", "crossing", "random_nan"]
TRUTHS: tuple[Truth, ...] = ("slow_start", "crossing", "random_nan")

ARMS = ("large_batch", "balanced", "long_seq")
RATES = (0.005, 0.01, 0.02, 0.04)
BUDGET_TOKENS = 524_288
POINTS_TOKENS = tuple(BUDGET_TOKENS * eighth // 8 for eighth in range(1, 9))
NOISE_NATS = 0.01  # between seeds, as laptop's cells show it (0.009 to 0.012)
DIVERGING_SHARE = 0.25

Case = tuple[str, int]
"""An arm under one seed: its rates are ranked with each other, and one of them is chosen."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Validation losses of one cell by tokens seen, in nats per token; NaN from where it diverged."""

    strategy: str
    lr: float
    seed: int
    losses: Mapping[int, float]

    @property
    def case(self) -> Case:
        """The arm and seed that it is ranked in."""
        return self.strategy, self.seed

    @property
    def diverged_at(self) -> int | None:
        """The first point, in tokens, at which the loss is not finite."""
        return next((tokens for tokens, loss in sorted(self.losses.items()) if not math.isfinite(loss)), None)

    @property
    def final(self) -> float:
        """The loss at the full budget; infinite where the cell diverged."""
        return math.inf if self.diverged_at is not None else self.losses[max(self.losses)]


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """Curves, and the rate that each arm does best at apart from noise."""

    curves: tuple[Curve, ...]
    best_lr: Mapping[str, float]


def read_curves(path: Path) -> tuple[Curve, ...]:
    """Return the curves of a CSV with the columns strategy, lr, seed, tokens_seen, val_loss.

    An empty loss is one that is not finite. Raises ValueError where columns are missing or where a curve lacks a point
    that others have.
    """
    found: dict[tuple[str, float, int], dict[int, float]] = {}
    with path.open(newline="") as file:
        rows = csv.DictReader(file)
        if missing := set(COLUMNS) - set(rows.fieldnames or ()):
            raise ValueError(f"{path.name} has no column {', '.join(sorted(missing))}; it needs {', '.join(COLUMNS)}")
        for row in rows:
            losses = found.setdefault((row["strategy"], float(row["lr"]), int(row["seed"])), {})
            losses[int(row["tokens_seen"])] = float(row["val_loss"] or "nan")
    points = sorted({tokens for losses in found.values() for tokens in losses})
    curves = [
        Curve(strategy=strategy, lr=lr, seed=seed, losses=_from_divergence_on(losses, points))
        for (strategy, lr, seed), losses in found.items()
    ]
    for curve in curves:
        if lacking := [tokens for tokens in points if tokens not in curve.losses]:
            raise ValueError(
                f"{path.name}: {curve.strategy} lr={curve.lr:g} seed={curve.seed} has no loss at {lacking} tokens"
            )
    return tuple(curves)


def _from_divergence_on(losses: Mapping[int, float], points: Sequence[int]) -> dict[int, float]:
    """A cell that diverged has no later points: they are not finite either."""
    ends = [tokens for tokens, loss in losses.items() if not math.isfinite(loss)]
    return {**losses, **{tokens: math.nan for tokens in points if ends and tokens >= min(ends)}}


def by_case(curves: Iterable[Curve]) -> dict[Case, list[Curve]]:
    """The curves of each arm under each seed, by ascending rate."""
    cases: dict[Case, list[Curve]] = {}
    for curve in sorted(curves, key=lambda curve: curve.lr):
        cases.setdefault(curve.case, []).append(curve)
    return cases


def simulate(truth: Truth, rng: np.random.Generator, *, seeds: Sequence[int] = (1,)) -> Simulated:
    """Return curves of three arms at four rates.

    ``slow_start``: one arm is 1.5 nats behind all others early and ahead of them at the end. ``crossing``: before the
    decay that ends the budget, higher rates look worse than they end, so that curves of one arm cross between rungs.
    ``random_nan``: each cell diverges with a probability of 0.25, anywhere, and one does for certain.
    """
    best_lr = {arm: float(RATES[rng.integers(1, 3)]) for arm in ARMS}
    level = dict(zip(ARMS, (4.6, 4.8, 5.0), strict=True))
    slow = str(rng.choice(ARMS)) if truth == "slow_start" else None
    if slow:
        level[slow] = 4.5
    curves: list[Curve] = []
    doomed = rng.integers(len(ARMS) * len(RATES))
    for seed in seeds:
        for arm in ARMS:
            for lr in RATES:
                final = level[arm] + 0.05 * math.log2(lr / best_lr[arm]) ** 2 + rng.normal(0, NOISE_NATS)
                losses = {}
                for tokens in POINTS_TOKENS:
                    undone = BUDGET_TOKENS / tokens - 1
                    lag = (1.5 / 7 if arm == slow else 0.0) * undone
                    tilt = 0.015 * math.log2(lr / best_lr[arm]) * undone if truth == "crossing" else 0.0
                    noise = rng.normal(0, NOISE_NATS / 4) if undone else 0.0
                    losses[tokens] = final + 0.12 * undone + lag + tilt + noise
                if truth == "random_nan" and (rng.random() < DIVERGING_SHARE or len(curves) == doomed):
                    losses = _from_divergence_on({**losses, int(rng.choice(POINTS_TOKENS)): math.nan}, POINTS_TOKENS)
                curves.append(Curve(strategy=arm, lr=lr, seed=seed, losses=losses))
    return Simulated(curves=tuple(curves), best_lr=best_lr)
