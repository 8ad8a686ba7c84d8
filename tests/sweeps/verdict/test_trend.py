"""The budget as an axis: verdicts in a fixed sequence, changes of leads, crossovers, predictions that are checked."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from search_spaces import load_space
from sweeps.commands.extend import look_note
from sweeps.ledger.results import CellResult, SweepResults
from sweeps.report.facts import Facts
from sweeps.report.opening import how_sure
from sweeps.verdict.decision import decide
from sweeps.verdict.records import decide_records
from sweeps.verdict.records_table import rows_of
from sweeps.verdict.trend_rows import NOT_TESTED, PairTrend
from tests.sweeps.planted_sweep import CLEAR_WIN, confirm, explore, ladder, sweep

WOBBLE = (-0.004, 0.003, 0.0, 0.005, -0.004)
SPREAD = (0.002, -0.003, 0.004, -0.001, -0.002)
"""Noise that the arms do not share; its sign and size differ from budget to budget below."""


def losses(means: Mapping[str, float], turn: int = 0) -> dict[str, list[float]]:
    """Five seeds an arm around its mean, with noise of their own in each arm and budget."""
    found = {}
    for place, (arm, mean) in enumerate(means.items()):
        own = np.roll(SPREAD, turn + 2 * place)
        found[arm] = [mean + float(w + o) for w, o in zip(np.roll(WOBBLE, turn), own, strict=True)]
    return found


def leads(**by_rival: Sequence[float]) -> SweepResults:
    """A ladder from 250 tokens in steps of four: losses fall by 0.5 a step, rivals of large_batch lie above it."""
    budgets = [250 * 4**step for step in range(len(next(iter(by_rival.values()))))]
    return ladder(
        {
            budget: losses(
                {
                    "large_batch": 5.0 - 0.5 * step,
                    **{arm: 5.0 - 0.5 * step + ahead[step] for arm, ahead in by_rival.items()},
                },
                turn=step,
            )
            for step, budget in enumerate(budgets)
        }
    )


def pair(results: SweepResults, rival: str = "balanced") -> PairTrend:
    found = decide(results).trend.of("large_batch", rival)
    assert found is not None
    return found


def test_a_sweep_with_one_budget_has_no_trend() -> None:
    verdict = decide(sweep([*explore(), *confirm()]))
    assert (verdict.trend.budgets, verdict.trend.pairs) == ((), ())
    found = verdict.as_dict()
    assert (found["by_budget_tokens"], found["trend"]) == (None, None)


def test_the_verdict_is_about_the_largest_budget_and_each_is_judged_at_its_own_rates() -> None:
    results = leads(balanced=(0.3, 0.2), long_seq=(0.5, 0.6))
    verdict = decide(results)
    assert (verdict.outcome, verdict.winner, verdict.budget_tokens) == ("wins", "large_batch", 1_000)
    small, large = verdict.trend.budgets
    assert [(at.budget_tokens, at.outcome, at.winner, at.seeds) for at in (small, large)] == [
        (250, "wins", "large_batch", 5),
        (1_000, "wins", "large_batch", 5),
    ]
    assert {arm.name: arm.best_lr for arm in small.arms} == dict.fromkeys(CLEAR_WIN, 0.02)


def test_smaller_budgets_are_tested_only_while_each_larger_one_has_a_winner() -> None:
    verdict = decide(leads(balanced=(0.3, 0.001, 0.2), long_seq=(0.5, 0.5, 0.5)))
    assert [at.outcome for at in verdict.trend.budgets] == [NOT_TESTED, "tie", "wins"]
    assert verdict.trend.budgets[0].winner is None
    assert all(row.ci_low is not None for row in verdict.trend.budgets[0].pairs), "what was seen is shown"


def test_a_lead_that_shrinks_is_shown_with_its_slope_per_doubling() -> None:
    found = pair(leads(balanced=(0.4, 0.3, 0.2), long_seq=(0.5, 0.5, 0.5)))
    assert (found.a, found.b, found.change) == ("large_batch", "balanced", "shrinks")
    assert found.per_doubling.mean == pytest.approx(-0.05, abs=0.005)  # 0.1 in a factor of four
    assert found.p_adjusted is not None
    assert found.p_adjusted < 0.01
    assert [at.lead.mean for at in found.leads] == pytest.approx([0.4, 0.3, 0.2], abs=0.01)


def test_a_lead_that_stays_is_not_shown_to_change() -> None:
    found = pair(leads(balanced=(0.4, 0.3, 0.2), long_seq=(0.5, 0.5, 0.5)), "long_seq")
    assert found.change == "not_shown"


def test_p_values_of_changes_are_holms_over_all_pairs() -> None:
    pairs = decide(leads(balanced=(0.4, 0.3, 0.2), long_seq=(0.5, 0.52, 0.5))).trend.pairs
    assert len(pairs) == 3
    raw = np.asarray([found.p_value for found in pairs], dtype=float)
    adjusted = np.asarray([found.p_adjusted for found in pairs], dtype=float)
    smallest = int(raw.argmin())
    assert adjusted[smallest] == pytest.approx(3 * raw[smallest])


def test_nothing_is_tested_where_the_largest_budget_is_not_judged() -> None:
    arms = {"large_batch": 4.0, "balanced": 4.2, "long_seq": 4.5}
    two_seeds = {arm: values[:2] for arm, values in losses(arms).items()}
    verdict = decide(ladder({250: losses({arm: mean + 1 for arm, mean in arms.items()}), 1_000: two_seeds}))
    assert verdict.outcome == "exploratory"
    assert len(verdict.trend.pairs) == 3
    assert {(found.p_value, found.p_adjusted, found.change) for found in verdict.trend.pairs} == {
        (None, None, "not_shown")
    }


def test_a_change_is_at_the_chosen_rates_where_a_better_rate_could_have_made_it() -> None:
    """Explore curves whose bottom lies between two rates: a better rate could gain more than the lead changed."""
    steady = leads(balanced=(0.4, 0.2), long_seq=(0.5, 0.5))
    assert pair(steady).change == "shrinks"
    assert pair(leads(balanced=(0.200, 0.185), long_seq=(0.5, 0.5))).at_chosen_rates


def test_the_share_of_tokens_is_read_between_two_budgets() -> None:
    found = pair(leads(balanced=(0.25, 0.25), long_seq=(0.7, 0.7)))
    small, large = (at.tokens for at in found.leads)
    # 0.5 nats in a factor of four: half of it is a factor of two
    assert large.share == pytest.approx(0.5, abs=0.02)
    assert large.low is not None
    assert large.low < large.share < large.high < 1
    assert small.share == pytest.approx(0.5, abs=0.02), "at the smallest budget the rival is followed upwards"
    far = pair(leads(balanced=(0.25, 0.25), long_seq=(0.7, 0.7)), "long_seq").leads[-1].tokens
    assert (far.share, far.is_upper_bound, far.low) == (pytest.approx(0.25), True, None)


def test_the_share_belongs_to_whichever_arm_leads_at_that_budget() -> None:
    found = pair(leads(balanced=(-0.2, 0.2), long_seq=(0.5, 0.5)))
    assert [(at.tokens.leader, at.tokens.rival) for at in found.leads] == [
        ("balanced", "large_batch"),
        ("large_batch", "balanced"),
    ]


def test_a_constant_advantage_in_tokens_shrinks_in_nats_and_is_not_said_to_shrink() -> None:
    """Losses that fall by ever less: the lead in nats halves, the rival needs twice the tokens all along."""
    at = {budget: 4.0 + 2.0 * (budget / 250) ** -0.5 for budget in (250, 500, 1_000, 2_000, 4_000, 8_000)}
    budgets = (500, 1_000, 2_000, 4_000)
    results = ladder(
        {
            budget: losses(
                {"large_batch": at[budget], "balanced": at[budget // 2], "long_seq": at[budget // 2] + 0.3}, turn
            )
            for turn, budget in enumerate(budgets)
        }
    )
    found = pair(results)
    assert found.change == "shrinks"
    assert found.advantage == "not_shown"
    gone = pair(leads(balanced=(0.4, 0.1), long_seq=(0.5, 0.5)))
    assert (gone.change, gone.advantage) == ("shrinks", "shrinks")


def test_a_crossover_is_a_set_of_budgets_around_the_zero_of_the_line() -> None:
    found = pair(leads(balanced=(-0.1, 0.1), long_seq=(0.5, 0.5))).crossover
    assert found.at == pytest.approx(500, rel=0.1)
    ((low, high),) = found.ranges
    assert 250 < low < 500 < high < 1_000
    assert (found.is_open_below, found.is_open_above) == (False, False)


def test_no_crossover_is_sought_beyond_the_data_unless_the_line_predicted_better() -> None:
    assert pair(leads(balanced=(0.2, 0.1), long_seq=(0.5, 0.5))).crossover.searched == (250, 1_000)
    straight = pair(leads(balanced=(0.3, 0.2, 0.1), long_seq=(0.5, 0.5, 0.5)))
    assert straight.line_predicts_better
    assert straight.crossover.searched == (62, 16_000)
    assert straight.crossover.at == pytest.approx(16_000, rel=0.2)
    assert straight.crossover.is_extrapolated
    bent = pair(leads(balanced=(0.4, 0.1, 0.1), long_seq=(0.5, 0.5, 0.5)))
    assert not bent.line_predicts_better
    assert bent.crossover.searched == (250, 4_000)


def test_a_set_that_reaches_the_end_of_what_was_searched_is_open_there() -> None:
    found = pair(leads(balanced=(0.2, 0.001), long_seq=(0.5, 0.5))).crossover
    assert (found.is_open_below, found.is_open_above) == (False, True)
    never = pair(leads(balanced=(0.2, 0.2), long_seq=(0.5, 0.5))).crossover
    assert (never.ranges, never.at) == ((), None)


def test_the_smaller_budgets_predict_the_largest_and_both_misses_are_given() -> None:
    found = pair(leads(balanced=(0.4, 0.3, 0.1), long_seq=(0.5, 0.5, 0.5)))
    line, persistence = found.predictions
    assert (line.by, persistence.by) == ("line", "persistence")
    assert line.predicted == pytest.approx(0.2, abs=0.02)
    assert persistence.predicted == pytest.approx(0.3, abs=0.01)
    assert line.miss.mean == pytest.approx(-0.1, abs=0.02)
    assert persistence.miss.mean == pytest.approx(-0.2, abs=0.01)
    assert persistence.miss.low is not None
    assert [found.by for found in pair(leads(balanced=(0.4, 0.3), long_seq=(0.5, 0.5))).predictions] == ["persistence"]


def test_an_arm_that_diverged_at_one_budget_has_no_trend_and_the_others_have() -> None:
    results = leads(balanced=(0.4, 0.2), long_seq=(0.5, 0.5))
    cells = [
        found
        if (found.cell.strategy, found.cell.budget_tokens, found.cell.seed) != ("long_seq", 250, 103)
        else type(found)(cell=found.cell, outcome="diverged", tokens_seen=10)
        for found in results.cells
    ]
    trend = decide(sweep(cells, budget_tokens=1_000, budgets_tokens=[250, 1_000])).trend
    assert [(found.a, found.b) for found in trend.pairs] == [("large_batch", "balanced")]


def test_the_statement_has_one_clause_about_the_change() -> None:
    verdict = decide(leads(balanced=(0.4, 0.2), long_seq=(0.5, 0.5)))
    assert "with the budget its lead went over balanced from +0.4" in verdict.statement
    assert "(shrinks, p " in verdict.statement
    assert "over long_seq" in verdict.statement
    assert verdict.statement.count("with the budget") == 1


def test_verdict_json_has_every_budget_and_every_trend_and_no_nan() -> None:
    found = decide(leads(balanced=(0.4, 0.3, 0.2), long_seq=(0.5, 0.5, 0.5))).as_dict()
    text = json.dumps(found, allow_nan=False)
    again = json.loads(text)
    assert [row["budget_tokens"] for row in again["by_budget_tokens"]] == [250, 1_000, 4_000]
    first = again["trend"][0]
    assert {"a", "b", "leads", "per_doubling", "per_doubling_ci_low", "p_adjusted", "crossover", "predictions"} <= set(
        first
    )
    assert math.isclose(first["leads"][0]["lead"], 0.4, abs_tol=0.01)


def test_to_target_of_the_largest_budget_is_read_off_the_ladder() -> None:
    shares = decide(leads(balanced=(0.25, 0.25), long_seq=(0.7, 0.7))).by_budget.tokens.to_target
    assert shares is not None
    assert {row.b: row.is_upper_bound for row in shares} == {"balanced": False, "long_seq": True}


def at_speeds(results: SweepResults, speeds: Mapping[str, float], loads: Mapping[str, int]) -> SweepResults:
    """The same cells, each of which trained at its arm's tokens per second, beside as many others."""

    def measured(found: CellResult) -> CellResult:
        arm = found.cell.strategy
        record = {"tokens_per_s": speeds[arm], "concurrent_trials": loads[arm]}
        return replace(found, records=(record,) * 3)

    return replace(results, cells=tuple(measured(found) for found in results.cells))


def test_what_a_lead_saves_is_a_share_of_tokens_and_at_measured_speeds_of_time() -> None:
    results = leads(balanced=(0.25, 0.25), long_seq=(0.7, 0.7))
    speeds = {"large_batch": 200.0, "balanced": 100.0, "long_seq": 400.0}
    together = at_speeds(results, speeds, dict.fromkeys(speeds, 2))
    rows = decide(together).by_budget.tokens
    assert rows is not None and rows.to_target is not None
    for row in rows.to_target:
        assert row.ci_low is None or row.ci_low < row.share
        assert row.ci_high > row.share or row.is_upper_bound
        assert row.time_share == pytest.approx(row.share * speeds[row.b] / 200.0)
        assert row.time_ci_high == pytest.approx(row.ci_high * speeds[row.b] / 200.0)
        assert row.device_hours == pytest.approx(1_000 / speeds[row.b] / 2 / 3600), "two shared the device"

    apart = decide(at_speeds(results, speeds, {"large_batch": 1, "balanced": 2, "long_seq": 3})).by_budget.tokens
    assert apart is not None and apart.to_target is not None
    assert {(row.time_share, row.device_hours) for row in apart.to_target} == {(None, None)}, "other loads"


def test_the_report_says_what_is_saved_and_in_money_where_an_hour_has_a_price() -> None:
    results = leads(balanced=(0.25, 0.25), long_seq=(0.7, 0.7))
    speeds = {"large_batch": 200.0, "balanced": 100.0, "long_seq": 400.0}
    together = at_speeds(results, speeds, dict.fromkeys(speeds, 2))
    verdict = decide(together)
    plain = " ".join(how_sure(Facts(together, verdict)))
    assert re.search(
        r"large_batch reaches the loss of balanced with 5\d% \(95% interval \d+% to \d+%\) of its tokens and "
        r"2\d% \(95% interval \d+% to \d+%\) of its training time\.",
        plain,
    ), plain
    assert "reaches the loss of long_seq with at most 25%" in plain
    priced = " ".join(how_sure(Facts(together, verdict, price_per_hour=3600.0)))
    assert re.search(r"training time: of the 5\.00 that a run of balanced costs, 3\.\d\d is saved\.", priced), priced


def test_a_ladder_written_as_records_is_judged_to_the_same_bits() -> None:
    results = leads(balanced=(0.4, 0.3, 0.2), long_seq=(0.5, 0.5, 0.5))
    own = decide(results).as_dict()
    written = [{key: "" if value is None else value for key, value in row.items()} for row in rows_of(results)]
    again = decide_records(written, margin=0.03).as_dict()
    for key in ("outcome", "pairs", "by_budget_tokens", "trend"):
        assert again[key] == own[key], key


def test_records_whose_arms_do_not_share_their_budgets_are_no_ladder() -> None:
    rows = [
        {key: "" if value is None else value for key, value in row.items()}
        for row in rows_of(leads(balanced=(0.4, 0.2), long_seq=(0.5, 0.5)))
        if (row["strategy"], row["budget_tokens"]) != ("balanced", 250)
    ]
    found = decide_records(rows, margin=0.03)
    assert found.outcome == "withheld"
    assert "finished cells did not see equal tokens" in found.statement
    assert found.trend.pairs == ()


def test_a_budget_that_is_added_later_is_another_look_at_the_same_seeds() -> None:
    first = decide(leads(balanced=(0.3, 0.2), long_seq=(0.5, 0.6))).as_dict()
    assert first["outcome"] == "wins"
    grown = replace(leads(balanced=(0.3, 0.2, 0.2), long_seq=(0.5, 0.6, 0.6)), earlier_verdicts=(first,))
    verdict = decide(grown)
    assert verdict.outcome == "exploratory"
    assert "an unplanned look needs 3 seeds that no decision has seen, of which there are 0" in verdict.statement
    assert verdict.last_decided is not None
    assert verdict.last_decided["statement"] == first["statement"]
    rules = {"alpha": 0.05, "margin": 0.03, "looks": 2}
    planned = decide(replace(grown, beginning={**grown.beginning, "space": {**grown.space, "verdict": rules}}))
    assert (planned.outcome, planned.looks.alpha) == ("wins", 0.025)


def test_an_extension_without_fresh_seeds_is_said_to_decide_nothing_before_anything_is_spent() -> None:
    results = leads(balanced=(0.3, 0.2), long_seq=(0.5, 0.6))
    decided = replace(results, earlier_verdicts=(decide(results).as_dict(),))
    space = load_space(preset="laptop")
    note = look_note(decided, space)
    assert note is not None
    assert "decided on 5 seeds" in note
    assert note.endswith("--seeds 8 would decide again")
    assert look_note(results, space) is None, "nothing was decided yet"
    assert look_note(decided, load_space(preset="laptop", overrides=["seeds.confirm=8"])) is None
    planned = replace(decided, beginning={"space": {**decided.space, "verdict": {"looks": 2}}})
    assert look_note(planned, space) is None, "a second look was planned"
