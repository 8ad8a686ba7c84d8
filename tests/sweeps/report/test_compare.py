"""Several sweeps beside each other: what they say together, and what was different."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sweeps.ledger.results import SweepResults
from sweeps.report.compare import agreement, compare_report, shared_pairs
from sweeps.report.facts import Facts
from tests.sweeps.report_data import ARMS, judged, results, verdict_of


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
        other = {pair["a"]: pair["b"], pair["b"]: pair["a"]}[pair["decision"].removesuffix(" is better")]
        pair["decision"] = f"{other} is better"
    pairs = shared_pairs([judged(finished), Facts(finished, turned)])
    assert [pair.agreement for pair in pairs] == ["opposite"] * len(pairs)


def test_a_pair_is_parted_by_its_decision_and_not_by_its_own_interval(
    finished: SweepResults,
) -> None:
    held = verdict_of(finished)
    for pair in held["pairs"]:
        assert not pair["ci_low"] <= 0 <= pair["ci_high"]
        pair["decision"] = "undecided"  # what Holm's adjustment may leave of a p-value just below alpha
    pairs = shared_pairs([Facts(finished, held), Facts(finished, held)])
    assert all(pair.agreement.endswith("not separated in any") for pair in pairs)


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
