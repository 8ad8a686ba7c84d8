"""``--hours``: the largest budget of a space with which a sweep fits in the time that there is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from search_spaces import MOST_BUDGET_TOKENS, Space, SpaceErrors, budget_unit, scaled_space
from sweeps.errors import BadInputError
from sweeps.formatting import listed, rounded_duration
from sweeps.packing.duration import Speed, expected_seconds

if TYPE_CHECKING:
    from sweeps.training_data import TrainingData


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """The space at the budget that was chosen, and a sentence that says why this one."""

    space: Space
    why: str


def within_hours(hours: float, space: Space, data: TrainingData | None, speed: Speed | None) -> Fitted:
    """``largest_within`` at a measured speed; raises BadInputError where none could be measured."""
    from moe.audit import most_budget_tokens

    if not (math.isfinite(hours) and hours > 0):
        raise BadInputError(f"--hours {hours:g} must be a number above 0; for example --hours 0.5")
    if data is None or speed is None:
        raise BadInputError("--hours needs machines that are here and on which training steps can be timed")
    most_tokens = most_budget_tokens(data.tokens, space.block_len)
    return largest_within(hours, space, lambda scaled: expected_seconds(scaled, data, speed), most_tokens)


def largest_within(hours: float, space: Space, seconds: Callable[[Space], float], most_tokens: int) -> Fitted:
    """Choose the largest budget at which ``seconds`` of the scaled space are no more than ``hours``.

    Budgets and rungs keep their shares, and seeds, rates and arms stay as they are; ``seconds`` must grow with the
    budget. ``most_tokens`` is what the corpus has text for.

    Raises:
        BadInputError: the shortest sweep of this space takes longer, or its corpus is too small for any.
    """
    unit = budget_unit(space)
    most = min(most_tokens, MOST_BUDGET_TOKENS) // unit
    least = _least(space, unit, most)

    def fits(count: int) -> bool:
        return seconds(scaled_space(space, count * unit)) <= hours * 3600

    if not fits(least):
        smallest = scaled_space(space, least * unit)
        raise BadInputError(
            f"--hours {hours:g} is too short: {_budgets(smallest)} are the least of this space, and take about "
            f"{rounded_duration(seconds(smallest))}; give more hours, or leave out seeds, rates or arms"
        )
    count = _last(fits, least, most)
    chosen = scaled_space(space, count * unit)
    why = f"--hours {hours:g}: {_budgets(chosen)} are planned to take {rounded_duration(seconds(chosen))}"
    if count == most:
        why += (
            f"; the corpus has text for no more than {most_tokens:,} (corpus.max_epochs = {space.corpus.max_epochs:g})"
        )
    else:
        larger = scaled_space(space, (count + 1) * unit)
        why += f", the next larger {larger.budget_tokens:,} tokens {rounded_duration(seconds(larger))}"
    return Fitted(space=chosen, why=why)


def _least(space: Space, unit: int, most: int) -> int:
    """The smallest count of units that makes a space; a small one may have no room for a schedule."""
    for count in range(1, most + 1):
        try:
            scaled_space(space, count * unit)
        except SpaceErrors:
            continue
        return count
    raise BadInputError(
        f"--hours finds no budget: the corpus has text for {most * unit:,} tokens a cell at most; choose a larger "
        "corpus, or raise corpus.max_epochs"
    )


def _last(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The last number up to ``high`` for which a condition holds that holds for ``low``, and from some on no longer."""
    reach = low
    while reach < high and holds(min(2 * reach, high)):
        reach = min(2 * reach, high)
    low, above = reach, min(2 * reach, high + 1)
    while above - low > 1:
        middle = (low + above) // 2
        low, above = (middle, above) if holds(middle) else (low, middle)
    return low


def _budgets(space: Space) -> str:
    return f"budgets of {listed([f'{budget:,}' for budget in space.budgets_tokens])} tokens"
