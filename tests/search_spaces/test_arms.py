"""Arms with values of their own: what they may differ in, what they may not, and what their cells are."""

from __future__ import annotations

import pytest

from search_spaces import (
    Identity,
    Rate,
    Space,
    SpaceErrors,
    confirm_cells,
    explore_cells,
    extended_space,
    grid_of,
    load_space,
    parse_space,
    preset_names,
)

WIDE = ["strategies.large_batch.model.d_expert=32"]


def message_of(text: str, overrides: list[str]) -> str:
    with pytest.raises(SpaceErrors) as caught:
        parse_space(text, overrides)
    (problem,) = caught.value.problems
    return str(problem)


def test_an_arm_is_the_space_with_its_own_values(tiny_text: str) -> None:
    overrides = [
        "strategies.long_seq.model.top_k=1",
        "strategies.long_seq.optimizer.kind=adamw",
        "strategies.long_seq.schedule.decay_share=0.4",
        "strategies.long_seq.rates.lr=[0.001, 0.002]",
        "strategies.long_seq.rates.adamw_fixed=0.001",
    ]
    space = parse_space(tiny_text, overrides)
    own = space.of_arm("long_seq")
    assert (own.model.top_k, own.optimizer.kind, own.schedule.decay_share) == (1, "adamw", 0.4)
    assert (own.model.n_experts, own.schedule.warmup_share) == (space.model.n_experts, space.schedule.warmup_share)
    assert space.of_arm("large_batch") is space
    assert grid_of(space, "long_seq") == (Rate(lr=0.001, adamw_lr=0.001), Rate(lr=0.002, adamw_lr=0.001))
    assert grid_of(space, "large_batch") == (Rate(lr=0.01, adamw_lr=0.003), Rate(lr=0.02, adamw_lr=0.006))
    assert Space.from_resolved(space.resolved()) == space


def test_an_arm_without_values_of_its_own_is_written_as_its_shape(tiny: Space) -> None:
    assert tiny.resolved()["strategies"][0] == {
        "name": "large_batch",
        "micro_batch_size": 8,
        "seq_len": 8,
        "grad_accum_steps": 1,
    }


def test_key_value_heads_follow_the_heads_of_an_arm(tiny_text: str) -> None:
    own = parse_space(tiny_text, ["strategies.long_seq.model.n_heads=4"]).of_arm("long_seq").model
    assert (own.n_heads, own.n_kv_heads) == (4, 4)
    grouped = parse_space(tiny_text, ["model.n_kv_heads=1", "strategies.long_seq.model.n_heads=4"])
    assert grouped.of_arm("long_seq").model.n_kv_heads == 1


def test_a_value_of_one_arm_changes_that_arms_ids_alone(tiny_text: str, tiny: Space, identity: Identity) -> None:
    pairs = zip(explore_cells(tiny, identity), explore_cells(parse_space(tiny_text, WIDE), identity), strict=True)
    changed = {before.strategy: before.cell_id != after.cell_id for before, after in pairs}
    assert changed == {"large_batch": True, "long_seq": False}


def test_the_same_value_in_an_arm_and_in_the_table_is_the_same_cell(tiny_text: str, identity: Identity) -> None:
    in_arm = explore_cells(parse_space(tiny_text, WIDE), identity)
    in_table = explore_cells(parse_space(tiny_text, ["model.d_expert=32"]), identity)
    ids = [{cell.cell_id for cell in cells if cell.strategy == "large_batch"} for cells in (in_arm, in_table)]
    assert ids[0] == ids[1]


@pytest.mark.parametrize("key", ["optimizer.kind=adamw", "optimizer.betas_at_tokens_per_step=4096"])
def test_ids_hang_on_the_optimizers_newer_keys(tiny_text: str, tiny: Space, identity: Identity, key: str) -> None:
    changed = explore_cells(parse_space(tiny_text, [key]), identity)
    assert not {cell.cell_id for cell in changed} & {cell.cell_id for cell in explore_cells(tiny, identity)}


def test_arms_of_one_shape_differ_in_a_value(tiny_text: str, identity: Identity) -> None:
    space = extended_space(
        parse_space(tiny_text),
        strategies=[{"name": "top_1", "micro_batch_size": 8, "seq_len": 8, "model": {"top_k": 1}}],
    )
    chosen = {arm.name: Rate(lr=0.02, adamw_lr=0.006) for arm in space.strategies}
    ids = [cell.cell_id for cell in confirm_cells(space, identity, chosen)]
    assert len(set(ids)) == len(ids) == 9


def test_an_extension_adds_a_rate_to_every_grid(tiny_text: str) -> None:
    space = parse_space(tiny_text, ["strategies.long_seq.rates.lr=[0.001, 0.02]"])
    extended = extended_space(space, lr=[0.02, 0.04])
    assert extended.rates.lr == (0.01, 0.02, 0.04)
    assert extended.of_arm("long_seq").rates.lr == (0.001, 0.02, 0.04)


def test_a_name_with_dots_is_one_name(tiny_text: str) -> None:
    space = parse_space(tiny_text.replace("long_seq", "v1.5"), ["strategies.v1.5.model.top_k=1"])
    assert space.of_arm("v1.5").model.top_k == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.top_k=5", "strategies.long_seq.model.top_k=5 exceeds model.n_experts (4); choose top_k <= 4"),
        ("model.n_experts=1", "strategies.long_seq.model.top_k=2 exceeds model.n_experts (1); choose top_k <= 1"),
        (
            "model.n_heads=3",
            "strategies.long_seq.model.n_heads=3 must divide model.d_model (16); choose 2 or 4, or another d_model",
        ),
        (
            "model.d_expert=0",
            "strategies.long_seq.model.d_expert=0 must be at least 1; choose a value >= 1",
        ),
        (
            "model.d_expert=1.5",
            "strategies.long_seq.model.d_expert=1.5 must be a whole number; write it like 4 or 65_536",
        ),
        (
            "model.n_expert=4",
            "strategies.long_seq.model.n_expert=4 is not a key of strategies.long_seq.model; did you mean 'n_experts'?",
        ),
        (
            "model.vocab_size=512",
            "strategies.long_seq.model.vocab_size=512 is not a key of strategies.long_seq.model; "
            "did you mean 'tokenizer.vocab_size'?",
        ),
        ("model=4", "strategies.long_seq.model=4 must be a table; write it as a [table] with its keys"),
        (
            "corpus=embedded",
            'strategies.long_seq.corpus="embedded" is what the comparison rests on, the same for all arms; '
            "set it once, in the space itself",
        ),
        (
            "budget_tokens=8192",
            "strategies.long_seq.budget_tokens=8192 is what the comparison rests on, the same for all arms; "
            "set it once, in the space itself",
        ),
        (
            "seeds.confirm=5",
            "strategies.long_seq.seeds={confirm = 5} is what the comparison rests on, the same for all arms; "
            "set it once, in the space itself",
        ),
        (
            "rates.max_widenings=2",
            "strategies.long_seq.rates.max_widenings=2 is what the comparison rests on, the same for all arms; "
            "set it once, in [rates]",
        ),
        (
            "rates.lr=[0.01, 0.02, 0.04]",
            "strategies.long_seq.rates makes 3 rates where [rates] makes 2, and every arm gets the same tuning effort; "
            "give it 2 rates",
        ),
        (
            "rates.lr=[0.01, 0.01]",
            "strategies.long_seq.rates.lr=[0.01, 0.01] names a rate twice; write [0.01]",
        ),
        (
            "schedule.decay_share=0.96",
            "strategies.long_seq.schedule.decay_share=0.96 leaves no room for schedule.warmup_share (0.05): together "
            "they exceed the budget; choose decay_share <= 0.95",
        ),
        (
            "optimizer.kind=lion",
            "strategies.long_seq.optimizer.kind=\"lion\" must be one of muon, adamw; write 'muon'",
        ),
        (
            'optimizer={ kind = "adamw", muon_momentum = 0.9 }',
            'strategies.long_seq.optimizer.muon_momentum=0.9 has no meaning with optimizer.kind = "adamw"; '
            "leave it out, or set adamw_betas",
        ),
        (
            "windows=grouped",
            'strategies.long_seq.windows="grouped" changes nothing for windows as long as the longest arm\'s '
            "(64 tokens); leave it out, or shorten the arm",
        ),
        (
            "windows=sorted",
            "strategies.long_seq.windows=\"sorted\" must be one of shuffled, grouped; write 'shuffled'",
        ),
        (
            "role=referee",
            "strategies.long_seq.role=\"referee\" must be one of contender, control; write 'contender'",
        ),
    ],
)
def test_a_wrong_arm_is_refused_in_words(tiny_text: str, override: str, message: str) -> None:
    assert message_of(tiny_text, [f"strategies.long_seq.{override}"]) == message


THIRD = """
[[strategies]]
name = "third"
micro_batch_size = 4
seq_len = 16
role = "control"
"""


def test_a_control_has_grouped_windows(tiny_text: str) -> None:
    assert message_of(tiny_text.replace("[rates]", f"{THIRD}[rates]"), []) == (
        'strategies.third.role="control" is for an arm with windows = "grouped"; add windows = "grouped", or leave '
        "role out"
    )


def test_a_control_needs_the_arm_that_it_explains(tiny_text: str) -> None:
    assert message_of(tiny_text.replace("[rates]", f'{THIRD}windows = "grouped"\n[rates]'), []) == (
        'strategies.third.role="control" needs the arm that it explains: one that differs from it in windows alone; '
        'add that arm, with windows = "shuffled", or leave role out'
    )


def test_a_control_is_no_second_arm(tiny_text: str) -> None:
    with pytest.raises(SpaceErrors, match="strategies=1 given must hold at least two arms"):
        parse_space(tiny_text, ["strategies.large_batch.windows=grouped", "strategies.large_batch.role=control"])


def test_two_arms_that_differ_in_nothing_are_refused(tiny_text: str) -> None:
    twin = """
[[strategies]]
name = "twin"
micro_batch_size = 8
seq_len = 8
model.top_k = 2
"""
    assert message_of(tiny_text.replace("[rates]", f"{twin}[rates]"), []) == (
        "strategies.twin has the same shape 8 x 8, accumulate 1 and the same model, optimizer, schedule and windows as "
        "strategies.large_batch, so both would be the same cells; change one of them or leave it out"
    )


def test_rates_of_an_arm_are_no_grid_for_optuna(tiny_text: str) -> None:
    space = ['search={ kind = "optuna", trials_per_arm = 2 }', "strategies.long_seq.rates.lr=[0.01, 0.02]"]
    assert message_of(tiny_text, space) == (
        "strategies.long_seq.rates.lr=[0.01, 0.02] is a grid, and search.kind is optuna, which draws every arm's rates "
        'from one range; leave it out, or set search.kind = "grid"'
    )


def test_every_problem_of_arms_is_told_at_once(tiny_text: str) -> None:
    with pytest.raises(SpaceErrors) as caught:
        parse_space(
            tiny_text,
            [
                "strategies.long_seq.model.top_k=9",
                "strategies.long_seq.model.d_expert=0",
                "strategies.large_batch.schedule.decay_share=1.0",
                "model.n_heads=3",
            ],
        )
    assert [problem.where for problem in caught.value.problems] == [
        "strategies.long_seq.model.d_expert",
        "strategies.large_batch.schedule.decay_share",
        "strategies.long_seq.model.top_k",
        "model.n_heads",
    ]


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_gives_its_arms_equally_many_rates(name: str) -> None:
    space = load_space(preset=name)
    assert len({len(grid_of(space, arm.name)) for arm in space.strategies}) == 1


TWINS = """
[[strategies]]
name = "twin"
micro_batch_size = 8
seq_len = 8
"""


def test_a_ratio_of_adamws_rate_of_its_own_sets_an_arm_apart(tiny_text: str, identity: Identity) -> None:
    space = parse_space(tiny_text.replace("[rates]", f"{TWINS}rates.adamw_ratio = 1.0\n[rates]"))
    cells = explore_cells(space, identity)
    assert len({cell.cell_id for cell in cells}) == len(cells)
    fixed = tiny_text.replace("[rates]", f"{TWINS}rates.adamw_fixed = 0.003\n[rates]")
    assert "so both would be the same cells" in message_of(fixed, [])  # 0.3 of 0.01 is 0.003 too


def test_a_control_with_another_adamw_rate_explains_nothing(tiny_text: str) -> None:
    control = TWINS + 'windows = "grouped"\nrole = "control"\nrates.adamw_ratio = 1.0\n[rates]'
    assert "needs the arm that it explains" in message_of(tiny_text.replace("[rates]", control), [])


def test_controls_are_added_once_and_take_no_name(tiny_text: str) -> None:
    own = tiny_text.replace("[rates]", TWINS + 'windows = "grouped"\nrole = "control"\n[rates]')
    names = [arm.name for arm in parse_space(own, ["controls=true"]).strategies]
    assert names == ["large_batch", "long_seq", "twin"]
    taken = ["controls=true", "strategies.long_seq.name=large_batch_grouped"]
    assert message_of(tiny_text, taken) == (
        'strategies.large_batch.name="large_batch" leaves no name for its control: large_batch_grouped is another arm; '
        "rename one of the two"
    )


def test_a_control_has_the_share_of_a_gpu_of_its_arm(tiny_text: str) -> None:
    shares = "resources.gpu_per_trial={ large_batch = 0.5, long_seq = 0.25 }"
    space = parse_space(tiny_text, ["controls=true", shares])
    assert space.resources.gpu_per_trial == {"large_batch": 0.5, "long_seq": 0.25, "large_batch_grouped": 0.5}


def test_a_remedy_of_an_arm_is_one_that_it_may_follow(tiny_text: str) -> None:
    assert message_of(tiny_text, ["rates.max_widenings=1", "strategies.long_seq.rates.lr=[0.01]"]).startswith(
        "rates.max_widenings=1 needs two rates in rates.lr"
    )


@pytest.mark.parametrize("view", ["time_view", "flops_view"])
def test_a_larger_budget_is_refused_where_a_view_was_made_of_the_old_one(tiny_text: str, view: str) -> None:
    with pytest.raises(SpaceErrors, match="--budget=8192 exceeds the budget"):
        extended_space(parse_space(tiny_text, [f"{view}=true"]), budgets=[8192])
