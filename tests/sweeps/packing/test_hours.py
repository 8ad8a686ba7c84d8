"""``--hours``: the largest budget that fits, and what is said where none does or the corpus ends first."""

import math

import pytest

from search_spaces import Space, load_space
from sweeps.errors import BadInputError
from sweeps.packing.duration import Speed
from sweeps.packing.hours import largest_within, within_hours

PLENTY = 10**9


def seconds(space: Space) -> float:
    """A sweep that takes ten seconds, and one more for 1,024 tokens of its largest budget."""
    return 10 + space.budget_tokens / 1024


@pytest.mark.parametrize("hours", [0.01, 0.02, 0.1, 1.0])
def test_the_largest_budget_that_fits_is_chosen_and_the_next_one_does_not_fit(hours: float) -> None:
    space = load_space(preset="smoke")  # its rung at one half makes 2,048 tokens the unit
    found = largest_within(hours, space, seconds, PLENTY)
    expected = int((hours * 3600 - 10) // 2) * 2048
    assert found.space.budget_tokens == expected
    assert found.space.rungs_tokens == (expected // 2,)
    assert f"budgets of {expected:,} tokens" in found.why
    assert f"the next larger {expected + 2048:,} tokens" in found.why


def test_every_budget_and_rung_of_a_ladder_keeps_its_share() -> None:
    space = load_space(preset="laptop")
    found = largest_within(0.1, space, seconds, PLENTY).space
    ratio = found.budget_tokens / space.budget_tokens
    assert 0 < ratio < 1
    assert found.budgets_tokens == tuple(round(budget * ratio) for budget in space.budgets_tokens)
    assert found.rungs_at(found.budgets_tokens[0]) == tuple(
        round(rung * ratio) for rung in space.rungs_at(space.budgets_tokens[0])
    )
    unchanged = {"budget_tokens", "budgets_tokens", "rungs_tokens"}
    assert found.model_dump(exclude=unchanged) == space.model_dump(exclude=unchanged)


def test_the_corpus_may_end_before_the_hours_do() -> None:
    found = largest_within(24, load_space(preset="smoke"), seconds, 100_000)
    assert found.space.budget_tokens == 98_304
    assert found.why.endswith("the corpus has text for no more than 100,000 (corpus.max_epochs = 4)")


def test_too_few_hours_are_refused_with_what_the_least_would_take() -> None:
    with pytest.raises(BadInputError, match=r"--hours 0.003 is too short: budgets of 2,048 tokens .* take about 12 s"):
        largest_within(0.003, load_space(preset="smoke"), seconds, PLENTY)
    with pytest.raises(BadInputError, match="the corpus has text for 0 tokens a cell at most"):
        largest_within(1, load_space(preset="smoke"), seconds, 1000)


@pytest.mark.parametrize("hours", [0.0, -1.0, math.inf, math.nan])
def test_hours_are_a_number_above_zero(hours: float) -> None:
    with pytest.raises(BadInputError, match="must be a number above 0"):
        within_hours(hours, load_space(preset="smoke"), None, Speed(seconds_per_token={}, processes=1, source=""))


def test_without_a_speed_there_is_no_choice() -> None:
    with pytest.raises(BadInputError, match="training steps can be timed"):
        within_hours(1.0, load_space(preset="smoke"), None, None)
