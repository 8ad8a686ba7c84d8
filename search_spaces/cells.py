"""Cells: the points of a space, and ids that depend on what decides their numbers and on nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from search_spaces.sections import OptunaSearch, Strategy
from search_spaces.space import Space

Phase = Literal["explore", "confirm", "control", "time"]
Arrangement = Literal["shuffled", "grouped"]

EXPLORE_SEEDS_FROM = 1
CONFIRM_SEEDS_FROM = 101


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Fingerprints of what the exam and the training text are."""

    corpus_fingerprint: str
    tokenizer_fingerprint: str
    exam_fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A point of the search: Muon's rate and AdamW's, both absolute."""

    lr: float
    adamw_lr: float


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One point of a space. ``cell_id`` is None while the rate, or the identity, is not known."""

    cell_id: str | None
    phase: Phase
    strategy: str
    lr: float | None
    adamw_lr: float | None
    arrangement: Arrangement
    seed: int
    budget_tokens: int

    @property
    def rate(self) -> Rate | None:
        """Both rates, or None while explore has not decided them."""
        return None if self.lr is None or self.adamw_lr is None else Rate(lr=self.lr, adamw_lr=self.adamw_lr)

    def as_dict(self) -> dict[str, Any]:
        """The cell as a JSON-able dict; ``Cell(**record)`` reads it back."""
        return asdict(self)


def explore_seeds(space: Space) -> tuple[int, ...]:
    """The numbers of the explore seeds, from 1."""
    return tuple(range(EXPLORE_SEEDS_FROM, EXPLORE_SEEDS_FROM + space.seeds.explore))


def confirm_seeds(total: int) -> tuple[int, ...]:
    """The numbers of ``total`` confirm seeds, from 101: a larger total begins with those of a smaller one."""
    return tuple(range(CONFIRM_SEEDS_FROM, CONFIRM_SEEDS_FROM + total))


def rates_at(space: Space, lr: float) -> tuple[Rate, ...]:
    """Muon's ``lr`` with each AdamW rate that the space pairs with it.

    An optuna search that draws the ratio itself has no pairing; asking for one is a programmer's error.
    """
    rates = space.rates
    if rates.adamw_ratio is not None:
        return (Rate(lr=lr, adamw_lr=tidy(lr * rates.adamw_ratio)),)
    if rates.adamw_fixed is not None:
        return (Rate(lr=lr, adamw_lr=rates.adamw_fixed),)
    assert rates.adamw_grid is not None, "the search draws AdamW's ratio: build its Rate from the suggestion"
    return tuple(Rate(lr=lr, adamw_lr=adamw_lr) for adamw_lr in rates.adamw_grid)


def tidy(value: float) -> float:
    """``value`` without the dust of binary arithmetic (twelve significant digits), so that ids do not hang on it."""
    return float(f"{value:.12g}")


def explored_arms(space: Space) -> tuple[tuple[str, Arrangement], ...]:
    """Every (strategy, arrangement) with a rate search of its own: all arms, and those of the control."""
    arms: list[tuple[str, Arrangement]] = [(strategy.name, "shuffled") for strategy in space.strategies]
    return (*arms, *((name, "grouped") for name in control_arms(space)))


def control_arms(space: Space) -> tuple[str, ...]:
    """The arms that the control regroups: those shorter than the longest, when ``controls`` is set."""
    shorter = (strategy.name for strategy in space.strategies if strategy.seq_len < space.block_len)
    return tuple(shorter) if space.controls else ()


def cell_at(
    space: Space,
    identity: Identity | None,
    *,
    phase: Phase,
    strategy: str,
    rate: Rate | None,
    seed: int,
    arrangement: Arrangement = "shuffled",
    budget_tokens: int | None = None,
) -> Cell:
    """The cell at this point of the space, with the space's budget unless another is given."""
    budget = space.budget_tokens if budget_tokens is None else budget_tokens
    point = Cell(
        cell_id=None,
        phase=phase,
        strategy=strategy,
        lr=None if rate is None else float(rate.lr),
        adamw_lr=None if rate is None else float(rate.adamw_lr),
        arrangement=arrangement,
        seed=seed,
        budget_tokens=budget,
    )
    if rate is None or identity is None or space.needs_fitting:
        return point
    return Cell(**{**point.as_dict(), "cell_id": _cell_id(space, identity, point)})


def explore_cells(space: Space, identity: Identity | None) -> tuple[Cell, ...]:
    """The cells that find each arm's rate, rates before arms, so that no arm waits for another to finish.

    With an optuna search, as many cells without a rate as it will suggest.
    """
    rates: Sequence[Rate | None]
    if isinstance(space.search, OptunaSearch):
        rates = [None] * space.search.trials_per_arm
    else:
        rates = [rate for lr in space.rates.lr for rate in rates_at(space, lr)]
    return tuple(
        cell_at(space, identity, phase="explore", strategy=name, rate=rate, seed=seed, arrangement=arrangement)
        for seed in explore_seeds(space)
        for rate in rates
        for name, arrangement in explored_arms(space)
    )


def explore_cells_at(
    space: Space,
    identity: Identity | None,
    *,
    strategy: str,
    rates: Iterable[Rate],
    arrangement: Arrangement = "shuffled",
) -> tuple[Cell, ...]:
    """One arm's explore cells at the given rates, on every explore seed: a widening, an extension, a suggestion."""
    return tuple(
        cell_at(space, identity, phase="explore", strategy=strategy, rate=rate, seed=seed, arrangement=arrangement)
        for rate in rates
        for seed in explore_seeds(space)
    )


def confirm_cells(
    space: Space, identity: Identity | None, chosen: Mapping[str, Rate] | None = None, total_seeds: int | None = None
) -> tuple[Cell, ...]:
    """Every arm on fresh seeds at its chosen rate; without a choice (yet), cells without a rate.

    ``total_seeds`` is ``seeds.confirm`` unless given. Cells are ordered by seed, so that pairs finish together.
    """
    names = [strategy.name for strategy in space.strategies]
    return _judged(
        space,
        identity,
        phase="confirm",
        arrangement="shuffled",
        names=names,
        chosen=chosen,
        total_seeds=total_seeds,
    )


def control_cells(
    space: Space, identity: Identity | None, chosen: Mapping[str, Rate] | None = None, total_seeds: int | None = None
) -> tuple[Cell, ...]:
    """The control on the confirm seeds: short arms with grouped windows, each at the rate that its own search chose."""
    return _judged(
        space,
        identity,
        phase="control",
        arrangement="grouped",
        names=control_arms(space),
        chosen=chosen,
        total_seeds=total_seeds,
    )


def time_cells(
    space: Space,
    identity: Identity | None,
    chosen: Mapping[str, Rate] | None,
    budgets_tokens: Mapping[str, float],
    total_seeds: int | None = None,
) -> tuple[Cell, ...]:
    """The time view on the confirm seeds: each arm named in ``budgets_tokens`` with that budget of its own.

    A budget is rounded to the nearest whole number of the arm's steps, and is at least one step.
    """
    cells = confirm_cells(space, identity, chosen, total_seeds)
    return tuple(
        cell_at(
            space,
            identity,
            phase="time",
            strategy=cell.strategy,
            rate=cell.rate,
            seed=cell.seed,
            budget_tokens=whole_steps(space.strategy(cell.strategy), budgets_tokens[cell.strategy]),
        )
        for cell in cells
        if cell.strategy in budgets_tokens
    )


def whole_steps(strategy: Strategy, tokens: float) -> int:
    """``tokens`` rounded to the nearest whole number of the strategy's optimizer steps, at least one."""
    return max(1, round(tokens / strategy.tokens_per_step)) * strategy.tokens_per_step


def planned_cells(space: Space, identity: Identity | None = None) -> tuple[Cell, ...]:
    """What a sweep will run as far as it can be known before it starts: explore, confirm and control cells."""
    return (*explore_cells(space, identity), *confirm_cells(space, identity), *control_cells(space, identity))


def _judged(
    space: Space,
    identity: Identity | None,
    *,
    phase: Phase,
    arrangement: Arrangement,
    names: Sequence[str],
    chosen: Mapping[str, Rate] | None,
    total_seeds: int | None,
) -> tuple[Cell, ...]:
    rates = chosen or {}
    return tuple(
        cell_at(space, identity, phase=phase, strategy=name, rate=rates.get(name), seed=seed, arrangement=arrangement)
        for seed in confirm_seeds(space.seeds.confirm if total_seeds is None else total_seeds)
        for name in names
    )


def deciding_values(space: Space, identity: Identity, cell: Cell) -> dict[str, Any]:
    """All that decides a cell's numbers, JSON-able. Names, paths, resources, rungs and verdict rules are not in it."""
    resolved = space.resolved()
    strategy = _shape_of(space.strategy(cell.strategy))
    point = cell.as_dict()
    for key in ("cell_id", "strategy"):
        del point[key]
    return {
        "schema": 1,
        "point": point,
        "strategy": strategy,
        "block_len": space.block_len,
        "precision": space.precision,
        "model": resolved["model"],
        "optimizer": resolved["optimizer"],
        "schedule": resolved["schedule"],
        "identity": asdict(identity),
    }


def _shape_of(strategy: Strategy) -> dict[str, int]:
    """A strategy's shape without its name."""
    micro_batch_size, seq_len, grad_accum_steps = strategy.shape
    return {"micro_batch_size": micro_batch_size, "seq_len": seq_len, "grad_accum_steps": grad_accum_steps}


def _cell_id(space: Space, identity: Identity, cell: Cell) -> str:
    text = json.dumps(deciding_values(space, identity, cell), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
