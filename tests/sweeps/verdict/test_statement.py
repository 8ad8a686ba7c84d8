"""The statement: every clause stands exactly where its condition holds."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from sweeps.ledger.results import SweepResults
from sweeps.verdict.decision import decide
from tests.sweeps.planted_sweep import CLEAR_WIN, CURVES, confirm, explore, sweep

NARROW = {
    "large_batch": (4.4000, 4.4010, 4.3900, 4.4050, 4.3950),
    "balanced": (4.4052, 4.4058, 4.3940, 4.4100, 4.3997),
    "long_seq": CLEAR_WIN["long_seq"],
}


def statement(results: SweepResults) -> str:
    return decide(results).statement


def with_beginning(results: SweepResults, **parts: Any) -> SweepResults:
    return replace(results, beginning={**results.beginning, **parts})


def test_a_clear_win_quotes_its_numbers_and_without_documents_it_is_on_this_exam() -> None:
    text = statement(sweep(explore() + confirm()))
    assert text.startswith(
        "large_batch wins on this exam: its test loss after 1,000 tokens is 0.2000 nats below balanced (95% "
    )
    assert "interval 0.1965 to 0.2035, p < 0.001) and 0.4000 nats below long_seq" in text
    assert ", each difference paired over 5 fresh seeds" in text
    for qualifier in ("at the chosen rates", "own context", "negligible", "unplanned"):
        assert qualifier not in text


def test_between_two_arms_there_is_one_difference_and_no_mention_of_each() -> None:
    two = [cell for cell in explore() + confirm() if cell.cell.strategy != "long_seq"]
    results = sweep(two)
    arms = [arm for arm in results.beginning["strategies"] if arm["name"] != "long_seq"]
    text = statement(with_beginning(results, strategies=arms))
    assert "p < 0.001), paired over 5 fresh seeds" in text
    assert "each difference" not in text


def test_a_lead_that_may_be_none_is_written_with_signs() -> None:
    noisy = {**CLEAR_WIN, "balanced": (4.50, 4.41, 4.59, 4.40, 4.40), "large_batch": (4.40, 4.51, 4.39, 4.41, 4.39)}
    assert re.search(
        r"below balanced \(95% interval −0\.\d+ to \+0\.\d+, ", statement(sweep(explore() + confirm(noisy)))
    )


def test_a_decision_is_one_sentence_and_what_is_missing_comes_in_sentences_of_its_own() -> None:
    for cells in ([], explore(), explore() + confirm(), explore() + confirm(NARROW)):
        text = statement(sweep(cells))
        assert text.endswith(".")
        assert ". " not in text or text.startswith("No verdict yet: ")
        assert ".." not in text
        assert "None" not in text
        assert "nan" not in text


def test_a_win_inside_the_margin_reads_detectable_but_negligible() -> None:
    text = statement(sweep(explore() + confirm(NARROW)))
    assert "the lead over balanced is detectable but negligible" in text
    assert "long_seq is detectable" not in text


def test_a_lead_that_a_better_rate_could_undo_is_stated_at_the_chosen_rates() -> None:
    text = statement(sweep(explore() + confirm(NARROW)))
    assert "large_batch wins at the chosen rates, on this exam" in text
    assert "balanced could plausibly gain up to 0." in text
    assert "long_seq could plausibly gain" not in text


def test_rates_of_which_nothing_is_known_are_chosen_rates() -> None:
    text = statement(sweep(confirm()))
    assert "large_batch wins at the chosen rates" in text
    assert "could plausibly gain" not in text


def test_the_claim_says_how_large_model_data_and_updates_were() -> None:
    results = sweep(explore() + confirm(), budget_tokens=1_000)
    sized = with_beginning(results, parameters={"total": 770_000, "active": 400_000})
    assert "for 0.77 M parameters of which 0.4 M active, 0.0025 tokens per active parameter" in statement(sized)
    assert "embedded corpus" in statement(sized)
    assert "parameters" not in statement(results)


def test_a_corpus_of_the_hub_is_named() -> None:
    corpus = {"kind": "hub", "dataset": "someone/books", "name": "old"}
    assert "corpus someone/books/old" in statement(sweep(explore() + confirm(), corpus=corpus))


def test_undecided_names_the_seeds_that_would_settle_it_and_the_command() -> None:
    noisy = {**CLEAR_WIN, "balanced": (4.50, 4.41, 4.59, 4.40, 4.40), "large_batch": (4.40, 4.51, 4.39, 4.41, 4.39)}
    text = statement(sweep(explore() + confirm(noisy)))
    assert text.startswith("Undecided: large_batch has the lowest mean test loss")
    assert "fresh seeds would settle it as a win" in text
    assert "`sweeps extend planted --seeds " in text


def test_a_tie_quotes_the_test_that_shows_it() -> None:
    tied = {**CLEAR_WIN, "balanced": (4.402, 4.408, 4.391, 4.404, 4.397)}
    text = statement(sweep(explore() + confirm(tied)))
    assert text.startswith(
        "Tie at the chosen rates, on this exam: large_batch and balanced after 1,000 tokens differ by"
    )
    assert "within the margin of 0.0300 nats (two one-sided tests, p < 0.001), each difference paired" in text


def test_confirm_seeds_at_another_rate_are_not_said_to_be_missing() -> None:
    assert "no confirm seeds at the chosen rates" in statement(
        sweep(explore() + confirm(lr=0.01), seeds={"explore": 1, "confirm": 0})
    )
    text = statement(sweep(explore(), seeds={"explore": 1, "confirm": 0}))
    assert "no confirm seeds (3 needed per arm)" in text


def test_an_arm_whose_finished_cells_have_no_loss_is_not_said_to_be_short_of_the_budget() -> None:
    silent = [replace(found, val_loss=None) if found.cell.strategy == "balanced" else found for found in explore()]
    text = statement(sweep(silent + confirm()))
    assert "no explore cell of balanced has a validation loss at the full budget (outcomes: completed)" in text


def test_no_verdict_says_what_is_missing_what_to_run_and_who_leads_so_far() -> None:
    text = statement(sweep(explore()))
    assert text.endswith(". Leading so far: large_batch (lowest explore loss, 4.4000).")
    two = {arm: losses[:2] for arm, losses in CLEAR_WIN.items()}
    text = statement(sweep(explore() + confirm(two), seeds={"explore": 1, "confirm": 2}))
    assert text == (
        "No verdict yet: 2 seeds per arm (3 needed). Run `sweeps extend planted --seeds 3`. Leading so far: "
        "large_batch (lowest mean test loss over 2 complete seeds)."
    )
    rising = {arm: {0.005: 4.8, 0.01: 4.7, 0.02: 4.6} for arm in CURVES}
    text = statement(sweep(explore(rising) + confirm(two), seeds={"explore": 1, "confirm": 2}))
    assert text.startswith(
        "No verdict yet: 2 seeds per arm (3 needed), and every arm was best at its highest rate, 0.02. Run "
        "`sweeps extend planted --seeds 3 --lr 0.04`. Leading so far: large_batch"
    )


def test_several_arms_at_the_edge_are_told_together() -> None:
    falling = {arm: {0.01: 4.9, 0.02: 4.8, 0.04: 4.6} for arm in CURVES}
    text = statement(sweep(explore(falling) + confirm(lr=0.04)))
    assert "every arm was best at its highest rate, 0.04. Run `sweeps extend planted --lr 0.08`." in text
    falling["large_batch"] = {0.01: 4.9, 0.02: 4.6, 0.04: 4.8}
    text = statement(sweep(explore(falling) + confirm()))
    assert "balanced and long_seq were best at their highest rate, 0.04" in text


@pytest.mark.parametrize(
    ("beginning", "caveat"),
    [
        ({"hardware": {"gpus": []}}, "measured on a CPU: no claim is made about the memory of a GPU"),
        ({"exam": {"packed": True}}, "rows of the exam are packed from several documents"),
        ({"parameters": {"total": 2e3, "active": 1e3}}, "1 tokens per active parameter, where compute-optimal"),
        ({"audit": {"findings": [{"level": "warn", "message": "the corpus repeats"}]}}, "the corpus repeats"),
    ],
)
def test_a_caveat_stands_where_its_condition_holds(beginning: dict[str, Any], caveat: str) -> None:
    results = sweep(explore() + confirm())
    assert not any(caveat in text for text in decide(results).caveats)
    assert any(caveat in text for text in decide(with_beginning(results, **beginning)).caveats)


def test_unequal_memory_and_failed_explore_cells_are_told() -> None:
    peaks = {"large_batch": 2.0, "balanced": 1.5, "long_seq": 1.0}
    cells = [replace(f, records=({"peak_mem_allocated_gib": peaks[f.cell.strategy]},)) for f in confirm()]
    failed = [replace(found, outcome="failed") for found in explore({"balanced": {0.08: 4.0}})]
    caveats = decide(sweep([*explore(), *failed, *cells])).caveats
    assert any("arms do not fill the same memory (large_batch 2.00 GiB" in caveat for caveat in caveats)
    assert "1 explore cell of balanced failed" in caveats
    assert any(
        "unequal numbers of rates were tried, for grids were widened or extended: large_batch 4, balanced 5" in caveat
        for caveat in caveats
    )
