"""How often the verdict is wrong, by simulation: the rules run on sweeps whose truth is known.

Losses are drawn around arms' true means with noise between seeds; the code that decides is the verdict's own. Rows
cover tied arms with equal and unequal noise, paired and unpaired seeds, planned looks, and rates that one noisy explore
seed has chosen.
"""

# R repeats, S seeds, A arms, P rates of a grid

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sweeps.verdict.optimum import RateCurve, locate, outlasts_a_better_rate
from sweeps.verdict.statistics import Floats, paired_t, tied, winner

ALPHA = 0.05
FAR = 25.0
"""How far behind the third arm is where two are tied, in units of the smallest noise: no test confuses it."""
GRID_STEPS = (-2, -1, 0, 1, 2)
"""Rates of the grid in steps from the true optimum: inside, as after the edge rule."""
NOISES = ((1.0, 1.0, 1.0), (1.0, 1.3, 3.0), (1.0, 1.3, 8.0))
TRUTHS: dict[str, tuple[float, float, float]] = {
    "all equal": (0.0, 0.0, 0.0),
    "first two tied": (0.0, 0.0, FAR),
    "first and third tied": (0.0, FAR, 0.0),
    "last two tied": (FAR, 0.0, 0.0),
}
CURVATURES = (0.1, 1.0, 4.0)
"""What one step of the grid away from the optimum costs, in units of the smallest noise: flat, middling, steep."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One row: true means at the best rates, noise per arm, correlation of arms within a seed, seeds of one look.

    ``curvature`` is None where every arm runs at its best rate, else the rate is chosen from one noisy explore seed.
    """

    means: tuple[float, ...]
    noise: tuple[float, ...]
    correlation: float
    seeds: int
    looks: int = 1
    curvature: float | None = None


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What explore did in R repeats: noisy losses [R, A, P], the chosen place [R, A], what the choice costs [R, A]."""

    explored: Floats
    chosen: NDArray[np.int64]
    regret: Floats

    @property
    def at_edge(self) -> NDArray[np.bool_]:
        """Repeats in which some arm's best rate lies at the end of its grid: withheld."""
        return np.asarray(((self.chosen == 0) | (self.chosen == len(GRID_STEPS) - 1)).any(axis=1))


def false_wins(setting: Setting, repeats: int, rng: np.random.Generator) -> dict[str, float]:
    """Return how often a win was claimed that is not true, and how well intervals cover, over the repeats.

    ``false_wins`` counts statements: a win "at the chosen rates" is false when the arm is not best at these rates, any
    other when it is not best at the best rates. ``wins`` counts wins of either kind.
    """
    rates = _explore(setting, repeats, rng) if setting.curvature is not None else None
    truth_RA = np.broadcast_to(np.asarray(setting.means), (repeats, len(setting.means)))
    at_rates_RA = truth_RA if rates is None else truth_RA + rates.regret
    losses_RSA = at_rates_RA[:, None, :] + _noise(setting, (repeats, setting.seeds * setting.looks), rng)
    alpha = ALPHA / setting.looks
    won_R = np.full(repeats, -1)
    seeds_R = np.zeros(repeats, dtype=np.int64)
    for look in range(1, setting.looks + 1):
        open_R = won_R < 0
        won_R[open_R] = winner(losses_RSA[open_R, : look * setting.seeds], alpha)
        seeds_R[open_R] = look * setting.seeds
    counted_R = np.ones(repeats, dtype=bool) if rates is None else ~rates.at_edge
    wins = [int(repeat) for repeat in np.flatnonzero((won_R >= 0) & counted_R)]
    false = sum(
        _is_false(r, int(won_R[r]), losses_RSA[r, : seeds_R[r]], at_rates_RA[r], truth_RA[r], rates, alpha)
        for r in wins
    )
    covered = _coverage(losses_RSA[:, : setting.seeds], at_rates_RA)
    return {"false_wins": false / repeats, "wins": len(wins) / repeats, "coverage": covered}


def power(setting: Setting, repeats: int, rng: np.random.Generator) -> float:
    """Return how often the arm of lowest true mean wins."""
    losses_RSA = np.asarray(setting.means) + _noise(setting, (repeats, setting.seeds), rng)
    return float((winner(losses_RSA, ALPHA) == int(np.argmin(setting.means))).mean())


def tie_rates(setting: Setting, margin: float, repeats: int, rng: np.random.Generator) -> dict[str, float]:
    """Return how often the outcome is a tie, and how often a win, within ``margin``."""
    losses_RSA = np.asarray(setting.means) + _noise(setting, (repeats, setting.seeds), rng)
    wins_R = winner(losses_RSA, ALPHA) >= 0
    return {"tie": float((~wins_R & tied(losses_RSA, margin, ALPHA)).mean()), "wins": float(wins_R.mean())}


def repeated_extensions(setting: Setting, attempts: int, repeats: int, rng: np.random.Generator) -> dict[str, float]:
    """Return the rate of false wins when undecided sweeps are extended again and again, by three ways to count.

    ``pooled``: all seeds each time at the full level, which is what one would do without a rule. ``fresh``: the new
    seeds alone at the full level. ``rule``: the new seeds alone, the k-th unplanned look at alpha / 2^k.
    """
    losses_RSA = np.asarray(setting.means) + _noise(setting, (repeats, setting.seeds * attempts), rng)
    won = {way: np.zeros(repeats, dtype=bool) for way in ("pooled", "fresh", "rule")}
    for attempt in range(attempts):
        begin, end = attempt * setting.seeds, (attempt + 1) * setting.seeds
        won["pooled"] |= winner(losses_RSA[:, :end], ALPHA) >= 0
        won["fresh"] |= winner(losses_RSA[:, begin:end], ALPHA) >= 0
        won["rule"] |= winner(losses_RSA[:, begin:end], ALPHA / 2**attempt) >= 0
    return {way: float(found.mean()) for way, found in won.items()}


def selection_bias(setting: Setting, repeats: int, rng: np.random.Generator) -> dict[str, float]:
    """Return the mean error of the explore loss at the chosen rate and of the confirm mean, in units of the noise."""
    rates = _explore(setting, repeats, rng)
    explored_RA = np.take_along_axis(rates.explored, rates.chosen[..., None], axis=2)[..., 0]
    truth_RA = np.asarray(setting.means) + rates.regret
    confirm_RSA = truth_RA[:, None, :] + _noise(setting, (repeats, setting.seeds), rng)
    scale_A = np.asarray(setting.noise)
    return {
        "explore": float(((explored_RA - truth_RA) / scale_A).mean()),
        "confirm": float(((confirm_RSA.mean(axis=1) - truth_RA) / scale_A).mean()),
    }


def settings(repeated_rates: bool = True) -> Iterator[tuple[str, Setting]]:
    """Yield every configuration of tied arms: truths, noises, correlations, seeds, looks, and ways to choose rates."""
    ways: tuple[float | None, ...] = (None, *CURVATURES) if repeated_rates else (None,)
    grid = itertools.product(TRUTHS.items(), NOISES, (0.0, 0.5), (3, 4, 5), (1, 2), ways)
    for (name, means), noise, correlation, seeds, looks, curvature in grid:
        yield (
            name,
            Setting(means=means, noise=noise, correlation=correlation, seeds=seeds, looks=looks, curvature=curvature),
        )


def monte_carlo_bound(level: float, repeats: int, comparisons: int) -> float:
    """Return the highest rate that so many rows at exactly ``level`` would show together in 99 of 100 benches."""
    from scipy import stats

    return float(stats.binom.ppf(0.99 ** (1 / comparisons), repeats, level)) / repeats


def _noise(setting: Setting, shape: tuple[int, int], rng: np.random.Generator) -> Floats:
    n_arms = len(setting.noise)
    shared = rng.standard_normal((*shape, 1)) * math.sqrt(setting.correlation)
    own = rng.standard_normal((*shape, n_arms)) * math.sqrt(1 - setting.correlation)
    return np.asarray((shared + own) * np.asarray(setting.noise))


def _explore(setting: Setting, repeats: int, rng: np.random.Generator) -> Rates:
    """One explore seed per arm: losses on a parabola in log lr plus the arm's noise, the lowest one chosen."""
    assert setting.curvature is not None
    cost_P = setting.curvature * min(setting.noise) * np.asarray(GRID_STEPS) ** 2.0
    noise_A1 = np.asarray(setting.noise)[:, None]
    shared = rng.standard_normal((repeats, len(setting.noise), 1)) * math.sqrt(setting.correlation)
    own = rng.standard_normal((repeats, len(setting.noise), len(GRID_STEPS))) * math.sqrt(1 - setting.correlation)
    explored_RAP = np.asarray(setting.means)[:, None] + cost_P + noise_A1 * (shared + own)
    chosen_RA = explored_RAP.argmin(axis=2)
    return Rates(explored=explored_RAP, chosen=chosen_RA, regret=cost_P[chosen_RA])


def _is_false(
    repeat: int, won: int, losses_SA: Floats, at_rates_A: Floats, truth_A: Floats, rates: Rates | None, alpha: float
) -> bool:
    others = [arm for arm in range(len(truth_A)) if arm != won]
    if rates is not None and any(_at_chosen_rates(repeat, won, rival, losses_SA, rates, alpha) for rival in others):
        return any(at_rates_A[won] >= at_rates_A[rival] for rival in others)
    return any(truth_A[won] >= truth_A[rival] for rival in others)


def _at_chosen_rates(repeat: int, won: int, rival: int, losses_SA: Floats, rates: Rates, alpha: float) -> bool:
    """Whether the statement would read "at the chosen rates" for this rival, as the verdict decides it."""
    curve = RateCurve(
        log_lrs=tuple(step * math.log(2) for step in GRID_STEPS),
        losses=tuple(rates.explored[repeat, rival]),
        chosen=int(rates.chosen[repeat, rival]),
        n_seeds=1,
    )
    own_S = losses_SA[:, rival]
    rng = np.random.default_rng(repeat)
    optimum = locate(curve, float(own_S.std(ddof=1)), own_S.size - 1, rng, draws=400)
    assert optimum is not None, "a grid of five rates can be fitted"
    return not outlasts_a_better_rate(optimum, own_S - losses_SA[:, won], alpha, rng)


def _coverage(losses_RSA: Floats, truth_RA: Floats) -> float:
    """Share of paired intervals at 95%, over repeats and pairs, that hold the true difference."""
    held: list[Any] = []
    for a, b in itertools.combinations(range(truth_RA.shape[1]), 2):
        found = paired_t(losses_RSA[..., a] - losses_RSA[..., b], ALPHA)
        true_R = truth_RA[:, a] - truth_RA[:, b]
        held.append((found.low <= true_R) & (true_R <= found.high))
    return float(np.mean(held))
