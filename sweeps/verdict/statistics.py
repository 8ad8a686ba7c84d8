"""The arithmetic of the verdict, on arrays, so that one decision and two thousand simulated ones run the same code.

Differences are paired by seed. A loss is better when it is lower, so a difference ``a - b`` below zero speaks for a.
"""

# R repeats or any leading axes, S seeds, A arms, P pairs of arms, D documents, N sizes of a sample

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

DEGENERATE_SHARE = 1e-12
"""A standard deviation below this share of the values is rounding of equal differences, not noise."""
POWER = 0.8
"""The power that "would settle it" means: the convention of Cohen 1988, chapter 1."""
MOST_SEEDS = 200


@dataclass(frozen=True, kw_only=True)
class PairedT:
    """Student's paired t: arrays over the leading axes. ``low`` and ``high`` hold the mean at level 1 - alpha."""

    mean: Floats
    sd: Floats
    low: Floats
    high: Floats
    p_value: Floats


def paired_t(differences_S: Floats, alpha: float) -> PairedT:
    """Return mean, interval and two-sided p-value of paired differences [..., S], S at least 2.

    Equal differences have no noise to test against: p is 0 for a shift that all seeds share exactly, 1 for no shift.
    """
    from scipy import stats

    n_seeds = differences_S.shape[-1]
    assert n_seeds >= 2, "a paired t test needs two differences"
    mean = differences_S.mean(axis=-1)
    sd = differences_S.std(axis=-1, ddof=1)
    sd = np.where(sd <= DEGENERATE_SHARE * np.abs(differences_S).max(axis=-1), 0.0, sd)
    standard_error = sd / np.sqrt(n_seeds)
    with np.errstate(divide="ignore", invalid="ignore"):
        t_value = np.where(sd > 0, mean / standard_error, np.where(mean != 0, np.inf, 0.0))
    p_value = 2 * stats.t.sf(np.abs(t_value), n_seeds - 1)
    reach = stats.t.ppf(1 - alpha / 2, n_seeds - 1) * standard_error
    return PairedT(mean=mean, sd=sd, low=mean - reach, high=mean + reach, p_value=np.asarray(p_value))


def mean_interval(values_S: Floats, alpha: float) -> tuple[float, float, float]:
    """Return mean, low and high end of Student's interval of one arm's losses [S]; the ends are nan for one seed."""
    if values_S.shape[-1] < 2:
        return float(values_S.mean()), float("nan"), float("nan")
    found = paired_t(values_S, alpha)
    return float(found.mean), float(found.low), float(found.high)


def winner(losses_SA: Floats, alpha: float) -> NDArray[np.int64]:
    """Return the index [...] of the arm that is better than every other one, or -1, from losses [..., S, A].

    The arm of lowest mean wins when a two-sided paired t test at ``alpha`` separates it from each other arm. This is
    an intersection-union test (Berger 1982): it needs no correction for the number of rivals, because a false win
    needs the two tied best arms to differ, which one test does at rate ``alpha``.
    """
    best = losses_SA.mean(axis=-2).argmin(axis=-1)
    own_S1 = np.take_along_axis(losses_SA, best[..., None, None], axis=-1)
    differences_AS = np.swapaxes(own_S1 - losses_SA, -1, -2)
    p_A = paired_t(differences_AS, alpha).p_value.copy()
    np.put_along_axis(p_A, best[..., None], 0.0, axis=-1)
    return np.where((p_A <= alpha).all(axis=-1), best, -1)


def tost_p(differences_S: Floats, margin: float) -> Floats:
    """Return the p-value [...] of two one-sided t tests (Schuirmann 1987) for a mean difference within ±margin."""
    from scipy import stats

    n_seeds = differences_S.shape[-1]
    found = paired_t(differences_S, 0.05)
    standard_error = found.sd / np.sqrt(n_seeds)
    with np.errstate(divide="ignore", invalid="ignore"):
        # Without noise the distance to the nearer bound decides alone; on the bound itself nothing is shown.
        room = margin - np.abs(found.mean)
        t_value = np.where(standard_error > 0, room / standard_error, np.where(room > 0, np.inf, -np.inf))
    return np.asarray(stats.t.sf(t_value, n_seeds - 1))


def tie_p(losses_SA: Floats, margin: float, alpha: float) -> Floats:
    """Return the p-value [...] of a tie within ``margin`` between the two arms of lowest mean, from [..., S, A].

    Of several rivals the nearest one was picked by the same losses, so its p-value is multiplied by the number of
    rivals that are not shown, each at ``alpha``, to lie beyond the margin. Without that a tie with one of two rivals at
    the margin itself is claimed in up to 8% of sweeps, with one of nine in 20% (see sweeps.verdict.calibration).
    """
    order = losses_SA.mean(axis=-2).argsort(axis=-1)
    ordered_AS = np.swapaxes(np.take_along_axis(losses_SA, order[..., None, :], axis=-1), -1, -2)
    p_A = tost_p(ordered_AS[..., 1:, :] - ordered_AS[..., :1, :], margin)
    return np.asarray(np.minimum(1.0, p_A[..., 0] * _within_reach(p_A, alpha)))


def _within_reach(p_A: Floats, alpha: float) -> NDArray[np.int64]:
    """How many rivals may lie inside the margin, from their p-values of two one-sided tests; the nearest always may."""
    return np.asarray(np.maximum(1, (p_A < 1 - alpha).sum(axis=-1)))


def tied(losses_SA: Floats, margin: float, alpha: float) -> NDArray[np.bool_]:
    """Return whether the two arms of lowest mean are equivalent within ``margin`` at ``alpha``, from [..., S, A]."""
    return np.asarray(tie_p(losses_SA, margin, alpha) <= alpha)


def holm(p_values: Floats) -> Floats:
    """Return Holm's step-down adjusted p-values [P] (Holm 1979)."""
    from statsmodels.stats.multitest import multipletests

    if p_values.size == 0:
        return p_values
    return np.asarray(multipletests(p_values, method="holm")[1], dtype=np.float64)


def probability_better(differences_S: Floats) -> float:
    """Return the probability that a beats b on one more seed, from differences a - b [S].

    The predictive probability of Student's t: with n seeds the next difference has scale sd * sqrt(1 + 1/n). The plain
    share of seeds won (Bouthillier et al. 2021) takes six values with five seeds and calls five of five certain.
    """
    from scipy import stats

    n_seeds = differences_S.shape[-1]
    found = paired_t(differences_S, 0.05)
    if found.sd == 0:
        return 0.5 if found.mean == 0 else float(found.mean < 0)
    scale = float(found.sd) * float(np.sqrt(1 + 1 / n_seeds))
    return float(stats.t.cdf(-float(found.mean) / scale, n_seeds - 1))


def win_power(mean: float, sd: float, seeds_N: NDArray[np.int64], alpha: float) -> Floats:
    """Return the power [N] of the two-sided paired t test at ``alpha`` against a true mean difference."""
    from scipy import stats

    if sd == 0:
        return np.full(seeds_N.shape, float(mean != 0))
    effect_N = abs(mean) / sd * np.sqrt(seeds_N)
    # The noncentral t of scipy loses its digits far out, where the power is 1 in double precision anyway.
    power_N = stats.nct.sf(stats.t.ppf(1 - alpha / 2, seeds_N - 1), seeds_N - 1, np.minimum(effect_N, 30.0))
    return np.asarray(np.where(effect_N > 30, 1.0, power_N), dtype=np.float64)


def tie_power(mean: float, sd: float, margin: float, seeds_N: NDArray[np.int64], alpha: float) -> Floats:
    """Return the power [N] of two one-sided tests at a true mean difference (Phillips 1990, a lower bound)."""
    from scipy import stats

    if abs(mean) >= margin:
        return np.zeros(seeds_N.shape)
    if sd == 0:
        return np.ones(seeds_N.shape)
    critical_N = stats.t.ppf(1 - alpha, seeds_N - 1)
    missed_N = np.zeros(seeds_N.shape)
    for bound in (margin - mean, margin + mean):
        effect_N = np.minimum(bound / sd * np.sqrt(seeds_N), 30.0)
        missed_N = missed_N + stats.nct.cdf(critical_N, seeds_N - 1, effect_N)
    return np.asarray(np.clip(1 - missed_N, 0, 1), dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class SeedsNeeded:
    """How many fresh seeds would settle a verdict with power 0.8, and as what, were the means what they seem."""

    seeds: int
    settles: Literal["wins", "tie"]


def seeds_needed(losses_SA: Floats, margin: float | None, alpha: float) -> SeedsNeeded | None:
    """Return the seeds that would settle losses [S, A] as a win of the best arm or as a tie, None beyond 200.

    The power against all rivals together is bounded from below by one minus the summed chances to miss each.
    """
    seeds_N = np.arange(3, MOST_SEEDS + 1)
    order = losses_SA.mean(axis=0).argsort()
    differences_AS = (losses_SA[:, order[:1]] - losses_SA[:, order[1:]]).T
    rivals = [paired_t(differences_S, alpha) for differences_S in differences_AS]
    win_N = 1 - sum(
        (1 - win_power(float(r.mean), float(r.sd), seeds_N, alpha) for r in rivals), np.zeros(seeds_N.shape)
    )
    answers = [SeedsNeeded(seeds=int(seeds_N[win_N >= POWER][0]), settles="wins")] if (win_N >= POWER).any() else []
    if margin is not None:
        shared_alpha = alpha / int(_within_reach(tost_p(differences_AS, margin), alpha))
        tie_N = tie_power(float(rivals[0].mean), float(rivals[0].sd), margin, seeds_N, shared_alpha)
        if (tie_N >= POWER).any():
            answers.append(SeedsNeeded(seeds=int(seeds_N[tie_N >= POWER][0]), settles="tie"))
    return min(answers, key=lambda answer: answer.seeds, default=None)


def smallest_detectable(sd: float, n_seeds: int, alpha: float) -> float:
    """Return the difference that ``n_seeds`` find with power 0.8 when differences have standard deviation ``sd``."""
    from statsmodels.stats.power import TTestPower

    if n_seeds < 2:
        return float("inf")
    return sd * float(TTestPower().solve_power(nobs=n_seeds, alpha=alpha, power=POWER, alternative="two-sided"))


def resampled_documents(
    loss_sums_DP: Floats, tokens_D: Floats, alpha: float, rng: np.random.Generator, *, resamples: int = 2_000
) -> tuple[Floats, Floats]:
    """Return the ends [P] of percentile intervals of mean differences per token under resampling of the documents.

    ``loss_sums_DP`` are summed loss differences per document and pair, ``tokens_D`` a document's scored tokens (Efron
    and Tibshirani 1993, the ratio estimator: documents are drawn, their sums divided by their tokens). All pairs share
    the draws.
    """
    n_documents = tokens_D.shape[0]
    means: list[Floats] = []
    for start in range(0, resamples, 250):  # a few megabytes of weights at a time
        n_draws = min(250, resamples - start)
        weights_RD = rng.multinomial(n_documents, np.full(n_documents, 1 / n_documents), size=n_draws)
        means.append((weights_RD @ loss_sums_DP) / (weights_RD @ tokens_D)[:, None])
    low_P, high_P = np.quantile(np.concatenate(means), [alpha / 2, 1 - alpha / 2], axis=0)
    return low_P, high_P


def best_shares(losses_SA: Floats, rng: np.random.Generator, *, resamples: int = 2_000) -> Floats:
    """Return the share [A] of bootstrap resamples of the seeds in which each arm has the lowest mean."""
    n_seeds, n_arms = losses_SA.shape
    drawn_RS = rng.integers(n_seeds, size=(resamples, n_seeds))
    best_R = losses_SA[drawn_RS].mean(axis=1).argmin(axis=1)
    return np.bincount(best_R, minlength=n_arms) / resamples
