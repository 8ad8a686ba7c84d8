"""A sweep grows by rates, arms and seeds; what it has stays, and what it rests on is frozen."""

from __future__ import annotations

import pytest

from search_spaces import (
    Identity,
    Rate,
    Space,
    SpaceErrors,
    Strategy,
    confirm_cells,
    explore_cells,
    extended_space,
    frozen_differences,
    parse_space,
    planned_cells,
    widened_rate,
    with_overrides,
)

CHOSEN = {"large_batch": Rate(lr=0.02, adamw_lr=0.006), "long_seq": Rate(lr=0.01, adamw_lr=0.003)}


def test_a_grid_widens_by_its_own_ratio() -> None:
    assert widened_rate([0.005, 0.01, 0.02], "high") == 0.04
    assert widened_rate([0.02, 0.005, 0.01], "low") == 0.0025
    # 0.01 to 0.04 in three steps: a ratio of 4 ** (1/3) = 1.5874
    assert widened_rate([0.01, 0.02, 0.03, 0.04], "high") == 0.0635
    assert widened_rate([0.01, 0.02, 0.03, 0.04], "low") == 0.0063


def test_one_rate_has_no_ratio() -> None:
    with pytest.raises(ValueError, match=r"rates=\[0.01, 0.01\] has no ratio to widen by; give at least two different"):
        widened_rate([0.01, 0.01], "high")


def test_extending_adds_only_new_cells(tiny: Space, identity: Identity) -> None:
    extended = extended_space(tiny, lr=[0.02, 0.04, 0.04], confirm_seeds=5)
    assert extended.rates.lr == (0.01, 0.02, 0.04)
    present = {*explore_cells(tiny, identity), *confirm_cells(tiny, identity, CHOSEN)}
    wanted = (*explore_cells(extended, identity), *confirm_cells(extended, identity, CHOSEN))
    cells = [cell for cell in wanted if cell not in present]
    assert [(cell.phase, cell.strategy, cell.lr, cell.seed) for cell in cells] == [
        ("explore", "large_batch", 0.04, 1),
        ("explore", "long_seq", 0.04, 1),
        ("confirm", "large_batch", 0.02, 104),
        ("confirm", "long_seq", 0.01, 104),
        ("confirm", "large_batch", 0.02, 105),
        ("confirm", "long_seq", 0.01, 105),
    ]


def test_what_was_there_keeps_its_ids(tiny: Space, identity: Identity) -> None:
    arm = Strategy(name="between", micro_batch_size=4, seq_len=16)
    extended = extended_space(tiny, lr=[0.04], strategies=[arm], confirm_seeds=4)
    assert set(planned_cells(tiny, identity)) <= set(planned_cells(extended, identity))


def test_extending_by_what_is_there_adds_nothing(tiny: Space) -> None:
    same = extended_space(tiny, lr=[0.01], confirm_seeds=3)
    assert same == tiny


def test_every_reason_against_an_extension_is_given_at_once(tiny: Space) -> None:
    arms = [
        {"name": "longer", "micro_batch_size": 1, "seq_len": 128},
        {"name": "shorter", "micro_batch_size": 16, "seq_len": 4},
        {"name": "uneven", "micro_batch_size": 3, "seq_len": 64},
        {"name": "large_batch", "micro_batch_size": 2, "seq_len": 32},
        {"name": "twin", "micro_batch_size": 8, "seq_len": 8},
        {"name": "empty", "micro_batch_size": 0, "seq_len": 8},
    ]
    with pytest.raises(SpaceErrors) as caught:
        extended_space(tiny, lr=[-0.1], strategies=arms, confirm_seeds=2)
    assert [str(problem) for problem in caught.value.problems] == [
        "--lr=-0.1 must be a rate from 1e-12 to 1000; choose a rate like 0.02",
        "--seeds=2 is the total of confirm seeds, and the sweep has 3 already; choose more than 3",
        "strategies.longer.seq_len=128 is longer than the longest arm (64 tokens), by which the sweep fixed blocks and "
        "the exam's rows when it started; choose 8 <= seq_len <= 64 or start another sweep",
        "strategies.shorter.seq_len=4 is shorter than the shortest arm (8 tokens), by which the sweep fixed the exam's "
        "common context when it started; choose 8 <= seq_len <= 64 or start another sweep",
        "strategies.uneven=192 tokens per step does not hit the sweep's frozen rungs and budgets exactly (nearest to "
        "1024: 960 or 1152, 2048: 1920 or 2112, 4096: 4032 or 4224); "
        "choose a shape whose tokens per step divide 1024, 2048, 4096",
        "strategies.empty.micro_batch_size=0 must be at least 1; choose a value >= 1",
        'strategies.5.name="large_batch" is already the name of strategies.0; give every arm its own name',
        "strategies.twin has the same shape 8 x 8, accumulate 1 as strategies.0, so both would be the same cells; "
        "change one of them or leave it out",
    ]


def test_an_added_rate_leaves_the_bounds_of_an_optuna_search_as_they_are(tiny_text: str) -> None:
    space = parse_space(tiny_text, ["search=optuna"])
    assert extended_space(space, lr=[0.03]) == space


def test_an_adamw_rate_joins_its_grid_and_is_refused_where_there_is_none(tiny: Space) -> None:
    with pytest.raises(SpaceErrors, match=r"--adamw-lr=\[0.01\] has no grid to join, since AdamW's rate follows"):
        extended_space(tiny, adamw_lr=[0.01])
    with_grid = with_overrides(tiny, ["rates.adamw_grid=[0.001, 0.003]"])
    assert extended_space(with_grid, adamw_lr=[0.01, 0.001]).rates.adamw_grid == (0.001, 0.003, 0.01)


def test_resources_may_change_between_run_and_resume_and_identity_may_not(tiny: Space) -> None:
    assert frozen_differences(tiny, with_overrides(tiny, ["resources.workers=4", "description=x", "keep=all"])) == []
    changed = with_overrides(tiny, ["model.d_expert=32", "resources.workers=4", "rates.adamw_fixed=0.001"])
    assert [str(problem) for problem in frozen_differences(tiny, changed)] == [
        "model.d_expert=32 was 16 when the sweep started, and decides what its cells are; "
        "leave it, extend the sweep, or start another one",
        "rates.adamw_fixed=0.001 was unset when the sweep started, and decides what its cells are; "
        "leave it, extend the sweep, or start another one",
        "rates.adamw_ratio=unset was 0.3 when the sweep started, and decides what its cells are; "
        "leave it, extend the sweep, or start another one",
    ]


def test_a_rate_for_a_search_that_draws_adamws_ratio_is_refused(tiny_text: str) -> None:
    ratio = "search={kind='optuna', adamw_ratio_low=0.1, adamw_ratio_high=1.0}"
    space = parse_space(tiny_text.replace("adamw_ratio = 0.3", ""), [ratio])
    with pytest.raises(SpaceErrors, match=r"--lr=\[0.03\] has no AdamW rate to go with.*; start another sweep"):
        extended_space(space, lr=[0.03])
