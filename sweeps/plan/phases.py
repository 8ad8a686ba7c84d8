"""What a sweep plans next, once the cells before it have ended: widened grids, confirm cells, views at other budgets.

Pure: the ledger's results go in, cells to be added come out. At each budget an arm goes on to its confirm cells as soon
as its own explore cells have ended, so that no worker waits for another arm.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from search_spaces import (
    Cell,
    Identity,
    OptunaSearch,
    Rate,
    Space,
    confirm_cells,
    explore_cells_at,
    view_cells,
)
from sweeps.formatting import plural
from sweeps.ledger.results import CellResult, SweepResults
from sweeps.ledger.sweep_folder import PlannedCell
from sweeps.verdict.best_rate import Choice, choose
from sweeps.verdict.margin import default_margin
from sweeps.verdict.speeds import measured_speeds
from sweeps.verdict.token_costs import costlier_arms, flops_of_tokens

View = Literal["time", "flops"]
VIEWS: Final[Mapping[View, str]] = {"time": "time", "flops": "FLOPs"}
"""The phases in which arms have budgets of their own, and what is equal in them."""


@dataclass(frozen=True, kw_only=True)
class Added:
    """Cells to be added, why in a sentence, and the equivalence margin once explore has ended everywhere."""

    cells: tuple[PlannedCell, ...] = ()
    because: str = ""
    margin: float | None = None


def first_cells(space: Space, cells: Sequence[Cell]) -> tuple[PlannedCell, ...]:
    """The first grid as planned cells: all of them take part in early stopping where the space has one."""
    stops = space.early_stopping.kind != "none"
    known = (cell for cell in cells if cell.cell_id is not None)  # a search has yet to suggest the others' rates
    return tuple(PlannedCell(cell=cell, reason="grid", may_stop_early=stops) for cell in known)


def next_cells(space: Space, identity: Identity, results: SweepResults, planned: Sequence[PlannedCell]) -> Added:
    """What follows from the explore cells that have ended; nothing where it stands in the plan already."""
    known = {entry.cell_id for entry in planned}
    widened = [entry for entry in planned if entry.reason == "widening"]
    cells: list[PlannedCell] = []
    reasons: list[str] = []
    for search in _searches(space, results):
        seen = results.at(search.budget_tokens)
        explored = seen.of("explore", search.strategy)
        if any(result.outcome is None for result in explored):
            continue
        n_suggested = sum(entry.reason == "suggestion" and search.has(entry.cell) for entry in planned)
        suggested = _suggestion(space, identity, search, explored, n_suggested)
        if suggested:
            cells += suggested
            continue
        choice = choose(seen, search.strategy)
        if choice is None:
            continue
        times = len({entry.cell.rate for entry in widened if search.has(entry.cell)})
        wider = _widening(space, identity, search, choice) if times < space.rates.max_widenings else ()
        fresh = [entry for entry in wider if entry.cell_id not in known]
        if not fresh:  # nothing to widen by, or only rates whose cells failed, which say nothing
            fresh = [entry for entry in _judging(space, identity, search, choice) if entry.cell_id not in known]
        if fresh:
            cells += fresh
            reasons.append(search.at_its_budget(_because(fresh, choice), space))
    for phase in () if cells else VIEWS:
        viewed = _view_cells(space, identity, results, phase, known)
        if viewed:
            cells += viewed
            cells_of_arms = plural(len(viewed), "cell")
            reasons.append(f"equal {VIEWS[phase]}: {cells_of_arms} with the tokens that each arm has in them")
    return Added(cells=tuple(cells), because=". ".join(reasons), margin=_margin(space, results, cells))


@dataclass(frozen=True, kw_only=True)
class _Search:
    """A search for one arm's best rate at one budget."""

    budget_tokens: int
    strategy: str

    def has(self, cell: Cell) -> bool:
        """Whether a cell is part of it, or judged at its outcome."""
        return (cell.budget_tokens, cell.strategy) == (self.budget_tokens, self.strategy)

    def at_its_budget(self, sentence: str, space: Space) -> str:
        """``sentence``, with the budget where there are several."""
        return f"{sentence} (at {self.budget_tokens:,} tokens)" if len(space.budgets_tokens) > 1 else sentence


def _searches(space: Space, results: SweepResults) -> list[_Search]:
    """Every search of a sweep: those of the space, and those that an extension added."""
    explored = [r.cell for r in results.cells if r.cell.phase == "explore"]
    places = [
        *((budget, arm.name) for budget in space.budgets_tokens for arm in space.arms_at(budget)),
        *((cell.budget_tokens, cell.strategy) for cell in explored),
    ]
    return [_Search(budget_tokens=budget, strategy=strategy) for budget, strategy in dict.fromkeys(places)]


def _suggestion(
    space: Space, identity: Identity, search: _Search, explored: Sequence[CellResult], n_suggested: int
) -> tuple[PlannedCell, ...]:
    """The next suggested rate of an arm on its explore seeds, while a search has trials left for it.

    The search is given all that was explored, rates that the user added too; these take no trial from it.
    """
    if not isinstance(space.search, OptunaSearch):
        return ()
    if n_suggested >= space.search.trials_per_arm * space.seeds.explore:
        return ()
    from sweeps.plan.search import suggest

    rate = suggest(space, search.strategy, explored, search.budget_tokens)
    cells = _explored_at(space, identity, search, rate)
    stops = space.early_stopping.kind != "none"
    return tuple(PlannedCell(cell=cell, reason="suggestion", may_stop_early=stops) for cell in cells)


def _explored_at(space: Space, identity: Identity, search: _Search, rate: Rate) -> tuple[Cell, ...]:
    """The explore cells of one rate."""
    return explore_cells_at(space, identity, strategy=search.strategy, rates=[rate], budget_tokens=search.budget_tokens)


def _widening(space: Space, identity: Identity, search: _Search, choice: Choice) -> Iterator[PlannedCell]:
    """One rate beyond each edge at which the arm's best rate lies."""
    for edge in choice.edges:
        lr = edge.next_rate if edge.rate == "lr" else choice.lr
        adamw_lr = edge.next_rate if edge.rate == "adamw_lr" else _adamw_lr_at(choice, lr)
        for cell in _explored_at(space, identity, search, Rate(lr=lr, adamw_lr=adamw_lr)):
            yield PlannedCell(cell=cell, reason="widening", may_stop_early=False)


def _judging(space: Space, identity: Identity, search: _Search, choice: Choice) -> Iterator[PlannedCell]:
    """The cells on which the arm is judged at its chosen rate."""
    chosen = {choice.strategy: _rate_of(choice)}
    for cell in confirm_cells(space, identity, chosen, budget_tokens=search.budget_tokens):
        if cell.cell_id is not None:
            yield PlannedCell(cell=cell, reason="confirm", may_stop_early=False)


def _view_cells(
    space: Space, identity: Identity, results: SweepResults, phase: View, known: Collection[str | None]
) -> list[PlannedCell]:
    """The view at equal time or equal FLOPs: each costlier arm with the tokens that it has in what the cheapest needs.

    Planned when every confirm cell has ended. The budgets are frozen with the first cells: seeds that an extension
    adds, and a rate that it makes the best one, get the same.
    """
    if not (space.time_view if phase == "time" else space.flops_view):
        return []
    confirmed = {arm.name: results.of("confirm", arm.name) for arm in space.strategies if not arm.is_control}
    if any(not cells or any(result.outcome is None for result in cells) for cells in confirmed.values()):
        return []
    frozen = {r.cell.strategy: float(r.cell.budget_tokens) for r in results.cells if r.cell.phase == phase}
    shares = _shares_of_equal_time(confirmed) if phase == "time" else _shares_of_equal_flops(results)
    budgets = frozen or {arm: space.budget_tokens * share for arm, share in shares.items()}
    chosen = {arm: _rate_of(choice) for arm in budgets if (choice := choose(results, arm)) is not None}
    made = view_cells(space, identity, phase, chosen, budgets)
    return [
        PlannedCell(cell=cell, reason=phase, may_stop_early=False)
        for cell in made
        if cell.cell_id is not None and cell.cell_id not in known
    ]


def _shares_of_equal_time(confirmed: Mapping[str, Sequence[CellResult]]) -> dict[str, float]:
    """Of the budget what each slower arm trains while the fastest ends, by confirm cells under one load."""
    measured = measured_speeds(confirmed)
    if measured is None:
        return {}
    fastest = max(measured.tokens_per_s.values())
    return {arm: speed / fastest for arm, speed in measured.tokens_per_s.items() if speed < fastest}


def _shares_of_equal_flops(results: SweepResults) -> dict[str, float]:
    """Of the budget what each costlier arm trains in the FLOPs that the cheapest one needs for the whole of it."""
    return {arm: 1 / cost for arm, cost in costlier_arms(flops_of_tokens(results)).items()}


def _rate_of(choice: Choice) -> Rate:
    assert choice.adamw_lr is not None, "a cell in the ledger has both rates"
    return Rate(lr=choice.lr, adamw_lr=choice.adamw_lr)


def _adamw_lr_at(choice: Choice, lr: float) -> float:
    """AdamW's rate beside a widened one: in the same ratio, unless it was the same for every rate that was tried."""
    assert choice.adamw_lr is not None, "a cell in the ledger has both rates"
    at_other_rates = {tried.adamw_lr for tried in choice.tried}
    is_fixed = len({tried.lr for tried in choice.tried}) > 1 and len(at_other_rates) == 1
    return choice.adamw_lr if is_fixed else float(f"{choice.adamw_lr * lr / choice.lr:.6g}")


def _because(fresh: Sequence[PlannedCell], choice: Choice) -> str:
    name = choice.strategy
    if fresh[0].reason == "widening":
        rates = ", ".join(f"{entry.cell.lr:g}" for entry in fresh)
        return f"{name}: the best rate {choice.lr:g} is at the edge of its grid, widened to {rates}"
    seeds = plural(len(fresh), f"{fresh[0].reason} seed")
    return f"{name}: best rate {choice.lr:g} (validation {choice.val_loss:.4f}); now training {seeds}"


def _margin(space: Space, results: SweepResults, added: Sequence[PlannedCell]) -> float | None:
    """The equivalence margin from explore records alone, once every explore cell has ended and no other follows."""
    if space.verdict.margin != "auto":
        return float(space.verdict.margin)
    explored = [r for r in results.cells if r.cell.phase == "explore" and r.cell.strategy in results.arm_names]
    if any(entry.cell.phase == "explore" for entry in added):
        return None
    if not explored or any(result.outcome is None for result in explored):
        return None
    return default_margin(results)
