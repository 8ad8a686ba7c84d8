"""Speeds of arms: medians over records under one load, or said to be not comparable."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sweeps.ledger.results import CellResult
from sweeps.verdict.speeds import Speeds, measured_speeds
from tests.sweeps.planted_sweep import cell


def trained(arm: str, *speeds: tuple[float, int], seconds: float | None = None) -> CellResult:
    """A confirm cell that reported these tokens per second, each beside so many trials."""
    records: list[dict[str, Any]] = [{"tokens_per_s": speed, "concurrent_trials": load} for speed, load in speeds]
    records[-1]["train_time_s"] = seconds
    return cell(arm, 0.02, 101, "confirm", loss=4.0, records=tuple(records))


def test_only_records_under_the_load_that_all_arms_know_best_are_compared() -> None:
    fast = trained("a", (50.0, 2), (52.0, 2), (51.0, 2), (99.0, 1))
    slow = trained("b", (9.0, 3), (20.0, 2), (21.0, 2), (22.0, 2), (40.0, 1), (41.0, 1), (42.0, 1))
    found = measured_speeds({"a": [fast], "b": [slow]})
    assert found == Speeds(tokens_per_s={"a": 51.0, "b": 21.0}, concurrent_trials=2)


def test_arms_without_a_load_in_common_have_speeds_that_do_not_compare() -> None:
    packed = trained("a", *[(50.0, 2)] * 5, (99.0, 1), seconds=10.0)
    alone = trained("b", *[(20.0, 1)] * 5, seconds=20.0)
    found = measured_speeds({"a": [packed], "b": [alone]})
    assert found == Speeds(tokens_per_s={"a": 100.0, "b": 50.0}, concurrent_trials=None)


def test_a_cell_that_did_not_reach_its_budget_tells_no_speed() -> None:
    cut_short = replace(trained("b", *[(20.0, 1)] * 5, seconds=20.0), outcome="diverged")
    assert measured_speeds({"a": [trained("a", *[(50.0, 1)] * 5)], "b": [cut_short]}) is None
    assert measured_speeds({}) is None
