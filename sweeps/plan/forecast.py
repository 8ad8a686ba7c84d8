"""How much is left of a sweep: tokens per arm and seconds, from the plan and from what was measured so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from search_spaces import Space
from sweeps.plan.queue import Plan


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Tokens trained and to be trained, and seconds left (None while no speed is known)."""

    tokens_done: int
    tokens_left: int
    seconds_left: float | None

    @property
    def share_done(self) -> float:
        """Share of all tokens of the sweep that are trained."""
        total = self.tokens_done + self.tokens_left
        return self.tokens_done / total if total else 1.0


def forecast(
    space: Space, plan: Plan, tokens_seen: Mapping[str, int], seconds_per_token: Mapping[str, float], workers: int
) -> Forecast:
    """What is left of a sweep.

    ``tokens_seen`` is each cell's newest count, durable or not; ``seconds_per_token`` the measured cost per arm, exam
    included; an arm without a measurement gets the mean of the others.
    """
    done = sum(tokens_seen.values())
    left = {arm.name: 0.0 for arm in space.strategies}
    bracket = max(1, sum(entry.may_stop_early for entry in plan.cells) // len(plan.brackets or (1,)))
    spared = explore_tokens_per_arm(space, bracket, space.budget_tokens) / bracket / space.budget_tokens
    for planned in plan.cells:
        if plan.progress(planned.cell_id).outcome is None:
            seen = tokens_seen.get(planned.cell_id, 0)
            expected = planned.cell.budget_tokens * (spared if planned.may_stop_early else 1)
            left[planned.cell.strategy] += max(0.0, expected - seen)
    for arm in space.strategies:
        left[arm.name] += _unplanned_confirm_tokens(space, plan, arm.name)
    seconds = None
    if seconds_per_token:
        mean = sum(seconds_per_token.values()) / len(seconds_per_token)
        seconds = sum(tokens * seconds_per_token.get(arm, mean) for arm, tokens in left.items()) / workers
    return Forecast(tokens_done=done, tokens_left=round(sum(left.values())), seconds_left=seconds)


def forecast_from_records(space: Space, plan: Plan, newest: Mapping[str, Mapping[str, Any]], workers: int) -> Forecast:
    """The forecast from the newest record of each cell by cell id (none where a cell has not reported)."""
    seen = {entry.cell_id: plan.progress(entry.cell_id).tokens_seen for entry in plan.cells}
    seconds: dict[str, float] = {}
    for cell_id, record in newest.items():
        seen[cell_id] = max(seen.get(cell_id, 0), int(record["tokens_seen"]))
        spent_s = record["train_time_s"] + record.get("counting_time_s", 0.0) + record["exam_time_s"]
        seconds[plan.planned(cell_id).cell.strategy] = spent_s / record["tokens_seen"]
    return forecast(space, plan, seen, seconds, workers)


def explore_tokens_per_arm(space: Space, cells: int, budget_tokens: int) -> int:
    """Tokens that ``cells`` explore cells of one arm and budget train when early stopping keeps what it may keep."""
    if space.early_stopping.kind == "none":
        return cells * budget_tokens
    going_on = [cells, *space.early_stopping.keep_counts(cells)]
    points = [0, *space.rungs_at(budget_tokens), budget_tokens]
    return sum(count * (end - start) for count, (start, end) in zip(going_on, pairwise(points), strict=True))


def _unplanned_confirm_tokens(space: Space, plan: Plan, strategy: str) -> float:
    of_arm = (entry.cell for entry in plan.cells if entry.cell.strategy == strategy)
    planned = {cell.budget_tokens for cell in of_arm if cell.phase == "confirm"}
    budgets = {budget for budget in space.budgets_tokens if space.strategy(strategy) in space.arms_at(budget)}
    return float(space.seeds.confirm * sum(budgets - planned))
