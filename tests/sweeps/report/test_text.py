"""What a report says: sentences, commands and reasons, read out of results and verdict."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sweeps.ledger.results import CellResult, SweepResults
from sweeps.report.facts import Facts, worked
from sweeps.report.fairness import fairness_ledger
from sweeps.report.tables import length_table
from sweeps.report.text import commands, headline, how_sure
from sweeps.report.why import from_ahead, why_groups
from tests.sweeps import planted_sweep as planted
from tests.sweeps.report_data import RUNGS, changed, judged, results, verdict_of


def test_headline_and_rest_together_are_the_statement(finished: SweepResults) -> None:
    for statement in (
        "a wins on x: its loss is 3; more",
        "Withheld: the best rate is high; `sweeps extend`",
        "one clause",
    ):
        parts = headline(Facts(finished, {"statement": statement, "outcome": "wins"}))
        assert "".join(parts) == statement
    assert headline(Facts(finished, {"statement": "a wins: its loss is 3; so", "outcome": "wins"}))[0] == "a wins"
    edge = "Withheld: the best rates of a (0.04, next 0.08) and b (0.1) are the highest tried; more"
    assert headline(Facts(finished, {"statement": edge}))[0] == edge.removesuffix("; more")


def test_sentences_count_the_seeds_in_which_the_winner_was_ahead(finished: SweepResults) -> None:
    sentences = how_sure(Facts(finished, verdict_of(finished)))
    assert any(sentence.startswith("balanced ended below large_batch in 5 of 5 seeds") for sentence in sentences)


def test_no_chances_are_told_from_too_few_seeds() -> None:
    sweep = results(seeds=2)
    sentences = how_sure(Facts(sweep, verdict_of(sweep)))
    assert sentences[0] == "balanced ended below large_batch in 2 of 2 seeds."
    assert not any("%" in sentence for sentence in sentences)


NOISY = {"large_batch": (4.40, 4.51, 4.39, 4.41, 4.39), "balanced": (4.50, 4.41, 4.59, 4.40, 4.40)}


def undecided(looks: int = 1) -> SweepResults:
    rules = {"alpha": 0.05, "margin": 0.0001, "looks": looks}
    return planted.sweep(planted.explore() + planted.confirm({**planted.CLEAR_WIN, **NOISY}), verdict=rules)


@pytest.mark.parametrize(
    ("looks", "words"), [(1, "more confirm seeds per arm would"), (2, "seeds per arm in all would")]
)
def test_seeds_that_would_settle_it_are_counted_as_the_statement_counts_them(looks: int, words: str) -> None:
    facts = Facts(undecided(looks), verdict_of(undecided(looks)))
    needed = facts.verdict["seeds_needed"]
    assert any(s.startswith(f"About {needed} ") and words in s for s in how_sure(facts))
    assert f"about {needed} {'fresh seeds' if looks == 1 else 'seeds in all'}" in facts.verdict["statement"]


def test_an_extension_is_suggested_beyond_all_confirm_seeds_and_not_only_the_judged_ones() -> None:
    first = undecided()
    later = [replace(r, cell=replace(r.cell, seed=r.cell.seed + 5)) for r in planted.confirm()]
    extended = replace(first, cells=(*first.cells, *later), earlier_verdicts=(verdict_of(first),))
    facts = Facts(extended, verdict_of(extended))
    assert facts.verdict["outcome"] == "wins"
    assert "sweeps extend planted --seeds 13" in [command.line for command in commands(facts)]
    (statistics,) = (entry for entry in fairness_ledger(facts) if entry.rule == 9)
    assert statistics.level == "warn"  # an unplanned look has a rule of its own


def test_the_view_at_common_context_is_read_from_one_seed_too() -> None:
    sweep = results(seeds=1)

    def turn(result: CellResult) -> CellResult:
        ahead = result.cell.strategy == "long_seq"
        return replace(result, scores={**(result.scores or {}), "common_context_loss": 3.0 if ahead else 5.0})

    sentences = how_sure(judged(changed(sweep, lambda r: turn(r) if r.cell.phase == "confirm" else r)))
    assert "Read on the common context of 64 tokens, long_seq has the lowest mean instead." in sentences


def test_the_arm_in_front_is_the_one_that_the_statement_names() -> None:
    cells = [
        replace(result, outcome=None, test_loss=None) if fate else result
        for result in planted.confirm({**planted.CLEAR_WIN, "balanced": (4.30, 4.31, 5.0, 5.1, 5.2)})
        for fate in [result.cell.strategy == "large_batch" and result.cell.seed > 102]
    ]
    facts = judged(planted.sweep(planted.explore() + cells))
    assert "so far balanced has the lowest mean test loss (2 complete seeds)" in facts.verdict["statement"]
    assert facts.leading == "balanced"


def test_confirm_cells_at_a_rate_that_is_no_longer_chosen_are_not_mixed_with_the_judged_ones(
    finished: SweepResults,
) -> None:
    def at_another_rate(result: CellResult) -> CellResult | None:
        if result.cell.phase != "confirm" or result.cell.strategy != "balanced":
            return None
        lengths = [{"eval_len": 64, "loss": 99.0, "extrapolation": False}]
        scores = {**(result.scores or {}), "loss_by_length": lengths, "sliding_own_loss": 99.0}
        return replace(result, cell=replace(result.cell, lr=0.04, adamw_lr=0.012), test_loss=99.0, scores=scores)

    old = changed(finished, at_another_rate).cells
    facts = judged(replace(finished, cells=(*finished.cells, *old)))
    assert {result.cell.lr for result in facts.cells("confirm", arm="balanced")} == {0.01, 0.04}
    assert {result.cell.lr for result in facts.confirmed("balanced")} == {0.01}
    lengths, before = length_table(facts), length_table(judged(finished))
    assert lengths == before
    assert "99.0000" not in str(why_groups(facts))
    text = next(
        check.text for entry in fairness_ledger(facts) for check in entry.checks if "confirm seeds per" in check.text
    )
    assert text == "5 finished confirm seeds per arm"


def test_rungs_at_which_nothing_is_ranked_are_no_rungs(finished: SweepResults) -> None:
    space = {**finished.beginning["space"], "early_stopping": {"kind": "none"}}
    without = replace(finished, beginning={**finished.beginning, "space": space})
    assert Facts(finished, {}).rungs_tokens == RUNGS
    assert Facts(without, {}).rungs_tokens == ()


def test_an_unfinished_sweep_is_told_how_to_go_on(finished: SweepResults) -> None:
    sweep = changed(finished, lambda r: replace(r, outcome=None) if r.cell.seed == 105 else r)
    lines = [command.line for command in commands(Facts(sweep, verdict_of(sweep)))]
    assert lines[0] == "sweeps resume first"


def test_work_on_a_cell_is_split_where_it_was_interrupted(finished: SweepResults) -> None:
    result = finished.cells[1]
    assert len(worked(result)) == 1
    later = [
        {**record, "timestamp_s": record["timestamp_s"] + 500.0 * (i > 10)} for i, record in enumerate(result.records)
    ]
    stretches = worked(replace(result, records=tuple(later)))
    assert len(stretches) == 2
    assert stretches[1][0] - stretches[0][1] == pytest.approx(500, abs=0.1)


def test_lanes_of_the_timeline_are_the_workers_that_ran(finished: SweepResults) -> None:
    assert {stretch.lane for stretch in Facts(finished, {}).stretches} == {0, 1}


CONTROL = {"a": "large_batch", "b": "long_seq", "lead": 0.1, "diversity": 0.06, "length": 0.04, "diversity_share": 0.6}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({}, "60% of large_batch's lead over long_seq goes"),
        ({"diversity_share": 1.3}, "All of large_batch's lead over long_seq goes"),
        ({"diversity_share": -0.2}, "None of large_batch's lead over long_seq goes"),
        ({"lead": -0.1, "diversity_share": -0.6}, "makes large_batch 0.0600 worse; it has no clear lead"),
        ({"diversity_share": None}, "it has no clear lead over long_seq to divide"),
    ],
)
def test_a_share_is_named_only_of_a_lead_that_is_there(
    finished: SweepResults, change: dict[str, Any], sentence: str
) -> None:
    groups = why_groups(Facts(finished, verdict_of(finished, controls=[{**CONTROL, **change}])))
    (group,) = (group for group in groups if group.picture == "controls")
    assert sentence in group.sentences[0]


def test_leads_are_told_from_the_side_of_the_arm_that_is_ahead() -> None:
    entry = {"a": "x", "b": "y", "own": -0.2, "own_ci_low": -0.3, "own_ci_high": -0.1, "gain": 0.1}
    turned = from_ahead(entry, ("own", "gain"))
    assert (turned["a"], turned["own"], turned["own_ci_low"], turned["own_ci_high"]) == ("y", 0.2, 0.1, 0.3)
    assert (turned["gain"], turned["gain_ci_low"]) == (-0.1, None)
