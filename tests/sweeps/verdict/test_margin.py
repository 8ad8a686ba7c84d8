"""The margin of equivalence, from explore alone."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from sweeps.ledger.results import SweepResults
from sweeps.verdict.margin import default_margin, estimate, margin_of
from tests.sweeps.planted_sweep import CURVES, cell, confirm, explore, sweep

AUTO = {"alpha": 0.05, "margin": "auto", "looks": 1}


def along(slope: float, train_slope: float) -> tuple[dict[str, float], ...]:
    """Records of a curve that is linear in the logarithm of tokens, exams at 250 and 500 of 1,000."""
    records = []
    for tokens in range(50, 1_001, 50):
        record = {"tokens_seen": float(tokens), "train_loss": 9.0 - train_slope * math.log(tokens)}
        if tokens in (250, 500, 1_000):
            record["val_loss"] = 9.0 - slope * math.log(tokens) - (0.3 if tokens == 1_000 else 0.0)
        records.append(record)
    return tuple(records)


def curved(slope: float, train_slope: float, **space: object) -> SweepResults:
    cells = [
        cell(arm, lr, 1, loss=loss, records=along(slope, train_slope))
        for arm, curve in CURVES.items()
        for lr, loss in curve.items()
    ]
    return sweep(cells, **{"verdict": AUTO, **space})


def test_the_margin_is_the_slope_of_validation_loss_on_the_plateau_times_the_logarithm_of_five_percent() -> None:
    for train_slope in (0.5, 0.4, 0.9):  # training losses have no say
        assert default_margin(curved(0.5, train_slope)) == pytest.approx(0.5 * math.log(1.05))


def test_of_the_two_best_arms_the_flatter_one_makes_the_margin_and_the_third_has_no_say() -> None:
    slopes = {"large_batch": 0.5, "balanced": 0.4, "long_seq": 0.1}
    cells = [
        cell(arm, lr, 1, loss=loss, records=along(slopes[arm], 0.5))
        for arm, curve in CURVES.items()
        for lr, loss in curve.items()
    ]
    found = estimate(sweep(cells, verdict=AUTO))
    assert found is not None
    assert found.value == pytest.approx(0.4 * math.log(1.05))
    assert "the smaller of large_batch and balanced" in found.source
    assert "on the plateau of the schedule, undecayed" in found.source


def test_slopes_that_vary_from_rate_to_rate_lower_the_margin_to_their_bound() -> None:
    wobble = {0.005: 0.9, 0.01: -0.02, 0.02: 0.0, 0.04: 0.02}  # 0.005 is no neighbour of the best rate
    cells = [
        cell(arm, lr, 1, loss=loss, records=along(0.5 + wobble[lr], 0.5))
        for arm, curve in CURVES.items()
        for lr, loss in curve.items()
    ]
    # Three slopes an arm with sd 0.02, pooled over two arms: 4 degrees of freedom, t(0.95) = 2.1318, one own slope
    expected = (0.5 - 2.1318 * 0.02) * math.log(1.05)
    assert default_margin(sweep(cells, verdict=AUTO)) == pytest.approx(expected, rel=1e-4)
    steep = {lr: 30 * value for lr, value in wobble.items()}
    wild = [replace(c, records=along(0.5 + steep[c.cell.lr or 0.0], 0.5)) for c in cells]
    assert default_margin(sweep(wild, verdict=AUTO)) is None  # no slope is shown to be above zero


def test_decayed_cells_at_two_budgets_make_the_margin_corrected_for_their_secant() -> None:
    cells = [
        cell(arm, lr, 1, loss=loss + (0.6 if budget == 250 else 0.0), budget=budget, records=along(0.9, 0.9))
        for arm, curve in CURVES.items()
        for lr, loss in curve.items()
        for budget in (250, 1_000)
    ]
    found = estimate(sweep(cells, budgets_tokens=[250, 1_000], verdict=AUTO))
    assert found is not None
    # the secant over a factor of four, 0.6 / ln 4, overstates the slope by at most 1.4427
    assert found.value == pytest.approx(0.6 / math.log(4) / 1.4427 * math.log(1.05), rel=1e-4)
    assert "between decayed explore cells at two budgets" in found.source


def test_the_decay_does_not_enter_the_slope() -> None:
    # The drop of 0.3 at the end must not show: with it the slope of the exams would be 0.93, below that of training.
    longer = {"warmup_share": 0.05, "decay_share": 0.5}
    assert default_margin(curved(0.5, 1.0)) == pytest.approx(0.5 * math.log(1.05))
    assert default_margin(curved(0.5, 1.0, schedule=longer)) == pytest.approx(0.5 * math.log(1.05))


def test_confirm_cells_cannot_move_the_margin() -> None:
    before = sweep(explore(), verdict=AUTO)
    after = sweep([*explore(), *confirm(dict.fromkeys(CURVES, (1.0, 1.1, 0.9)))], verdict=AUTO)
    assert default_margin(before) == default_margin(after)


def test_records_without_curves_fall_back_on_a_published_exponent_and_say_so() -> None:
    found = estimate(sweep(explore(), verdict=AUTO))
    assert found is not None
    assert found.value == pytest.approx(4.4 * (1 - 1.05**-0.095))
    assert "Kaplan et al. 2020" in found.source


def test_the_spaces_own_margin_and_then_the_one_written_down_go_before_the_estimate() -> None:
    stated = margin_of(sweep(explore()))
    assert stated is not None
    assert (stated.value, stated.source) == (0.03, "stated in the space")
    results = sweep(explore(), verdict=AUTO)
    fixed = SweepResults(name="x", beginning=results.beginning, cells=results.cells, fixed_margin=0.017)
    found = margin_of(fixed)
    assert found is not None
    assert found.value == 0.017
    assert "written down before the confirm cells" in found.source


def test_a_sweep_without_any_loss_has_no_margin() -> None:
    assert default_margin(sweep([], verdict=AUTO)) is None
