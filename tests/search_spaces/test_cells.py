"""Cells are the points of a space; their ids hang on what decides their numbers and on nothing else."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from search_spaces import (
    Cell,
    Identity,
    Rate,
    Space,
    confirm_cells,
    explore_cells,
    explore_cells_at,
    parse_space,
    planned_cells,
    rates_at,
    view_cells,
)

CHOSEN = {"large_batch": Rate(lr=0.02, adamw_lr=0.006), "long_seq": Rate(lr=0.01, adamw_lr=0.003)}


# Recorded once. A change here orphans every cell of every sweep that was ever run.
GOLDEN_EXPLORE = ["e8927dad1031c297", "f32bc9551025e3b5", "a1b6ce940e7f2747", "cdf7d213bb19794d"]
GOLDEN_CONTROL_EXPLORE = ["b98ed6939515971e", "f719d70eb2dadf51"]
GOLDEN_CONTROL = ["9a691e35d927ee8b", "805c92a22371872e", "5298a28d2a87848a"]
GOLDEN_CONFIRM = ["8af469d947d75029", "3ccc839cf0cc295f"]


def ids(cells: tuple[Cell, ...]) -> list[str | None]:
    return [cell.cell_id for cell in cells]


def test_cell_ids_never_change_between_versions(tiny_text: str, identity: Identity) -> None:
    space = parse_space(tiny_text, ["precision=fp32"])
    assert ids(explore_cells(space, identity)) == GOLDEN_EXPLORE
    assert ids(confirm_cells(space, identity, CHOSEN))[:2] == GOLDEN_CONFIRM


@pytest.mark.parametrize(
    "override",
    [
        "description=other",
        "resources.workers=7",
        "resources.gpu_per_trial=0.5",
        "resources.threads_per_trial=2",
        "verdict.alpha=0.01",
        "verdict.looks=2",
        "seeds.confirm=9",
        "rungs_tokens=[2048, 3072]",
        "early_stopping.keep=[1, 1]",
        "rates.max_widenings=3",
        "keep=all",
        "time_view=true",
        "strategies.long_seq.name=renamed",
    ],
)
def test_ids_do_not_hang_on_names_resources_or_rules(
    tiny_text: str, tiny: Space, identity: Identity, override: str
) -> None:
    changed = parse_space(tiny_text, [override])
    assert changed != tiny
    assert ids(explore_cells(changed, identity)) == ids(explore_cells(tiny, identity))


@pytest.mark.parametrize(
    "override",
    [
        "budget_tokens=8192",
        "precision=fp32",
        "model.d_expert=32",
        "model.document_attention=true",
        "optimizer.clip_grad_norm=2.0",
        "schedule.decay_share=0.1",
        "rates.adamw_ratio=0.5",
    ],
)
def test_ids_hang_on_what_decides_the_numbers(tiny_text: str, tiny: Space, identity: Identity, override: str) -> None:
    before = ids(explore_cells(tiny, identity))
    after = ids(explore_cells(parse_space(tiny_text, [override]), identity))
    assert not set(before) & set(after)


def test_ids_hang_on_determinism_only_where_it_is_off(tiny_text: str, tiny: Space, identity: Identity) -> None:
    """It is on in every sweep that was begun before it could be chosen: their ids stay."""
    ids = [
        [cell.cell_id for cell in explore_cells(parse_space(tiny_text, [f"resources.deterministic={value}"]), identity)]
        for value in ("true", "false")
    ]
    assert ids[0] == [cell.cell_id for cell in explore_cells(tiny, identity)]
    assert not set(ids[0]) & set(ids[1])


def test_one_arms_shape_changes_that_arms_ids_alone(tiny_text: str, tiny: Space, identity: Identity) -> None:
    changed = parse_space(tiny_text, ["strategies.large_batch.micro_batch_size=16"])
    pairs = zip(explore_cells(tiny, identity), explore_cells(changed, identity), strict=True)
    assert {old.strategy for old, new in pairs if old.cell_id == new.cell_id} == {"long_seq"}


@pytest.mark.parametrize("field", ["corpus_fingerprint", "tokenizer_fingerprint", "exam_fingerprint"])
def test_ids_hang_on_corpus_tokenizer_and_exam(tiny: Space, identity: Identity, field: str) -> None:
    other = replace(identity, **{field: "other"})
    assert not set(ids(explore_cells(tiny, identity))) & set(ids(explore_cells(tiny, other)))


def test_all_ids_of_a_sweep_differ(tiny_text: str, identity: Identity) -> None:
    space = parse_space(tiny_text, ["controls=true", "seeds.explore=3", "rates.adamw_grid=[0.001, 0.002]"])
    chosen = {**CHOSEN, "large_batch_grouped": CHOSEN["large_batch"]}
    cells = [
        *explore_cells(space, identity),
        *confirm_cells(space, identity, chosen),
        *view_cells(space, identity, "time", CHOSEN, {"large_batch": 4096, "long_seq": 4096}),
        *view_cells(space, identity, "flops", CHOSEN, {"large_batch": 4096, "long_seq": 4096}),
    ]
    assert len(cells) == 3 * 4 * 3 + 9 + 6 + 6
    assert len({cell.cell_id for cell in cells}) == len(cells)


def test_an_undecided_rate_or_identity_leaves_the_id_open(tiny: Space, identity: Identity) -> None:
    assert set(ids(explore_cells(tiny, None))) == {None}
    undecided = confirm_cells(tiny, identity)
    assert {(cell.cell_id, cell.lr, cell.adamw_lr, cell.rate) for cell in undecided} == {(None, None, None, None)}
    assert [cell.strategy for cell in undecided if cell.seed == 101] == ["large_batch", "long_seq"]


def test_an_arm_without_a_choice_stays_open_beside_one_that_has_it(tiny: Space, identity: Identity) -> None:
    cells = confirm_cells(tiny, identity, {"long_seq": Rate(lr=0.01, adamw_lr=0.003)})
    assert {cell.strategy: cell.cell_id is None for cell in cells} == {"large_batch": True, "long_seq": False}


def test_confirm_seeds_are_fresh_and_a_larger_total_only_adds(tiny: Space, identity: Identity) -> None:
    assert [cell.seed for cell in explore_cells(tiny, identity)] == [1, 1, 1, 1]
    three, five = confirm_cells(tiny, identity, CHOSEN), confirm_cells(tiny, identity, CHOSEN, 5)
    assert sorted({cell.seed for cell in five}) == [101, 102, 103, 104, 105]
    assert five[: len(three)] == three


def test_adamws_rate_is_a_ratio_a_number_or_a_grid(tiny_text: str, tiny: Space) -> None:
    assert rates_at(tiny, "long_seq", 0.04) == (Rate(lr=0.04, adamw_lr=0.012),)
    fixed = parse_space(tiny_text, ["rates.adamw_fixed=0.001"])
    assert rates_at(fixed, "long_seq", 0.04) == (Rate(lr=0.04, adamw_lr=0.001),)
    crossed = explore_cells(parse_space(tiny_text, ["rates.adamw_grid=[0.001, 0.002]"]), None)
    points = [(cell.lr, cell.adamw_lr) for cell in crossed if cell.strategy == "long_seq"]
    assert points == [(0.01, 0.001), (0.01, 0.002), (0.02, 0.001), (0.02, 0.002)]


def test_a_ratio_leaves_no_binary_dust_in_adamws_rate(tiny_text: str) -> None:
    (rate,) = rates_at(parse_space(tiny_text, ["rates.adamw_ratio=3.0"]), "long_seq", 0.1)
    assert rate.adamw_lr == 0.3
    assert 0.1 * 3.0 != 0.3


def test_controls_are_the_short_arms_on_grouped_windows(tiny_text: str, identity: Identity) -> None:
    space = parse_space(tiny_text, ["controls=true"])
    assert [arm.name for arm in space.strategies] == ["large_batch", "long_seq", "large_batch_grouped"]
    control = space.strategy("large_batch_grouped")
    assert (control.windows, control.role, control.shape) == ("grouped", "control", space.strategies[0].shape)
    grouped = [cell for cell in explore_cells(space, identity) if cell.arrangement == "grouped"]
    assert ids(tuple(grouped)) == GOLDEN_CONTROL_EXPLORE
    chosen = {"large_batch_grouped": CHOSEN["large_batch"]}
    judged = [cell for cell in confirm_cells(space, identity, chosen) if cell.strategy == "large_batch_grouped"]
    assert [(cell.phase, cell.arrangement, cell.seed) for cell in judged] == [
        ("confirm", "grouped", seed) for seed in (101, 102, 103)
    ]
    assert ids(tuple(judged)) == GOLDEN_CONTROL


def test_a_space_with_controls_is_read_back_as_the_arms_that_it_has(tiny_text: str) -> None:
    space = parse_space(tiny_text, ["controls=true"])
    assert "controls" not in space.resolved()
    assert Space.from_resolved(space.resolved()).strategies == space.strategies


def test_without_controls_there_are_none(tiny: Space, identity: Identity) -> None:
    assert {cell.arrangement for cell in planned_cells(tiny, identity)} == {"shuffled"}


def test_time_cells_end_at_whole_steps_of_their_own_budgets(tiny: Space, identity: Identity) -> None:
    cells = view_cells(tiny, identity, "time", CHOSEN, {"large_batch": 5000.0, "long_seq": 1.0})
    assert {(cell.strategy, cell.budget_tokens) for cell in cells} == {("large_batch", 4992), ("long_seq", 64)}
    assert {(cell.phase, cell.seed) for cell in cells} == {("time", seed) for seed in (101, 102, 103)}
    only = view_cells(tiny, identity, "time", CHOSEN, {"long_seq": 2048})
    assert {cell.strategy for cell in only} == {"long_seq"}


def test_time_cells_end_at_whole_blocks_too(tiny_text: str, identity: Identity) -> None:
    space = parse_space(tiny_text.replace("seq_len = 64", "seq_len = 1024"), ["budget_tokens=8192"])
    (cell, *_) = view_cells(space, identity, "time", CHOSEN, {"large_batch": 1500.0})
    assert space.strategy("large_batch").tokens_per_step < space.block_len
    assert cell.budget_tokens % space.block_len == 0


def test_an_optuna_search_plans_cells_whose_rates_are_open(tiny_text: str, identity: Identity) -> None:
    space = parse_space(tiny_text, ["search=optuna", "search.trials_per_arm=5"])
    cells = explore_cells(space, identity)
    assert len(cells) == 10
    assert {(cell.lr, cell.cell_id) for cell in cells} == {(None, None)}
    rates = rates_at(space, "long_seq", 0.0123)
    (suggested,) = explore_cells_at(space, identity, strategy="long_seq", rates=rates, budget_tokens=4096)
    assert suggested.cell_id is not None
    assert (suggested.lr, suggested.adamw_lr) == (0.0123, 0.00369)


def test_a_cell_found_by_grid_by_widening_or_by_suggestion_is_one_cell(tiny: Space, identity: Identity) -> None:
    again = explore_cells_at(
        tiny, identity, strategy="long_seq", rates=rates_at(tiny, "long_seq", 0.02), budget_tokens=4096
    )
    assert set(again) <= set(explore_cells(tiny, identity))


def test_a_cell_survives_json(tiny: Space, identity: Identity) -> None:
    cell = explore_cells(tiny, identity)[0]
    assert Cell(**json.loads(json.dumps(cell.as_dict()))) == cell


def test_arms_take_turns_in_the_plan(tiny: Space) -> None:
    assert [(cell.lr, cell.strategy) for cell in explore_cells(tiny, None)] == [
        (0.01, "large_batch"),
        (0.01, "long_seq"),
        (0.02, "large_batch"),
        (0.02, "long_seq"),
    ]
