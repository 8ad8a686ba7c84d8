"""The arithmetic of the verdict, on arrays, so that one decision and two thousand simulated ones run the same code.

A loss is better when it is lower, so a difference ``a - b`` below zero favours a.
"""

# R repeats or any leading axes, S seeds, D documents, A arms, P pairs of arms, N sizes of a sample

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

DEGENERATE_SHARE = 1e-12
"""A standard deviation below this share of the values is rounding of equal differences, not noise."""
ROUNDING_SHARE = 1e-9
"""A difference within this share of the margin from it lies on it: losses are decimals that a float cannot hold."""
SMALLEST_P_WITHOUT_NOISE = 0.001
"""Differences without any spread show that noise was not measured, not that there is none: no smaller p is stated."""
POWER = 0.8
"""The power that "would settle it" means: the convention of Cohen 1988, chapter 1."""


@dataclass(frozen=True, kw_only=True)
class MeanTest:
    """Student's t for a mean difference: arrays over the leading axes; ``variance`` is the variance of the mean."""

    mean: Floats
    variance: Floats
    df: Floats

    @property
    def standard_error(self) -> Floats:
        """Standard error of the mean difference."""
        return np.sqrt(self.variance)

    @property
    def p_value(self) -> Floats:
        """Two-sided p-value of no difference; not below 0.001 where there is no spread."""
        from scipy import stats

        t_value = _over(np.abs(self.mean), self.standard_error)
        return self._floored(np.asarray(2 * stats.t.sf(t_value, self.df)))

    def reach(self, alpha: float) -> Floats:
        """Half the width of the interval at level 1 - alpha."""
        from scipy import stats

        return np.asarray(stats.t.ppf(1 - alpha / 2, self.df) * self.standard_error)

    def interval(self, alpha: float) -> tuple[Floats, Floats]:
        """Ends of the interval at level 1 - alpha."""
        reach = self.reach(alpha)
        return self.mean - reach, self.mean + reach

    def equivalence_p(self, margin: float) -> Floats:
        """P-value of two one-sided t tests (Schuirmann 1987) for a mean difference within ±margin.

        Without spread the distance to the nearer bound decides alone; on the bound itself nothing is shown.
        """
        from scipy import stats

        room = margin - np.abs(self.mean)
        room = np.where(np.abs(room) <= ROUNDING_SHARE * margin, 0.0, room)
        return self._floored(np.asarray(stats.t.sf(_over(room, self.standard_error), self.df)))

    def draws(self, rng: np.random.Generator, size: int) -> Floats:
        """Draws [size] of the true mean difference, of one test without leading axes."""
        return np.asarray(self.mean + self.standard_error * rng.standard_t(float(self.df), size=size))

    def _floored(self, p_value: Floats) -> Floats:
        return np.where(self.variance > 0, p_value, np.maximum(p_value, SMALLEST_P_WITHOUT_NOISE))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One difference by every test that it must pass: the largest p-value and the widest interval decide.

    ``tests`` are named: ``seeds`` (paired by seed, on this exam), ``documents`` (over seeds and documents) and
    ``welch`` (runs that are not paired).
    """

    tests: dict[str, MeanTest]

    @property
    def p_value(self) -> Floats:
        """The largest p-value."""
        return np.asarray(np.max([test.p_value for test in self.tests.values()], axis=0))

    def equivalence_p(self, margin: float) -> Floats:
        """The largest p-value of two one-sided tests."""
        return np.asarray(np.max([test.equivalence_p(margin) for test in self.tests.values()], axis=0))

    def deciding(self, alpha: float) -> MeanTest:
        """Return, of a single difference, the widest test among those that do not exclude zero, else among all."""
        open_tests = [test for test in self.tests.values() if float(test.p_value) > alpha]
        return max(open_tests or self.tests.values(), key=lambda test: float(test.reach(alpha)))


def student(values_S: Floats) -> MeanTest:
    """Student's t for the mean of values [..., S], S at least 2: of paired differences it is the paired t test."""
    n_values = values_S.shape[-1]
    assert n_values >= 2, "a t test needs two values"
    mean = values_S.mean(axis=-1)
    return MeanTest(mean=mean, variance=_variance(values_S) / n_values, df=np.full(np.shape(mean), n_values - 1.0))


def welch(first: MeanTest, second: MeanTest) -> MeanTest:
    """Welch's t for the difference of the means of two unpaired samples of any sizes (Welch 1947)."""
    variance = first.variance + second.variance
    squares = first.variance**2 / first.df + second.variance**2 / second.df
    df = _over(variance**2, squares, where_zero=first.df + second.df)
    return MeanTest(mean=first.mean - second.mean, variance=variance, df=df)


def effective_documents(weights_D: Floats) -> float:
    """Number of equally weighted documents whose mean is as noisy as that of these, from their shares [D]."""
    return float((weights_D**2).sum() ** 2 / (weights_D**4).sum())


def over_documents(seeds: MeanTest, documents_D: Floats, weights_D: Floats) -> MeanTest:
    """The same difference over new seeds and new documents: V = V_S + V_D.

    ``documents_D`` [..., D] are differences by document, the mean over seeds; ``weights_D`` their shares of the
    tokens. Seeds are crossed with documents: the noise of a seed on a document is in both terms and is not subtracted,
    which errs on the safe side (Brennan 2001, *Generalizability Theory*). Degrees of freedom are Satterthwaite's.
    """
    n_documents = weights_D.shape[-1]
    assert n_documents >= 2, "documents vary only where there are two"
    mean = (documents_D * weights_D).sum(axis=-1)[..., None]
    squares = (weights_D**2 * (documents_D - mean) ** 2).sum(axis=-1)
    of_documents = n_documents / (n_documents - 1) * squares
    variance = seeds.variance + of_documents
    df_documents = effective_documents(weights_D) - 1
    df = _over(variance**2, seeds.variance**2 / seeds.df + of_documents**2 / df_documents, where_zero=df_documents)
    return MeanTest(mean=seeds.mean, variance=variance, df=df)


def mean_interval(values_S: Floats, alpha: float) -> tuple[float, float, float]:
    """Return mean, low and high end of Student's interval of values [S]; the ends are nan for a single one."""
    if values_S.shape[-1] < 2:
        return float(values_S.mean()), float("nan"), float("nan")
    found = student(values_S)
    low, high = found.interval(alpha)
    return float(found.mean), float(low), float(high)


def holm(p_values: Floats) -> Floats:
    """Return Holm's step-down adjusted p-values [P] (Holm 1979).

    As statsmodels' ``multipletests``, which collects garbage at every call: seconds in a process that holds much.
    """
    order = np.argsort(p_values)
    factors = np.arange(p_values.size, 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(np.maximum.accumulate(p_values[order] * factors), 1.0)
    return adjusted


def probability_below_zero(seeds: MeanTest, next_variance: float) -> float:
    """Return the probability that the difference is below zero on one more seed, whose variance is ``next_variance``.

    The predictive probability of Student's t. The plain share of seeds won (Bouthillier et al. 2021) takes six values
    with five seeds and calls five of five certain.
    """
    from scipy import stats

    scale = float(np.sqrt(seeds.variance + next_variance))
    if scale == 0:
        return 0.5 if seeds.mean == 0 else float(seeds.mean < 0)
    return float(stats.t.cdf(-float(seeds.mean) / scale, float(seeds.df)))


def smallest_detectable(sd: float, n_seeds: int, alpha: float) -> float:
    """Return the difference that ``n_seeds`` find with power 0.8 when differences have standard deviation ``sd``."""
    from statsmodels.stats.power import TTestPower

    if n_seeds < 2:
        return float("inf")
    return sd * float(TTestPower().solve_power(nobs=n_seeds, alpha=alpha, power=POWER, alternative="two-sided"))


def _variance(values_S: Floats) -> Floats:
    """Sample variance along the last axis; zero where the spread is rounding of equal values."""
    variance = values_S.var(axis=-1, ddof=1)
    smallest = DEGENERATE_SHARE * np.abs(values_S).max(axis=-1)
    return np.where(variance <= smallest**2, 0.0, variance)


def _over(numerator: Floats, denominator: Floats, *, where_zero: Floats | float | None = None) -> Floats:
    """``numerator / denominator``; where that is zero: ``where_zero``, or infinity of the numerator's sign."""
    safe = np.where(denominator > 0, denominator, 1.0)
    if where_zero is not None:
        return np.where(denominator > 0, numerator / safe, where_zero)
    signed = np.where(numerator > 0, np.inf, np.where(numerator < 0, -np.inf, 0.0))
    return np.where(denominator > 0, numerator / safe, signed)
