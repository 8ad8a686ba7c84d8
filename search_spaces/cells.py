"""Cells: the points of a space, and ids that depend on what decides their numbers, and on nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import lcm
from typing import Any, Literal

from search_spaces.sections import SHAPE, OptunaSearch
from search_spaces.space import Space

Phase = Literal["explore", "confirm", "time", "flops"]
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


def rates_at(space: Space, strategy: str, lr: float) -> tuple[Rate, ...]:
    """An arm's ``lr`` with each AdamW rate that it is paired with.

    An optuna search that draws the ratio itself has no pairing; asking for one is a programmer's error.
    """
    rates = space.of_arm(strategy).rates
    if rates.adamw_ratio is not None:
        return (Rate(lr=lr, adamw_lr=tidy(lr * rates.adamw_ratio)),)
    if rates.adamw_fixed is not None:
        return (Rate(lr=lr, adamw_lr=rates.adamw_fixed),)
    assert rates.adamw_grid is not None, "the search draws AdamW's ratio: build its Rate from the suggestion"
    return tuple(Rate(lr=lr, adamw_lr=adamw_lr) for adamw_lr in rates.adamw_grid)


def tidy(value: float) -> float:
    """``value`` to twelve significant digits, so that no id depends on the rounding of binary arithmetic."""
    return float(f"{value:.12g}")


def grid_of(space: Space, strategy: str) -> tuple[Rate, ...]:
    """The rates of an arm's grid."""
    return tuple(rate for lr in space.of_arm(strategy).rates.lr for rate in rates_at(space, strategy, lr))


def cell_at(
    space: Space,
    identity: Identity | None,
    *,
    phase: Phase,
    strategy: str,
    rate: Rate | None,
    seed: int,
    budget_tokens: int | None = None,
) -> Cell:
    """The cell at this point of the space, with the space's largest budget unless another is given."""
    point = Cell(
        cell_id=None,
        phase=phase,
        strategy=strategy,
        lr=None if rate is None else float(rate.lr),
        adamw_lr=None if rate is None else float(rate.adamw_lr),
        arrangement=space.strategy(strategy).windows,
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
    search = space.search
    grids: dict[str, Sequence[Rate | None]] = {
        arm.name: [None] * search.trials_per_arm if isinstance(search, OptunaSearch) else grid_of(space, arm.name)
        for arm in space.strategies
    }
    return tuple(
        cell_at(space, identity, phase="explore", strategy=arm.name, rate=rate, seed=seed, budget_tokens=budget)
        for budget in space.budgets_tokens
        for seed in _explore_seeds(space)
        for place in range(max(map(len, grids.values())))
        for arm in space.arms_at(budget)
        for rate in grids[arm.name][place : place + 1]
    )


def explore_cells_at(
    space: Space, identity: Identity | None, *, strategy: str, rates: Iterable[Rate], budget_tokens: int
) -> tuple[Cell, ...]:
    """One arm's explore cells at the given rates, on every explore seed: a widening, an extension, a suggestion."""
    return tuple(
        cell_at(space, identity, phase="explore", strategy=strategy, rate=rate, seed=seed, budget_tokens=budget_tokens)
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
    rates, budget = chosen or {}, space.budget_tokens if budget_tokens is None else budget_tokens
    return tuple(
        cell_at(
            space,
            identity,
            phase="confirm",
            strategy=arm.name,
            rate=rates.get(arm.name),
            seed=seed,
            budget_tokens=budget,
        )
        for seed in confirm_seeds(space.seeds.confirm if total_seeds is None else total_seeds)
        for arm in space.arms_at(budget)
    )


def view_cells(
    space: Space,
    identity: Identity | None,
    phase: Literal["time", "flops"],
    chosen: Mapping[str, Rate] | None,
    budgets_tokens: Mapping[str, float],
    total_seeds: int | None = None,
) -> tuple[Cell, ...]:
    """A view at equal time or equal FLOPs on the confirm seeds: each arm of ``budgets_tokens`` with its own budget.

    A budget is rounded to the nearest whole number of the arm's steps and of blocks, and is at least one of them.
    """
    budgets = {}
    for name, tokens in budgets_tokens.items():
        unit = lcm(space.strategy(name).tokens_per_step, space.block_len)
        budgets[name] = max(1, round(tokens / unit)) * unit
    cells = [cell for cell in confirm_cells(space, None, chosen, total_seeds) if cell.strategy in budgets]
    return tuple(
        _identified(space, identity, replace(cell, phase=phase, budget_tokens=budgets[cell.strategy])) for cell in cells
    )


def planned_cells(space: Space, identity: Identity | None = None) -> tuple[Cell, ...]:
    """What a sweep will run as far as it can be known before it starts: explore and confirm cells."""
    confirm = [cell for budget in space.budgets_tokens for cell in confirm_cells(space, identity, budget_tokens=budget)]
    return (*explore_cells(space, identity), *confirm)


def _cell_id(space: Space, identity: Identity, cell: Cell) -> str:
    """A hash of all that decides the cell's numbers. Names, paths, shares, rungs and verdict rules do not.

    A choice that is newer than the sweeps of earlier versions is named where it differs from what was fixed then.
    """
    arm, resolved = space.strategy(cell.strategy), space.of_arm(cell.strategy).resolved()
    point = cell.as_dict()
    del point["cell_id"], point["strategy"]
    if arm.is_control and cell.phase == "confirm":
        point["phase"] = "control"  # a phase of its own then
    optimizer = resolved["optimizer"]
    newer = {"kind": "muon", "betas_at_tokens_per_step": None}
    deciding = {
        "schema": 1,
        "point": point,
        "strategy": arm.model_dump(include=set(SHAPE)),
        "block_len": space.block_len,
        "precision": space.precision,
        "model": resolved["model"],
        "optimizer": {key: value for key, value in optimizer.items() if key not in newer or value != newer[key]},
        "schedule": resolved["schedule"],
        "identity": asdict(identity),
    }
    if not space.resources.deterministic:
        deciding["deterministic"] = False
    text = json.dumps(deciding, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
