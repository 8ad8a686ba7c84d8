"""Sweeps and records at the edges of what the verdict was made for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sweeps.ledger.results import CellResult, SweepResults
from sweeps.verdict.decision import decide
from sweeps.verdict.records import decide_records
from sweeps.verdict.records_table import REQUIRED
from sweeps.verdict.verdict import Verdict
from tests.sweeps.planted_sweep import BUDGET, CLEAR_WIN, CURVES, cell, confirm, explore, sweep

RNG = np.random.default_rng(20_260_714)
DOCUMENTS = 40


def scored(cells: Sequence[CellResult], documents: int = DOCUMENTS, spread: float = 0.02) -> list[CellResult]:
    """The same confirm cells with losses by document, each arm's its own small pattern."""
    offsets = {arm: spread * RNG.normal(size=documents) for arm in dict.fromkeys(c.cell.strategy for c in cells)}
    return [
        replace(
            found,
            scores={
                "loss_by_document": {
                    f"document {i}": (100 * ((found.test_loss or 0.0) + offset), 100)
                    for i, offset in enumerate(offsets[found.cell.strategy] - offsets[found.cell.strategy].mean())
                }
            },
        )
        for found in cells
    ]


def of_arms(losses: Mapping[str, Sequence[float]], documents: int = DOCUMENTS, **space: Any) -> SweepResults:
    """A sweep of any arms, each explored around its mean confirm loss."""
    curves = {
        arm: {0.01: float(np.mean(values)) + 0.1, 0.02: float(np.mean(values)), 0.04: float(np.mean(values)) + 0.3}
        for arm, values in losses.items()
    }
    results = sweep([*explore(curves), *scored(confirm(losses), documents)], **space)
    strategies = [{"name": arm, "tokens_per_step": 2_048} for arm in losses]
    return replace(results, beginning={**results.beginning, "strategies": strategies})


def row(arm: str, seed: int, loss: float, phase: str = "confirm", lr: float = 0.02) -> dict[str | None, Any]:
    test_loss = loss if phase == "confirm" else ""
    return dict(zip(REQUIRED, (arm, lr, seed, phase, "completed", 1000, loss, test_loss), strict=True))


def records(losses: Mapping[str, Mapping[int, float]], **options: Any) -> Verdict:
    rows = [row(arm, seed, loss) for arm, runs in losses.items() for seed, loss in runs.items()]
    return decide_records(rows, **options)


def around(mean: float, seeds: Sequence[int], sd: float = 0.01) -> dict[int, float]:
    return dict(zip(seeds, mean + sd * RNG.normal(size=len(seeds)), strict=True))


def test_two_arms_are_enough() -> None:
    verdict = decide(of_arms({arm: CLEAR_WIN[arm] for arm in ("large_batch", "balanced")}))
    assert (verdict.outcome, verdict.winner) == ("wins", "large_batch")
    assert len(verdict.pairs) == 1
    assert "on this exam" not in verdict.statement.split(":")[0]


def test_of_eight_arms_one_wins_and_pairs_of_others_are_held_to_holm() -> None:
    noise = RNG.normal(size=(5, 8))
    losses = {f"arm{i}": tuple(4.4 + (0.2 if i else 0.0) + 0.01 * noise[:, i]) for i in range(8)}
    verdict = decide(of_arms(losses))
    assert (verdict.outcome, verdict.winner) == ("wins", "arm0")
    assert len(verdict.pairs) == 28
    others = [pair for pair in verdict.pairs if pair.a != "arm0"]
    assert all(pair.p_adjusted >= pair.p_value for pair in verdict.pairs)
    assert {pair.decision for pair in others} == {"undecided"}
    assert all(pair.passes_win_test is True for pair in verdict.pairs if pair.a == "arm0")
    assert all(pair.passes_win_test is None for pair in others)


def test_thirty_seeds_state_a_smaller_chance_of_an_unseen_failure() -> None:
    noise = RNG.normal(size=(30, 2))
    losses = {arm: tuple(4.4 + 0.05 * i + 0.01 * noise[:, i]) for i, arm in enumerate(("large_batch", "balanced"))}
    verdict = decide(of_arms(losses))
    assert verdict.outcome == "wins"
    # 1 - 0.05^(1/30)
    assert "a failure not seen in 30 seeds may still occur in up to 10% of seeds" in verdict.statement


def test_equal_coarse_losses_are_a_tie_whose_p_value_stays_at_a_thousandth() -> None:
    verdict = records({arm: dict.fromkeys(range(5), 4.4) for arm in ("a", "b")}, margin=0.03)
    assert verdict.outcome == "tie"
    assert verdict.pairs[0].p_value == 1.0
    assert "two one-sided tests, p = 0.001" in verdict.statement


def test_cells_copied_from_another_arm_are_withheld_where_losses_are_written_finely() -> None:
    runs = {seed: round(4.4 + 0.01 * float(RNG.normal()), 6) for seed in range(5)}
    verdict = records({"a": runs, "b": runs}, margin=0.03)
    assert verdict.outcome == "withheld"
    assert "a and b have the same test loss on all 5 shared seeds to 6 decimals" in verdict.statement
    coarse = {seed: round(loss, 2) for seed, loss in runs.items()}
    assert records({"a": coarse, "b": coarse}, margin=0.03).outcome == "tie"


def test_one_arm_without_confirm_cells_is_exploratory_in_records_and_withheld_in_a_sweep() -> None:
    rows = [row(arm, seed, 4.4 + 0.1 * i + 0.01 * seed) for i, arm in enumerate("ab") for seed in range(5)]
    rows += [row("c", 99, 4.7, phase="explore", lr=lr) for lr in (0.01, 0.02)]
    verdict = decide_records(rows)
    assert verdict.outcome == "exploratory"
    assert "confirm seeds: 5 of a, 5 of b and 0 of c (3 needed per arm)" in verdict.statement
    cells = [found for found in confirm() if found.cell.strategy != "long_seq"]
    untrained = decide(sweep([*explore(), *cells]))
    assert untrained.outcome == "withheld"
    assert "the confirm seeds of long_seq have not been trained yet" in untrained.statement


def with_spike(height: float) -> SweepResults:
    """A clear win whose explore cell at the winner's rate, on a second seed, ended higher."""
    curves = {arm: {lr: loss for lr, loss in curve.items() if lr == 0.02} for arm, curve in CURVES.items()}
    second = [cell(arm, 0.02, 2, loss=loss) for arm, curve in curves.items() for loss in curve.values()]
    spiked = [
        replace(found, val_loss=(found.val_loss or 0.0) + height) if found.cell.strategy == "large_batch" else found
        for found in second
    ]
    others = [cell(arm, lr, 2, loss=CURVES[arm][lr]) for arm in CURVES for lr in CURVES[arm] if lr != 0.02]
    return sweep([*explore(), *spiked, *others, *confirm()])


def test_a_spike_at_the_chosen_rate_withholds_the_win_and_a_smaller_one_does_not() -> None:
    # The rivals' confirm losses have a pooled standard deviation of 0.0081 around their means.
    verdict = decide(with_spike(0.06))
    assert verdict.outcome == "withheld"
    assert "large_batch would win, but its explore seed 2 ended 7." in verdict.statement
    assert decide(with_spike(0.03)).outcome == "wins"


def test_rates_in_no_order_and_cells_in_no_order_give_the_same_verdict() -> None:
    cells = [*explore(), *scored(confirm())]
    shuffled = [cells[int(place)] for place in RNG.permutation(len(cells))]
    one, other = decide(sweep(cells)).as_dict(), decide(sweep(shuffled)).as_dict()
    for found in (one, other):
        for pair in found["pairs"]:
            pair.pop("tests")
    assert (one["outcome"], one["winner"], one["statement"]) == (other["outcome"], other["winner"], other["statement"])


def test_runs_that_share_no_seed_are_compared_by_welch_from_five_runs_on() -> None:
    losses = {"a": around(4.40, range(8)), "b": around(4.45, range(100, 130), sd=0.03)}
    verdict = records(losses)
    assert (verdict.pairing, verdict.outcome, verdict.winner) == ("runs", "wins", "a")
    assert "over 8 to 30 unpaired runs per arm by Welch's test" in verdict.statement
    assert verdict.statement.startswith("a wins at the chosen rates, on this exam: ")
    assert [test.test for test in verdict.pairs[0].tests] == ["welch"]
    assert any("looked at before is not known" in caveat for caveat in verdict.caveats)
    few = records({"a": around(4.40, range(3)), "b": losses["b"]})
    assert few.outcome == "exploratory"
    assert "unpaired runs: 3 of a and 30 of b (5 needed per arm)" in few.statement


@pytest.mark.parametrize("unpaired", [False, True])
def test_equal_seeds_said_to_be_unpaired_take_both_tests_and_the_larger_p_value(unpaired: bool) -> None:
    shared = 0.05 * RNG.normal(size=6)
    losses = {
        "a": {seed: 4.40 + shared[seed] + 0.002 * seed for seed in range(6)},
        "b": {seed: 4.43 + shared[seed] - 0.001 * seed for seed in range(6)},
    }
    verdict = records(losses, unpaired=unpaired)
    (pair,) = verdict.pairs
    by_name = {test.test: test.p_value for test in pair.tests}
    assert set(by_name) == ({"seeds", "welch"} if unpaired else {"seeds"})
    assert pair.p_value == max(by_name.values())
    assert verdict.outcome == ("undecided" if unpaired else "wins")
    assert ("unpaired p = " in verdict.statement) is unpaired


def test_partly_shared_seeds_of_unequal_number_take_both_tests() -> None:
    losses = {"a": around(4.40, range(7)), "b": around(4.60, range(3, 12))}
    verdict = records(losses)
    assert (verdict.pairing, verdict.winner) == ("both", "a")
    assert "paired over 4 shared seeds and unpaired over 7 to 9 runs per arm" in verdict.statement
    assert verdict.pairs[0].difference == pytest.approx(-0.2, abs=0.02)
    assert [len(found.seeds) for found in verdict.strategies] == [7, 9]


def test_a_difference_that_hits_the_margin_exactly_is_no_tie() -> None:
    losses = {"a": dict.fromkeys(range(5), 4.40), "b": dict.fromkeys(range(5), 4.43)}
    at_margin = records(losses, margin=0.03, alpha=0.0009)  # too small an alpha for a win without any spread
    assert at_margin.outcome == "undecided"
    assert records(losses, margin=0.031, alpha=0.002).outcome == "wins"


def test_four_documents_support_a_claim_about_this_exam_at_most() -> None:
    verdict = decide(of_arms(CLEAR_WIN, documents=4))
    assert (verdict.outcome, verdict.winner) == ("wins", "large_batch")
    assert verdict.statement.startswith("large_batch wins on this exam: ")
    assert (verdict.exam.documents, verdict.exam.effective, verdict.exam.is_on_this_exam) == (4, pytest.approx(4), True)
    assert any("4 effective documents, fewer than 20" in caveat for caveat in verdict.caveats)
    enough = decide(of_arms(CLEAR_WIN, documents=20))
    assert not enough.exam.is_on_this_exam
    assert enough.statement.startswith("large_batch wins: ")


def test_a_tie_must_outlast_better_rates_to_be_one_without_a_limit() -> None:
    losses = {"a": tuple(4.4 + 0.001 * RNG.normal(size=5)), "b": tuple(4.4 + 0.001 * RNG.normal(size=5))}
    sharp = of_arms(losses, verdict={"alpha": 0.05, "margin": 0.02, "looks": 1})
    cells = [
        *(found for found in sharp.cells if found.cell.phase == "confirm"),
        *explore({arm: {0.01: 4.47, 0.0141: 4.418, 0.02: 4.4, 0.0283: 4.418, 0.04: 4.47} for arm in losses}),
    ]
    tied = decide(replace(sharp, cells=tuple(cells)))
    assert (tied.outcome, tied.tie_at_chosen_rates) == ("tie", False)
    assert tied.statement.startswith("Tie: ")
    slanted = [  # parabolas whose bottoms lie 0.023 below the loss at 0.02
        *(found for found in sharp.cells if found.cell.phase == "confirm"),
        *explore({arm: {0.01: 4.6, 0.02: 4.4, 0.04: 4.405} for arm in losses}),
    ]
    limited = decide(replace(sharp, cells=tuple(slanted)))
    assert (limited.outcome, limited.tie_at_chosen_rates) == ("tie", True)
    assert limited.statement.startswith("Tie at the chosen rates: ")
    assert limited.budget_tokens == BUDGET
