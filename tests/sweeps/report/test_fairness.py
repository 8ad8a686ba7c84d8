"""The ledger of fairness: every rule of the method, with what was measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from sweeps.ledger.results import CellResult, SweepResults
from sweeps.report.facts import Facts
from sweeps.report.fairness import fairness_ledger
from tests.sweeps.report_data import ARMS, BUDGET, changed, results, verdict_of


def levels(sweep: SweepResults) -> dict[int, str]:
    return {entry.rule: entry.level for entry in fairness_ledger(Facts(sweep, verdict_of(sweep)))}


def test_the_ledger_of_fairness_has_every_rule_of_the_method(finished: SweepResults) -> None:
    assert list(levels(finished)) == list(range(1, 14))
    assert {rule for rule, level in levels(finished).items() if level == "ok"} == {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12}


def test_the_ledger_turns_red_where_a_rule_is_broken(finished: SweepResults) -> None:
    short = changed(finished, lambda r: replace(r, tokens_seen=BUDGET - 2048) if r.cell.seed == 103 else r)
    assert levels(short)[2] == "bad"
    diverged = changed(finished, lambda r: replace(r, outcome="diverged", test_loss=None) if r.cell.seed == 103 else r)
    assert levels(diverged)[8] == "bad"
    edge = changed(finished, lambda r: None if r.cell.phase == "explore" and r.cell.lr == 0.005 else r)
    assert levels(edge)[7] == "bad"
    assert levels(edge)[5] == "ok"


def test_the_ledger_says_under_which_load_arms_were_timed(finished: SweepResults) -> None:
    def beside(load: int, *, last: bool) -> Callable[[CellResult], CellResult]:
        """Records of the first arm made beside another number of trials: the last ones, or all."""

        def changed_records(result: CellResult) -> CellResult:
            if result.cell.strategy != next(iter(ARMS)):
                return result
            others, tail = (result.records[:-1], result.records[-1:]) if last else ((), result.records)
            return replace(result, records=(*others, *({**record, "concurrent_trials": load} for record in tail)))

        return changed_records

    def said(sweep: SweepResults) -> set[tuple[str, str]]:
        (entry,) = (entry for entry in fairness_ledger(Facts(sweep, verdict_of(sweep))) if entry.rule == 10)
        return {(check.level, check.text) for check in entry.checks}

    assert ("ok", "confirm cells ran 2 at a time throughout") in said(finished)
    mixed = said(changed(finished, beside(1, last=True)))
    assert ("ok", "confirm cells ran 1 to 2 at a time; speeds are compared where 2 did") in mixed
    apart = said(changed(finished, beside(1, last=False)))
    assert ("warn", "confirm cells ran under unequal load: seconds are not compared") in apart


def test_the_ledger_notes_what_is_short_of_a_rule(finished: SweepResults) -> None:
    assert levels(results(seeds=2))[8] == "warn"
    unequal = changed(
        finished,
        lambda r: None if r.cell.phase == "explore" and r.cell.strategy == "balanced" and r.cell.lr == 0.04 else r,
    )
    assert levels(unequal)[5] == "warn"
    dirty = replace(finished, beginning={**finished.beginning, "git": {"commit": "abc", "dirty": True}})
    assert levels(dirty)[13] == "warn"
    assert levels(replace(finished, beginning={}))[1] == "unknown"
