"""Several sweeps beside each other: what they say together, and what was different."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sweeps.errors import BadInputError
from sweeps.ledger.identifiers import require_name
from sweeps.ledger.results import SweepResults
from sweeps.report.compare import agreement, compare_report, comparison_folder, shared_pairs
from sweeps.shown_commands import shown_line
from sweeps.verdict.decision import decide
from tests.sweeps.report_data import ARMS, judged, results


def test_a_comparison_says_whether_verdicts_agree(finished: SweepResults) -> None:
    other = results(seeds=3, name="other")
    ours = judged(finished)
    assert agreement([ours, judged(other)]) == "The verdicts agree: balanced wins in first and other."
    assert "contradict each other" in agreement([ours, judged(other, winner="long_seq")])
    tie = agreement([ours, judged(other, outcome="tie", winner=None)])
    assert tie == (
        "The verdicts do not agree, nor do they contradict each other: balanced wins in first, other ends in a tie, "
        "with the lowest mean for the same arm."
    )
    undecided = agreement([judged(each, outcome="undecided", winner=None) for each in (finished, other)])
    assert undecided == "None of first and other names a winner; balanced has the lowest mean in each."


def test_sweeps_without_verdicts_cannot_be_compared_and_the_commands_that_decide_are_named(
    finished: SweepResults,
) -> None:
    command = "sweeps extend other --seeds 3"
    open_sweep = judged(results(seeds=3, name="other"), outcome="exploratory", winner=None, command=command)
    assert agreement([judged(finished), open_sweep]) == (
        f"first and other cannot be compared yet: other has no decided verdict. To decide: `{shown_line(command)}`."
    )
    assert agreement([open_sweep, open_sweep]).startswith(
        "other and other cannot be compared yet: neither has a decided verdict. To decide: "
    )


def test_a_pair_of_two_sweeps_is_opposite_when_both_are_clear_and_differ(finished: SweepResults) -> None:
    ours = judged(finished)
    turned = tuple(
        replace(pair, decision=f"{pair.rival_of(pair.better or '')} is better") for pair in ours.verdict.pairs
    )
    pairs = shared_pairs([ours, judged(finished, pairs=turned)])
    assert [pair.agreement for pair in pairs] == ["opposite"] * 3


def test_a_pair_is_separated_by_its_decision_and_not_by_its_own_interval(finished: SweepResults) -> None:
    # "undecided" is what Holm's adjustment may leave of a p-value just below alpha
    held = tuple(replace(pair, decision="undecided") for pair in judged(finished).verdict.pairs)
    assert all(pair.ci_low * pair.ci_high > 0 for pair in held)
    pairs = shared_pairs([judged(finished, pairs=held)] * 2)
    assert all(pair.agreement.endswith("not separated in any") for pair in pairs)


def test_a_pair_that_is_clear_in_one_sweep_only_says_so(finished: SweepResults) -> None:
    held = tuple(replace(pair, decision="undecided") for pair in judged(finished).verdict.pairs)
    pairs = shared_pairs([judged(finished), judged(finished, pairs=held)])
    assert pairs[0].agreement == "balanced where it is clear"


def test_a_comparison_is_written_with_what_was_different(finished: SweepResults, tmp_path: Path) -> None:
    other = results(dict(list(ARMS.items())[:2]), seeds=3, name="<b>other</b>")
    space = {**other.beginning["space"], "corpus": {"kind": "hub", "dataset": "novels"}}
    other = replace(other, beginning={**other.beginning, "space": space})
    files = compare_report([(finished, decide(finished)), (other, decide(other))], folder=tmp_path)
    page = files.html.read_text()
    assert "<b>other" not in page
    assert "corpus.dataset" in page
    assert "novels" in files.markdown.read_text()
    assert [path.name for path in files.plots] == ["pairs.png", "pairs.svg"]


def test_what_sweeps_say_together_is_left_out_where_one_of_them_was_not_judged(
    finished: SweepResults, tmp_path: Path
) -> None:
    verdict = decide(finished)
    withheld = replace(verdict, outcome="withheld", winner=None)
    judged_in_all = compare_report([(finished, verdict)] * 2, folder=tmp_path / "both").markdown.read_text()
    not_in_all = compare_report([(finished, verdict), (finished, withheld)], folder=tmp_path).markdown.read_text()
    assert "balanced in all" in judged_in_all
    assert "balanced in all" not in not_in_all


def test_a_comparison_of_many_arms_draws_the_pairs_of_the_leading_one(
    finished: SweepResults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.report.compare.MAX_DRAWN_PAIRS", 2)
    page = compare_report([(finished, decide(finished))] * 2, folder=tmp_path).html.read_text()
    picture = page.partition("<figure")[2].partition("</figure")[0]
    assert "large_batch − balanced" in picture
    assert "large_batch − long_seq" not in picture
    assert "large_batch − long_seq" in page


def test_a_comparison_lies_in_the_runs_folder_under_a_name_that_no_sweep_can_have(tmp_path: Path) -> None:
    assert comparison_folder(str(tmp_path), ["a", "b"], None) == tmp_path / "a+b"
    assert comparison_folder(str(tmp_path), ["a", "b", "c", "d"], None) == tmp_path / "a+b+2"
    assert comparison_folder(str(tmp_path), ["a", "b"], tmp_path / "mine") == tmp_path / "mine"
    with pytest.raises(BadInputError, match="s3://bucket/runs is not a local folder; say with --out DIR"):
        comparison_folder("s3://bucket/runs", ["a", "b"], None)
    with pytest.raises(BadInputError):
        require_name("a+b")


def test_a_comparison_names_what_was_decided_before_a_sweep_was_extended(finished: SweepResults) -> None:
    last = {"outcome": "wins", "winner": "balanced", "statement": "balanced wins.", "verdict": "verdicts/0001.json"}
    extended = judged(results(seeds=3, name="other"), outcome="exploratory", winner=None, last_decided=last)
    assert agreement([judged(finished), extended]).endswith("Decided before it was extended: other: balanced wins.")
