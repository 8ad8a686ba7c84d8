"""What a report says: sentences, commands and reasons, read out of results and verdict."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sweeps.ledger.results import CellResult, SweepResults
from sweeps.report.facts import worked
from sweeps.report.opening import how_sure, opening
from sweeps.report.sections import commands
from sweeps.report.tables import pair_table
from sweeps.report.why import why_blocks
from sweeps.shown_commands import shown_command
from sweeps.verdict.decision import decide
from sweeps.verdict.rows import ControlSplit, Estimate
from tests.sweeps import planted_sweep as planted
from tests.sweeps.report_data import RUNGS, changed, judged, results


def test_leads_are_listed_from_the_closest_rival_on_with_intervals_without_a_sign(finished: SweepResults) -> None:
    first, second = opening(judged(finished)).leads
    assert first.startswith("0.0549 nats below long_seq (95% interval 0.0495 to 0.0603, paired over 5 seeds and 32")
    assert "below large_batch" in second


def of_documents(results: SweepResults, number: int, group: int = 0) -> SweepResults:
    """The same sweep with an exam of the first ``number`` documents, in groups of ``group``."""

    def fewer(result: CellResult) -> CellResult:
        by_document = dict(list((result.scores or {}).get("loss_by_document", {}).items())[:number])
        return replace(result, scores=result.scores and {**result.scores, "loss_by_document": by_document})

    groups = {f"doc{i:02d}": f"author{i // group}" for i in range(32)} if group else {}
    exam = {**results.beginning["exam"], "document_groups": groups}
    return replace(changed(results, fewer), beginning={**results.beginning, "exam": exam})


def test_intervals_name_what_they_are_over_and_groups_where_the_corpus_names_them(finished: SweepResults) -> None:
    plain, groups = judged(finished), judged(of_documents(finished, 32, group=1))
    assert opening(plain).meaning.endswith("each in a two-sided test over fresh seeds and documents of the exam.")
    assert "and 32 groups of documents of the exam)" in opening(groups).leads[0]
    assert any("holds over new groups of documents too" in sentence for sentence in how_sure(groups))
    assert groups.over == "seeds and groups of documents of the exam"


def test_of_few_documents_nothing_is_said_about_new_ones(finished: SweepResults) -> None:
    few = judged(of_documents(finished, 12))
    assert few.verdict.exam.is_on_this_exam
    assert any("fewer than 20" in caveat for caveat in few.verdict.caveats)
    assert not any("new documents" in sentence for sentence in how_sure(few))
    assert any("holds over new documents too" in sentence for sentence in how_sure(judged(finished)))


def test_without_losses_by_document_intervals_are_over_seeds(finished: SweepResults) -> None:
    facts = judged(changed(finished, lambda result: replace(result, scores=None)))
    assert opening(facts).leads[0].endswith("paired over 5 seeds)")
    assert opening(facts).meaning.endswith("over fresh seeds.")


def test_the_documents_that_would_settle_it_are_named_beside_the_seeds(finished: SweepResults) -> None:
    verdict = decide(finished)
    exam = replace(verdict.exam, unit="group", documents=32)
    facts = judged(finished, outcome="undecided", seeds_needed=12, documents_needed=80, exam=exam)
    assert (
        "An exam of about 80 groups of documents instead of 32 would settle it at today's seeds, in a new sweep."
        in (how_sure(facts))
    )


def test_sentences_count_the_seeds_in_which_the_winner_was_ahead(finished: SweepResults) -> None:
    sentences = how_sure(judged(finished))
    assert any(sentence.startswith("balanced ended below large_batch in 5 of 5 seeds") for sentence in sentences)


def test_no_chances_and_no_p_values_are_shown_where_nothing_is_judged() -> None:
    facts = judged(results(seeds=2))
    sentences = how_sure(facts)
    assert sentences[0] == "balanced ended below long_seq in 2 of 2 seeds."
    assert not any("%" in sentence for sentence in sentences)
    table = pair_table(facts)
    assert table is not None
    assert table.header == ("pair", "difference", "interval")


NOISY = {"large_batch": (4.40, 4.51, 4.39, 4.41, 4.39), "balanced": (4.50, 4.41, 4.59, 4.40, 4.40)}


def undecided(looks: int = 1) -> SweepResults:
    rules = {"alpha": 0.05, "margin": 0.0001, "looks": looks}
    return planted.sweep(planted.explore() + planted.confirm({**planted.CLEAR_WIN, **NOISY}), verdict=rules)


@pytest.mark.parametrize(
    ("looks", "words"), [(1, "more confirm seeds per arm would"), (2, "seeds per arm in all would")]
)
def test_seeds_that_would_settle_it_are_counted_as_the_statement_counts_them(looks: int, words: str) -> None:
    facts = judged(undecided(looks))
    needed = facts.verdict.seeds_needed
    assert any(s.startswith(f"About {needed} ") and words in s for s in how_sure(facts))
    assert f"about {needed} {'fresh seeds' if looks == 1 else 'seeds in all'}" in facts.verdict.statement


def test_an_extension_is_suggested_beyond_all_confirm_seeds_and_not_only_the_judged_ones() -> None:
    first = undecided()
    later = [replace(r, cell=replace(r.cell, seed=r.cell.seed + 5)) for r in planted.confirm()]
    extended = replace(first, cells=(*first.cells, *later), earlier_verdicts=(decide(first).as_dict(),))
    facts = judged(extended)
    assert facts.verdict.outcome == "wins"
    assert shown_command("extend", "planted", "--seeds", "13") in [line for line, _ in commands(facts)]
    assert any("look 2 of 1 planned" in caveat for caveat in facts.verdict.caveats)


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
    assert "Leading so far: balanced (lowest mean test loss over 2 complete seeds)" in facts.verdict.statement
    assert facts.verdict.leading == "balanced"


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
    assert why_blocks(facts) == why_blocks(judged(finished))
    assert "99.0000" not in str(why_blocks(facts))


def test_rungs_at_which_nothing_is_ranked_are_no_rungs(finished: SweepResults) -> None:
    space = {**finished.beginning["space"], "early_stopping": {"kind": "none"}}
    without = replace(finished, beginning={**finished.beginning, "space": space})
    assert judged(finished).rungs_tokens == RUNGS
    assert judged(without).rungs_tokens == ()


def test_an_unfinished_sweep_names_the_command_that_resumes_it(finished: SweepResults) -> None:
    sweep = changed(finished, lambda r: replace(r, outcome=None) if r.cell.seed == 105 else r)
    assert commands(judged(sweep))[0][0] == shown_command("resume", "first")


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
    assert {stretch.lane for stretch in judged(finished).stretches} == {0, 1}


CONTROL = ControlSplit(
    a="large_batch",
    b="long_seq",
    seeds=5,
    lr=0.02,
    lead=Estimate(mean=0.1),
    diversity=Estimate(mean=0.06),
    length=Estimate(mean=0.04),
    diversity_share=0.6,
    at_edge=False,
)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({}, "60% of large_batch's lead over long_seq goes"),
        ({"diversity_share": 1.3}, "large_batch's lead over long_seq goes with the diversity of its batches: nothing"),
        ({"diversity_share": -0.2}, "large_batch's lead over long_seq goes with the diversity of its batches: it does"),
        ({"lead": Estimate(mean=-0.1)}, "make large_batch 0.0600 nats worse; it has no clear lead"),
        ({"diversity_share": None}, "it has no clear lead over long_seq to divide"),
    ],
)
def test_a_share_is_named_only_of_a_lead_that_is_there(
    finished: SweepResults, change: dict[str, Any], sentence: str
) -> None:
    assert sentence in str(why_blocks(judged(finished, controls=(replace(CONTROL, **change),))))


def test_a_split_lead_is_shown_from_the_side_of_the_arm_that_is_ahead(finished: SweepResults) -> None:
    context = judged(finished).verdict.context
    assert context is not None
    behind = next(entry for entry in context if entry.own_lead.mean < 0)
    turned = behind.from_ahead()
    assert (turned.a, turned.b) == (behind.b, behind.a)
    assert behind.own_lead.low is not None
    assert turned.own_lead.high == -behind.own_lead.low
    assert turned.own_lead.mean == turned.common_lead.mean + turned.context_gain.mean


def test_an_extension_that_decides_nothing_keeps_the_last_decision_as_the_headline(finished: SweepResults) -> None:
    last = {"outcome": "wins", "winner": "balanced", "statement": "balanced wins.", "verdict": "verdicts/0001.json"}
    changed = {"outcome": "exploratory", "winner": None, "headline": "long_seq has the lowest mean so far"}
    top = opening(judged(finished, **changed, last_decided=last))
    assert top.headline == "balanced wins, as decided before the sweep was extended"
    assert top.before == (
        "Last decided verdict (verdicts/0001.json): balanced wins. "
        "With what was added since: long_seq has the lowest mean so far."
    )
    tied = opening(judged(finished, **changed, last_decided={**last, "outcome": "tie", "winner": None}))
    assert tied.headline.startswith("a tie, as decided before")
