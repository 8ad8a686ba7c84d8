"""What would settle an undecided verdict: seeds, or documents of the exam, by power were the means what they seem."""

# N sizes of a sample

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sweeps.verdict.evidence import Evidence, within_reach
from sweeps.verdict.statistics import POWER, Comparison, Floats

MOST_SEEDS = 200
MOST_TIMES_THE_DOCUMENTS = 64
"""An exam larger than this many times today's is no advice."""
LARGEST_EFFECT = 30.0
"""The noncentral t of scipy loses its digits far out, where the power is 1 in double precision anyway."""


@dataclass(frozen=True, kw_only=True)
class Needed:
    """How many fresh seeds, or how many documents at today's seeds, would settle a verdict with power 0.8, and as what.

    ``seeds`` is None where no number up to 200 would on this exam; ``documents`` is None where no exam up to 64 times
    as large would, or where losses by document are not known.
    """

    seeds: int | None
    settles: Literal["wins", "tie"] | None
    documents: int | None


@dataclass(frozen=True, kw_only=True)
class Noise:
    """One difference and where its variance comes from: seed to seed, and documents as many as there are."""

    mean: float
    seed_variance: float
    document_variance: float
    document_df: float

    def standard_error(self, seeds_N: Floats, times_N: Floats) -> tuple[Floats, Floats]:
        """Standard error and Satterthwaite's degrees of freedom over seeds and documents."""
        of_seeds_N, of_documents_N = self.seed_variance / seeds_N, self.document_variance / times_N
        variance_N = of_seeds_N + of_documents_N
        df_documents_N = np.maximum(times_N * (self.document_df + 1) - 1, 1.0)
        squares_N = of_seeds_N**2 / (seeds_N - 1) + of_documents_N**2 / df_documents_N
        safe_N = np.where(squares_N > 0, squares_N, 1.0)
        return np.sqrt(variance_N), np.where(squares_N > 0, variance_N**2 / safe_N, seeds_N - 1)


def win_power(mean: float, standard_error_N: Floats, df_N: Floats, alpha: float) -> Floats:
    """Return the power [N] of the two-sided t test at ``alpha`` against a true mean difference."""
    from scipy import stats

    effect_N = _effect(abs(mean), standard_error_N)
    power_N = stats.nct.sf(stats.t.ppf(1 - alpha / 2, df_N), df_N, np.minimum(effect_N, LARGEST_EFFECT))
    return np.asarray(np.where(effect_N > LARGEST_EFFECT, 1.0, power_N), dtype=np.float64)


def tie_power(mean: float, standard_error_N: Floats, df_N: Floats, margin: float, alpha: float) -> Floats:
    """Return the power [N] of two one-sided tests at a true mean difference (Phillips 1990, a lower bound)."""
    from scipy import stats

    if abs(mean) >= margin:
        return np.zeros(np.shape(standard_error_N))
    critical_N = stats.t.ppf(1 - alpha, df_N)
    missed_N = np.zeros(np.shape(standard_error_N))
    for bound in (margin - mean, margin + mean):
        effect_N = _effect(bound, standard_error_N)
        missed = stats.nct.cdf(critical_N, df_N, np.minimum(effect_N, LARGEST_EFFECT))
        missed_N = missed_N + np.where(effect_N > LARGEST_EFFECT, 0.0, missed)
    return np.asarray(np.clip(1 - missed_N, 0, 1), dtype=np.float64)


def needed(evidence: Evidence, margin: float | None, alpha: float) -> Needed:
    """Return what would settle an undecided verdict at level ``alpha`` of the next look.

    The power against all rivals together is bounded from below by one minus the summed chances to miss each.
    """
    order = evidence.means_A.argsort()
    best = int(order[0])
    comparisons = [evidence.pair(best, int(rival)) for rival in order[1:]]
    noises = [_noise(evidence, best, int(rival), found) for rival, found in zip(order[1:], comparisons, strict=True)]
    seeds_N = np.arange(3.0, MOST_SEEDS + 1)
    ones = np.ones_like(seeds_N)
    shared = alpha
    if margin is not None:
        p_A = np.asarray([float(found.equivalence_p(margin)) for found in comparisons])
        shared = alpha / int(within_reach(p_A, alpha))
    win_N, tie_N = _powers(noises, seeds_N, ones, margin, alpha, shared)
    answers: list[tuple[int, Literal["wins", "tie"]]] = []
    if (win_N >= POWER).any():
        answers.append((int(seeds_N[win_N >= POWER][0]), "wins"))
    if (tie_N >= POWER).any():
        answers.append((int(seeds_N[tie_N >= POWER][0]), "tie"))
    seeds, settles = min(answers, default=(None, None), key=lambda answer: answer[0] or 0)
    return Needed(seeds=seeds, settles=settles, documents=_documents(evidence, noises, margin, alpha, shared))


def _documents(
    evidence: Evidence, noises: list[Noise], margin: float | None, alpha: float, shared: float
) -> int | None:
    """Documents that would settle it at today's number of seeds."""
    if evidence.weights_D is None or evidence.losses_SA is None:
        return None
    times_N = np.geomspace(1, MOST_TIMES_THE_DOCUMENTS, 121)
    seeds_N = np.full_like(times_N, float(evidence.losses_SA.shape[0]))
    win_N, tie_N = _powers(noises, seeds_N, times_N, margin, alpha, shared)
    enough = np.flatnonzero(np.maximum(win_N, tie_N) >= POWER)
    return math.ceil(evidence.weights_D.size * float(times_N[enough[0]])) if enough.size else None


def _noise(evidence: Evidence, best: int, rival: int, found: Comparison) -> Noise:
    seeds = found.tests.get("seeds") or found.tests["welch"]
    over = found.tests.get("documents", seeds)
    return Noise(
        mean=float(seeds.mean),
        seed_variance=evidence.seed_variance(best, rival),
        document_variance=float(over.variance - seeds.variance),
        document_df=(evidence.n_documents or 2.0) - 1,
    )


def _powers(
    noises: list[Noise], seeds_N: Floats, times_N: Floats, margin: float | None, alpha: float, shared: float
) -> tuple[Floats, Floats]:
    """Powers [N] of a win over all rivals and of a tie with the nearest one; the weaker of the tests counts."""
    win_N, tie_N = np.ones_like(seeds_N), np.zeros_like(seeds_N)
    for place, noise in enumerate(noises):
        alone = np.sqrt(noise.seed_variance / seeds_N), seeds_N - 1
        both = noise.standard_error(seeds_N, times_N)
        win_N = win_N - 1 + np.minimum(*(win_power(noise.mean, error, df, alpha) for error, df in (alone, both)))
        if place == 0 and margin is not None:
            tie_N = np.minimum(*(tie_power(noise.mean, error, df, margin, shared) for error, df in (alone, both)))
    return win_N, tie_N


def _effect(size: float, standard_error_N: Floats) -> NDArray[np.float64]:
    safe_N = np.where(standard_error_N > 0, standard_error_N, 1.0)
    return np.where(standard_error_N > 0, size / safe_N, np.inf if size else 0.0)
