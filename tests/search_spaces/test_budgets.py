"""A space with several budgets: every arm at each, rungs at the same shares, one verdict about the largest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest

from search_spaces import Identity, Space, SpaceErrors, caveats, extended_space, parse_space, planned_cells
from search_spaces.cells import explore_cells

LADDER = "budgets_tokens=[1024, 4096]"


@pytest.fixture
def ladder(tiny_text: str) -> Space:
    return parse_space(tiny_text, [LADDER])


def refusals(text: str, overrides: Sequence[str]) -> list[str]:
    with pytest.raises(SpaceErrors) as caught:
        parse_space(text, overrides)
    return [str(problem) for problem in caught.value.problems]


def test_one_budget_is_a_list_of_one(tiny: Space) -> None:
    assert tiny.budgets_tokens == (4096,)
    assert Space.from_resolved(tiny.resolved()) == tiny


def test_a_space_that_was_frozen_before_there_were_several_budgets_is_read(tiny: Space) -> None:
    table = tiny.resolved()
    del table["budgets_tokens"]
    assert Space.from_resolved(table) == tiny


def test_the_verdict_is_about_the_largest_budget(ladder: Space) -> None:
    assert ladder.budget_tokens == 4096
    assert Space.from_resolved(ladder.resolved()) == ladder


def test_either_key_replaces_the_other(ladder: Space, tiny_text: str) -> None:
    assert parse_space(tiny_text, [LADDER, "budget_tokens=4096"]).budgets_tokens == (4096,)
    assert parse_space(tiny_text.replace("budget_tokens = 4096", "budgets_tokens = [1024, 4096]")) == ladder


def test_a_smaller_budget_has_its_rungs_at_the_same_shares(ladder: Space) -> None:
    assert ladder.rungs_at(4096) == (1024, 2048)
    assert ladder.rungs_at(1024) == (256, 512)
    assert ladder.rungs_at(1536) == (1024,)  # equal time: a budget of its own


def test_every_arm_is_explored_and_confirmed_at_every_budget_and_the_smallest_comes_first(
    ladder: Space, identity: Identity
) -> None:
    cells = planned_cells(ladder, identity)
    assert Counter((cell.phase, cell.budget_tokens) for cell in cells) == {
        ("explore", 1024): 4,
        ("explore", 4096): 4,
        ("confirm", 1024): 6,
        ("confirm", 4096): 6,
    }
    budgets = [cell.budget_tokens for cell in explore_cells(ladder, identity)]
    assert budgets == sorted(budgets)


def test_the_largest_budget_has_the_cells_of_a_space_without_the_others(
    tiny: Space, ladder: Space, identity: Identity
) -> None:
    at_largest = {cell.cell_id for cell in planned_cells(ladder, identity) if cell.budget_tokens == 4096}
    assert at_largest == {cell.cell_id for cell in planned_cells(tiny, identity)}


def test_the_control_is_run_at_the_largest_budget_alone(tiny_text: str) -> None:
    space = parse_space(tiny_text, [LADDER, "controls=true"])
    control = {cell.budget_tokens for cell in planned_cells(space) if cell.strategy == "large_batch_grouped"}
    assert control == {4096}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["budgets_tokens=[4096, 1024]"],
            ["budgets_tokens=[4096, 1024] must increase strictly; write [1024, 4096]"],
        ),
        (
            ["budgets_tokens=[1024, 1024, 4096]"],
            ["budgets_tokens=[1024, 1024, 4096] must increase strictly; write [1024, 4096]"],
        ),
        (
            ["budgets_tokens=[1000, 1024, 1088, 4096]", "rungs_tokens=[1024, 2048]"],
            [
                "budgets_tokens[0]=1000 must be a multiple of 64, the least common multiple of every arm's tokens per "
                "step (64); choose 960 or 1024",
                "budgets_tokens[2]=1088 must be a multiple of 256, so that rungs at its shares (0.25, 0.5) are whole "
                "steps too; choose 1024 or 1280, or other rungs",
            ],
        ),
        (
            ["budgets_tokens=[128, 4096]", "rungs_tokens=[]", "early_stopping=none"],
            [
                "budgets_tokens[0]=128 is over before its warm-up and decay have an update each (an arm has 64 tokens "
                "per step); choose 192 or more, or leave it out",
            ],
        ),
        (["budgets_tokens=[]"], ["budgets_tokens=[] must not be empty; write at least one value"]),
        (["budgets_tokens=4096"], ["budgets_tokens=4096 must be a list; write it in brackets, like [1, 2]"]),
        (["budgets_tokens=[-4, 4096]"], ["budgets_tokens[0]=-4 must be at least 1; choose a value >= 1"]),
        (
            ["budgets_tokens=['1k', 4096]"],
            ['budgets_tokens[0]="1k" must be a whole number; write it like 4 or 65_536'],
        ),
        (["budget_tokens=0"], ["budget_tokens=0 must be at least 1; choose a value >= 1"]),
    ],
)
def test_bad_budgets_are_refused_all_at_once(tiny_text: str, overrides: list[str], expected: list[str]) -> None:
    assert refusals(tiny_text, overrides) == expected


def test_two_keys_that_disagree_are_refused(tiny_text: str) -> None:
    assert refusals(tiny_text.replace("rungs", "budgets_tokens = [1024, 8192]\nrungs", 1), []) == [
        "budget_tokens=4096 is not the largest of budgets_tokens (8192); leave one of the two out"
    ]


def test_few_updates_are_said_of_each_budget(ladder: Space) -> None:
    assert "large_batch makes only 16 updates in 1024 tokens" in caveats.caveats(ladder)


def test_an_extension_adds_a_budget_above_with_rungs_at_the_same_shares(tiny: Space) -> None:
    extended = extended_space(tiny, budgets=[16384])
    assert extended.budgets_tokens == (4096, 16384)
    assert extended.rungs_tokens == (4096, 8192)
    assert extended.rungs_at(4096) == tiny.rungs_tokens


def test_an_extension_adds_a_budget_below(tiny: Space) -> None:
    extended = extended_space(tiny, budgets=[1024])
    assert (extended.budgets_tokens, extended.rungs_tokens) == ((1024, 4096), (1024, 2048))


def test_an_extension_by_a_budget_that_does_not_fit_is_refused(tiny: Space) -> None:
    with pytest.raises(SpaceErrors) as caught:
        extended_space(tiny, budgets=[100])
    assert [problem.where for problem in caught.value.problems] == ["budgets_tokens[0]"] * 2
