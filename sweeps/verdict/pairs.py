"""Every pair of arms, and the best arm's leads, by all tests that a difference must pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations

import numpy as np

from sweeps.verdict.case import Interval, Lead
from sweeps.verdict.confirmed import DECIDED, Confirmed
from sweeps.verdict.evidence import Evidence
from sweeps.verdict.rate_curve import Optimum, lead_outlasts_better_rate
from sweeps.verdict.rows import PairResult, PairTest
from sweeps.verdict.statistics import Comparison, MeanTest, holm, probability_below_zero


def pair_rows(
    all_arms: tuple[str, ...], confirmed: Confirmed, evidence: Evidence | None, alpha: float, outcome: str
) -> tuple[PairResult, ...]:
    """Return every pair of arms; decisions on pairs are Holm's over all judged pairs.

    P-values and chances are None where nothing is judged.
    """
    arms = confirmed.arms
    means = dict(zip(arms, map(float, evidence.means_A), strict=True)) if evidence is not None else {}
    rows = {(a, b): _untested(a, b, means) for a, b in combinations(all_arms, 2)}
    if evidence is None or not evidence.has_tests:
        return tuple(rows.values())
    places = list(combinations(range(len(arms)), 2))
    found = [evidence.pair(a, b) for a, b in places]
    adjusted = holm(np.asarray([float(comparison.p_value) for comparison in found]))
    best, second = (int(place) for place in evidence.means_A.argsort()[:2]) if len(arms) > 1 else (0, 0)
    for (a, b), comparison, p_adjusted in zip(places, found, adjusted, strict=True):
        row = _measured(rows[arms[a], arms[b]], comparison, alpha, is_judged=outcome in DECIDED)
        if outcome in DECIDED:
            seeds = comparison.tests.get("seeds") or comparison.tests["welch"]
            is_tie = outcome == "tie" and {a, b} == {best, second} and p_adjusted > alpha
            better = arms[a] if float(evidence.means_A[a]) < float(evidence.means_A[b]) else arms[b]
            row = replace(
                row,
                p_adjusted=float(p_adjusted),
                probability_a_better=probability_below_zero(seeds, evidence.seed_variance(a, b)),
                passes_win_test=float(comparison.p_value) <= alpha if best in (a, b) else None,
                decision="tie" if is_tie else f"{better} is better" if p_adjusted <= alpha else "undecided",
            )
        rows[arms[a], arms[b]] = row
    return tuple(rows.values())


def _untested(a: str, b: str, means: Mapping[str, float]) -> PairResult:
    difference = means[a] - means[b] if a in means and b in means else None
    return PairResult(a=a, b=b, difference=difference, ci_low=None, ci_high=None)


def _measured(row: PairResult, comparison: Comparison, alpha: float, *, is_judged: bool) -> PairResult:
    low, high = comparison.deciding(alpha).interval(alpha)
    return replace(
        row,
        difference=float(comparison.deciding(alpha).mean),
        ci_low=float(low),
        ci_high=float(high),
        p_value=float(comparison.p_value) if is_judged else None,
        tests=tuple(_test(name, test, alpha, is_judged) for name, test in comparison.tests.items()),
    )


def _test(name: str, test: MeanTest, alpha: float, is_judged: bool) -> PairTest:
    low, high = test.interval(alpha)
    return PairTest(
        test=name,
        difference=float(test.mean),
        ci_low=float(low),
        ci_high=float(high),
        standard_error=float(test.standard_error),
        df=float(test.df),
        p_value=float(test.p_value) if is_judged else None,
    )


def leads_of(
    confirmed: Confirmed, evidence: Evidence | None, alpha: float, optima: Mapping[str, Optimum], draw_seed: int
) -> tuple[Lead, ...]:
    """Return the best arm's leads over all other judged arms, the closest rival first."""
    if evidence is None:
        return ()
    means, best = evidence.means_A, int(evidence.best)
    found = [
        _lead(rival, evidence, best, place, alpha, optima.get(rival), draw_seed)
        if evidence.has_tests
        else Lead(rival=rival, lead=float(means[place] - means[best]), low=None, high=None, p_value=None)
        for place, rival in enumerate(confirmed.arms)
        if place != best
    ]
    return tuple(sorted(found, key=lambda lead: lead.lead))


def _lead(
    rival: str,
    evidence: Evidence,
    best: int,
    place: int,
    alpha: float,
    optimum: Optimum | None,
    draw_seed: int,
) -> Lead:
    comparison = evidence.pair(place, best)
    deciding = comparison.deciding(alpha)
    tests = {name: _interval(test, alpha) for name, test in comparison.tests.items()}
    outlasts = optimum is not None and lead_outlasts_better_rate(
        optimum, deciding, alpha, np.random.default_rng([draw_seed, place, best])
    )
    interval = _interval(deciding, alpha)
    return Lead(
        rival=rival,
        lead=float(deciding.mean),
        low=interval.low,
        high=interval.high,
        p_value=float(comparison.p_value),
        at_chosen_rates=not outlasts,
        gain_bound=optimum.gain_bound if optimum else None,
        this_exam=evidence.is_on_this_exam,
        tests=tests,
    )


def _interval(test: MeanTest, alpha: float) -> Interval:
    low, high = test.interval(alpha)
    return Interval(low=float(low), high=float(high), p_value=float(test.p_value))
