"""The pictures: files that open, inline SVG that follows the page's colours, marks that say what they are."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest

from sweeps.report.facts import Facts, Stretch
from sweeps.report.plots.files import PLOTS, Picture, draw_all
from sweeps.report.plots.schedule import MAX_STRETCHES, merged
from sweeps.report.plots.style import (
    ARM_LIGHT,
    CSS_VARIABLES,
    MARKERS,
    Tips,
    arm_marker,
    drawing,
    inline_svg,
    svg_text,
)
from sweeps.report.plots.training import MAX_CURVES_PER_ARM, MAX_POINTS_PER_CURVE, smoothed, thin_curve, thinned
from tests.sweeps.report_data import changed, results, verdict_of


@pytest.fixture(scope="module")
def facts() -> Facts:
    sweep = results()
    controls = [
        {"a": "large_batch", "b": "long_seq", "lead": -0.09, "lead_ci_low": -0.1, "lead_ci_high": -0.08,
         "diversity": 0.03, "diversity_ci_low": 0.02, "diversity_ci_high": 0.04,
         "length": -0.12, "length_ci_low": -0.13, "length_ci_high": -0.11}
    ]  # fmt: skip
    return Facts(sweep, verdict_of(sweep, controls=controls))


@pytest.fixture(scope="module")
def pictures(facts: Facts) -> dict[str, Picture]:
    return {picture.name: picture for picture in draw_all(facts)}


def test_a_finished_sweep_has_every_picture(pictures: dict[str, Picture]) -> None:
    assert list(pictures) == [plot.name for plot in PLOTS]


def test_files_are_a_png_and_a_well_formed_svg(pictures: dict[str, Picture]) -> None:
    for picture in pictures.values():
        assert picture.png.startswith(b"\x89PNG")
        assert ET.fromstring(picture.svg).tag.endswith("svg")


def test_inline_pictures_are_well_formed_and_carry_no_colour_of_their_own(pictures: dict[str, Picture]) -> None:
    for picture in pictures.values():
        for inline in (picture.inline_wide, picture.inline_narrow):
            ET.fromstring(inline)
            assert not any(colour in inline for colour in CSS_VARIABLES)
            assert set(re.findall(r"#[0-9a-f]{6}\b", inline)) == set()


def test_ids_of_all_inline_pictures_together_are_unique_and_found(pictures: dict[str, Picture]) -> None:
    page = "".join(picture.inline_wide + picture.inline_narrow for picture in pictures.values())
    ids = Counter(re.findall(r'\bid="([^"]+)"', page))
    assert max(ids.values()) == 1
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', page)) <= set(ids)


def test_every_confirm_seed_says_what_it_is(facts: Facts, pictures: dict[str, Picture]) -> None:
    tips = re.findall(r'data-tip="([^"]+)"', pictures["confirm"].inline_wide)
    for result in facts.cells("confirm"):
        assert any(f"{result.cell.strategy}, confirm" in tip and f"seed {result.cell.seed}," in tip for tip in tips)


def test_a_best_rate_at_the_edge_is_flagged(facts: Facts) -> None:
    edge = changed(facts.results, lambda r: None if r.cell.phase == "explore" and r.cell.lr == 0.005 else r)
    drawn = {picture.name: picture.inline_wide for picture in draw_all(Facts(edge, verdict_of(edge)))}
    assert "best, at the edge" in drawn["rates"]


def test_the_fitted_optimum_is_marked_in_every_arm_that_has_one(facts: Facts, pictures: dict[str, Picture]) -> None:
    fitted = [name for name, optimum in facts.optima.items() if optimum.lr is not None]
    assert fitted
    for name in fitted:
        assert (
            f'data-tip="{name}: fitted optimum {facts.optima[name].lr:.4g}, interval ' in pictures["rates"].inline_wide
        )


def test_drawing_leaves_the_settings_of_matplotlib_alone(facts: Facts) -> None:
    before = dict(mpl.rcParams)
    with drawing():
        pass
    assert dict(mpl.rcParams) == before


def test_tips_reach_the_marks_they_were_given_for() -> None:
    from matplotlib.figure import Figure

    with drawing():
        figure, tips = Figure(), Tips()
        axes = figure.subplots()
        tips.add(axes.scatter([1, 2, 3], [1, 2, 3], color=ARM_LIGHT[0]), ["one", 'two "quoted"', "<three>"])
        tips.add(axes.plot([1, 3], [1, 3])[0], ["a line"])
        inline = inline_svg(svg_text(figure), prefix="p", tips=tips, title="t", css_class="wide")
    marks = re.findall(r'<(\w+)[^>]* data-tip="([^"]*)"', inline.replace("<use data-tip", "<use  data-tip"))
    assert sorted(re.findall(r'data-tip="([^"]*)"', inline)) == sorted(
        ["one", "two &quot;quoted&quot;", "&lt;three&gt;", "a line"]
    )
    assert {tag for tag, _ in marks} <= {"use", "g"}


def test_nine_arms_can_be_told_apart_by_colour_and_marker() -> None:
    looks = {(index % len(ARM_LIGHT), arm_marker(index)) for index in range(2 * len(MARKERS))}
    assert len(looks) == 2 * len(MARKERS)


def test_thinning_keeps_best_and_worst_and_the_ends_of_curves(facts: Facts) -> None:
    cells = [replace(facts.results.cells[0], val_loss=float(i)) for i in range(500)]
    kept = thinned(cells)
    assert len(kept) == MAX_CURVES_PER_ARM
    assert (kept[0].val_loss, kept[-1].val_loss) == (0.0, 499.0)
    x, y = thin_curve(np.arange(5_000.0), np.arange(5_000.0))
    assert len(x) <= MAX_POINTS_PER_CURVE
    assert (x[0], y[-1]) == (0.0, 4_999.0)


def test_smoothing_keeps_a_straight_line_and_takes_the_noise_from_its_end_too() -> None:
    line = np.linspace(5, 3, 50)
    # Exact but for the rounding of running sums.
    assert np.allclose(smoothed(line)[4:-4], line[4:-4], rtol=0, atol=1e-12)
    noisy = np.tile([1.0, 3.0], 25)
    # Five or nine points of an alternating series of mean 2 average to within 1/5 of it.
    assert np.abs(smoothed(noisy) - 2).max() <= 0.2 + 1e-12


def test_a_long_timeline_is_drawn_with_few_bars(facts: Facts) -> None:
    cell = facts.results.cells[0]
    stretches = tuple(Stretch(lane=0, start_s=float(i), end_s=i + 0.9, cell=cell) for i in range(4 * MAX_STRETCHES))
    groups = merged(stretches)
    assert len(groups) == 1
    assert groups[0][-1].end_s == stretches[-1].end_s
