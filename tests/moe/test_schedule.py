import pytest

from moe.config import ScheduleConfig
from moe.schedule import lr_factor

SCHEDULE = ScheduleConfig(budget_tokens=1000, warmup_tokens=100, decay_tokens=200)


def test_warm_up_starts_at_one_step_not_at_zero():
    assert lr_factor(SCHEDULE, 0, 10) == pytest.approx(0.1)
    assert lr_factor(SCHEDULE, 10, 10) == pytest.approx(0.2)


def test_the_plateau_is_reached_by_the_last_step_of_the_warm_up():
    assert lr_factor(SCHEDULE, 80, 10) < 1.0
    assert [lr_factor(SCHEDULE, seen, 10) for seen in (90, 400, 800)] == [1.0, 1.0, 1.0]


def test_decay_is_linear_and_its_last_step_still_moves():
    assert lr_factor(SCHEDULE, 900, 10) == pytest.approx(0.5)
    assert lr_factor(SCHEDULE, 990, 10) == pytest.approx(0.05)
    assert lr_factor(SCHEDULE, 1000, 10) == 0.0


def test_arms_with_different_steps_have_the_same_rate_on_plateau_and_decay():
    for seen in (200, 800, 840, 960):
        assert lr_factor(SCHEDULE, seen, 10) == lr_factor(SCHEDULE, seen, 40)


def test_a_warm_up_shorter_than_a_step_is_no_rate_above_one():
    assert lr_factor(SCHEDULE, 0, 500) == 1.0


def test_no_warm_up_and_no_decay_is_a_constant_rate():
    flat = ScheduleConfig(budget_tokens=1000, warmup_tokens=0, decay_tokens=0)
    assert {lr_factor(flat, seen, 10) for seen in range(0, 1000, 10)} == {1.0}


def test_the_rate_is_never_negative_beyond_the_budget():
    assert lr_factor(SCHEDULE, 2000, 10) == 0.0
