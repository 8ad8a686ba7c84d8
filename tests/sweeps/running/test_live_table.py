"""What a running sweep shows on a terminal of 80 columns, and its last line."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from rich.console import Console

from search_spaces import Identity, Space, explore_cells, load_space
from sweeps.plan.forecast import Forecast
from sweeps.plan.phases import first_cells
from sweeps.plan.queue import Plan
from sweeps.running.driver import stopping_rule
from sweeps.running.live_table import LiveSweepWatch

IDENTITY = Identity(corpus_fingerprint="c", tokenizer_fingerprint="t", exam_fingerprint="e")


@dataclass
class Shown:
    """A watch on a terminal of 80 columns, and the time that it believes is left."""

    watch: LiveSweepWatch
    console: Console
    left: dict[str, float] = field(default_factory=lambda: {"seconds_left": 60.0})

    def lines(self) -> list[str]:
        """The picture as the terminal shows it."""
        with self.console.capture() as captured:
            self.console.print(self.watch.picture())
        return [line.rstrip() for line in captured.get().splitlines()]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    space = load_space(preset="smoke")
    found = Shown(watch=LiveSweepWatch(console, space, "first", 2), console=console)

    def forecast(_: Space, __: Plan, ___: Mapping[str, Any], ____: int) -> Forecast:
        return Forecast(tokens_done=999, tokens_left=1, seconds_left=found.left["seconds_left"])

    monkeypatch.setattr("sweeps.running.live_table.forecast_from_records", forecast)
    found.watch.on_change(Plan(stopping_rule(space), first_cells(space, explore_cells(space, IDENTITY))))
    return found


def test_a_line_that_is_longer_than_the_terminal_goes_on_below_its_own_column(shown: Shown) -> None:
    sentence = "balanced lr=0.01 seed=1 explore stopped early: rank 2 of 2 in its arm at 8,192 tokens, 1 go on"
    shown.watch.say(sentence)
    *_, first, second = shown.lines()
    column = first.index("balanced")
    assert second[:column].strip() == ""
    assert f"{first[column:]} {second[column:]}" == sentence


def test_nothing_of_the_table_is_wider_than_eighty_columns_and_the_legend_is_one_line(shown: Shown) -> None:
    lines = shown.lines()
    assert max(map(len, lines)) <= 80
    assert sum("running" in line and "stopped early" in line and "failed" in line for line in lines) == 1


def test_no_time_is_left_without_a_number_for_it(shown: Shown) -> None:
    assert "about 1 min left" in shown.watch.summary()
    shown.left["seconds_left"] = 0.3
    assert "left" not in shown.watch.summary()
    assert "tokens/s" not in shown.watch.summary(), "nothing runs"
