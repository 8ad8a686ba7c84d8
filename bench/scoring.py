"""Other ways than rank to say who goes on at a rung, tried on full curves: each waits until its arm has arrived.

A score turns the losses that an arm's cells have shown so far into numbers of which the lowest go on. All of them are
independent of launch order, as rank is; they differ in what they make of a loss before its decay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from bench.curves import Curve, by_case
from bench.replay import Replay, outcome

Score = Callable[[Sequence[Curve], int], list[float]]
"""From the cells of one arm that arrived at a rung, by ascending rate: a number for each, lower is better."""

GAPS_NATS = (0.01, 0.02, 0.04, 0.08)


def rank(arrived: Sequence[Curve], tokens: int) -> list[float]:
    """The loss at the rung."""
    return [curve.losses[tokens] for curve in arrived]


def smooth(arrived: Sequence[Curve], tokens: int) -> list[float]:
    """A quadratic fit of the loss over log lr: with four rates it takes out a quarter of the noise."""
    losses = rank(arrived, tokens)
    if len(arrived) < 4:
        return losses
    log_lr = np.log2([curve.lr for curve in arrived])
    fitted = np.polyval(np.polyfit(log_lr - log_lr.mean(), losses, 2), log_lr - log_lr.mean())
    return [float(loss) for loss in fitted]


def neighbours(arrived: Sequence[Curve], tokens: int) -> list[float]:
    """Nearness in log lr to the best cell, the better neighbour first: only what can be the bottom of one bowl."""
    losses = rank(arrived, tokens)
    best = losses.index(min(losses))
    span = max(losses) - min(losses) + 1.0
    return [abs(place - best) * span + losses[place] for place in range(len(losses))]


def tilted(nats_per_doubling: float) -> Score:
    """The loss less so much for each doubling of the rate: a decay to come gains more at higher rates."""

    def score(arrived: Sequence[Curve], tokens: int) -> list[float]:
        return [curve.losses[tokens] - nats_per_doubling * math.log2(curve.lr) for curve in arrived]

    return score


def extrapolated(weight: float) -> Score:
    """The loss less ``weight`` times what the last eighth of the budget gained: who still falls is let fall."""

    def score(arrived: Sequence[Curve], tokens: int) -> list[float]:
        before = [max((point for point in curve.losses if point < tokens), default=tokens) for curve in arrived]
        return [
            curve.losses[tokens] - weight * (curve.losses[point] - curve.losses[tokens])
            for curve, point in zip(arrived, before, strict=True)
        ]

    return score


SCORES: Mapping[tuple[str, str], Score] = {
    ("quadratic fit", ""): smooth,
    ("neighbours of the best", ""): neighbours,
    **{("tilted", f"{nats:g} nats per doubling"): tilted(nats) for nats in (0.005, 0.01, 0.02, 0.04)},
    **{("extrapolated", f"x{weight:g}"): extrapolated(weight) for weight in (0.25, 0.5, 1.0, 2.0)},
}
"""By kind and constant; rank itself is our own rule."""


def by_score(curves: Sequence[Curve], score: Score, rungs: Sequence[tuple[int, int]]) -> Replay:
    """At each rung, given as (tokens, count), the cells of lowest score go on."""

    def going(arrived: Sequence[Curve], tokens: int, count: int) -> list[Curve]:
        scores = score(arrived, tokens)
        places = sorted(range(len(arrived)), key=lambda place: scores[place])[:count]
        return [arrived[place] for place in sorted(places)]

    return _climb(curves, rungs, going)


def by_gap(curves: Sequence[Curve], gap_nats: float, rungs: Sequence[int]) -> Replay:
    """At each rung all cells within a gap of their arm's best go on, however many."""

    def going(arrived: Sequence[Curve], tokens: int, _: int) -> list[Curve]:
        best = min(curve.losses[tokens] for curve in arrived)
        return [curve for curve in arrived if curve.losses[tokens] <= best + gap_nats]

    return _climb(curves, [(tokens, 0) for tokens in rungs], going)


def _climb(
    curves: Sequence[Curve],
    rungs: Sequence[tuple[int, int]],
    going: Callable[[Sequence[Curve], int, int], list[Curve]],
) -> Replay:
    budget = max(curves[0].losses)
    reached = {id(curve): 0 for curve in curves}
    for rivals in by_case(curves).values():
        alive = rivals
        for tokens, count in [*rungs, (budget, 0)]:
            for curve in alive:
                reached[id(curve)] = min(tokens, curve.diverged_at or tokens)
            alive = [curve for curve in alive if math.isfinite(curve.losses[tokens])]
            if alive and tokens < budget:
                alive = going(alive, tokens, count)
    return outcome(curves, [reached[id(curve)] for curve in curves], idle=math.nan)
