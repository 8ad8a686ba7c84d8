"""The report as Markdown: tables that line up in a terminal, text that stays text."""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace

import pytest

from search_spaces import load_space, parse_space, preset_names
from sweeps.formatting import (
    chance,
    count,
    duration,
    gib,
    interval,
    listed,
    loss,
    markdown_table,
    markdown_text,
    moment,
    p_value,
    plural,
    rate,
    share,
    short_count,
    signed,
)
from sweeps.report.markdown import MAX_CELLS, markdown
from sweeps.report.space_toml import as_toml
from tests.sweeps.report_data import changed, judged, results


@pytest.mark.parametrize("preset", preset_names())
def test_the_space_that_a_report_shows_is_the_space_that_ran(preset: str) -> None:
    resolved = load_space(preset=preset, path=None, overrides=[]).resolved()
    assert parse_space(as_toml(resolved)).resolved() == resolved


def test_text_in_a_space_is_written_so_that_it_is_read_back() -> None:
    space = {
        "description": 'a "quoted" \\ line\nand \x7f é',
        "table": {"odd key": [1.5, True], "none": None},
        "rows": [{"a": 1}],
    }
    kept = {**space, "table": {"odd key": [1.5, True]}}
    assert tomllib.loads(as_toml(space)) == kept


@pytest.fixture(scope="module")
def text() -> str:
    return markdown(judged(results()), ["confirm", "rates"])


def test_the_statement_is_the_title(text: str) -> None:
    assert text.startswith("# balanced wins")


def test_every_table_lines_up(text: str) -> None:
    tables = re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE)
    assert len(tables) >= 4
    for table in tables:
        assert len({len(line) for line in table.splitlines()}) == 1


def test_every_cell_of_a_small_sweep_is_listed(text: str) -> None:
    cells = text.partition("## Every cell")[2].partition("##")[0]
    assert cells.count("\n| ") == 27 + 2


def test_a_large_sweep_lists_the_cells_that_did_not_end_as_planned() -> None:
    sweep = results(seeds=30)
    sweep = changed(sweep, lambda r: replace(r, outcome="failed") if r.cell.seed == 110 else r)
    text = markdown(judged(sweep))
    assert len(sweep.cells) > MAX_CELLS
    cells = text.partition("## Every cell")[2].partition("##")[0]
    assert "4 did not end as planned" in cells
    assert len(re.findall(r"\| +failed \|", cells)) == 3


def test_pictures_are_linked_beside_the_file(text: str) -> None:
    assert "![confirm](plots/confirm.png)" in text


def test_names_cannot_become_markup() -> None:
    assert markdown_text("<script>") == r"\<script>"
    assert markdown_text("a|b *c* [d](e)\nf") == r"a\|b \*c\* \[d\](e) f"
    assert markdown_text("large_batch < 3") == "large_batch < 3"
    assert markdown_text("_x_") == r"\_x\_"


def test_a_table_without_rows_has_its_header() -> None:
    assert markdown_table(("a", "bb"), []) == "| a | bb |\n| - | -: |"


def test_numbers_are_written_with_their_noise_in_mind() -> None:
    assert (loss(4.123456), loss(None), loss(float("nan"))) == ("4.1235", "–", "–")
    assert (signed(0.01234), signed(-0.01234), signed(-0.00001)) == ("+0.0123", "−0.0123", "0.0000")
    assert interval(-0.1, 0.2, sign=True) == "−0.1000 to +0.2000"
    assert interval(None, 1.0) == "–"
    assert (p_value(0.0004), p_value(0.0316)) == ("< 0.001", "0.032")
    assert (chance(0.999), chance(0.003), chance(0.5)) == ("> 99%", "< 1%", "50%")
    assert (rate(0.02), rate(3e-5)) == ("0.02", "3e-05")
    assert (share(0.123), share(0.0013), share(0.05)) == ("12%", "0.13%", "5.0%")
    assert (count(524288), short_count(524288), short_count(2_555_904)) == ("524,288", "524k", "2.56M")
    short = " ".join(short_count(value) for value in (999, 999.9, 999_499, 999_999, 999.9e6))
    assert short == "999 1k 999k 1M 1B"
    assert (gib(0.0206), gib(0.613), gib(21.94)) == ("0.0206 GiB", "0.61 GiB", "21.9 GiB")
    assert [duration(s) for s in (0.5, 42, 200, 7_260, 200_000)] == [
        "0.50 s",
        "42 s",
        "3 min 20 s",
        "2 h 1 min",
        "2 d 7 h",
    ]
    assert moment(0) == "1970-01-01 00:00 UTC"
    assert (plural(1, "seed"), plural(1200, "seed")) == ("1 seed", "1,200 seeds")
    assert (listed([]), listed(["a"]), listed(["a", "b", "c"])) == ("", "a", "a, b and c")
