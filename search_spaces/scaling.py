"""The same space at another budget: all budgets and rungs keep their shares, and stay whole steps of every arm."""

from __future__ import annotations

from math import gcd, lcm

from search_spaces.space import Space


def budget_unit(space: Space) -> int:
    """The tokens of which ``budget_tokens`` must be a multiple, so that every budget and rung can keep its share."""
    points = [point for budget in space.budgets_tokens for point in (budget, *space.rungs_at(budget))]
    steps = lcm(*(arm.tokens_per_step for arm in space.strategies))
    return space.budget_tokens // gcd(*points) * steps


def scaled_space(space: Space, budget_tokens: int) -> Space:
    """``space`` with this largest budget, a multiple of ``budget_unit``.

    Raises:
        SpaceErrors: a budget has no room for its schedule.
    """
    assert budget_tokens % budget_unit(space) == 0, "other budgets would leave rungs between steps"

    def scaled(points: tuple[int, ...]) -> list[int]:
        return [point * budget_tokens // space.budget_tokens for point in points]

    changed = {"budget_tokens": budget_tokens, "budgets_tokens": scaled(space.budgets_tokens)}
    return Space.from_resolved({**space.resolved(), **changed, "rungs_tokens": scaled(space.rungs_tokens)})
