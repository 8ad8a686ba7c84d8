"""What a sweep with several budgets says on its way."""

from __future__ import annotations

from dataclasses import replace

from sweeps.running.milestones import Milestones
from tests.sweeps.planted_sweep import CLEAR_WIN, ladder


def test_a_smaller_budget_is_told_of_once_when_all_its_cells_have_ended() -> None:
    results = ladder({250: CLEAR_WIN, 500: CLEAR_WIN, 1_000: CLEAR_WIN})
    open_cell = next(r for r in results.cells if r.cell.budget_tokens == 500 and r.cell.phase == "confirm")
    unfinished = tuple(replace(r, outcome=None) if r is open_cell else r for r in results.cells)
    milestones = Milestones()
    assert list(milestones.reached(replace(results, cells=unfinished))) == [
        "at 250 tokens large_batch has the lowest mean test loss, 0.2000 below balanced and 0.4000 below long_seq "
        "(provisional: the verdict is about 1,000 tokens)"
    ]
    (line,) = milestones.reached(results)
    assert line.startswith("at 500 tokens large_batch")
    assert list(milestones.reached(results)) == [], "the largest budget ends with the verdict"


def test_a_sweep_with_one_budget_says_nothing() -> None:
    assert list(Milestones().reached(ladder({1_000: CLEAR_WIN}))) == []
