"""Rules between arms, budget and rungs. Each yields a ``Problem`` per breach and assumes values sound by themselves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import lcm
from typing import Literal

from search_spaces.arithmetic import nearest_divisors, nearest_multiples
from search_spaces.problems import Problem, as_toml, did_you_mean
from search_spaces.sections import EarlyStopping, GridSearch, OptunaSearch
from search_spaces.validation import PartialArm


def two_arms(strategies: Sequence[PartialArm]) -> Iterator[Problem]:
    """A comparison needs two."""
    if len(strategies) < 2:
        yield Problem(
            where="strategies",
            value=f"{len(strategies)} given",
            rule="must hold at least two arms, since a comparison needs two",
            remedy="add a [[strategies]] table",
        )


def distinct_arms(strategies: Sequence[PartialArm], fit_memory_gib: float | None, fitted: bool) -> Iterator[Problem]:
    """No two arms share a name, and none a shape: they would be the same cells."""
    by_name: dict[str, list[PartialArm]] = defaultdict(list)
    by_shape: dict[str, list[PartialArm]] = defaultdict(list)
    for arm in strategies:
        if arm.name is not None:
            by_name[arm.name].append(arm)
        if needs_fitting(fit_memory_gib, fitted) and arm.seq_len is not None:
            by_shape[f"seq_len {arm.seq_len} (fit_memory_gib decides the rest)"].append(arm)
        elif arm.tokens_per_step is not None:
            shape = f"{arm.micro_batch_size} x {arm.seq_len}, accumulate {arm.grad_accum_steps}"
            by_shape[f"shape {shape}"].append(arm)
    for name, arms in by_name.items():
        for repeated in arms[1:]:
            yield Problem(
                where=f"{repeated.where}.name",
                value=as_toml(name),
                rule=f"is already the name of {arms[0].where}",
                remedy="give every arm a name of its own",
            )
    for shape, arms in by_shape.items():
        for repeated in arms[1:]:
            yield Problem(
                where=repeated.where,
                rule=f"has the same {shape} as {arms[0].where}, so both would be the same cells",
                remedy="change one of them or leave it out",
            )


def lengths_nest(strategies: Sequence[PartialArm]) -> Iterator[Problem]:
    """Every arm's windows are cut from blocks of the longest arm's length."""
    longest = max((arm.seq_len or 0 for arm in strategies), default=0)
    for arm in strategies:
        if arm.seq_len is not None and longest % arm.seq_len:
            yield Problem(
                where=f"{arm.where}.seq_len",
                value=str(arm.seq_len),
                rule=f"must divide the longest seq_len ({longest}), from whose blocks every arm's windows are cut",
                remedy=f"choose {nearest_divisors(arm.seq_len, longest)}",
            )


def budget_is_whole(
    budget_tokens: int, strategies: Sequence[PartialArm], fit_memory_gib: float | None, fitted: bool
) -> Iterator[Problem]:
    """Every arm must hit the budget exactly."""
    multiple, of_what = common_multiple(strategies, fit_memory_gib, fitted)
    yield from _whole("budget_tokens", budget_tokens, multiple, of_what)


def rungs_are_whole(
    rungs_tokens: Sequence[int], strategies: Sequence[PartialArm], fit_memory_gib: float | None, fitted: bool
) -> Iterator[Problem]:
    """Every arm must hit every rung exactly."""
    multiple, of_what = common_multiple(strategies, fit_memory_gib, fitted)
    for index, rung in enumerate(rungs_tokens):
        yield from _whole(f"rungs_tokens[{index}]", rung, multiple, of_what)


def rungs_below_budget(rungs_tokens: Sequence[int], budget_tokens: int) -> Iterator[Problem]:
    """A rung is a point on the way."""
    for index, rung in enumerate(rungs_tokens):
        if rung >= budget_tokens:
            yield Problem(
                where=f"rungs_tokens[{index}]",
                value=str(rung),
                rule=f"must lie below the budget ({budget_tokens} tokens)",
                remedy=f"choose a rung below {budget_tokens} or leave it out",
            )


def rungs_increase(rungs_tokens: Sequence[int]) -> Iterator[Problem]:
    """Rungs are climbed in order."""
    if any(later <= earlier for earlier, later in pairwise(rungs_tokens)):
        yield Problem(
            where="rungs_tokens",
            value=as_toml(rungs_tokens),
            rule="must increase strictly",
            remedy=f"write {as_toml(sorted(set(rungs_tokens)))}",
        )


def keep_fits_rungs(kind: str, keep: Sequence[int | float], rungs_tokens: Sequence[int]) -> Iterator[Problem]:
    """One keep per rung, and none without early stopping."""
    if kind == "none" and keep:
        yield Problem(
            where="early_stopping.keep",
            value=as_toml(keep),
            rule='has no meaning with early_stopping.kind="none"',
            remedy='leave keep out or set kind = "asha"',
        )
    if kind == "asha" and not rungs_tokens:
        yield Problem(
            where="rungs_tokens",
            value="[]",
            rule="must name at least one rung for early stopping to decide at",
            remedy='add rungs or set early_stopping = "none"',
        )
    elif kind == "asha" and len(keep) != len(rungs_tokens):
        yield Problem(
            where="early_stopping.keep",
            value=as_toml(keep),
            rule=f"must have one entry per rung ({len(rungs_tokens)} in rungs_tokens)",
            remedy=f"write {len(rungs_tokens)} counts or fractions",
        )


def keep_never_grows(kind: Literal["asha", "none"], keep: Sequence[int | float], n_cells: int) -> Iterator[Problem]:
    """A later rung cannot keep more than an earlier one let through."""
    counts = EarlyStopping(kind=kind, keep=tuple(keep)).keep_counts(n_cells)
    if any(later > earlier for earlier, later in pairwise(counts)):
        yield Problem(
            where="early_stopping.keep",
            value=as_toml(keep),
            rule=f"must not increase (of {n_cells} it keeps {as_toml(counts)})",
            remedy="keep at a later rung at most as many as at the one before",
        )


def controls_have_a_subject(controls: bool, strategies: Sequence[PartialArm]) -> Iterator[Problem]:
    """The control regroups the windows of arms shorter than the longest."""
    lengths = {arm.seq_len for arm in strategies}
    if controls and None not in lengths and len(strategies) > 1 and len(lengths) == 1:
        yield Problem(
            where="controls",
            value="true",
            rule="needs an arm shorter than the longest, and all arms have the same seq_len",
            remedy="set controls = false",
        )


def gpu_table_names_arms(gpu_per_trial: object, strategies: Sequence[PartialArm]) -> Iterator[Problem]:
    """A table of GPU shares has one entry per arm."""
    names = [arm.name for arm in strategies if arm.name is not None]
    if not isinstance(gpu_per_trial, dict):
        return
    for name in gpu_per_trial:
        if name not in names:
            yield Problem(
                where=f"resources.gpu_per_trial.{name}",
                value=as_toml(gpu_per_trial[name]),
                rule="names no arm",
                remedy=did_you_mean(name, names) or f"the arms are {', '.join(names)}",
            )
    for name in names:
        if name not in gpu_per_trial:
            yield Problem(
                where=f"resources.gpu_per_trial.{name}",
                rule="is missing from the table",
                remedy="give every arm its share",
            )


def needs_fitting(fit_memory_gib: float | None, fitted: bool) -> bool:
    """Whether the planner still has to choose the micro-batches."""
    return fit_memory_gib is not None and not fitted


def common_multiple(strategies: Sequence[PartialArm], fit_memory_gib: float | None, fitted: bool) -> tuple[int, str]:
    """What budget and rungs must be a multiple of, and why. Arms with unsound numbers are left out."""
    if needs_fitting(fit_memory_gib, fitted):
        lengths = [arm.seq_len for arm in strategies if arm.seq_len is not None]
        return lcm(*lengths), "every arm's seq_len"
    steps = [arm.tokens_per_step for arm in strategies if arm.tokens_per_step is not None]
    return lcm(*steps), f"every arm's tokens per step ({', '.join(map(str, dict.fromkeys(steps)))})"


def candidates_per_arm(search: GridSearch | OptunaSearch, n_lr: int, n_adamw: int) -> int:
    """How many cells per seed compete inside one arm."""
    return search.trials_per_arm if isinstance(search, OptunaSearch) else n_lr * n_adamw


def _whole(where: str, tokens: int, multiple: int, of_what: str) -> Iterator[Problem]:
    if tokens % multiple:
        yield Problem(
            where=where,
            value=str(tokens),
            rule=f"must be a multiple of {multiple}, the least common multiple of {of_what}",
            remedy=f"choose {nearest_multiples(tokens, multiple)}",
        )
