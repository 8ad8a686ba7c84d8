"""The verdict's rules against truths that are known; ``python bench/verdict.py`` runs every row in full.

Bounds are the nominal rate plus the Monte-Carlo error that so many rows show together in 99 of 100 runs.
"""

from __future__ import annotations

import numpy as np
import pytest

from bench import calibration
from bench.calibration import ALPHA, FAR, Setting
from sweeps.verdict.decision import decide
from sweeps.verdict.evidence import Evidence, tied, winner
from tests.sweeps.planted_sweep import CURVES, confirm, explore, sweep

REPEATS = 500


def test_tied_arms_win_at_the_stated_rate_at_most_over_new_seeds_and_documents_and_intervals_cover() -> None:
    rng = np.random.default_rng(0)
    settings = [setting for _, setting in calibration.symmetric_settings() if setting.seeds * len(setting.means) <= 40]
    rows = [calibration.rates_of(setting, REPEATS, rng) for setting in settings]
    assert len(rows) >= 25
    assert max(row["false_wins"] for row in rows) <= calibration.monte_carlo_bound(ALPHA, REPEATS, len(rows))
    # over so many rows of 500 repeats the mean is exact to about 0.002; a row alone to 0.01
    assert np.mean([row["false_wins"] for row in rows]) <= ALPHA
    assert np.mean([row["coverage"] for row in rows]) >= 0.945
    assert min(row["coverage"] for row in rows) >= 0.95 - 0.04


def test_seeds_alone_would_claim_false_wins_over_other_documents() -> None:
    found = calibration.rates_of(Setting(seeds=10, documents=50), REPEATS, np.random.default_rng(1))
    assert found["by_seeds"] > 0.2
    assert found["false_wins"] < 0.08


def test_a_lead_of_three_standard_deviations_is_found_with_five_seeds_and_the_price_of_documents_is_stated() -> None:
    found = calibration.power(Setting(), 1_000, np.random.default_rng(2))
    assert 0.80 <= found["power"] <= found["power_by_seeds"] - 0.03
    assert found["alarms"] < 0.02


def test_the_rule_on_spikes_withholds_some_false_wins_and_few_wins_under_equal_noise() -> None:
    rng = np.random.default_rng(3)
    spiking = calibration.rates_of(Setting(shape="spikes in 20%", seeds=5), 1_000, rng)
    assert spiking["caught"] > 0.1
    assert calibration.power(Setting(seeds=3), 1_000, rng)["alarms"] < 0.03


def test_true_ties_inside_a_wide_margin_are_mostly_called_ties_and_others_are_not() -> None:
    rng = np.random.default_rng(4)
    margin = 3.2
    assert calibration.tie_rates(Setting(documents=128), margin, 1_000, rng)["ties"] > 0.85
    apart = Setting(means=(0.0, margin, FAR), documents=128)
    assert calibration.tie_rates(apart, margin, 1_000, rng)["ties"] <= ALPHA + 0.02


@pytest.mark.parametrize("curvature", calibration.CURVATURES)
def test_a_tie_whose_rates_are_still_to_be_found_is_not_called_one_without_saying_so(curvature: float) -> None:
    rng = np.random.default_rng(int(10 * curvature))
    margin = 3.2
    at_the_margin = Setting(means=(0.0, margin, FAR), documents=128, curvature=curvature)
    assert calibration.tie_rates(at_the_margin, margin, REPEATS, rng)["ties"] <= ALPHA + 0.03


@pytest.mark.parametrize("arms", [3, 6])
def test_several_rivals_at_the_margin_make_no_tie_more_often_than_one(arms: int) -> None:
    margin = 1.5
    setting = Setting(means=(0.0, *[margin] * (arms - 1)), noise=(1.0,) * arms, documents=None)
    rates = calibration.tie_rates(setting, margin, 4_000, np.random.default_rng(6))
    assert rates["ties"] <= 0.05 + 0.007  # two standard errors of 4,000 repeats


def test_extending_until_it_wins_is_held_to_twice_alpha_where_pooling_is_not() -> None:
    found = calibration.repeated_extensions(Setting(documents=None), 4, 4_000, np.random.default_rng(3))
    assert found["pooled"] > 0.12
    assert found["rule"] <= 2 * ALPHA + 0.01  # two standard errors of 4,000 repeats
    same_exam = calibration.repeated_extensions(Setting(), 4, 1_000, np.random.default_rng(4))
    assert same_exam["rule"] <= 2 * ALPHA


@pytest.mark.parametrize("curvature", [0.1, 1.0])
def test_confirm_is_unbiased_where_explore_is_not(curvature: float) -> None:
    setting = Setting(means=(0.0, 0.0, 0.0), curvature=curvature)
    found = calibration.selection_bias(setting, 4_000, np.random.default_rng(4))
    assert found["explore"] < -0.5
    assert found["confirm"] == pytest.approx(0.0, abs=0.015)  # 4,000 x 3 arms x 5 seeds: 0.004 a standard error


def test_the_whole_verdict_decides_as_the_simulated_rule_does() -> None:
    rng = np.random.default_rng(5)
    outcomes = set()
    curves = dict.fromkeys(CURVES, CURVES["large_batch"])  # all arms explored around 4.4, where they are confirmed
    for _ in range(60):
        losses = 4.4 + 0.01 * rng.normal(size=(5, 3)) + [0.0, *rng.choice([0.0, 0.02, 0.05], size=2)]
        table = {arm: tuple(losses[:, place]) for place, arm in enumerate(CURVES)}
        verdict = decide(sweep([*explore(curves), *confirm(table)]))
        evidence = Evidence(losses_SA=losses)
        won = int(winner(evidence, 0.05))
        if won >= 0:
            assert (verdict.outcome, verdict.winner) == ("wins", list(CURVES)[won])
        else:
            assert verdict.outcome == ("tie" if bool(tied(evidence, 0.03, 0.05)) else "undecided")
        outcomes.add(verdict.outcome)
    assert outcomes == {"wins", "tie", "undecided"}
