"""Arms that fill the same memory get equal tokens per step, and until then no cell has an id."""

from __future__ import annotations

import pytest

from search_spaces import Identity, Space, SpaceErrors, fitted_space, load_space, parse_space, planned_cells

STUDYS_SHAPES = ["strategies.large_batch.seq_len=256", "strategies.balanced.seq_len=1024"]


def unfitted() -> Space:
    return load_space(
        preset="matched", overrides=["fit_memory_gib=24", *STUDYS_SHAPES, "strategies.long_seq.seq_len=4096"]
    )


def test_the_published_memory_limits_become_arms_with_equal_tokens_per_step() -> None:
    space = fitted_space(unfitted(), {"large_batch": 104, "balanced": 26, "long_seq": 6})
    shapes = [(arm.micro_batch_size, arm.seq_len, arm.grad_accum_steps) for arm in space.strategies]
    # 24,576 tokens: 96 of 104, 24 of 26 and 6 of 6 windows; larger steps fill no more, and leave fewer updates
    assert shapes == [(96, 256, 1), (24, 1024, 1), (6, 4096, 1)]
    assert space.fitted
    assert not space.needs_fitting


def test_a_fitted_space_survives_json_and_keeps_its_shapes() -> None:
    space = fitted_space(unfitted(), {"large_batch": 64, "balanced": 16, "long_seq": 3})
    assert Space.from_resolved(space.resolved()) == space
    assert len({arm.tokens_per_step for arm in space.strategies}) == 1


def test_micro_batches_never_exceed_what_fits() -> None:
    largest = {"large_batch": 50, "balanced": 11, "long_seq": 3}
    space = fitted_space(unfitted(), largest)
    assert all(arm.micro_batch_size <= largest[arm.name] for arm in space.strategies)


def test_an_arm_to_be_fitted_needs_no_micro_batch(tiny_text: str) -> None:
    text = tiny_text.replace("micro_batch_size = 8\n", "").replace("micro_batch_size = 1\n", "")
    assert parse_space(text, ["fit_memory_gib=2.0"]).needs_fitting
    with pytest.raises(
        SpaceErrors, match=r"strategies.large_batch.micro_batch_size is missing; add 'micro_batch_size'"
    ):
        parse_space(text)


def test_two_arms_of_one_length_would_be_fitted_to_one_shape(tiny_text: str) -> None:
    with pytest.raises(
        SpaceErrors, match=r"strategies.long_seq has the same seq_len 8 \(fit_memory_gib decides the rest\)"
    ):
        parse_space(tiny_text, ["fit_memory_gib=2.0", "strategies.long_seq.seq_len=8"])


def test_the_budget_of_an_unfitted_space_is_a_multiple_of_every_length(tiny_text: str) -> None:
    with pytest.raises(
        SpaceErrors, match=r"budget_tokens=4100 must be a multiple of 64, .* of every arm's seq_len; choose"
    ):
        parse_space(tiny_text, ["fit_memory_gib=2.0", "budget_tokens=4100"])


def test_no_cell_has_an_id_before_its_shape_is_known(identity: Identity) -> None:
    assert {cell.cell_id for cell in planned_cells(unfitted(), identity)} == {None}


def test_an_arm_of_which_no_window_fits_is_refused() -> None:
    with pytest.raises(SpaceErrors, match=r"long_seq.seq_len=4096 leaves no room for one window in fit_memory_gib=24"):
        fitted_space(unfitted(), {"large_batch": 9, "balanced": 2, "long_seq": 0})
