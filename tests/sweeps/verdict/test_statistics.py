"""The arithmetic against textbooks and against scipy and statsmodels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired

from sweeps.verdict.statistics import (
    best_shares,
    holm,
    mean_interval,
    paired_t,
    probability_better,
    resampled_documents,
    seeds_needed,
    smallest_detectable,
    tie_p,
    tie_power,
    tied,
    tost_p,
    win_power,
    winner,
)

# Student 1908, "The probable error of a mean", Biometrika 6: hours of sleep gained by ten patients under two drugs.
# By hand: differences sum to 15.8, their squares to 38.58, so the mean is 1.58, the sum of squares about it 13.616,
# sd = sqrt(13.616 / 9) = 1.2300, se = 0.38896, t = 4.0621 (Fisher 1925, section 24, has 4.06).
DRUG_ONE = np.array([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0])
DRUG_TWO = np.array([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4])
SLEEP = DRUG_TWO - DRUG_ONE


def test_paired_t_gives_students_sleep_example() -> None:
    found = paired_t(SLEEP, 0.05)
    assert float(found.mean) == pytest.approx(1.58, abs=1e-12)
    assert float(found.sd) == pytest.approx(1.2300, abs=5e-5)
    assert float(found.mean) / (float(found.sd) / math.sqrt(10)) == pytest.approx(4.0621, abs=5e-5)
    assert float(found.p_value) == pytest.approx(0.002833, abs=5e-7)
    # 2.2622 is the t table's value for 9 degrees of freedom: 1.58 -+ 2.2622 * 0.38896
    assert (float(found.low), float(found.high)) == pytest.approx((0.7001, 2.4599), abs=5e-5)


def test_paired_t_agrees_with_scipy_over_leading_axes() -> None:
    differences = np.random.default_rng(0).normal(0.3, 1.0, size=(4, 3, 6))
    found = paired_t(differences, 0.1)
    reference = stats.ttest_1samp(differences, 0.0, axis=-1)
    np.testing.assert_allclose(found.p_value, reference.pvalue, rtol=1e-10)
    interval = reference.confidence_interval(0.9)
    np.testing.assert_allclose(found.low, interval.low, rtol=1e-9)
    np.testing.assert_allclose(found.high, interval.high, rtol=1e-9)


def test_differences_that_all_seeds_share_exactly_have_no_noise_to_test_against() -> None:
    shifted, equal = paired_t(np.full(5, 0.1) + 4.7 - 4.7, 0.05), paired_t(np.zeros(5), 0.05)
    assert float(shifted.p_value) == 0.0
    assert float(shifted.low) == float(shifted.high)
    assert float(equal.p_value) == 1.0


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
    p_value = float(tost_p(differences, 0.35078))
    assert p_value == pytest.approx(float(stats.t.sf(2.489, 64)), rel=2e-3)  # four digits of t were carried by hand
    assert p_value == pytest.approx(0.0077, abs=5e-5)


def test_tost_of_the_sleep_example_agrees_with_statsmodels() -> None:
    reference, _, _ = ttost_paired(DRUG_TWO, DRUG_ONE, -3.0, 3.0)
    assert float(tost_p(SLEEP, 3.0)) == pytest.approx(float(reference), rel=1e-10)
    assert float(tost_p(SLEEP, 3.0)) == pytest.approx(float(stats.t.sf(3.6507, 9)), rel=1e-3)  # (3 - 1.58) / 0.38896


def test_tost_without_noise_asks_only_whether_the_difference_is_inside() -> None:
    assert float(tost_p(np.full(4, 0.01), 0.02)) == 0.0
    assert float(tost_p(np.full(4, 0.03), 0.02)) == 1.0


def test_the_winner_must_beat_every_arm_and_not_only_the_second() -> None:
    base = np.array([0.0, 0.01, -0.01, 0.005, -0.005])
    separated = np.stack([4.4 + base, 4.6 + base[::-1], 4.8 + base[[1, 0, 3, 2, 4]]], axis=1)
    assert int(winner(separated, 0.05)) == 0
    noisy_third = separated.copy()
    noisy_third[:, 2] = [3.0, 7.0, 4.0, 6.0, 4.5]
    assert int(winner(noisy_third, 0.05)) == -1


def test_the_winner_of_many_repeats_is_that_of_each_alone() -> None:
    losses = np.random.default_rng(2).normal([0.0, 1.5, 2.0], 1.0, size=(50, 4, 3))
    together = winner(losses, 0.05)
    assert [int(winner(one, 0.05)) for one in losses] == together.tolist()
    assert set(together.tolist()) == {-1, 0}


def test_a_tie_is_between_the_two_best_arms_only() -> None:
    base = np.array([0.0, 0.01, -0.01, 0.005, -0.005])
    losses = np.stack([5.0 + base, 4.0 + base, 4.001 + base[::-1]], axis=1)
    assert bool(tied(losses, 0.05, 0.05))
    assert not bool(tied(losses, 0.001, 0.05))


def test_a_tie_with_the_nearest_of_several_rivals_counts_those_that_could_have_been_nearest() -> None:
    base = np.array([0.0, 0.01, -0.01, 0.005, -0.005])
    near, nearer, far = 4.02 + base[::-1], 4.018 + base[[2, 0, 1, 4, 3]], 4.5 + base
    alone = float(tie_p(np.stack([4.0 + base, nearer], axis=1), 0.03, 0.05))
    assert alone == pytest.approx(float(tost_p(nearer - 4.0 - base, 0.03)))
    assert float(tie_p(np.stack([4.0 + base, nearer, far], axis=1), 0.03, 0.05)) == pytest.approx(alone)
    assert float(tie_p(np.stack([4.0 + base, near, nearer, far], axis=1), 0.03, 0.05)) == pytest.approx(2 * alone)


def test_probability_of_superiority_is_that_of_one_more_seed() -> None:
    differences = np.array([-0.2, 0.1, -0.3, -0.1, 0.0])
    found = probability_better(differences)
    # mean -0.1, sd 0.15811; the next difference has scale 0.15811 * sqrt(6/5) = 0.17321: t = 0.57735 at 4 degrees
    assert found == pytest.approx(float(stats.t.cdf(0.57735, 4)), rel=1e-4)
    assert probability_better(-differences) == pytest.approx(1 - found)
    assert probability_better(np.zeros(3)) == 0.5
    assert probability_better(np.full(3, -0.1)) == 1.0


def test_power_agrees_with_statsmodels_but_for_wins_on_the_wrong_side() -> None:
    seeds = np.array([3, 5, 12])
    own = win_power(0.8, 0.7, seeds, 0.05)
    reference = [TTestPower().power(0.8 / 0.7, nobs=n, alpha=0.05, alternative="two-sided") for n in seeds]
    np.testing.assert_allclose(own, reference, atol=1e-3)  # statsmodels adds the far tail, below 0.001 here
    assert win_power(10.0, 0.01, np.array([3]), 0.05)[0] == 1.0
    assert (win_power(1.0, 0.0, seeds, 0.05) == 1.0).all()


def test_the_power_to_show_a_tie_falls_as_the_difference_nears_the_margin() -> None:
    seeds = np.array([10])
    at_zero, halfway, outside = (float(tie_power(d, 1.0, 1.0, seeds, 0.05)[0]) for d in (0.0, 0.5, 1.0))
    assert at_zero > halfway > outside == 0.0
    rng = np.random.default_rng(3)
    simulated = (tost_p(rng.normal(0.0, 1.0, size=(20_000, 10)), 1.0) <= 0.05).mean()
    assert at_zero == pytest.approx(float(simulated), abs=0.015)  # a lower bound, and 20,000 repeats: 0.0035 each way


def test_seeds_needed_settle_the_win_that_they_promise() -> None:
    rng = np.random.default_rng(4)
    spread = np.array([-1.0, 1.0, -0.5, 0.5])
    losses = np.stack([0 * spread, 1.0 + spread, 4.0 + spread[::-1]], axis=1)
    needed = seeds_needed(losses, None, 0.05)
    assert needed is not None
    assert needed.settles == "wins"
    sd = float(spread.std(ddof=1))
    draws = rng.normal([0.0, 1.0, 4.0], [0.0, sd, sd], size=(4_000, needed.seeds, 3))
    assert float((winner(draws, 0.05) == 0).mean()) >= 0.8 - 3 * 0.0063  # Monte-Carlo error of 4,000 repeats


def test_seeds_needed_see_a_tie_where_arms_hardly_differ_and_nothing_beyond_200() -> None:
    spread = np.array([-1.0, 1.0, -0.5, 0.5])
    losses = np.stack([0 * spread, 0.01 + spread], axis=1)
    needed = seeds_needed(losses, 2.0, 0.05)
    assert needed is not None
    assert needed.settles == "tie"
    assert seeds_needed(losses, None, 0.05) is None


def test_seeds_needed_for_a_tie_count_the_rivals_that_it_may_be_with() -> None:
    spread = np.array([-1.0, 1.0, -0.5, 0.5])
    two = np.stack([0 * spread, 0.01 + spread], axis=1)
    three = np.stack([0 * spread, 0.01 + spread, 0.02 - spread], axis=1)
    alone, one_of_two = seeds_needed(two, 2.0, 0.05), seeds_needed(three, 2.0, 0.05)
    assert alone is not None
    assert one_of_two is not None
    assert one_of_two.seeds > alone.seeds


def test_the_smallest_detectable_difference_is_found_with_the_stated_power() -> None:
    effect = smallest_detectable(0.5, 5, 0.05)
    assert float(win_power(effect, 0.5, np.array([5]), 0.05)[0]) == pytest.approx(0.8, abs=1e-3)
    assert smallest_detectable(0.5, 1, 0.05) == math.inf


def test_the_interval_of_one_seed_has_no_ends() -> None:
    mean, low, high = mean_interval(np.array([4.2]), 0.05)
    assert mean == 4.2
    assert math.isnan(low)
    assert math.isnan(high)


def test_the_document_bootstrap_covers_like_the_normal_theory_of_a_mean() -> None:
    rng = np.random.default_rng(5)
    tokens = np.full(400, 64.0)
    per_token = rng.normal(0.02, 0.1, size=400)
    sums = per_token * tokens
    (low, turned_low), (high, turned_high) = resampled_documents(np.stack([sums, -sums], axis=1), tokens, 0.05, rng)
    centre, reach = per_token.mean(), 1.96 * per_token.std(ddof=1) / 20
    assert (low, high) == pytest.approx((centre - reach, centre + reach), abs=0.1 * reach)  # 2,000 resamples: 4% each
    assert (turned_low, turned_high) == pytest.approx((-high, -low))  # all pairs share the draws


def test_best_shares_sum_to_one_and_follow_the_means() -> None:
    losses = np.array([[1.0, 1.1, 3.0], [1.2, 1.1, 3.0], [1.0, 1.3, 3.0]])
    shares = best_shares(losses, np.random.default_rng(6))
    assert shares.sum() == pytest.approx(1.0)
    assert shares[0] > shares[1] > shares[2] == 0.0
