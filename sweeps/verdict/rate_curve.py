"""Loss against learning rate around an arm's best rate: where the optimum lies, and what a better rate could gain."""

# P rates on the curve, R draws of the noise

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from sweeps.verdict.statistics import Floats, MeanTest

NEIGHBOURS = 5
"""A parabola is a picture of the bottom: at most so many rates around the chosen one are fitted."""
DRAWS = 2_000


@dataclass(frozen=True, kw_only=True)
class RateCurve:
    """Mean validation losses (nats per token) by natural logarithm of the rate, ascending; ``chosen`` is an index.

    ``n_carried`` counts losses of rates that early stopping ended, carried to the full budget by a guess.
    """

    log_lrs: tuple[float, ...]
    losses: tuple[float, ...]
    chosen: int
    n_seeds: int
    n_carried: int = 0


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """The bottom of the quadratic fit and how far the chosen rate may be from it.

    ``lr`` is None where the fit has no bottom; ``lr_low`` and ``lr_high`` hold the optimum at the level asked for, cut
    at the ends of the fitted rates; ``gain`` is what the best rate would gain by the fit, ``gain_bound`` the upper
    bound at that level, both in nats per token; ``gain_draws`` [R] are draws of it.
    """

    lr: float | None
    lr_low: float
    lr_high: float
    gain: float
    gain_bound: float
    gain_draws: Floats = field(repr=False, compare=False)


def locate(
    curve: RateCurve,
    noise_sd: float,
    noise_df: int,
    rng: np.random.Generator,
    *,
    alpha: float = 0.05,
    draws: int = DRAWS,
) -> Optimum | None:
    """Return the optimum of a quadratic fit in log lr, or None with fewer than three rates.

    ``noise_sd`` is the spread between seeds, estimated with ``noise_df`` degrees of freedom (from confirm cells: other
    seeds than those that are fitted). The bounds come from refitting losses with that noise added, its own
    uncertainty included; misfit of the parabola counts as noise.
    """
    x_P, y_P, chosen = _around(curve)
    if x_P.size < 3 or noise_df < 1:
        return None
    design = np.vander(x_P - x_P.mean(), 3)
    projector = np.linalg.pinv(design)
    coefficients = projector @ y_P
    residual_df = x_P.size - 3
    squares = float(((y_P - design @ coefficients) ** 2).sum()) * curve.n_seeds
    df = noise_df + residual_df
    pooled_sd = math.sqrt((noise_df * noise_sd**2 + squares) / df / curve.n_seeds)
    scale_R1 = pooled_sd * np.sqrt(df / rng.chisquare(df, size=(draws, 1)))
    drawn_RP = y_P + scale_R1 * rng.standard_normal((draws, x_P.size))
    centre = float(x_P.mean())
    ends = (float(x_P[0]) - centre, float(x_P[-1]) - centre)
    at = float(x_P[chosen]) - centre
    bottoms_R, gains_R = _bottoms(drawn_RP @ projector.T, at, ends)
    bottom, gain = _bottoms(coefficients[None], at, ends)
    low, high = np.quantile(bottoms_R, [alpha / 2, 1 - alpha / 2])
    is_bowl = coefficients[0] > 0 and ends[0] < bottom[0] < ends[1]
    return Optimum(
        lr=math.exp(float(bottom[0]) + centre) if is_bowl else None,
        lr_low=math.exp(float(low) + centre),
        lr_high=math.exp(float(high) + centre),
        gain=float(gain[0]),
        gain_bound=float(np.quantile(gains_R, 1 - alpha)),
        gain_draws=gains_R,
    )


def lead_outlasts_better_rate(rival: Optimum, lead: MeanTest, alpha: float, rng: np.random.Generator) -> bool:
    """Return whether a lead over an arm would stand at level ``alpha`` if that arm had its best rate.

    The lead, with the uncertainty of the test that decides, must exceed the gain, with the uncertainty of the fit, in
    a share 1 - alpha/2 of joint draws. To ask only that the lead exceed the gain's upper bound is not enough: it lets
    through up to 10% false claims where a step of the grid costs about as much as the noise (see bench/calibration.py).
    """
    leads_R = lead.draws(rng, rival.gain_draws.size)
    return bool((leads_R > rival.gain_draws).mean() >= 1 - alpha / 2)


def tie_outlasts_better_rates(
    arms: tuple[Optimum, Optimum], difference: MeanTest, margin: float, alpha: float, rng: np.random.Generator
) -> bool:
    """Return whether a tie would stand if both arms had their best rates.

    The difference, widened by the larger of the two gains, must lie inside the margin in a share 1 - alpha of joint
    draws: whichever arm gains, the other may gain nothing.
    """
    gains_R = np.maximum(*(arm.gain_draws for arm in arms))
    widened_R = np.abs(difference.draws(rng, gains_R.size)) + gains_R
    return bool((widened_R < margin).mean() >= 1 - alpha)


def _around(curve: RateCurve) -> tuple[Floats, Floats, int]:
    x_P, y_P = np.asarray(curve.log_lrs), np.asarray(curve.losses)
    near = np.sort(np.abs(x_P - x_P[curve.chosen]).argsort(kind="stable")[:NEIGHBOURS])
    return x_P[near], y_P[near], int(np.flatnonzero(near == curve.chosen)[0])


def _bottoms(coefficients_R3: Floats, at: float, ends: tuple[float, float]) -> tuple[Floats, Floats]:
    """Place [R] of each parabola's lowest point between the ends, and how far below its value at ``at`` it lies."""
    curvature, slope = coefficients_R3[:, 0], coefficients_R3[:, 1]

    def height(x: Floats | float) -> Floats:
        return np.asarray(curvature * x**2 + slope * x)

    lower_end = np.where(height(ends[0]) < height(ends[1]), ends[0], ends[1])
    with np.errstate(divide="ignore", invalid="ignore"):
        vertex = np.clip(-slope / (2 * curvature), *ends)
    places = np.where(curvature > 0, vertex, lower_end)
    return places, height(at) - height(places)
