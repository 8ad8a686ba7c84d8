"""A sweep with two budgets: killed in each of them and resumed, and extended by a third."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweeps.ledger.storage import Storage
from sweeps.ledger.sweep_folder import Ledger
from tests.integration.conftest import sweeps_in
from tests.integration.sweeping import Sweeps, decided, wait_for

pytestmark = pytest.mark.slow

LADDER = ("run", "--space", "space.toml", "--name", "first", "--set", "budgets_tokens=[4096, 16384]")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, corpus: Path, token_cache: Path) -> Iterator[Sweeps]:
    with sweeps_in(tmp_path_factory.mktemp("ladder"), corpus, token_cache) as made:
        made(*LADDER)
        yield made


def ended(sweeps: Sweeps) -> Counter[tuple[str, int]]:
    """How many cells have an outcome, by phase and budget."""
    ledger = Ledger(Storage(str(sweeps.runs)), "first")
    cells = [planned.cell for planned in ledger.planned_cells() if ledger.cell_folder(planned.cell_id).outcome()]
    return Counter((cell.phase, cell.budget_tokens) for cell in cells)


def ended_at(sweeps: Sweeps, budget: int) -> int:
    """How many cells of a budget have an outcome."""
    return sum(number for (_, tokens), number in ended(sweeps).items() if tokens == budget)


def test_every_arm_is_judged_at_every_budget_and_the_smaller_one_says_so_first(undisturbed: Sweeps) -> None:
    assert ended(undisturbed) == {
        ("explore", 4096): 4,
        ("explore", 16384): 4,
        ("confirm", 4096): 6,
        ("confirm", 16384): 6,
    }
    verdict = undisturbed.verdict("first")
    assert verdict["budget_tokens"] == 16384
    assert [at["budget_tokens"] for at in verdict["by_budget_tokens"]] == [4096, 16384]
    assert [at["seeds"] for at in verdict["by_budget_tokens"]] == [3, 3]
    (pair,) = verdict["trend"]
    assert {pair["a"], pair["b"]} == {"short", "long"}
    assert [at["budget_tokens"] for at in pair["leads"]] == [4096, 16384]


def test_killed_in_the_smaller_and_in_the_larger_budget_it_ends_with_the_same_numbers(
    tmp_path: Path, corpus: Path, token_cache: Path, undisturbed: Sweeps
) -> None:
    with sweeps_in(tmp_path, corpus, token_cache) as sweeps:
        process = sweeps.start(*LADDER)
        wait_for(lambda: ended_at(sweeps, 4096) >= 2, "cells of the smaller budget", process)
        process.kill()
        process.communicate()
        assert ended_at(sweeps, 16384) == 0
        process = sweeps.start("resume", "first")
        wait_for(lambda: ended_at(sweeps, 16384) >= 2, "cells of the larger budget", process)
        process.kill()
        process.communicate()
        said = sweeps("resume", "first")
        assert sweeps.end_of("first") == undisturbed.end_of("first")
        assert decided(str(sweeps.runs), "first") == decided(str(undisturbed.runs), "first")
        assert "16,384 tokens" in said


def test_a_budget_is_added_to_a_finished_sweep(
    tmp_path: Path, corpus: Path, token_cache: Path, undisturbed: Sweeps
) -> None:
    with sweeps_in(tmp_path, corpus, token_cache) as sweeps:
        sweeps.copy(undisturbed)
        before = sweeps.outcomes("first")
        sweeps("extend", "first", "--budget", "32768")
        after = sweeps.outcomes("first")
        assert {cell_id: after[cell_id] for cell_id in before} == before, "what has an outcome never runs again"
        new = Counter(found["phase"] for cell_id, found in after.items() if cell_id not in before)
        assert new == {"explore": 4, "confirm": 6}
        verdict = sweeps.verdict("first")
        assert verdict["budget_tokens"] == 32768
        assert [at["budget_tokens"] for at in verdict["by_budget_tokens"]] == [4096, 16384, 32768]


@pytest.mark.parametrize(
    ("budget", "rule"),
    [
        ("100", "budgets_tokens[0]=100 must be a multiple of 64"),
        ("0", "budgets_tokens[0]=0 must be at least 1"),
        ("99999999999999", "must be at most"),
    ],
)
def test_a_budget_that_does_not_fit_is_refused_and_nothing_is_written(
    undisturbed: Sweeps, budget: str, rule: str
) -> None:
    pages = sorted((undisturbed.runs / "first" / "plan").iterdir())
    said = undisturbed("extend", "first", "--budget", budget, code=2)
    assert rule in said
    assert "Traceback" not in said
    assert sorted((undisturbed.runs / "first" / "plan").iterdir()) == pages
