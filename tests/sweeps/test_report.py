"""The HTML report: what it says, what it leaves out, and that nothing in the data can become markup."""

from __future__ import annotations

import html
import math
import re
import time
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sweeps.ledger.results import CellResult, SweepResults
from sweeps.report.compare import agreement, compare_report, shared_pairs
from sweeps.report.facts import Facts, worked
from sweeps.report.fairness import fairness_ledger
from sweeps.report.html import render, write_report
from sweeps.report.tables import cell_rows, length_table
from sweeps.report.why import from_ahead, why_groups
from sweeps.report.words import commands, headline, how_sure
from tests.sweeps import planted_sweep as planted
from tests.sweeps.report_data import ARMS, BUDGET, RUNGS, changed, many_cells, results, verdict_of


@pytest.fixture(scope="module")
def finished() -> SweepResults:
    return results()


@pytest.fixture(scope="module")
def report(finished: SweepResults, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report(finished, verdict_of(finished), folder)
    return folder


def page_of(sweep: SweepResults, folder: Path, **verdict: Any) -> str:
    return write_report(sweep, verdict_of(sweep, **verdict), folder).html.read_text()


def text_of(sweep: SweepResults, **verdict: Any) -> str:
    """The page without its pictures, which take most of the time."""
    return render(Facts(sweep, verdict_of(sweep, **verdict)), [])


class _Texts(HTMLParser):
    """Collects the visible text by the id of the section that it stands in, and the tags."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self._in_h1 = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in_h1 += tag == "h1"
        if tag == "h1":
            self.headings.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_h1 -= tag == "h1"

    def handle_data(self, data: str) -> None:
        if self._in_h1:
            self.headings[-1] += data


def parsed(page: str) -> _Texts:
    texts = _Texts()
    texts.feed(page)
    return texts


def test_the_page_begins_with_the_verdicts_statement_word_for_word(finished: SweepResults, report: Path) -> None:
    statement = verdict_of(finished)["statement"]
    assert parsed((report / "report.html").read_text()).headings == [statement.replace("`", "")]


def test_the_page_asks_for_nothing_outside_itself(report: Path) -> None:
    page = (report / "report.html").read_text()
    targets = [
        value for _, attrs in parsed(page).tags for key, value in attrs.items() if key in ("src", "href", "action")
    ]
    assert all(target and target.startswith(("#", "data:")) for target in targets)
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_every_cell_of_the_sweep_has_a_row(finished: SweepResults, report: Path) -> None:
    page = (report / "report.html").read_text()
    assert all(str(result.cell.cell_id) in page for result in finished.cells)
    assert len(cell_rows(Facts(finished, {}))) == len(finished.cells)


def test_files_are_written_whole_beside_each_other(report: Path) -> None:
    names = {path.relative_to(report).as_posix() for path in report.rglob("*") if path.is_file()}
    plots = {name for name in names if name.startswith("plots/")}
    assert names - plots == {"report.html", "report.md"}
    assert {Path(name).stem for name in plots if name.endswith(".png")} == {
        Path(name).stem for name in plots if name.endswith(".svg")
    }
    assert {"plots/confirm.png", "plots/rates.svg", "plots/timeline.png"} <= plots


def test_an_arm_named_like_a_script_shows_as_text(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>"
    sweep = results({name: (32, 64), "$x^2$ _a": (8, 256), "_b": (2, 1024)}, seeds=3, points=6)
    page = page_of(sweep, tmp_path)
    assert name not in page
    assert html.escape(name) in page
    assert [tag for tag, _ in parsed(page).tags].count("script") == 1
    assert r"\<script>" in (tmp_path / "report.md").read_text()


def test_a_reason_with_markup_stays_text(finished: SweepResults) -> None:
    def fail(result: CellResult) -> CellResult:
        return replace(result, outcome="failed", reason="<img src=x onerror=alert(1)>", test_loss=None)

    sweep = changed(finished, lambda r: fail(r) if r.cell.seed == 103 else r)
    page = text_of(sweep)
    assert "img" not in [tag for tag, _ in parsed(page).tags]
    assert "&lt;img src=x" in page


def test_a_sweep_that_was_only_begun_gives_a_report(finished: SweepResults, tmp_path: Path) -> None:
    sweep = changed(
        finished,
        lambda r: replace(r, outcome=None, tokens_seen=0, val_loss=None, test_loss=None, scores=None, records=()),
    )
    page = page_of(changed(sweep, lambda r: r if r.cell.phase == "explore" else None), tmp_path)
    assert "sweeps resume first" in page
    assert "No confirm cell has been scored yet" in page
    assert not (tmp_path / "plots").exists()


def test_a_sweep_without_a_single_cell_gives_a_report(finished: SweepResults, tmp_path: Path) -> None:
    assert "Every cell" in page_of(changed(finished, lambda _: None), tmp_path)


def test_a_sweep_in_the_middle_of_explore_says_what_is_missing(finished: SweepResults, tmp_path: Path) -> None:
    def halfway(result: CellResult) -> CellResult | None:
        if result.cell.phase != "explore":
            return None
        open_cell = result.outcome == "completed" and result.cell.strategy == "long_seq"
        return replace(result, outcome=None, tokens_seen=RUNGS[1], val_loss=None) if open_cell else result

    page = page_of(changed(finished, halfway), tmp_path)
    assert "have an outcome" in page
    assert 'id="plot-rates"' in page
    assert 'id="plot-confirm"' not in page


def test_records_from_a_file_give_a_report_without_shapes_or_curves(finished: SweepResults, tmp_path: Path) -> None:
    bare = changed(finished, lambda r: replace(r, records=(), scores=None))
    page = page_of(replace(bare, beginning={}), tmp_path)
    assert 'id="plot-confirm"' in page
    assert 'id="plot-curves"' not in page
    assert "common context of all arms" not in page


def test_what_a_sweep_does_not_have_is_not_mentioned(finished: SweepResults) -> None:
    page = text_of(changed(finished, lambda r: replace(r, scores=None)))
    assert "Loss by position" not in page
    assert "How much of a lead is context" not in page
    assert "no view at common context" in page


def test_cells_of_a_single_record_give_a_report_without_curves(finished: SweepResults, tmp_path: Path) -> None:
    page = page_of(changed(finished, lambda r: replace(r, records=r.records[:1])), tmp_path)
    assert 'id="plot-throughput"' in page
    assert not any(f'id="plot-{name}"' in page for name in ("curves", "progress", "experts"))


def test_records_without_a_finite_training_loss_draw_no_empty_pictures(finished: SweepResults, tmp_path: Path) -> None:
    def blind(result: CellResult) -> CellResult:
        return replace(result, records=tuple({**record, "train_loss": math.nan} for record in result.records))

    page = page_of(changed(finished, blind), tmp_path)
    assert 'id="plot-experts"' in page
    assert not any(f'id="plot-{name}"' in page for name in ("curves", "progress"))


def test_one_seed_or_one_arm_gives_a_report(tmp_path: Path) -> None:
    assert "exploratory" in page_of(results(seeds=1, points=6), tmp_path / "seed")
    assert "exploratory" in page_of(results({"only": (8, 256)}, points=6), tmp_path / "arm")


@pytest.mark.slow
def test_many_arms_with_long_names_give_a_report(tmp_path: Path) -> None:
    arms = {f"a_strategy_with_a_rather_long_name_{i}": (2**i, 2048 // 2**i) for i in range(1, 11)}
    page = page_of(results(arms, seeds=3, points=6), tmp_path)
    assert all(name in page for name in arms)


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


def judged(sweep: SweepResults, **verdict: Any) -> Facts:
    return Facts(sweep, verdict_of(sweep, **verdict))


def test_a_comparison_says_whether_verdicts_agree(finished: SweepResults) -> None:
    other = results(seeds=3, name="other")
    ours = judged(finished)
    assert agreement([ours, judged(other)]) == "The verdicts agree: balanced wins in first and other."
    assert "contradict each other" in agreement([ours, judged(other, winner="long_seq")])
    tie = agreement([ours, judged(other, outcome="tie", winner=None)])
    assert tie == (
        "The verdicts do not agree, nor do they contradict each other: balanced wins in first, other ends in a tie, "
        "with balanced lowest there too."
    )
    withheld = agreement([ours, judged(other, outcome="withheld", winner=None)])
    assert withheld.startswith("Nothing can be said about agreement of first and other, because other is withheld")


def test_a_pair_of_two_sweeps_is_opposite_when_both_are_clear_and_differ(finished: SweepResults) -> None:
    turned = verdict_of(finished)
    for pair in turned["pairs"]:
        pair["difference"], pair["ci_low"], pair["ci_high"] = -pair["difference"], -pair["ci_high"], -pair["ci_low"]
    pairs = shared_pairs([judged(finished), Facts(finished, turned)])
    assert [pair.agreement for pair in pairs] == ["opposite"] * len(pairs)


def test_a_pair_is_agreed_on_only_where_every_sweep_has_a_verdict(finished: SweepResults) -> None:
    pairs = shared_pairs([judged(finished), judged(finished, outcome="withheld", winner=None)])
    assert {pair.agreement for pair in pairs} == {"not judged in all"}


def test_a_comparison_is_written_with_what_was_different(finished: SweepResults, tmp_path: Path) -> None:
    other = results(dict(list(ARMS.items())[:2]), seeds=3, name="<b>other</b>")
    space = {**other.beginning["space"], "corpus": {"kind": "hub", "dataset": "novels"}}
    other = replace(other, beginning={**other.beginning, "space": space})
    files = compare_report((finished, verdict_of(finished)), (other, verdict_of(other)), folder=tmp_path)
    page = files.html.read_text()
    assert "<b>other" not in page
    assert "corpus.dataset" in page
    assert "novels" in files.markdown.read_text()
    assert [path.name for path in files.plots] == ["pairs.png", "pairs.svg"]


def test_a_comparison_of_many_arms_draws_the_pairs_of_the_leading_one(
    finished: SweepResults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.report.compare.MAX_DRAWN_PAIRS", 2)
    verdict = verdict_of(finished)
    page = compare_report((finished, verdict), (finished, verdict), folder=tmp_path).html.read_text()
    picture = page.partition("<figure")[2].partition("</figure")[0]
    assert "balanced − large_batch" not in picture
    assert "large_batch − balanced" in picture
    assert "large_batch − long_seq" not in picture
    assert "large_batch − long_seq" in page


@pytest.mark.slow
def test_ten_thousand_cells_make_a_report_in_half_a_minute_and_ten_megabytes(tmp_path: Path) -> None:
    sweep = many_cells(10_000)
    verdict = verdict_of(sweep)
    assert len(sweep.cells) >= 10_000
    begun_s = time.process_time()
    files = write_report(sweep, verdict, tmp_path)
    # Time of the processor, so that a busy machine does not fail the test; the bound is the report's own.
    assert time.process_time() - begun_s < 30
    assert files.html.stat().st_size < 10 * 2**20
    assert files.html.read_text().count("<tr>") > 10_000
