"""What a sweep plans next, from results alone."""

from dataclasses import replace
from typing import Any

import pytest

from search_spaces import (
    Cell,
    Identity,
    Rate,
    Space,
    cell_at,
    confirm_cells,
    explore_cells,
    extended_space,
    load_space,
)
from sweeps.ledger.results import CellResult, SweepResults
from sweeps.ledger.sweep_folder import PlannedCell
from sweeps.plan.phases import first_cells, next_cells

IDENTITY = Identity(corpus_fingerprint="c", tokenizer_fingerprint="t", exam_fingerprint="e")
ARMS = ("large_batch", "balanced", "long_seq")


def space_with(*overrides: str) -> Space:
    return load_space(
        preset="laptop", overrides=["budget_tokens=524288", "early_stopping=none", "rungs_tokens=[]", *overrides]
    )


def ended(cell: Cell, loss: float | None, *, outcome: str = "completed", train_time_s: float = 10.0) -> CellResult:
    tokens = cell.budget_tokens
    record = {"tokens_seen": tokens, "val_loss": loss, "train_time_s": train_time_s, "timestamp_s": 0.0}
    return CellResult(cell=cell, outcome=outcome, tokens_seen=tokens, val_loss=loss, records=(record,))


def sweep(space: Space, cells: list[CellResult]) -> SweepResults:
    return SweepResults(name="s", beginning={"space": space.resolved()}, cells=tuple(cells))


def explored(space: Space, best: float) -> list[CellResult]:
    """Every explore cell ended, with the loss of each arm lowest at ``best``."""
    cells = explore_cells(space, IDENTITY)
    return [ended(cell, 4.0 + abs((cell.lr or 0) - best)) for cell in cells]


def planned(results: list[CellResult], reason: Any = "grid") -> list[PlannedCell]:
    return [PlannedCell(cell=result.cell, reason=reason, may_stop_early=False) for result in results]


def test_an_arm_goes_to_confirm_at_its_best_rate_without_waiting_for_the_others() -> None:
    space = space_with()
    cells = explored(space, best=0.01)
    waiting = [CellResult(cell=result.cell) if result.cell.strategy != "balanced" else result for result in cells]
    added = next_cells(space, IDENTITY, sweep(space, waiting), planned(waiting))
    assert {(entry.cell.phase, entry.cell.strategy, entry.cell.lr) for entry in added.cells} == {
        ("confirm", "balanced", 0.01)
    }
    assert [entry.cell.seed for entry in added.cells] == [101, 102, 103, 104, 105]
    assert added.margin is None
    assert added.because == "balanced: best rate 0.01 (validation 4.0000); now training 5 confirm seeds"


def test_the_margin_is_fixed_once_every_arm_has_explored() -> None:
    space = space_with()
    cells = explored(space, best=0.01)
    margin = next_cells(space, IDENTITY, sweep(space, cells), planned(cells)).margin
    assert margin is not None
    assert 0 < margin < 0.1
    stated = space_with("verdict.margin=0.02")
    assert next_cells(stated, IDENTITY, sweep(stated, cells), planned(cells)).margin == 0.02


def test_a_best_rate_at_the_edge_widens_the_grid_by_its_ratio_and_then_goes_on() -> None:
    space = space_with()
    cells = explored(space, best=0.04)
    added = next_cells(space, IDENTITY, sweep(space, cells), planned(cells))
    assert {(entry.reason, entry.cell.lr, entry.cell.adamw_lr) for entry in added.cells} == {("widening", 0.08, 0.024)}
    assert not any(entry.may_stop_early for entry in added.cells)
    wider = cells + [ended(entry.cell, 5.0) for entry in added.cells]
    after = next_cells(space, IDENTITY, sweep(space, wider), [*planned(cells), *added.cells])
    assert {(entry.cell.phase, entry.cell.lr) for entry in after.cells} == {("confirm", 0.04)}


def test_a_grid_is_widened_no_more_than_the_space_allows() -> None:
    space = space_with("rates.max_widenings=0")
    cells = explored(space, best=0.04)
    added = next_cells(space, IDENTITY, sweep(space, cells), planned(cells))
    assert {(entry.cell.phase, entry.cell.lr) for entry in added.cells} == {("confirm", 0.04)}


def test_nothing_is_added_twice() -> None:
    space = space_with()
    cells = explored(space, best=0.01)
    first = next_cells(space, IDENTITY, sweep(space, cells), planned(cells))
    again = next_cells(space, IDENTITY, sweep(space, cells), [*planned(cells), *first.cells])
    assert again.cells == ()


def test_an_arm_without_a_completed_rate_gets_no_confirm_cells() -> None:
    space = space_with()
    cells = [ended(cell, None, outcome="diverged") for cell in explore_cells(space, IDENTITY)]
    assert next_cells(space, IDENTITY, sweep(space, cells), planned(cells)).cells == ()


def test_controls_are_judged_at_the_rate_of_their_own_search() -> None:
    space = space_with("controls=true")
    cells = [
        ended(cell, 4.0 + abs((cell.lr or 0) - (0.02 if cell.arrangement == "grouped" else 0.01)))
        for cell in explore_cells(space, IDENTITY)
    ]
    added = next_cells(space, IDENTITY, sweep(space, cells), planned(cells))
    judged = {(entry.cell.strategy, entry.cell.lr) for entry in added.cells if entry.cell.arrangement == "grouped"}
    assert judged == {("large_batch_grouped", 0.02), ("balanced_grouped", 0.02)}


def test_slower_arms_get_time_cells_with_the_tokens_of_the_fastest_arms_time() -> None:
    space = space_with("time_view=true")
    cells = explored(space, best=0.01)
    chosen = {arm: Rate(lr=0.01, adamw_lr=0.003) for arm in ARMS}
    seconds = {"large_batch": 10.0, "balanced": 12.5, "long_seq": 20.0}
    cells += [ended(cell, 4.0, train_time_s=seconds[cell.strategy]) for cell in confirm_cells(space, IDENTITY, chosen)]
    added = next_cells(space, IDENTITY, sweep(space, cells), planned(cells))
    budgets = {entry.cell.strategy: entry.cell.budget_tokens for entry in added.cells}
    assert {entry.cell.phase for entry in added.cells} == {"time"}
    assert budgets == {"balanced": round(524_288 / 1.25 / 2048) * 2048, "long_seq": 262_144}
    cells += [CellResult(cell=entry.cell) for entry in added.cells]
    assert next_cells(space, IDENTITY, sweep(space, cells), planned(cells)).cells == ()
    cells = [ended(found.cell, 4.1) if found.cell.phase == "time" else found for found in cells]
    more = extended_space(space, confirm_seeds=6)
    sixth = [cell for cell in confirm_cells(more, IDENTITY, chosen) if cell.seed == 106]
    cells += [ended(cell, 4.0, train_time_s=10.0) for cell in sixth]  # as fast as each other: the budgets stay
    after = next_cells(more, IDENTITY, sweep(more, cells), planned(cells))
    assert {(entry.cell.strategy, entry.cell.seed, entry.cell.budget_tokens) for entry in after.cells} == {
        (arm, 106, tokens) for arm, tokens in budgets.items()
    }


def test_costlier_arms_get_cells_with_the_tokens_of_the_cheapest_arms_flops() -> None:
    space = space_with("flops_view=true", "strategies.balanced.model.top_k=1")
    cells = explored(space, best=0.01)
    chosen = {arm: Rate(lr=0.01, adamw_lr=0.003) for arm in ARMS}
    cells += [ended(cell, 4.0) for cell in confirm_cells(space, IDENTITY, chosen)]
    flops = {"large_batch": 8e6, "balanced": 4e6, "long_seq": 4.04e6}
    arms = [{**arm, "flops_per_token": flops[arm["name"]]} for arm in space.resolved()["strategies"]]
    results = replace(sweep(space, cells), beginning={"space": space.resolved(), "strategies": arms})
    added = next_cells(space, IDENTITY, results, planned(cells))
    assert {(entry.cell.phase, entry.cell.strategy, entry.cell.budget_tokens) for entry in added.cells} == {
        ("flops", "large_batch", 262_144)  # long_seq costs 1% more than balanced, which counts as equal
    }
    assert added.because == "equal FLOPs: 5 cells with the tokens that each arm has in them"


def test_time_cells_are_made_of_speeds_under_equal_load() -> None:
    space = space_with("time_view=true")
    cells = explored(space, best=0.01)
    chosen = {arm: Rate(lr=0.01, adamw_lr=0.003) for arm in ARMS}
    for cell in confirm_cells(space, IDENTITY, chosen):
        speeds = [(80.0, 2)] if cell.strategy == "balanced" else [(100.0, 2)]
        if cell.strategy == "large_batch":
            speeds += [(200.0, 1)]  # its last steps, when the others had ended
        records = tuple({"tokens_per_s": speed, "concurrent_trials": load} for speed, load in speeds)
        cells.append(replace(ended(cell, 4.0), records=records))
    added = next_cells(space, IDENTITY, sweep(space, cells), planned(cells))
    budgets = {entry.cell.strategy: entry.cell.budget_tokens for entry in added.cells}
    assert budgets == {"balanced": round(524_288 * 0.8 / 2048) * 2048}


def optuna_space() -> Space:
    return space_with("search=optuna", "search.trials_per_arm=4")


def suggested(space: Space, told: list[CellResult]) -> dict[str, float | None]:
    added = next_cells(space, IDENTITY, sweep(space, told), planned(told, "suggestion"))
    assert {entry.reason for entry in added.cells} == {"suggestion"}
    return {entry.cell.strategy: entry.cell.lr for entry in added.cells}


def test_an_optuna_search_suggests_one_rate_after_another_from_what_was_told() -> None:
    space = optuna_space()
    assert first_cells(space, explore_cells(space, IDENTITY)) == ()
    told: list[CellResult] = []
    for _ in range(4):
        rates = suggested(space, told)
        assert rates.keys() == set(ARMS)
        assert rates == suggested(space, told), "the same history gives the same suggestion"
        for arm, lr in rates.items():
            assert lr is not None
            assert 0.005 <= lr <= 0.04
            rate = Rate(lr=lr, adamw_lr=0.3 * lr)
            cell = cell_at(space, IDENTITY, phase="explore", strategy=arm, rate=rate, seed=1)
            told.append(ended(cell, 4.0 + abs(lr - 0.012)))
    after = next_cells(space, IDENTITY, sweep(space, told), planned(told, "suggestion"))
    assert {entry.cell.phase for entry in after.cells} <= {"confirm", "explore"}
    assert {entry.reason for entry in after.cells} <= {"confirm", "widening"}


@pytest.mark.parametrize("change", ["search.seed=1", "told"])
def test_a_suggestion_depends_on_the_seed_and_on_what_was_told(change: str) -> None:
    space = optuna_space()
    first = suggested(space, [])
    if change == "told":
        rate = Rate(lr=0.02, adamw_lr=0.006)
        cells = [cell_at(space, IDENTITY, phase="explore", strategy=arm, rate=rate, seed=1) for arm in ARMS]
        assert suggested(space, [ended(cell, 4.0) for cell in cells]) != first
    else:
        assert suggested(space_with("search=optuna", "search.trials_per_arm=4", change), []) != first


@pytest.mark.parametrize("outcome", ["failed", "oom"])
def test_an_arm_whose_rate_beyond_the_best_failed_is_judged_all_the_same(outcome: str) -> None:
    space = space_with()
    cells = [ended(r.cell, None, outcome=outcome) if r.cell.lr == 0.04 else r for r in explored(space, best=0.02)]
    added = next_cells(space, IDENTITY, sweep(space, cells), planned(cells))
    assert {(entry.cell.phase, entry.cell.lr) for entry in added.cells} == {("confirm", 0.02)}


def test_adamws_grid_is_widened_no_more_often_than_the_space_allows() -> None:
    space = space_with("rates.adamw_grid=[0.001, 0.002]", "rates.max_widenings=2")
    cells = [
        ended(cell, 4.0 + abs((cell.lr or 0) - 0.01) - (cell.adamw_lr or 0)) for cell in explore_cells(space, IDENTITY)
    ]
    plan = planned(cells)
    widened = []
    for _ in range(3):
        added = next_cells(space, IDENTITY, sweep(space, cells), plan)
        widened.append({entry.cell.adamw_lr for entry in added.cells if entry.reason == "widening"})
        plan += added.cells
        cells += [ended(entry.cell, 4.0 - (entry.cell.adamw_lr or 0)) for entry in added.cells]
    assert widened == [{0.004}, {0.008}, set()]


def test_a_rate_that_the_user_added_takes_no_trial_from_a_search() -> None:
    space = optuna_space()
    rate = Rate(lr=0.03, adamw_lr=0.009)
    told = [ended(cell_at(space, IDENTITY, phase="explore", strategy=arm, rate=rate, seed=1), 4.0) for arm in ARMS]
    plan = planned(told, "extension")
    suggestions = []
    for _ in range(5):
        added = next_cells(space, IDENTITY, sweep(space, told), plan)
        suggestions.append(sum(entry.reason == "suggestion" for entry in added.cells))
        plan += added.cells
        told += [ended(entry.cell, 4.0 + abs((entry.cell.lr or 0) - 0.012)) for entry in added.cells]
    assert suggestions == [3, 3, 3, 3, 0]
