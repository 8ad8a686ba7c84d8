"""The arithmetic against textbooks and against scipy and statsmodels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired

from sweeps.verdict.evidence import Evidence, tie_p, tied, winner
from sweeps.verdict.power import needed, tie_power, win_power
from sweeps.verdict.statistics import (
    MeanTest,
    effective_documents,
    holm,
    mean_interval,
    over_documents,
    probability_below_zero,
    smallest_detectable,
    student,
    welch,
)

# Student 1908, "The probable error of a mean", Biometrika 6: hours of sleep gained by ten patients under two drugs.
# By hand: differences sum to 15.8, their squares to 38.58, so the mean is 1.58, the sum of squares about it 13.616,
# sd = sqrt(13.616 / 9) = 1.2300, se = 0.38896, t = 4.0621 (Fisher 1925, section 24, has 4.06).
DRUG_ONE = np.array([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0])
DRUG_TWO = np.array([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4])
SLEEP = DRUG_TWO - DRUG_ONE


def test_paired_t_gives_students_sleep_example() -> None:
    found = student(SLEEP)
    assert float(found.mean) == pytest.approx(1.58, abs=1e-12)
    assert float(found.standard_error) == pytest.approx(0.38896, abs=5e-6)
    assert float(found.mean / found.standard_error) == pytest.approx(4.0621, abs=5e-5)
    assert float(found.p_value) == pytest.approx(0.002833, abs=5e-7)
    # 2.2622 is the t table's value for 9 degrees of freedom: 1.58 -+ 2.2622 * 0.38896
    assert tuple(map(float, found.interval(0.05))) == pytest.approx((0.7001, 2.4599), abs=5e-5)


def test_paired_t_agrees_with_scipy_over_leading_axes() -> None:
    differences = np.random.default_rng(0).normal(0.3, 1.0, size=(4, 3, 6))
    found = student(differences)
    reference = stats.ttest_1samp(differences, 0.0, axis=-1)
    np.testing.assert_allclose(found.p_value, reference.pvalue, rtol=1e-10)
    interval, (low, high) = reference.confidence_interval(0.9), found.interval(0.1)
    np.testing.assert_allclose(low, interval.low, rtol=1e-9)
    np.testing.assert_allclose(high, interval.high, rtol=1e-9)


def test_welchs_test_agrees_with_scipy_for_samples_of_any_size() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(0.0, 1.0, size=8), rng.normal(0.5, 3.0, size=30)
    found, reference = welch(student(first), student(second)), stats.ttest_ind(first, second, equal_var=False)
    assert float(found.p_value) == pytest.approx(float(reference.pvalue), rel=1e-10)
    assert float(found.df) == pytest.approx(float(reference.df), rel=1e-10)
    interval = reference.confidence_interval(0.95)
    assert tuple(map(float, found.interval(0.05))) == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_differences_without_any_spread_never_show_a_p_value_below_a_thousandth() -> None:
    shifted, equal = student(np.full(5, 0.1) + 4.7 - 4.7), student(np.zeros(5))
    assert float(shifted.p_value) == 0.001
    assert float(shifted.variance) == 0.0
    assert float(equal.p_value) == 1.0
    assert float(equal.equivalence_p(0.1)) == 0.001


def test_equal_documents_count_in_full_and_one_long_one_counts_for_all() -> None:
    assert effective_documents(np.full(32, 1 / 32)) == pytest.approx(32)
    assert effective_documents(np.array([1.0, *[1e-6] * 31])) == pytest.approx(1.0)
    # By hand: (0.25 + 0.0625 + 0.0625)^2 / (0.0625 + 2 * 0.00390625) = 0.140625 / 0.0703125
    assert effective_documents(np.array([0.5, 0.25, 0.25])) == pytest.approx(2.0)


def test_variance_over_documents_is_added_with_satterthwaites_degrees_of_freedom() -> None:
    seeds = MeanTest(mean=np.asarray(0.1), variance=np.asarray(0.0004), df=np.asarray(4.0))
    documents = np.array([0.0, 0.2, 0.1, 0.1])
    found = over_documents(seeds, documents, np.full(4, 0.25))
    # By hand: V_D = 4/3 * (0.01 + 0.01) / 16 = 0.0016667; V = 0.0020667
    assert float(found.variance) == pytest.approx(0.0004 + 0.02 / 12)
    expected = (0.0004 + 0.02 / 12) ** 2 / (0.0004**2 / 4 + (0.02 / 12) ** 2 / 3)
    assert float(found.df) == pytest.approx(expected)
    assert float(found.mean) == 0.1
    # With equal weights V_D is the squared standard error of a mean of documents.
    assert float(found.variance) - 0.0004 == pytest.approx(float(student(documents).variance))


def test_holm_gives_the_adjusted_values_of_a_published_example() -> None:
    # The example of pingouin's documentation of Holm 1979. By hand, in ascending order: 5 * 0.0003, 4 * 0.003,
    # 3 * 0.054, 2 * 0.32, and 1 * 0.50, which may not be below the one before.
    adjusted = holm(np.array([0.50, 0.003, 0.32, 0.054, 0.0003]))
    np.testing.assert_allclose(adjusted, [0.64, 0.012, 0.64, 0.162, 0.0015], rtol=1e-12)


def test_tost_gives_the_example_of_lakens_2017() -> None:
    # TOSTER's TOSTpaired: 65 pairs, means 5.83 and 5.75, sds 1.17 and 1.29, correlation 0.75, bounds 0.4 sd of the
    # differences. By hand: sd = sqrt(1.17^2 + 1.29^2 - 2 * 0.75 * 1.17 * 1.29) = 0.87696, se = 0.10877, bound 0.35078,
    # t of the nearer bound = (0.35078 - 0.08) / 0.10877 = 2.489 at 64 degrees of freedom.
    sample = np.random.default_rng(1).normal(size=65)
    differences = 0.08 + 0.87696 * (sample - sample.mean()) / sample.std(ddof=1)
    p_value = float(student(differences).equivalence_p(0.35078))
    assert p_value == pytest.approx(float(stats.t.sf(2.489, 64)), rel=2e-3)  # four digits of t were carried by hand
    assert p_value == pytest.approx(0.0077, abs=5e-5)


def test_tost_of_the_sleep_example_agrees_with_statsmodels() -> None:
    reference, _, _ = ttost_paired(DRUG_TWO, DRUG_ONE, -3.0, 3.0)
    assert float(student(SLEEP).equivalence_p(3.0)) == pytest.approx(float(reference), rel=1e-10)
    assert float(student(SLEEP).equivalence_p(3.0)) == pytest.approx(
        float(stats.t.sf(3.6507, 9)), rel=1e-3
    )  # (3 - 1.58) / 0.38896


def test_tost_without_noise_asks_only_whether_the_difference_is_inside() -> None:
    assert float(student(np.full(4, 0.01)).equivalence_p(0.02)) == 0.001
    assert float(student(np.full(4, 0.03)).equivalence_p(0.02)) == 1.0


@pytest.mark.parametrize("spread", [0.0, 0.005])
def test_a_difference_that_hits_the_margin_exactly_shows_nothing(spread: float) -> None:
    base = spread * np.array([-1.0, 1.0, 0.0, 0.5, -0.5])
    differences = (4.43 + base) - 4.40  # 0.03 as floats have it, a rounding below
    assert float(student(differences).equivalence_p(0.03)) == pytest.approx(0.5)


def test_the_winner_must_beat_every_arm_and_not_only_the_second() -> None:
    base = np.array([0.0, 0.01, -0.01, 0.005, -0.005])
    separated = np.stack([4.4 + base, 4.6 + base[::-1], 4.8 + base[[1, 0, 3, 2, 4]]], axis=1)
    assert int(winner(Evidence(losses_SA=separated), 0.05)) == 0
    noisy_third = separated.copy()
    noisy_third[:, 2] = [3.0, 7.0, 4.0, 6.0, 4.5]
    assert int(winner(Evidence(losses_SA=noisy_third), 0.05)) == -1


def test_the_winner_of_many_repeats_is_that_of_each_alone() -> None:
    losses = np.random.default_rng(2).normal([0.0, 1.5, 2.0], 1.0, size=(50, 4, 3))
    together = winner(Evidence(losses_SA=losses), 0.05)
    assert [int(winner(Evidence(losses_SA=one), 0.05)) for one in losses] == together.tolist()
    assert set(together.tolist()) == {-1, 0}


def test_a_tie_is_between_the_two_best_arms_only() -> None:
    base = np.array([0.0, 0.01, -0.01, 0.005, -0.005])
    losses = np.stack([5.0 + base, 4.0 + base, 4.001 + base[::-1]], axis=1)
    assert bool(tied(Evidence(losses_SA=losses), 0.05, 0.05))
    assert not bool(tied(Evidence(losses_SA=losses), 0.001, 0.05))


def test_a_tie_with_the_nearest_of_several_rivals_counts_those_that_could_have_been_nearest() -> None:
    base = np.array([0.0, 0.01, -0.01, 0.005, -0.005])
    near, nearer, far = 4.02 + base[::-1], 4.018 + base[[2, 0, 1, 4, 3]], 4.5 + base

    def p_of(*arms: Any) -> float:
        return float(tie_p(Evidence(losses_SA=np.stack(arms, axis=1)), 0.03, 0.05))

    alone = p_of(4.0 + base, nearer)
    assert alone == pytest.approx(float(student(nearer - 4.0 - base).equivalence_p(0.03)))
    assert p_of(4.0 + base, nearer, far) == pytest.approx(alone)
    assert p_of(4.0 + base, near, nearer, far) == pytest.approx(2 * alone)


def test_a_win_must_hold_over_documents_too() -> None:
    rng = np.random.default_rng(7)
    losses = np.array([4.40, 4.50]) + 0.005 * rng.normal(size=(5, 2))
    noisy = np.array([4.40, 4.50]) + np.array([0.0, 1.0]) * rng.normal(size=(32, 1)) * 0.5
    even = np.array([4.40, 4.50]) + 0.05 * rng.normal(size=(32, 2))
    weights = np.full(32, 1 / 32)
    assert int(winner(Evidence(losses_SA=losses), 0.05)) == 0
    for documents, expected in ((noisy, -1), (even, 0)):
        evidence = Evidence(losses_SA=losses, documents_DA=documents, weights_D=weights)
        assert int(winner(evidence, 0.05)) == expected
        assert int(winner(evidence.over_seeds_alone, 0.05)) == 0


def test_the_widest_interval_decides() -> None:
    rng = np.random.default_rng(8)
    losses, documents = rng.normal(size=(5, 2)), rng.normal(size=(30, 2))
    found = Evidence(losses_SA=losses, documents_DA=documents, weights_D=np.full(30, 1 / 30)).pair(0, 1)
    reaches = {name: float(test.reach(0.05)) for name, test in found.tests.items()}
    assert float(found.deciding(0.05).reach(0.05)) == max(reaches.values())
    assert float(found.p_value) == max(float(test.p_value) for test in found.tests.values())


def test_probability_of_superiority_is_that_of_one_more_seed() -> None:
    differences = np.array([-0.2, 0.1, -0.3, -0.1, 0.0])
    found = probability_below_zero(student(differences), float(differences.var(ddof=1)))
    # mean -0.1, sd 0.15811; the next difference has scale 0.15811 * sqrt(6/5) = 0.17321: t = 0.57735 at 4 degrees
    assert found == pytest.approx(float(stats.t.cdf(0.57735, 4)), rel=1e-4)
    assert probability_below_zero(student(-differences), float(differences.var(ddof=1))) == pytest.approx(1 - found)
    assert probability_below_zero(student(np.zeros(3)), 0.0) == 0.5
    assert probability_below_zero(student(np.full(3, -0.1)), 0.0) == 1.0


def test_power_agrees_with_statsmodels_but_for_wins_on_the_wrong_side() -> None:
    seeds = np.array([3.0, 5.0, 12.0])
    own = win_power(0.8, 0.7 / np.sqrt(seeds), seeds - 1, 0.05)
    reference = [TTestPower().power(0.8 / 0.7, nobs=n, alpha=0.05, alternative="two-sided") for n in seeds]
    np.testing.assert_allclose(own, reference, atol=1e-3)  # statsmodels adds the far tail, below 0.001 here
    assert win_power(10.0, np.array([0.01]), np.array([2.0]), 0.05)[0] == 1.0
    assert (win_power(1.0, np.zeros(3), seeds - 1, 0.05) == 1.0).all()


def test_the_power_to_show_a_tie_falls_as_the_difference_nears_the_margin() -> None:
    error, df = np.array([1 / np.sqrt(10)]), np.array([9.0])
    at_zero, halfway, outside = (float(tie_power(d, error, df, 1.0, 0.05)[0]) for d in (0.0, 0.5, 1.0))
    assert at_zero > halfway > outside == 0.0
    rng = np.random.default_rng(3)
    simulated = (student(rng.normal(0.0, 1.0, size=(20_000, 10))).equivalence_p(1.0) <= 0.05).mean()
    assert at_zero == pytest.approx(float(simulated), abs=0.015)  # a lower bound, and 20,000 repeats: 0.0035 each way


def test_seeds_needed_settle_the_win_that_they_promise() -> None:
    rng = np.random.default_rng(4)
    spread = np.array([-1.0, 1.0, -0.5, 0.5])
    losses = np.stack([0 * spread, 1.0 + spread, 4.0 + spread[::-1]], axis=1)
    found = needed(Evidence(losses_SA=losses), None, 0.05)
    assert found.seeds is not None
    assert (found.settles, found.documents) == ("wins", None)
    sd = float(spread.std(ddof=1))
    draws = rng.normal([0.0, 1.0, 4.0], [0.0, sd, sd], size=(4_000, found.seeds, 3))
    power = float((winner(Evidence(losses_SA=draws), 0.05) == 0).mean())
    assert power >= 0.8 - 3 * 0.0063  # Monte-Carlo error of 4,000 repeats


def test_where_documents_make_the_noise_more_of_them_are_needed_and_no_number_of_seeds_helps() -> None:
    rng = np.random.default_rng(9)
    losses = np.array([4.40, 4.42]) + 0.001 * rng.normal(size=(5, 2))
    documents = np.array([4.40, 4.42]) + 0.08 * rng.normal(size=(32, 2))
    evidence = Evidence(losses_SA=losses, documents_DA=documents, weights_D=np.full(32, 1 / 32))
    found = needed(evidence, None, 0.05)
    assert found.seeds is None
    assert found.documents is not None
    assert 64 < found.documents < 640
    # One standard error of the difference over so many documents is about 0.36 of the lead, as power 0.8 asks for.
    assert 0.08 * math.sqrt(2 / found.documents) == pytest.approx(0.02 / 2.8, rel=0.35)


def test_seeds_needed_see_a_tie_where_arms_hardly_differ_and_nothing_beyond_200() -> None:
    spread = np.array([-1.0, 1.0, -0.5, 0.5])
    evidence = Evidence(losses_SA=np.stack([0 * spread, 0.01 + spread], axis=1))
    assert needed(evidence, 2.0, 0.05).settles == "tie"
    assert needed(evidence, None, 0.05).seeds is None


def test_seeds_needed_for_a_tie_count_the_rivals_that_it_may_be_with() -> None:
    spread = np.array([-1.0, 1.0, -0.5, 0.5])
    two = np.stack([0 * spread, 0.01 + spread], axis=1)
    three = np.stack([0 * spread, 0.01 + spread, 0.02 - spread], axis=1)
    alone, one_of_two = (needed(Evidence(losses_SA=losses), 2.0, 0.05).seeds for losses in (two, three))
    assert alone is not None
    assert one_of_two is not None
    assert one_of_two > alone


def test_the_smallest_detectable_difference_is_found_with_the_stated_power() -> None:
    effect = smallest_detectable(0.5, 5, 0.05)
    power = win_power(effect, np.array([0.5 / math.sqrt(5)]), np.array([4.0]), 0.05)
    assert float(power[0]) == pytest.approx(0.8, abs=1e-3)
    assert smallest_detectable(0.5, 1, 0.05) == math.inf


def test_the_interval_of_one_seed_has_no_ends() -> None:
    mean, low, high = mean_interval(np.array([4.2]), 0.05)
    assert mean == 4.2
    assert math.isnan(low)
    assert math.isnan(high)


def test_holm_agrees_with_statsmodels() -> None:
    p_values = np.random.default_rng(5).uniform(size=28) ** 3
    np.testing.assert_allclose(holm(p_values), multipletests(p_values, method="holm")[1], rtol=1e-12)
    assert holm(np.empty(0)).size == 0
