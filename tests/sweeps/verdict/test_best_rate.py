"""How each arm's rate is chosen, and what counts as an edge."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from sweeps.verdict.best_rate import choices, choose, edges, failed_candidates
from sweeps.verdict.rate_curve import RateCurve, lead_outlasts_better_rate, locate, tie_outlasts_better_rates
from sweeps.verdict.statistics import student
from tests.sweeps.planted_sweep import CURVES, cell, confirm, control, explore, sweep

BOWL = {0.005: 5.0, 0.01: 4.6, 0.02: 4.5, 0.04: 4.9}


def test_the_rate_of_lowest_validation_loss_is_chosen_and_confirm_cells_have_no_say() -> None:
    found = choices(sweep(explore() + confirm(lr=0.01)))
    assert {arm: choice.lr for arm, choice in found.items()} == dict.fromkeys(CURVES, 0.02)
    assert found["balanced"].val_loss == 4.6
    assert found["balanced"].adamw_lr == pytest.approx(0.006)
    assert not found["balanced"].at_edge


def test_a_cell_that_was_stopped_or_diverged_is_never_chosen_however_low_its_loss() -> None:
    cells = [
        cell("balanced", 0.01, 1, loss=4.6),
        cell("balanced", 0.02, 1, loss=4.7),
        cell("balanced", 0.04, 1, loss=3.0, outcome="stopped_early"),
        cell("balanced", 0.005, 1, loss=2.0, outcome="diverged"),
    ]
    choice = choose(sweep(cells), "balanced")
    assert choice is not None
    assert choice.lr == 0.01


def test_a_loss_below_the_full_budget_does_not_count() -> None:
    short = cell("balanced", 0.02, 1, loss=3.0, tokens_seen=900)
    assert choose(sweep([short]), "balanced") is None


def test_seeds_are_averaged_and_a_rate_with_fewer_of_them_is_not_compared() -> None:
    cells = [
        cell("balanced", 0.01, 1, loss=4.60),
        cell("balanced", 0.01, 2, loss=4.70),
        cell("balanced", 0.02, 1, loss=4.55),
        cell("balanced", 0.02, 2, loss=4.85),
        cell("balanced", 0.04, 1, loss=4.00),  # lucky, and without its second seed
        cell("balanced", 0.04, 2, loss=None, outcome="diverged"),
    ]
    choice = choose(sweep(cells), "balanced")
    assert choice is not None
    assert (choice.lr, choice.val_loss, choice.n_seeds) == (0.01, pytest.approx(4.65), 2)


def test_a_best_rate_at_the_end_of_its_grid_is_an_edge_widened_by_the_grids_own_ratio() -> None:
    falling = {arm: {0.005: 5.0, 0.01: 4.8, 0.02: 4.6, 0.04: 4.5} for arm in ("large_batch",)}
    rising = {"balanced": {0.005: 4.5, 0.01: 4.6, 0.02: 4.7, 0.04: 4.9}}
    found = edges(sweep(explore({**falling, **rising, "long_seq": BOWL})))
    assert [(edge.strategy, edge.side, edge.next_rate) for edge in found] == [
        ("large_batch", "high", 0.08),
        ("balanced", "low", 0.0025),
    ]
    assert found[0].option == "--lr 0.08"


def test_a_widened_grid_that_turns_up_again_settles_the_edge() -> None:
    falling = {0.005: 5.0, 0.01: 4.8, 0.02: 4.6, 0.04: 4.5}
    assert edges(sweep(explore({"balanced": falling})))
    assert not edges(sweep(explore({"balanced": {**falling, 0.08: 4.7}})))


def test_a_rate_that_diverged_or_was_stopped_beyond_the_best_shows_that_the_best_is_inside() -> None:
    for outcome in ("diverged", "stopped_early"):
        beyond = cell("balanced", 0.04, 1, outcome=outcome)
        inside = explore({"balanced": {0.005: 4.9, 0.01: 4.8, 0.02: 4.6}})
        assert not edges(sweep([*inside, beyond])), outcome
    failed = cell("balanced", 0.04, 1, outcome="failed")
    assert [edge.side for edge in edges(sweep([*inside, failed]))] == ["high"]


def test_a_finished_rate_without_a_loss_shows_nothing_about_the_edge() -> None:
    silent = cell("balanced", 0.04, 1, loss=None)
    inside = explore({"balanced": {0.005: 4.9, 0.01: 4.8, 0.02: 4.6}})
    assert [edge.side for edge in edges(sweep([*inside, silent]))] == ["high"]


def test_no_edge_is_reported_while_an_arm_still_explores() -> None:
    running = cell("balanced", 0.04, 1, outcome=None)
    assert not edges(sweep([*explore({"balanced": {0.01: 4.8, 0.02: 4.6}}), running]))


def test_one_rate_alone_is_an_edge_on_both_sides() -> None:
    found = edges(sweep(explore({"balanced": {0.01: 4.8}})))
    assert [(edge.side, edge.next_rate) for edge in found] == [("low", 0.005), ("high", 0.02)]


def test_adamws_own_grid_has_edges_of_its_own() -> None:
    cells = []
    for lr, ends in ((0.01, 0.2), (0.02, 0.0), (0.04, 0.3)):
        for adamw_lr, extra in ((0.001, 0.2), (0.003, 0.1), (0.009, 0.0)):
            found = cell("balanced", lr, 1, loss=4.5 + ends + extra)
            object.__setattr__(found.cell, "adamw_lr", adamw_lr)
            cells.append(found)
    (edge,) = edges(sweep(cells))
    assert (edge.rate, edge.side, edge.best, edge.next_rate) == ("adamw_lr", "high", 0.009, 0.027)
    assert edge.option == "--adamw-lr 0.027"


@pytest.mark.parametrize(
    ("best", "sides"),
    [(0.0011, ["low"]), (0.0013, []), (0.01, []), (0.079, []), (0.09, ["high"])],
)
def test_a_searched_rate_within_five_percent_of_a_bound_in_the_logarithm_is_an_edge(
    best: float, sides: list[str]
) -> None:
    # the range from 0.001 to 0.1 is 4.605 wide in the logarithm, 5% of it a factor 1.259
    search = {"kind": "optuna", "lr_low": 0.001, "lr_high": 0.1, "trials_per_arm": 3}
    cells = explore({"balanced": {best: 4.5, 0.02: 4.8, 0.03: 4.9}})
    assert [edge.side for edge in edges(sweep(cells, search=search))] == sides


def test_controls_choose_their_own_rate_among_their_own_cells() -> None:
    results = sweep([*explore(), *control((), {lr: 5.0 - lr for lr in (0.01, 0.02, 0.04)})])
    choice = choose(results, "large_batch_grouped")
    assert choice is not None
    assert choice.lr == 0.04
    assert [(edge.strategy, edge.next_rate) for edge in edges(results)] == [("large_batch_grouped", 0.08)]
    assert "large_batch_grouped" not in choices(results)


def test_the_optimum_of_an_exact_parabola_is_found_with_its_gain() -> None:
    x = np.log([0.005, 0.01, 0.02, 0.04])
    losses = 4.5 + 0.3 * (x - math.log(0.017)) ** 2
    curve = RateCurve(log_lrs=tuple(x), losses=tuple(losses), chosen=2, n_seeds=1)
    found = locate(curve, 0.01, 4, np.random.default_rng(0))
    assert found is not None
    assert found.lr == pytest.approx(0.017, rel=1e-6)
    assert found.gain == pytest.approx(0.3 * math.log(0.02 / 0.017) ** 2, rel=1e-6)
    assert found.lr_low < 0.017 < found.lr_high
    assert found.gain_bound > found.gain


def test_two_rates_bound_nothing() -> None:
    curve = RateCurve(log_lrs=(-4.0, -3.0), losses=(4.5, 4.6), chosen=0, n_seeds=1)
    assert locate(curve, 0.01, 4, np.random.default_rng(0)) is None


def test_a_lead_outlasts_a_better_rate_only_when_it_is_larger_than_the_gain_could_be() -> None:
    x = np.log([0.005, 0.01, 0.02, 0.04])
    losses = tuple(4.5 + 0.3 * (x - math.log(0.0141)) ** 2)
    found = locate(RateCurve(log_lrs=tuple(x), losses=losses, chosen=2, n_seeds=1), 0.01, 4, np.random.default_rng(0))
    assert found is not None
    noise = np.array([-0.01, 0.01, 0.0, 0.005, -0.005])
    rng = np.random.default_rng(0)
    assert lead_outlasts_better_rate(found, student(0.3 + noise), 0.05, rng)
    assert not lead_outlasts_better_rate(found, student(0.03 + noise), 0.05, rng)


def test_a_tie_outlasts_better_rates_only_where_the_larger_gain_leaves_it_inside_the_margin() -> None:
    x = np.log([0.005, 0.01, 0.02, 0.04])

    def optimum(best: float) -> Any:
        curve = RateCurve(log_lrs=tuple(x), losses=tuple(4.5 + 0.3 * (x - math.log(best)) ** 2), chosen=2, n_seeds=1)
        return locate(curve, 0.001, 4, np.random.default_rng(0))

    at_best, beside = optimum(0.02), optimum(0.0141)  # the second could gain 0.3 * ln(0.02 / 0.0141)^2 = 0.037
    difference = student(np.array([-0.001, 0.001, 0.0, 0.0005, -0.0005]))
    rng = np.random.default_rng(0)
    assert tie_outlasts_better_rates((at_best, at_best), difference, 0.03, 0.05, rng)
    assert not tie_outlasts_better_rates((at_best, beside), difference, 0.03, 0.05, rng)
    assert tie_outlasts_better_rates((at_best, beside), difference, 0.06, 0.05, rng)


def test_a_best_rate_that_failed_on_another_seed_is_a_candidate_and_a_worse_one_is_not() -> None:
    cells = [cell("balanced", lr, 1, loss=loss) for lr, loss in BOWL.items()]
    cells += [cell("balanced", lr, 2, loss=loss) for lr, loss in BOWL.items() if lr not in (0.005, 0.02)]
    for failed, expected in ((0.02, [0.02]), (0.005, [])):
        others = [0.005, 0.02]
        others.remove(failed)
        ended = [cell("balanced", failed, 2, outcome="oom"), cell("balanced", others[0], 2, loss=BOWL[others[0]])]
        choice = choose(sweep([*cells, *ended]), "balanced")
        assert choice is not None
        assert [rate.lr for rate in failed_candidates(choice)] == expected


def test_a_rate_that_failed_outright_is_a_candidate_only_next_to_the_chosen_one() -> None:
    next_to_it = [cell("balanced", lr, 1, loss=loss) for lr, loss in BOWL.items() if lr != 0.01]
    choice = choose(sweep([*next_to_it, cell("balanced", 0.01, 1, outcome="failed")]), "balanced")
    assert choice is not None
    assert [rate.lr for rate in failed_candidates(choice)] == [0.01]
    behind = [*explore({"balanced": BOWL}), cell("balanced", 0.0025, 1, outcome="failed")]
    choice = choose(sweep(behind), "balanced")
    assert choice is not None
    assert failed_candidates(choice) == ()


def test_a_stopped_rate_is_carried_to_the_budget_for_the_curve_and_never_chosen() -> None:
    records = ({"tokens_seen": 250, "val_loss": 5.5},)
    cells = [
        cell("balanced", 0.01, 1, loss=4.7, records=({"tokens_seen": 250, "val_loss": 5.7},)),
        cell("balanced", 0.02, 1, loss=4.6, records=({"tokens_seen": 250, "val_loss": 5.6},)),
        cell("balanced", 0.04, 1, outcome="stopped_early", val_loss=5.5, records=records),
    ]
    choice = choose(sweep(cells), "balanced")
    assert choice is not None
    assert choice.lr == 0.02
    assert choice.curve.n_carried == 1
    assert choice.curve.losses == pytest.approx((4.7, 4.6, 4.5))  # 5.5, less what the others gained: 1.0
