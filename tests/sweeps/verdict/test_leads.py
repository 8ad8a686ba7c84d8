"""Why an arm leads: context, controls, documents; and the arms at other budgets."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import pytest

from sweeps.ledger.results import CellResult, SweepResults
from sweeps.verdict.decision import decide
from sweeps.verdict.verdict import Verdict
from tests.sweeps.planted_sweep import BUDGET, CLEAR_WIN, SHAPES, cell, confirm, control, explore, sweep

GAINS = {"large_batch": 0.0, "balanced": 0.1, "long_seq": 0.35}
"""What its own context gives each arm over the common one."""
WOBBLE = (0.001, -0.001, 0.002, 0.0, -0.002)


def scored(cells: Sequence[CellResult], **views: Any) -> list[CellResult]:
    """The same confirm cells with views of the exam; a view may be a function of the cell."""
    return [
        replace(found, scores={name: view(found) if callable(view) else view for name, view in views.items()})
        for found in cells
    ]


def common_loss(found: CellResult) -> float:
    assert found.test_loss is not None
    return found.test_loss + GAINS[found.cell.strategy] + WOBBLE[found.cell.seed - 101]


def judged(cells: Sequence[CellResult], **space: Any) -> Verdict:
    return decide(sweep([*explore(), *cells], **space))


def test_own_lead_is_common_lead_plus_context_gain_to_the_last_digit() -> None:
    context = judged(scored(confirm(), common_context_loss=common_loss)).context
    assert context is not None
    for row in context:
        assert row.own_lead.mean == pytest.approx(row.common_lead.mean + row.context_gain.mean, abs=1e-12)
        assert row.context_gain.mean == pytest.approx(GAINS[row.a] - GAINS[row.b], abs=1e-12)
        assert row.own_lead.low < row.own_lead.mean < row.own_lead.high
        assert row.views_agree
    assert context[0].own_lead.mean == pytest.approx(0.2)


def test_where_the_views_name_different_arms_the_statement_names_the_view() -> None:
    gains = {"large_batch": 0.5, "balanced": 0.0, "long_seq": 0.0}

    def common(found: CellResult) -> float:
        return common_loss(found) - GAINS[found.cell.strategy] + gains[found.cell.strategy]

    verdict = judged(scored(confirm(), common_context_loss=common))
    assert verdict.outcome == "wins"
    assert "large_batch wins on this exam, in own context" in verdict.statement
    assert "on the common context of 64 tokens balanced wins" in verdict.statement
    agreed = judged(scored(confirm(), common_context_loss=common_loss))
    assert "context" not in agreed.statement


def test_without_common_scores_there_is_no_identity() -> None:
    assert judged(confirm()).context is None


@pytest.mark.parametrize(("gain", "is_used"), [(0.05, True), (-0.01, False)])
def test_context_that_brings_the_long_arm_nothing_forbids_claims_about_length(gain: float, is_used: bool) -> None:
    def use(found: CellResult) -> dict[str, float] | None:
        if found.cell.strategy != "long_seq":
            return None
        wobble = WOBBLE[found.cell.seed - 101]
        return {"beyond_tokens": 64, "own_loss": 4.8, "common_loss": 4.8 + gain + wobble, "n_targets": 960}

    caveats = judged(scored(confirm(), context_use=use)).caveats
    assert any("context not yet used" in caveat for caveat in caveats) is not is_used


def grouped(lr: float = 0.02) -> list[CellResult]:
    """The control of the large batch: its own search, and confirm seeds 0.15 above the shuffled ones."""
    curve = {rate: 4.6 + 0.1 * abs(math.log2(rate / lr)) for rate in (0.005, 0.01, 0.02, 0.04)}
    values = zip(CLEAR_WIN["large_batch"], WOBBLE, strict=True)
    return control([value + 0.15 + wobble for value, wobble in values], curve, lr)


def test_the_control_splits_a_lead_into_diversity_and_length() -> None:
    verdict = judged([*confirm(), *grouped()])
    assert verdict.controls is not None
    (row,) = verdict.controls
    assert (row.a, row.b, row.seeds) == ("large_batch", "long_seq", 5)
    assert row.lead.mean == pytest.approx(0.4)
    assert row.diversity.mean == pytest.approx(0.15)
    assert row.lead.mean == pytest.approx(row.diversity.mean + row.length.mean, abs=1e-12)
    assert row.diversity_share == pytest.approx(0.15 / 0.4)
    assert any("38% of large_batch's lead over long_seq" in caveat for caveat in verdict.caveats)
    assert not any("no control was run" in caveat for caveat in verdict.caveats)


@pytest.mark.parametrize(("own", "splits"), [(("large_batch", "large_batch_grouped"), 0), (SHAPES, 1)])
def test_a_lead_is_split_against_the_long_arm_of_the_same_model_alone(own: Collection[str], splits: int) -> None:
    results = sweep([*explore(), *confirm(), *grouped()])
    arms = [
        {**arm, "model": {"top_k": 1} if arm["name"] in own or arm.get("role") == "control" else {}}
        for arm in results.beginning["strategies"]
    ]
    verdict = decide(replace(results, beginning={**results.beginning, "strategies": arms}))
    assert len(verdict.controls or ()) == splits


@pytest.mark.parametrize(
    ("lift", "words"), [(-0.2, "none of large_batch's lead over long_seq"), (0.3, "all of large_batch's lead")]
)
def test_a_control_below_nothing_or_beyond_all_of_a_lead_gives_no_odd_percentages(lift: float, words: str) -> None:
    cells = [
        replace(found, test_loss=(found.test_loss or 0.0) + lift) if found.cell.phase == "confirm" else found
        for found in grouped()
    ]
    assert any(words in caveat for caveat in judged([*confirm(), *cells]).caveats)


def test_a_short_arm_that_is_behind_has_no_lead_to_divide() -> None:
    behind = {**CLEAR_WIN, "large_batch": tuple(loss + 1 for loss in CLEAR_WIN["large_batch"])}
    verdict = judged([*confirm(behind), *grouped()])
    assert verdict.controls is not None
    assert verdict.controls[0].lead.high < 0
    assert not any("large_batch's lead" in caveat for caveat in verdict.caveats)


def test_a_control_judged_at_the_edge_of_its_own_grid_says_so_without_withholding_the_verdict() -> None:
    verdict = judged([*confirm(), *grouped(lr=0.04)])
    assert verdict.outcome == "wins"
    edge = "the best rate of the control of large_batch (0.04) is at the edge of its grid"
    assert any(caveat.startswith(edge) for caveat in verdict.caveats)


def by_document(spread: float, documents: int = 32) -> Any:
    """Documents of 64 tokens; the large batch's lead swings by ``spread`` from one to the next."""

    def view(found: CellResult) -> dict[str, tuple[float, int]]:
        sign = 1 if found.cell.strategy == "large_batch" else 0
        assert found.test_loss is not None
        swings = [spread * (-1) ** place * (1 + place // 2) for place in range(documents)]
        return {f"document {i}": (64 * (found.test_loss + sign * swing), 64) for i, swing in enumerate(swings)}

    return view


def test_a_lead_that_other_documents_may_reverse_is_undecided_and_said_to_hold_on_this_exam() -> None:
    uneven = judged(scored(confirm(), loss_by_document=by_document(0.1)))
    low, high = uneven.document_intervals["large_batch", "balanced"]
    assert low < 0 < high
    assert uneven.outcome == "undecided"
    assert uneven.exam.winner_over_seeds == "large_batch"
    assert "by seeds alone, on this exam, large_batch is better than every other arm" in uneven.statement
    assert "an exam of about " in uneven.statement
    assert uneven.documents_needed is not None
    assert uneven.documents_needed > 32
    even = judged(scored(confirm(), loss_by_document=by_document(0.01)))
    assert (even.outcome, even.winner) == ("wins", "large_batch")
    assert even.statement.startswith("large_batch wins: ")
    assert "paired over 5 fresh seeds and 32 documents of the exam" in even.statement


def test_the_wider_interval_is_printed_and_the_one_over_seeds_stands_beside_it() -> None:
    pair = judged(scored(confirm(), loss_by_document=by_document(0.01))).as_dict()["pairs"][0]
    seeds, documents = pair["tests"]
    assert (seeds["test"], documents["test"]) == ("seeds", "documents")
    assert documents["ci_low"] < seeds["ci_low"] < pair["difference"] < seeds["ci_high"] < documents["ci_high"]
    assert (pair["ci_low"], pair["ci_high"]) == (documents["ci_low"], documents["ci_high"])
    assert pair["p_value"] == max(seeds["p_value"], documents["p_value"])


def test_documents_of_one_group_are_one_unit_of_the_exam() -> None:
    cells = scored(confirm(), loss_by_document=by_document(0.01, documents=64))
    results = sweep([*explore(), *cells])
    groups = {f"document {i}": f"author {i % 25}" for i in range(64)}
    grouped = replace(results, beginning={**results.beginning, "exam": {"document_groups": groups}})
    exam = decide(grouped).exam
    assert (exam.unit, exam.documents, exam.is_on_this_exam) == ("group", 25, False)
    assert "25 groups of documents of the exam" in decide(grouped).statement
    assert (decide(results).exam.unit, decide(results).exam.documents) == ("document", 64)


def test_documents_of_one_arm_alone_are_no_pair() -> None:
    cells = scored(confirm({"balanced": CLEAR_WIN["balanced"]}), loss_by_document=by_document(0.3))
    alone = replace(sweep(cells), beginning={"space": {"budget_tokens": BUDGET}})
    assert decide(alone).document_intervals == {}


def curves(final: float, drop: float) -> tuple[dict[str, Any], ...]:
    losses = {250: final + 2 * drop, 500: final + drop, BUDGET: final}
    return tuple({"tokens_seen": tokens, "val_loss": loss} for tokens, loss in losses.items())


def test_rungs_are_labelled_by_the_schedule_and_paired_by_seed() -> None:
    cells = [replace(found, records=curves(found.test_loss or 0.0, 0.5)) for found in confirm()]
    rows = judged(cells).by_rung
    assert [(row.tokens, row.label) for row in rows] == [
        (250, "undecayed"),
        (500, "undecayed"),
        (1_000, "decayed"),
    ]
    assert rows[0].pairs[0].difference == pytest.approx(-0.2)


def test_an_undecayed_order_supports_no_caveat() -> None:
    drops = {"large_batch": 0.9, "balanced": 0.5, "long_seq": 0.5}
    cells = [replace(f, records=curves(f.test_loss or 0.0, drops[f.cell.strategy])) for f in confirm()]
    verdict = judged(cells)
    assert min(verdict.by_rung[0].means, key=verdict.by_rung[0].means.__getitem__) == "balanced"
    assert not any("changed" in caveat or "another arm led" in caveat for caveat in verdict.caveats)


def timed(budgets: dict[str, int], lift: float) -> list[CellResult]:
    """Time cells of some arms, their losses lifted by what the smaller budget costs."""
    return [
        cell(arm, 0.02, 101 + i, "time", loss=loss + lift, budget=budget)
        for arm, budget in budgets.items()
        for i, loss in enumerate(CLEAR_WIN[arm])
    ]


def alone(packed: Collection[str] = ()) -> list[CellResult]:
    """Confirm cells that were timed alone, and those of the arms in ``packed`` beside another trial."""
    return [
        replace(found, records=({"tokens_per_s": 100.0, "concurrent_trials": 1 + (found.cell.strategy in packed)},))
        for found in confirm()
    ]


def test_equal_time_takes_each_arms_own_budget_and_only_comparable_trials_name_an_arm() -> None:
    view = judged([*alone(), *timed({"large_batch": 600, "long_seq": 800}, 0.3)]).by_budget.time
    assert view.budgets_tokens == {"large_batch": 600, "balanced": 1_000, "long_seq": 800}
    assert (view.comparable, view.winner) == (True, "balanced")
    verdict = judged([*alone(packed=["large_batch"]), *timed({"large_batch": 600, "long_seq": 800}, 0.3)])
    assert (verdict.by_budget.time.comparable, verdict.by_budget.time.winner) == (False, None)
    assert any("equal time names no arm" in caveat for caveat in verdict.caveats)


def at_flops(costs: dict[str, float], cells: list[CellResult]) -> SweepResults:
    """A sweep of arms with other models, a token of which costs so many FLOPs."""
    results = sweep([*explore(), *confirm(), *cells])
    arms = [
        {**arm, "flops_per_token": costs[arm["name"]], "model": {"top_k": place + 1}}
        for place, arm in enumerate(results.beginning["strategies"])
    ]
    return replace(results, beginning={**results.beginning, "strategies": arms})


def test_where_a_token_costs_arms_other_flops_the_statement_compares_at_equal_ones() -> None:
    costs = {"large_batch": 2.0, "balanced": 1.0, "long_seq": 1.01}
    cells = [
        cell("large_batch", 0.02, 101 + i, "flops", loss=loss + 0.3, budget=500)
        for i, loss in enumerate(CLEAR_WIN["large_batch"])
    ]
    verdict = decide(at_flops(costs, cells))
    view = verdict.by_budget.flops
    assert view is not None
    assert (view.winner, view.budgets_tokens) == (
        "balanced",
        {"large_batch": 500, "balanced": 1_000, "long_seq": 1_000},
    )
    assert (
        "at equal training FLOPs (tokens: large_batch 500, balanced 1,000 and long_seq 1,000) balanced wins instead, "
        "at the rates chosen at equal tokens"
    ) in verdict.statement
    assert "at equal training FLOPs balanced wins" in verdict.caveats


def test_without_such_cells_a_caveat_says_that_tokens_are_not_flops() -> None:
    costs = {"large_batch": 2.0, "balanced": 1.0, "long_seq": 1.01}
    verdict = decide(at_flops(costs, []))
    assert verdict.by_budget.flops is None
    assert (
        "a token of large_batch costs 2.00 times the training FLOPs of one of balanced: equal tokens are not equal "
        "FLOPs (`flops_view = true` compares at those too)"
    ) in verdict.caveats


def test_arms_of_one_model_are_compared_at_equal_tokens_whatever_attention_costs_them() -> None:
    results = sweep([*explore(), *confirm()])
    costs = (1.0, 1.2, 1.9)
    arms = [{**arm, "flops_per_token": cost} for arm, cost in zip(results.beginning["strategies"], costs, strict=True)]
    verdict = decide(replace(results, beginning={**results.beginning, "strategies": arms}))
    assert not any("FLOPs" in caveat for caveat in verdict.caveats)


def test_an_arm_that_was_added_after_the_time_cells_is_in_no_budget_so_there_is_no_view() -> None:
    assert judged([*alone(), *timed({"large_batch": 600}, 0.3)]).by_budget.time is None


def test_seeds_that_were_added_later_do_not_make_budgets_comparable_that_were_not() -> None:
    before = [
        replace(found, records=({**record, "timestamp_s": 1.0},))
        for found in alone(packed=["large_batch"])
        for record in found.records
    ]
    times = [
        replace(found, records=({"timestamp_s": 2.0},)) for found in timed({"large_batch": 600, "long_seq": 800}, 0.3)
    ]
    later = [
        replace(found, cell=replace(found.cell, seed=found.cell.seed + 100), records=({**record, "timestamp_s": 3.0},))
        for found in alone()
        for record in found.records
    ]
    assert not judged([*before, *times, *later]).by_budget.time.comparable


def test_time_cells_at_a_rate_that_is_no_longer_judged_are_not_compared() -> None:
    better = [cell("large_batch", 0.015, 1, loss=4.3)]
    again = [replace(found, cell=replace(found.cell, lr=0.015, adamw_lr=0.0045)) for found in alone()]
    cells = [found for found in again if found.cell.strategy == "large_batch"]
    others = [found for found in alone() if found.cell.strategy != "large_batch"]
    verdict = judged([*better, *cells, *others, *timed({"large_batch": 600, "long_seq": 800}, 0.3)])
    assert verdict.outcome == "wins"
    assert verdict.by_budget.time is None


def test_no_view_names_a_winner_where_the_verdict_may_not() -> None:
    cells = [*alone(), *timed({"large_batch": 600, "long_seq": 800}, 0.3)]
    open_cell = cell("balanced", 0.03, 1, outcome=None)
    verdict = judged([*cells, open_cell])
    assert verdict.outcome == "withheld"
    assert [verdict.by_budget.tokens.winner, verdict.by_budget.time.winner] == [None, None]
    assert not any("at equal time" in caveat for caveat in verdict.caveats)
    judged_views = judged(cells).by_budget
    assert [judged_views.tokens.winner, judged_views.time.winner] == ["large_batch", "balanced"]


def unequal_steps(cells: Sequence[CellResult]) -> SweepResults:
    results = sweep([*explore(), *cells])
    shapes = [dict(shape) for shape in results.beginning["strategies"]]
    for shape, per_step in zip(shapes, (50, 100, 200), strict=True):
        shape["tokens_per_step"] = per_step
    return replace(results, beginning={**results.beginning, "strategies": shapes})


def test_equal_updates_are_shown_where_tokens_per_step_differ_and_name_no_winner() -> None:
    cells = [replace(found, records=curves(found.test_loss or 0.0, 0.5)) for found in confirm()]
    verdict = decide(unequal_steps(cells))
    view = verdict.by_budget.updates
    assert (view.updates, view.winner) == (5, None)  # 1,000 tokens in steps of 200
    assert view.labels == {"large_batch": "undecayed", "balanced": "undecayed", "long_seq": "decayed"}
    assert view.means["balanced"] == pytest.approx(4.6 + 0.5)
    assert any("tokens per step differ" in caveat for caveat in verdict.caveats)
    assert judged(cells).by_budget.updates is None
