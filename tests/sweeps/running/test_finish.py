"""The verdict on a terminal."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from sweeps.running.finish import show_verdict
from tests.sweeps import made_up_sweep as made_up


def shown(verdict: dict[str, Any]) -> str:
    out = io.StringIO()
    show_verdict(verdict, Console(file=out, width=80))
    return out.getvalue()


def test_arms_fit_eighty_columns_and_the_statement_stands_on_one_line() -> None:
    verdict = made_up.verdict()
    lines = shown(verdict).splitlines()
    assert "…" not in "".join(lines)
    assert verdict["statement"] in lines, "piped, a sentence is one line"


def test_a_name_that_looks_like_markup_and_an_arm_without_a_shape_are_shown_as_they_are() -> None:
    verdict = made_up.verdict()
    verdict["strategies"][0] |= {
        "name": "[/x]",
        "micro_batch_size": None,
        "seq_len": None,
        "grad_accum_steps": None,
    }
    text = shown(verdict)
    assert "[/x]" in text
    assert "None" not in text
