"""Cells: the points of a space, and ids that depend on what decides their numbers, and on nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import lcm
from typing import Any, Literal

from search_spaces.sections import OptunaSearch
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


def confirm_seeds(total: int) -> tuple[int, ...]:
    """The numbers of ``total`` confirm seeds, from 101: a larger total starts with those of a smaller one."""
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
    """``value`` to twelve significant digits, so that no id depends on the rounding of binary arithmetic."""
    return float(f"{value:.12g}")


def explored_arms(space: Space, budget_tokens: int) -> tuple[tuple[str, Arrangement], ...]:
    """Every (strategy, arrangement) with a rate search at a budget: all arms, and at the largest the control's."""
    arms: list[tuple[str, Arrangement]] = [(strategy.name, "shuffled") for strategy in space.strategies]
    grouped = _control_arms(space) if budget_tokens == space.budget_tokens else ()
    return (*arms, *((name, "grouped") for name in grouped))


def _control_arms(space: Space) -> list[str]:
    """The arms that the control regroups: those shorter than the longest, when ``controls`` is set."""
    return [arm.name for arm in space.strategies if space.controls and arm.seq_len < space.block_len]


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
    """The cell at this point of the space, with the space's largest budget unless another is given."""
    point = Cell(
        cell_id=None,
        phase=phase,
        strategy=strategy,
        lr=None if rate is None else float(rate.lr),
        adamw_lr=None if rate is None else float(rate.adamw_lr),
        arrangement=arrangement,
        seed=seed,
        budget_tokens=space.budget_tokens if budget_tokens is None else budget_tokens,
    )
    return _identified(space, identity, point)


def _identified(space: Space, identity: Identity | None, cell: Cell) -> Cell:
    """``cell`` with its id, where everything that decides it is known."""
    if cell.rate is None or identity is None:
        return cell
    return replace(cell, cell_id=_cell_id(space, identity, cell))


def explore_cells(space: Space, identity: Identity | None) -> tuple[Cell, ...]:
    """The cells that find each arm's rate at each budget, rates before arms, so that no arm waits for another to end.

    With an optuna search, as many cells without a rate as it will suggest.
    """
    rates: Sequence[Rate | None]
    if isinstance(space.search, OptunaSearch):
        rates = [None] * space.search.trials_per_arm
    else:
        rates = [rate for lr in space.rates.lr for rate in rates_at(space, lr)]
    return tuple(
        cell_at(
            space,
            identity,
            phase="explore",
            strategy=name,
            rate=rate,
            seed=seed,
            arrangement=arrangement,
            budget_tokens=budget,
        )
        for budget in space.budgets_tokens
        for seed in _explore_seeds(space)
        for rate in rates
        for name, arrangement in explored_arms(space, budget)
    )


def explore_cells_at(
    space: Space,
    identity: Identity | None,
    *,
    strategy: str,
    rates: Iterable[Rate],
    budget_tokens: int,
    arrangement: Arrangement = "shuffled",
) -> tuple[Cell, ...]:
    """One arm's explore cells at the given rates, on every explore seed: a widening, an extension, a suggestion."""
    return tuple(
        cell_at(
            space,
            identity,
            phase="explore",
            strategy=strategy,
            rate=rate,
            seed=seed,
            arrangement=arrangement,
            budget_tokens=budget_tokens,
        )
        for rate in rates
        for seed in _explore_seeds(space)
    )


def _explore_seeds(space: Space) -> range:
    return range(EXPLORE_SEEDS_FROM, EXPLORE_SEEDS_FROM + space.seeds.explore)


def confirm_cells(
    space: Space,
    identity: Identity | None,
    chosen: Mapping[str, Rate] | None = None,
    total_seeds: int | None = None,
    budget_tokens: int | None = None,
) -> tuple[Cell, ...]:
    """Every arm on fresh seeds at its chosen rate; without a choice (yet), cells without a rate.

    ``total_seeds`` is ``seeds.confirm`` unless given, the budget the largest. Every budget has the same seeds. Cells
    are ordered by seed, so that pairs finish together.
    """
    rates = chosen or {}
    return tuple(
        cell_at(
            space,
            identity,
            phase="confirm",
            strategy=arm.name,
            rate=rates.get(arm.name),
            seed=seed,
            budget_tokens=budget_tokens,
        )
        for seed in confirm_seeds(space.seeds.confirm if total_seeds is None else total_seeds)
        for arm in space.strategies
    )


def control_cells(
    space: Space,
    identity: Identity | None,
    chosen: Mapping[str, Rate] | None = None,
    total_seeds: int | None = None,
    budget_tokens: int | None = None,
) -> tuple[Cell, ...]:
    """The control on the confirm seeds: short arms with grouped windows, each at the rate that its own search chose."""
    short = _control_arms(space)
    cells = confirm_cells(space, None, chosen, total_seeds, budget_tokens)
    return tuple(
        _identified(space, identity, replace(cell, phase="control", arrangement="grouped"))
        for cell in cells
        if cell.strategy in short
    )


def time_cells(
    space: Space,
    identity: Identity | None,
    chosen: Mapping[str, Rate] | None,
    budgets_tokens: Mapping[str, float],
    total_seeds: int | None = None,
) -> tuple[Cell, ...]:
    """The time view on the confirm seeds: each arm named in ``budgets_tokens`` with its own budget.

    A budget is rounded to the nearest whole number of the arm's steps and of blocks, and is at least one of them.
    """
    budgets = {}
    for name, tokens in budgets_tokens.items():
        unit = lcm(space.strategy(name).tokens_per_step, space.block_len)
        budgets[name] = max(1, round(tokens / unit)) * unit
    cells = [cell for cell in confirm_cells(space, None, chosen, total_seeds) if cell.strategy in budgets]
    return tuple(
        _identified(space, identity, replace(cell, phase="time", budget_tokens=budgets[cell.strategy]))
        for cell in cells
    )


def planned_cells(space: Space, identity: Identity | None = None) -> tuple[Cell, ...]:
    """What a sweep will run as far as it can be known before it starts: explore, confirm and control cells."""
    confirm = [cell for budget in space.budgets_tokens for cell in confirm_cells(space, identity, budget_tokens=budget)]
    return (*explore_cells(space, identity), *confirm, *control_cells(space, identity))


def _cell_id(space: Space, identity: Identity, cell: Cell) -> str:
    """A hash of all that decides the cell's numbers. Names, paths, shares, rungs and verdict rules do not."""
    resolved = space.resolved()
    point = cell.as_dict()
    del point["cell_id"], point["strategy"]
    deciding = {
        "schema": 1,
        "point": point,
        "strategy": space.strategy(cell.strategy).model_dump(exclude={"name"}),
        "block_len": space.block_len,
        "precision": space.precision,
        "model": resolved["model"],
        "optimizer": resolved["optimizer"],
        "schedule": resolved["schedule"],
        "identity": asdict(identity),
    }
    if not space.resources.deterministic:
        deciding["deterministic"] = False  # named where it is off: it is on in every sweep from before it was a choice
    text = json.dumps(deciding, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
