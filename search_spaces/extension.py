"""Growing a sweep: a grid past its edge, and more rates, arms or confirm seeds on what was already run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from search_spaces.fields import MAX_RATE, MIN_RATE, is_rate
from search_spaces.problems import Problem, SpaceErrors, as_toml, nearest_multiples
from search_spaces.sections import OptunaSearch, Strategy
from search_spaces.space import Space

# Nothing under these keys decides a cell's numbers or what is compared with what.
CHANGEABLE_KEYS = ("description", "keep", "resources")
# The number of threads decides the last bits of sums, so a cell must end on as many as it began on.
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
) -> Space:
    """``space`` with more rates, more arms, or a larger total of confirm seeds; what it has already stays as it is.

    A rate that the grid has already is no problem and adds nothing. The exam and the blocks rest on the longest and
    the shortest length and on the budget, so these are frozen: an arm that does not fit them is refused.

    Raises:
        SpaceErrors: every reason why the extension cannot be.
    """
    arms = [arm.model_dump() if isinstance(arm, Strategy) else dict(arm) for arm in strategies]
    problems = [*_lr_problems(space, lr), *_adamw_problems(space, adamw_lr), *_seed_problems(space, confirm_seeds)]
    for arm in arms:
        problems += _arm_problems(space, arm)
    table = space.resolved()
    table["strategies"] = [*table["strategies"], *arms]
    if not isinstance(space.search, OptunaSearch):
        added = dict.fromkeys(rate for rate in lr if is_rate(rate) and rate not in space.rates.lr)
        table["rates"]["lr"] = [*table["rates"]["lr"], *added]
    if space.rates.adamw_grid is not None:
        grid = space.rates.adamw_grid
        table["rates"]["adamw_grid"] = [*grid, *dict.fromkeys(r for r in adamw_lr if is_rate(r) and r not in grid)]
    if confirm_seeds is not None:
        table["seeds"]["confirm"] = confirm_seeds
    try:
        extended = Space.from_resolved(table)
    except SpaceErrors as error:
        raise SpaceErrors([*problems, *_not_yet_told(error.problems, problems)], source="the extension") from error
    if problems:
        raise SpaceErrors(problems, source="the extension")
    return extended


def frozen_differences(before: Space, after: Space) -> list[Problem]:
    """What differs between two spaces and may not change between a run and its resumption."""
    old, new = _flat(before.resolved()), _flat(after.resolved())
    return [
        Problem(
            where=key,
            value=as_toml(new.get(key)),
            rule=f"was {as_toml(old.get(key))} when the sweep began, and decides what its cells are",
            remedy="leave it, extend the sweep, or start one under another name",
        )
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and (key.partition(".")[0] not in CHANGEABLE_KEYS or key in FROZEN_RESOURCES)
    ]


def _not_yet_told(general: Sequence[Problem], told: Sequence[Problem]) -> list[Problem]:
    """The problems of the extended space that do not repeat, in other words, those of the extension itself."""
    keys = {problem.where.rpartition(".")[2] for problem in told}
    frozen = ("budget_tokens", "rungs_tokens", *(("seq_len",) if "seq_len" in keys else ()))
    return [
        problem
        for problem in general
        if not told or not problem.where.rpartition(".")[2].partition("[")[0].startswith(frozen)
    ]


def _rate_problems(option: str, rates: Sequence[float], homeless: tuple[str, str] | None) -> list[Problem]:
    """What keeps rates out of a sweep; ``homeless`` is rule and remedy where it has no place for any."""
    rule = f"must be a rate from {MIN_RATE:g} to {MAX_RATE:g}"
    problems = [
        Problem(where=option, value=str(rate), rule=rule, remedy="choose a rate like 0.02")
        for rate in rates
        if not is_rate(rate)
    ]
    if rates and homeless is not None:
        rule, remedy = homeless
        problems.append(Problem(where=option, value=as_toml(rates), rule=rule, remedy=remedy))
    return problems


def _lr_problems(space: Space, lr: Sequence[float]) -> list[Problem]:
    is_drawn = isinstance(space.search, OptunaSearch) and space.search.searches_adamw_ratio
    homeless = (
        "has no AdamW rate to go with, since the search draws the ratio of the two",
        "start a sweep under another name with wider search.lr_low and search.lr_high",
    )
    return _rate_problems("--lr", lr, homeless if is_drawn else None)


def _adamw_problems(space: Space, adamw_lr: Sequence[float]) -> list[Problem]:
    homeless = (
        "has no grid to join, since AdamW's rate follows Muon's in this sweep",
        "start a sweep under another name with rates.adamw_grid",
    )
    return _rate_problems("--adamw-lr", adamw_lr, homeless if space.rates.adamw_grid is None else None)


def _seed_problems(space: Space, total: int | None) -> list[Problem]:
    if total is None or total >= space.seeds.confirm:
        return []
    return [
        Problem(
            where="--seeds",
            value=str(total),
            rule=f"is the total of confirm seeds, and the sweep has {space.seeds.confirm} already",
            remedy=f"choose more than {space.seeds.confirm}",
        )
    ]


def _arm_problems(space: Space, arm: Mapping[str, Any]) -> list[Problem]:
    where = f"strategies.{arm.get('name')}"
    problems: list[Problem] = []
    seq_len = arm.get("seq_len")
    if isinstance(seq_len, int) and not space.common_len <= seq_len <= space.block_len:
        side = "longer than the longest" if seq_len > space.block_len else "shorter than the shortest"
        fixed = "blocks and the exam's rows were" if seq_len > space.block_len else "the exam's common context was"
        limit = space.block_len if seq_len > space.block_len else space.common_len
        problems.append(
            Problem(
                where=f"{where}.seq_len",
                value=str(seq_len),
                rule=f"is {side} arm ({limit} tokens), by which {fixed} fixed when the sweep began",
                remedy=f"choose {space.common_len} <= seq_len <= {space.block_len} or start a sweep under another name",
            )
        )
    numbers = [arm.get("micro_batch_size"), seq_len, arm.get("grad_accum_steps", 1)]
    if all(type(number) is int and number >= 1 for number in numbers):
        step = numbers[0] * numbers[1] * numbers[2]
        missed = [point for point in (*space.rungs_tokens, space.budget_tokens) if point % step]
        if missed:
            nearest = ", ".join(f"{point}: {nearest_multiples(point, step)}" for point in missed)
            problems.append(
                Problem(
                    where=where,
                    value=f"{step} tokens per step",
                    rule=f"does not hit the sweep's frozen rungs and budget exactly (nearest to {nearest})",
                    remedy=f"choose a shape whose tokens per step divide {', '.join(map(str, missed))}",
                )
            )
    return problems


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
