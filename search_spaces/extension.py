"""Growing a sweep: a grid past its edge, and more rates, arms or confirm seeds on what was already run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any, Literal

from search_spaces.fields import MAX_RATE, MIN_RATE, is_rate
from search_spaces.problems import Problem, SpaceErrors, as_toml, nearest_multiples, problem_at
from search_spaces.sections import OptunaSearch, Strategy
from search_spaces.space import Space

# Nothing under these keys decides a cell's numbers or what is compared with what.
CHANGEABLE_KEYS = ("description", "keep", "resources")
# The number of threads decides the last bits of sums, so a cell must end on as many as it started on.
FROZEN_RESOURCES = ("resources.threads_per_trial",)


def widened_rate(rates: Sequence[float], edge: Literal["low", "high"]) -> float:
    """The next rate past an edge of a grid, by the grid's own ratio, to four significant digits.

    The ratio is the geometric mean of the ratios between neighbours, so that an unevenly spaced grid widens by its
    usual step.

    Raises:
        ValueError: fewer than two different rates, which have no ratio.
    """
    grid = sorted(set(rates))
    if len(grid) < 2:
        raise ValueError(f"rates={as_toml(rates)} has no ratio to widen by; give at least two different rates")
    ratio = (grid[-1] / grid[0]) ** (1 / (len(grid) - 1))
    return float(f"{grid[-1] * ratio if edge == 'high' else grid[0] / ratio:.4g}")


def extended_space(
    space: Space,
    *,
    lr: Sequence[float] = (),
    adamw_lr: Sequence[float] = (),
    strategies: Sequence[Strategy | Mapping[str, Any]] = (),
    confirm_seeds: int | None = None,
    budgets: Sequence[int] = (),
) -> Space:
    """``space`` with more rates, arms or budgets, or a larger total of confirm seeds; what it has stays as it is.

    A rate or budget that the space has already adds nothing. A new largest budget has its rungs at
    the same shares. The exam and the blocks depend on the longest and the shortest length, so these are frozen: an arm
    that does not fit them is refused.

    Raises:
        SpaceErrors: every reason why the sweep cannot be extended so.
    """
    arms = [arm.model_dump() if isinstance(arm, Strategy) else dict(arm) for arm in strategies]
    problems = _option_problems(space, lr, adamw_lr, confirm_seeds)
    problems += _budget_problems(space, budgets)
    problems += [problem for arm in arms for problem in _arm_problems(space, arm)]
    table = space.resolved()
    table["strategies"] = [*table["strategies"], *arms]
    for rates in (table["rates"], *(arm.get("rates", {}) for arm in table["strategies"])):
        if not isinstance(space.search, OptunaSearch) and rates.get("lr") is not None:
            rates["lr"] = _grown(rates["lr"], lr)
        if rates.get("adamw_grid") is not None:
            rates["adamw_grid"] = _grown(rates["adamw_grid"], adamw_lr)
    table |= _with_budgets(space, budgets)
    if confirm_seeds is not None:
        table["seeds"]["confirm"] = confirm_seeds
    try:
        extended = Space.from_resolved(table)
    except SpaceErrors as error:
        problems += _not_reported_yet(error.problems, problems)
    if problems:
        raise SpaceErrors(problems, source="the extension")
    return extended


def _grown(grid: Sequence[float], added: Sequence[float]) -> list[float]:
    """A grid with the rates that it lacks; what is no rate is reported elsewhere."""
    return [*grid, *dict.fromkeys(rate for rate in added if is_rate(rate) and rate not in grid)]


def _with_budgets(space: Space, added: Sequence[int]) -> dict[str, Any]:
    """The keys of a space that more budgets change."""
    budgets = sorted({*space.budgets_tokens, *added})
    largest, before = budgets[-1], space.budget_tokens
    rungs = [rung * largest // before if rung * largest % before == 0 else rung for rung in space.rungs_tokens]
    return {"budget_tokens": largest, "budgets_tokens": budgets, "rungs_tokens": rungs}


def frozen_differences(before: Space, after: Space) -> list[Problem]:
    """What differs between two spaces and may not change between a run and its resumption."""
    old, new = _flat(before.resolved()), _flat(after.resolved())
    return [
        Problem(
            where=key,
            value=as_toml(new.get(key)),
            rule=f"was {as_toml(old.get(key))} when the sweep started, and decides what its cells are",
            remedy="leave it, extend the sweep, or start another one",
        )
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and (key.partition(".")[0] not in CHANGEABLE_KEYS or key in FROZEN_RESOURCES)
    ]


def _not_reported_yet(general: Sequence[Problem], reported: Sequence[Problem]) -> list[Problem]:
    """The problems of the extended space that do not say again what those of the extension say."""
    keys = {problem.where.rpartition(".")[2] for problem in reported}
    frozen = ("budget_tokens", "budgets_tokens", "rungs_tokens", *(("seq_len",) if "seq_len" in keys else ()))
    return [
        problem
        for problem in general
        if not reported or not problem.where.rpartition(".")[2].partition("[")[0].startswith(frozen)
    ]


def _option_problems(space: Space, lr: Sequence[float], adamw_lr: Sequence[float], seeds: int | None) -> list[Problem]:
    """What keeps the rates and the total of confirm seeds out of the sweep."""
    rule = f"must be a rate from {MIN_RATE:g} to {MAX_RATE:g}"
    problems = [
        problem_at(option, rate, rule, "choose a rate like 0.02")
        for option, rates in (("--lr", lr), ("--adamw-lr", adamw_lr))
        for rate in rates
        if not is_rate(rate)
    ]
    if lr and isinstance(space.search, OptunaSearch) and space.search.searches_adamw_ratio:
        rule = "has no AdamW rate to go with, since the search draws the ratio of the two"
        remedy = "start another sweep with wider search.lr_low and search.lr_high"
        problems.append(problem_at("--lr", lr, rule, remedy))
    if adamw_lr and space.rates.adamw_grid is None:
        rule = "has no grid to join, since AdamW's rate follows Muon's in this sweep"
        remedy = "start another sweep with rates.adamw_grid"
        problems.append(problem_at("--adamw-lr", adamw_lr, rule, remedy))
    if seeds is not None and seeds < space.seeds.confirm:
        rule = f"is the total of confirm seeds, and the sweep has {space.seeds.confirm} already"
        remedy = f"choose more than {space.seeds.confirm}"
        problems.append(problem_at("--seeds", seeds, rule, remedy))
    return problems


def _budget_problems(space: Space, budgets: Sequence[int]) -> Iterator[Problem]:
    """What the views of the largest budget alone say against another largest one."""
    largest = max(budgets, default=0)
    for view, is_there in (("equal-time", space.time_view), ("equal-FLOPs", space.flops_view)):
        if largest > space.budget_tokens and is_there:
            rule = f"exceeds the budget ({space.budget_tokens}) of which this sweep's {view} view was made"
            yield problem_at("--budget", largest, rule, "start another sweep with that budget")


def _arm_problems(space: Space, arm: Mapping[str, Any]) -> Iterator[Problem]:
    """What the frozen exam, blocks and budget say against an arm whose values are sound by themselves."""
    where, seq_len = f"strategies.{arm.get('name')}", arm.get("seq_len")
    shape = [arm.get("micro_batch_size"), seq_len, arm.get("grad_accum_steps", 1)]
    if isinstance(seq_len, int) and not space.common_len <= seq_len <= space.block_len:
        if seq_len > space.block_len:
            rule, fixed = f"is longer than the longest arm ({space.block_len} tokens)", "blocks and the exam's rows"
        else:
            rule, fixed = f"is shorter than the shortest arm ({space.common_len} tokens)", "the exam's common context"
        rule = f"{rule}, by which the sweep fixed {fixed} when it started"
        remedy = f"choose {space.common_len} <= seq_len <= {space.block_len} or start another sweep"
        yield problem_at(f"{where}.seq_len", seq_len, rule, remedy)
    if all(type(number) is int and number >= 1 for number in shape):
        step = prod(shape)
        points = [point for budget in space.budgets_tokens for point in (*space.rungs_at(budget), budget)]
        missed = [point for point in points if point % step]
        if missed:
            nearest = ", ".join(f"{point}: {nearest_multiples(point, step)}" for point in missed)
            rule = f"does not hit the sweep's frozen rungs and budgets exactly (nearest to {nearest})"
            remedy = f"choose a shape whose tokens per step divide {', '.join(map(str, missed))}"
            yield Problem(where=where, value=f"{step} tokens per step", rule=rule, remedy=remedy)


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
