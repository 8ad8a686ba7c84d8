"""The verdict's rules against truths that are known; ``python bench/verdict.py`` runs every configuration in full.

Bounds are the nominal rate plus the Monte-Carlo error that so many rows show together in 99 of 100 runs.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from bench import calibration
from bench.calibration import ALPHA, NOISES, Setting
from sweeps.verdict.decision import decide
from tests.sweeps.planted_sweep import CURVES, confirm, explore, sweep

REPEATS = 400


@pytest.mark.parametrize("looks", [1, 2])
@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_tied_arms_win_at_the_stated_rate_at_most_and_intervals_cover(correlation: float, looks: int) -> None:
    rng = np.random.default_rng([int(10 * correlation), looks])
    chosen = [
        setting
        for _, setting in calibration.settings(repeated_rates=False)
        if (setting.correlation, setting.looks) == (correlation, looks)
    ]
    rows = [calibration.false_wins(setting, 1_000, rng) for setting in chosen]
    assert len(rows) == 36
    assert max(row["false_wins"] for row in rows) <= calibration.monte_carlo_bound(ALPHA, 1_000, 4 * 36)
    # over 36 rows of 1,000 repeats and three pairs the mean is exact to about 0.001; a row alone to 0.007
    assert np.mean([row["coverage"] for row in rows]) == pytest.approx(0.95, abs=0.005)
    assert min(row["coverage"] for row in rows) >= 0.95 - 0.028


@pytest.mark.parametrize("curvature", calibration.CURVATURES)
def test_rates_chosen_from_one_noisy_seed_make_no_false_statements(curvature: float) -> None:
    rng = np.random.default_rng(int(10 * curvature))
    grid = [(means, noise, seeds) for means in calibration.TRUTHS.values() for noise in NOISES for seeds in (3, 5)]
    rows = [
        calibration.false_wins(
            Setting(means=means, noise=noise, correlation=0.0, seeds=seeds, curvature=curvature), REPEATS, rng
        )
        for means, noise, seeds in grid
    ]
    assert max(row["false_wins"] for row in rows) <= calibration.monte_carlo_bound(ALPHA, REPEATS, 3 * len(rows))


@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_a_lead_of_two_standard_deviations_is_found_with_five_seeds(correlation: float) -> None:
    lead = 2 * math.sqrt(2 * (1 - correlation))
    setting = Setting(means=(0.0, lead, lead), noise=NOISES[0], correlation=correlation, seeds=5)
    assert calibration.power(setting, 4_000, np.random.default_rng(1)) >= 0.80


def test_true_ties_inside_a_wide_margin_are_mostly_called_ties_and_others_are_not() -> None:
    difference_sd = math.sqrt(2)
    rng = np.random.default_rng(2)
    equal = Setting(means=(0.0, 0.0, 25.0), noise=NOISES[0], correlation=0.0, seeds=5)
    assert calibration.tie_rates(equal, 2 * difference_sd, 2_000, rng)["tie"] > 0.8
    apart = Setting(means=(0.0, 2 * difference_sd, 25.0), noise=NOISES[0], correlation=0.0, seeds=5)
    assert calibration.tie_rates(apart, 2 * difference_sd, 2_000, rng)["tie"] <= 0.05 + 0.015


@pytest.mark.parametrize("arms", [3, 6])
def test_several_rivals_at_the_margin_make_no_tie_more_often_than_one(arms: int) -> None:
    difference_sd = math.sqrt(2)
    means = (0.0, *[difference_sd] * (arms - 1))
    setting = Setting(means=means, noise=(1.0,) * arms, correlation=0.0, seeds=5)
    rates = calibration.tie_rates(setting, difference_sd, 4_000, np.random.default_rng(6))
    assert rates["tie"] <= 0.05 + 0.007  # two standard errors of 4,000 repeats


def test_extending_until_it_wins_is_held_to_twice_alpha_where_pooling_is_not() -> None:
    setting = Setting(means=(0.0, 0.0, 25.0), noise=NOISES[0], correlation=0.0, seeds=5)
    rates = calibration.repeated_extensions(setting, 4, 4_000, np.random.default_rng(3))
    assert rates["pooled"] > 0.12
    assert rates["rule"] <= 2 * ALPHA + 0.01  # two standard errors of 4,000 repeats


@pytest.mark.parametrize("curvature", [0.1, 1.0])
def test_confirm_is_unbiased_where_explore_is_not(curvature: float) -> None:
    setting = Setting(means=(0.0, 0.0, 0.0), noise=NOISES[0], correlation=0.0, seeds=5, curvature=curvature)
    found = calibration.selection_bias(setting, 4_000, np.random.default_rng(4))
    print(f"curvature {curvature}: explore is off by {found['explore']:+.3f} sd, confirm by {found['confirm']:+.3f} sd")
    assert found["explore"] < -0.5
    assert found["confirm"] == pytest.approx(0.0, abs=0.015)  # 4,000 x 3 arms x 5 seeds: 0.004 a standard error


def test_the_whole_verdict_decides_as_the_simulated_rule_does() -> None:
    from sweeps.verdict.statistics import tied, winner

    rng = np.random.default_rng(5)
    outcomes = set()
    for _ in range(60):
        losses = 4.4 + 0.01 * rng.normal(size=(5, 3)) + [0.0, *rng.choice([0.0, 0.02, 0.05], size=2)]
        table = {arm: tuple(losses[:, place]) for place, arm in enumerate(CURVES)}
        verdict = decide(sweep([*explore(), *confirm(table)]))
        won = int(winner(losses, 0.05))
        if won >= 0:
            assert (verdict.outcome, verdict.winner) == ("wins", list(CURVES)[won])
        else:
            assert verdict.outcome == ("tie" if bool(tied(losses, 0.03, 0.05)) else "undecided")
        outcomes.add(verdict.outcome)
    assert outcomes == {"wins", "tie", "undecided"}
