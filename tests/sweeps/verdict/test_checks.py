"""The checks of the method's rules: what was measured, kept or not, and which of them become caveats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from sweeps.ledger.results import CellResult, SweepResults
from sweeps.verdict.decision import decide
from sweeps.verdict.findings import RULES, Check
from tests.sweeps.planted_sweep import confirm, explore, ladder
from tests.sweeps.planted_sweep import sweep as planted
from tests.sweeps.report_data import ARMS, BUDGET, changed, results


def checks_of(sweep: SweepResults, rule: int) -> list[Check]:
    return [check for check in decide(sweep).checks if check.rule == rule]


def broken(sweep: SweepResults, rule: int) -> list[str]:
    return [check.sentence for check in checks_of(sweep, rule) if not check.kept]


def test_a_finished_sweep_is_checked_by_every_rule(finished: SweepResults) -> None:
    one_budget = set(RULES) - {14, 15}  # and arms that differ in nothing but shape
    assert {check.rule for check in decide(finished).checks} == one_budget
    assert {rule for rule in one_budget if not broken(finished, rule)} == {1, 2, 3, 4, 7, 8, 9, 12}


def test_a_winners_lead_that_shrinks_with_the_budget_is_a_caveat() -> None:
    arms = {"large_batch": 4.0, "balanced": 4.3, "long_seq": 4.6}
    noise = (0.004, -0.003, 0.001, 0.002, -0.004)

    def losses(shift: float, balanced: float) -> dict[str, list[float]]:
        means = {**arms, "balanced": balanced}
        return {arm: [m + shift + n * k for n in noise] for k, (arm, m) in enumerate(means.items(), 1)}

    results = ladder({250: losses(1.0, 4.5), 1_000: losses(0.5, 4.4), 4_000: losses(0.0, 4.2)})
    (shrinks,) = broken(results, 14)
    assert shrinks.startswith("large_batch's lead over balanced shrinks with the budget, by 0.0")
    assert shrinks.endswith("it may not last beyond 4,000 tokens")
    kept = [check for check in decide(results).checks if check.rule == 14 and check.kept]
    assert [check.value for check in kept] == ["250, 1,000 and 4,000"]


def test_the_caveats_are_the_sentences_of_the_checks_that_were_not_kept(finished: SweepResults) -> None:
    verdict = decide(finished)
    assert list(verdict.caveats) == [check.sentence for check in verdict.checks if not check.kept]
    assert verdict.as_dict()["caveats"] == list(verdict.caveats)
    assert not any("share no seed" in caveat for caveat in verdict.caveats)


def test_unequal_tokens_are_not_kept(finished: SweepResults) -> None:
    short = changed(finished, lambda r: replace(r, tokens_seen=BUDGET - 2048) if r.cell.seed == 103 else r)
    assert broken(short, 2) == ["finished confirm cells saw unequal numbers of tokens (522,240 to 524,288)"]


def test_seeds_are_judged_few_below_five_and_lost_ones_are_named() -> None:
    assert broken(results(seeds=3), 8) == [
        "3 confirm seeds per arm: intervals are wide, and only large leads can be found"
    ]
    lost = changed(results(), lambda r: replace(r, outcome="failed", test_loss=None) if r.cell.seed == 103 else r)
    assert "1 confirm cell of balanced failed" in broken(lost, 8)


def test_an_edge_that_is_the_reason_of_no_verdict_is_not_a_caveat_too(finished: SweepResults) -> None:
    edge = changed(finished, lambda r: None if r.cell.phase == "explore" and r.cell.lr == 0.005 else r)
    verdict = decide(edge)
    assert verdict.outcome == "withheld"
    assert "were best at their lowest rate, 0.01" in verdict.statement
    assert broken(edge, 7) == []
    assert [check.value for check in checks_of(edge, 7)] == ["large_batch 0.02"]


def test_the_load_under_which_arms_were_timed_is_checked(finished: SweepResults) -> None:
    def beside(load: int, *, last: bool) -> Callable[[CellResult], CellResult]:
        """Records of the first arm made beside another number of trials: the last ones, or all."""

        def changed_records(result: CellResult) -> CellResult:
            if result.cell.strategy != next(iter(ARMS)):
                return result
            others, tail = (result.records[:-1], result.records[-1:]) if last else ((), result.records)
            return replace(result, records=(*others, *({**record, "concurrent_trials": load} for record in tail)))

        return changed_records

    at_a_time = "confirm cells at a time; speeds are compared where 2 ran"
    assert (at_a_time, "2") in [(check.sentence, check.value) for check in checks_of(finished, 10)]
    mixed = checks_of(changed(finished, beside(1, last=True)), 10)
    assert (at_a_time, "1 to 2") in [(check.sentence, check.value) for check in mixed]
    apart = changed(finished, beside(1, last=False))
    assert "confirm cells ran under unequal load (1 to 2 at a time): seconds are not compared" in broken(apart, 10)


def test_unequal_grids_and_code_that_no_commit_holds_are_not_kept(finished: SweepResults) -> None:
    unequal = changed(
        finished,
        lambda r: None if r.cell.phase == "explore" and r.cell.strategy == "balanced" and r.cell.lr == 0.04 else r,
    )
    assert any("large_batch 4, balanced 3, long_seq 4" in sentence for sentence in broken(unequal, 5))
    dirty = replace(finished, beginning={**finished.beginning, "git": {"commit": "abc", "dirty": True}})
    assert "the code had changes that git commit abc does not hold" in broken(dirty, 13)


def test_what_is_not_known_is_not_checked(finished: SweepResults) -> None:
    assert checks_of(replace(finished, beginning={}), 1) == []


def test_an_arm_with_an_adamw_rate_of_its_own_is_named_in_the_condition() -> None:
    finished = planted([*explore(), *confirm()])
    first, second, third = finished.beginning["strategies"]
    own = {**third, "optimizer": {"kind": "adamw"}, "rates": {"adamw_ratio": 1.0}}
    arms = replace(finished, beginning={**finished.beginning, "strategies": [first, second, own]})
    said = [check.sentence for check in decide(arms).checks]
    assert (
        "conditional on AdamW's rate at 0.3 of Muon's in large_batch and balanced and at 1 of the hidden matrices' in "
        "long_seq, and on the other settings held fixed"
    ) in said


@pytest.mark.parametrize(("own", "kept"), [((None,) * 3, False), ((2_048,) * 3, True), ((2_048, 2_048, 4_096), False)])
def test_half_lives_in_tokens_are_checked_where_arms_differ_in_tokens_per_step(
    own: tuple[int | None, ...], kept: bool
) -> None:
    finished = planted([*explore(), *confirm()], optimizer={"adamw_betas": [0.9, 0.95]})
    arms = [
        {**arm, "tokens_per_step": tokens, "optimizer": {} if at is None else {"betas_at_tokens_per_step": at}}
        for arm, tokens, at in zip(finished.beginning["strategies"], (50, 100, 200), own, strict=True)
    ]
    unequal = replace(finished, beginning={**finished.beginning, "strategies": arms})
    assert [check.kept for check in checks_of(unequal, 15)] == [kept]
    assert checks_of(finished, 15) == [], "of equal steps there is nothing to say"
