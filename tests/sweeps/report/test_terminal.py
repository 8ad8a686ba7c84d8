"""The verdict on a terminal."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from sweeps.ledger.results import Arm
from sweeps.report.terminal import show_verdict
from sweeps.verdict.verdict import Verdict
from tests.sweeps import made_up_sweep as made_up


def shown(verdict: Verdict) -> str:
    out = io.StringIO()
    show_verdict(verdict, Console(file=out, width=80))
    return out.getvalue()


def test_arms_fit_eighty_columns_and_the_statement_stands_on_one_line() -> None:
    verdict = made_up.verdict()
    lines = shown(verdict).splitlines()
    assert "…" not in "".join(lines)
    assert verdict.statement in lines, "piped, a sentence is one line"


def test_a_name_that_looks_like_markup_and_an_arm_without_a_shape_are_shown_as_they_are() -> None:
    verdict = made_up.verdict()
    first, *others = verdict.strategies
    text = shown(replace(verdict, strategies=(replace(first, arm=Arm(name="[/x]")), *others)))
    assert "[/x]" in text
    assert "None" not in text
