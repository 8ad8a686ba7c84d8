"""The budget's claims against ladders whose truth is known; ``python bench/budgets.py`` runs every row in full."""

from __future__ import annotations

import numpy as np
import pytest

from bench.budgets import ALPHA, Setting, coverage, rates
from bench.calibration import FAR, monte_carlo_bound

REPEATS = 400


@pytest.mark.parametrize("documents", [None, 32])
def test_leads_that_stay_are_seldom_said_to_change_and_tied_arms_seldom_win_at_any_budget(
    documents: int | None,
) -> None:
    tie = Setting(means=((0.0, 0.0, FAR),) * 3, noise=(2.0, 1.5, 1.0), documents=documents)
    found = rates(tie, REPEATS, np.random.default_rng(1))
    bound = monte_carlo_bound(ALPHA, REPEATS, 4)
    assert found["shrinks"] + found["grows"] <= bound
    assert found["false_wins"] <= bound


def test_a_tie_below_a_clear_win_is_tested_and_seldom_taken_for_a_win() -> None:
    below = Setting(means=((0.0, 0.0, FAR), (0.0, FAR, FAR)), noise=(1.0, 1.0))
    found = rates(below, REPEATS, np.random.default_rng(2))
    assert 0 < found["false_wins"] <= monte_carlo_bound(ALPHA, REPEATS, 4)


def test_the_set_of_a_crossover_holds_the_true_one() -> None:
    crossing = Setting(means=((0.0, 5.0, FAR), (0.0, -5.0, FAR)), noise=(1.0, 1.0))
    found = coverage(crossing, 0.5, REPEATS, np.random.default_rng(3))
    assert found["coverage"] >= 0.93
    assert 0 < found["bounded"] < 1
