"""Arms that fill the same memory get equal tokens per step, and are written into the text of their space."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from search_spaces import (
    Space,
    SpaceErrors,
    fitted_space,
    load_space,
    parse_space,
    preset_names,
    preset_text,
    template_text,
    with_shapes,
)

STUDYS_SHAPES = ["strategies.large_batch.seq_len=256", "strategies.balanced.seq_len=1024"]


def of_the_study() -> Space:
    return load_space(preset="matched", overrides=[*STUDYS_SHAPES, "strategies.long_seq.seq_len=4096"])


def test_the_published_memory_limits_become_arms_with_equal_tokens_per_step() -> None:
    space = fitted_space(of_the_study(), {"large_batch": 104, "balanced": 26, "long_seq": 6})
    shapes = [(arm.micro_batch_size, arm.seq_len, arm.grad_accum_steps) for arm in space.strategies]
    # 24,576 tokens: 96 of 104, 24 of 26 and 6 of 6 windows; larger steps fill no more, and leave fewer updates
    assert shapes == [(96, 256, 1), (24, 1024, 1), (6, 4096, 1)]


def test_a_fitted_space_survives_json_and_keeps_its_shapes() -> None:
    space = fitted_space(of_the_study(), {"large_batch": 64, "balanced": 16, "long_seq": 3})
    assert Space.from_resolved(space.resolved()) == space
    assert len({arm.tokens_per_step for arm in space.strategies}) == 1


def test_micro_batches_never_exceed_what_fits() -> None:
    largest = {"large_batch": 50, "balanced": 11, "long_seq": 3}
    space = fitted_space(of_the_study(), largest)
    assert all(arm.micro_batch_size <= largest[arm.name] for arm in space.strategies)


@pytest.mark.parametrize("preset", [None, *preset_names()])
def test_shapes_are_written_into_a_spaces_text_and_nothing_else_changes(preset: str | None) -> None:
    text = template_text() if preset is None else preset_text(preset)
    space = parse_space(text)
    table = space.resolved()
    for arm in table["strategies"]:
        arm["grad_accum_steps"] *= 2
        arm["micro_batch_size"] = max(1, arm["micro_batch_size"] // 2)
    changed = Space.model_construct(strategies=Space.from_resolved(scaled(table)).strategies)
    written = tomllib.loads(with_shapes(text, changed))
    shapes = [tuple(arm[key] for key in ("micro_batch_size", "grad_accum_steps")) for arm in written["strategies"]]
    assert shapes == [(arm.micro_batch_size, arm.grad_accum_steps) for arm in changed.strategies]
    before = tomllib.loads(text)
    for arms in (before["strategies"], written["strategies"]):
        for arm in arms:
            arm.pop("micro_batch_size")
            arm.pop("grad_accum_steps", None)
    assert written == before
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert [line for line in with_shapes(text, changed).splitlines() if line.startswith("#")] == comments


def scaled(table: dict[str, Any]) -> dict[str, Any]:
    """The same with budgets and rungs of twice the tokens, which the doubled steps divide."""
    keys = ("budgets_tokens", "rungs_tokens")
    return {**table, "budget_tokens": 2 * table["budget_tokens"], **{k: [2 * n for n in table[k]] for k in keys}}


@pytest.mark.parametrize(
    "values", [{"fit_memory_gib": None, "fitted": False}, {"fit_memory_gib": 24.0, "fitted": True}]
)
def test_a_space_of_an_older_sweep_has_its_arms_as_they_were_fitted(values: dict[str, Any]) -> None:
    space = of_the_study()
    assert Space.from_resolved({**space.resolved(), **values}) == space


def test_an_arm_of_which_no_window_fits_is_refused() -> None:
    with pytest.raises(SpaceErrors, match=r"long_seq.seq_len=4096 is too long: not one window of it fits"):
        fitted_space(of_the_study(), {"large_batch": 9, "balanced": 2, "long_seq": 0})
