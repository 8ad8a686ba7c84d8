"""The evidence for early stopping as laptop has it: recorded and simulated curves replayed through the real plan."""

import math
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest

from bench.curves import (
    BUDGET_TOKENS,
    POINTS_TOKENS,
    RATES,
    RECORDED,
    TRUTHS,
    Curve,
    Truth,
    by_case,
    read_curves,
    simulate,
)
from bench.replay import ArmFair, Replay, Stopping, launches, replay
from search_spaces import load_space
from sweeps.plan.queue import StoppingRule

LAPTOP = load_space(preset="laptop")
RULE = StoppingRule(rungs_tokens={LAPTOP.budget_tokens: LAPTOP.rungs_tokens}, keep=LAPTOP.early_stopping)


def sweeps_of(curves: Sequence[Curve]) -> Iterator[list[Curve]]:
    """Laptop explores one seed: each is a sweep of its own."""
    for seed in sorted({curve.seed for curve in curves}):
        yield [curve for curve in curves if curve.seed == seed]


def replays(curves: Sequence[Curve], *, random: int) -> list[Replay]:
    rng = np.random.default_rng(0)
    return [
        replay(ArmFair(curves, launch.order, RULE), curves, launch) for launch in launches(curves, rng, random=random)
    ]


@cache
def recorded() -> tuple[tuple[list[Curve], list[Replay]], ...]:
    return tuple((curves, replays(curves, random=50)) for curves in sweeps_of(read_curves(RECORDED)))


def simulated(truth: Truth, seed: int) -> tuple[Curve, ...]:
    return simulate(truth, np.random.default_rng(seed)).curves


# Recorded: every rate of laptop, three seeds, run once to the full budget.


def test_the_recorded_curves_are_laptops_whole_grid_at_every_rung() -> None:
    curves = read_curves(RECORDED)
    arms = {arm.name for arm in LAPTOP.strategies}
    assert {(c.strategy, c.lr) for c in curves} == {(arm, lr) for arm in arms for lr in LAPTOP.rates.lr}
    assert len({c.seed for c in curves}) == 3
    assert len(curves) == 3 * len(arms) * len(LAPTOP.rates.lr)
    for curve in curves:
        assert max(curve.losses) == LAPTOP.budget_tokens
        assert set(LAPTOP.rungs_tokens) <= set(curve.losses)


def test_on_recorded_curves_the_same_rates_are_picked_in_every_launch_order() -> None:
    for _, found in recorded():
        assert len(found) == 2 * 52
        assert len({tuple(sorted((case, curve.lr) for case, curve in each.chosen.items())) for each in found}) == 1
        assert len({each.tokens for each in found}) == 1


def test_on_recorded_curves_the_regret_is_within_3_millinats_at_70_percent_of_the_tokens() -> None:
    regrets, shares = [], []
    for curves, found in recorded():
        best = {case: min(curve.final for curve in rivals) for case, rivals in by_case(curves).items()}
        for each in found:
            regrets += [curve.final - best[case] for case, curve in each.chosen.items()]
            shares.append(each.tokens / sum(curve.diverged_at or LAPTOP.budget_tokens for curve in curves))
    assert fmean(regrets) <= 0.003
    assert fmean(shares) <= 0.70


def test_on_recorded_curves_no_arm_is_starved() -> None:
    assert all(each.starved == () for _, found in recorded() for each in found)


# Simulated, with a known truth.


@pytest.mark.parametrize("truth", TRUTHS)
@pytest.mark.parametrize("seed", range(4))
def test_on_simulated_curves_neither_choice_nor_tokens_depend_on_launch_order(truth: Truth, seed: int) -> None:
    found = replays(simulated(truth, seed), random=20)
    assert len({frozenset((c.strategy, c.lr) for c in each.finished) for each in found}) == 1
    assert len({each.tokens for each in found}) == 1


@pytest.mark.parametrize("seed", range(10))
def test_a_slow_starting_arm_finds_its_best_rate(seed: int) -> None:
    known = simulate("slow_start", np.random.default_rng(seed))
    for each in replays(known.curves, random=2):
        assert each.starved == ()
        assert {curve.strategy: curve.lr for curve in each.chosen.values()} == known.best_lr


def test_a_slow_starting_arm_is_starved_where_arms_are_judged_together() -> None:
    curves = simulated("slow_start", 0)
    launch = next(launches(curves, np.random.default_rng(0)))
    pooled = Stopping(curves, launch.order, grace=BUDGET_TOKENS // 8, eta=4, per_arm=False)
    assert replay(pooled, curves, launch).starved != ()


@pytest.mark.parametrize("seed", range(10))
def test_where_curves_cross_before_the_decay_regret_stays_small(seed: int) -> None:
    curves = simulated("crossing", seed)
    best = {case: min(curve.final for curve in rivals) for case, rivals in by_case(curves).items()}
    assert any(
        min(rivals, key=lambda c: c.losses[POINTS_TOKENS[0]]) != min(rivals, key=lambda c: c.final)
        for rivals in by_case(curves).values()
    )
    (found, *_) = replays(curves, random=0)
    assert fmean(curve.final - best[case] for case, curve in found.chosen.items()) <= 0.003


@pytest.mark.parametrize("seed", range(10))
def test_a_loss_that_is_not_finite_ends_its_cell_and_ranks_last(seed: int) -> None:
    curves = simulated("random_nan", seed)
    assert any(curve.diverged_at for curve in curves)
    rung = LAPTOP.rungs_tokens[0]
    for each in replays(curves, random=5):
        assert all(math.isfinite(curve.final) for curve in each.finished)
        for case, rivals in by_case(curves).items():
            lost_early = sum(curve.diverged_at is not None and curve.diverged_at <= rung for curve in rivals)
            if lost_early and not any(curve.diverged_at and curve.diverged_at > rung for curve in rivals):
                sound = len(rivals) - lost_early
                assert sum(curve.case == case for curve in each.finished) == min(2, sound)


def test_no_arm_is_starved_by_losses_that_are_not_finite() -> None:
    """Even where all that passed the last rung diverge, another cell of the arm reaches the full budget."""
    for seed in range(60):
        curves = simulated("random_nan", seed)
        survives = {case: any(math.isfinite(c.final) for c in rivals) for case, rivals in by_case(curves).items()}
        for each in replays(curves, random=1):
            assert not any(survives[case] for case in each.starved)


# The file.


def test_a_cell_without_later_points_diverged_at_its_last_one(tmp_path: Path) -> None:
    file = tmp_path / "curves.csv"
    rows = ["a,0.01,1,8,5.5", "a,0.01,1,16,", "a,0.02,1,8,5", "a,0.02,1,16,4", "a,0.02,1,24,3"]
    file.write_text("\n".join(["strategy,lr,seed,tokens_seen,val_loss", *rows]))
    diverged, whole = read_curves(file)
    assert diverged.diverged_at == 16
    assert diverged.final == math.inf
    assert whole.final == 3.0


def test_a_file_that_lacks_points_or_columns_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "curves.csv"
    file.write_text("strategy,lr,seed,tokens_seen,val_loss\na,0.01,1,8,5.5\na,0.02,1,8,5\na,0.02,1,16,4\n")
    with pytest.raises(ValueError, match=r"a lr=0\.01 seed=1 has no loss at \[16\] tokens"):
        read_curves(file)
    file.write_text("strategy,lr\n")
    with pytest.raises(ValueError, match="has no column seed, tokens_seen, val_loss"):
        read_curves(file)


def test_simulated_curves_have_the_grid_of_laptop() -> None:
    assert list(RATES) == list(LAPTOP.rates.lr)
    assert LAPTOP.budget_tokens == BUDGET_TOKENS
