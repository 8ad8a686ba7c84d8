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
from sweeps.report.plots.answer import FEWEST_TARGETS, draw_rates, position_losses
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
from sweeps.verdict.decision import decide
from sweeps.verdict.rows import ControlSplit, Estimate
from tests.sweeps.planted_sweep import ladder
from tests.sweeps.report_data import changed, judged, results


@pytest.fixture(scope="module")
def facts() -> Facts:
    control = ControlSplit(
        a="large_batch",
        b="long_seq",
        seeds=5,
        lr=0.02,
        lead=Estimate(mean=-0.09, low=-0.1, high=-0.08),
        diversity=Estimate(mean=0.03, low=0.02, high=0.04),
        length=Estimate(mean=-0.12, low=-0.13, high=-0.11),
        diversity_share=None,
        at_edge=False,
    )
    return judged(results(), controls=(control,))


@pytest.fixture(scope="module")
def pictures(facts: Facts) -> dict[str, Picture]:
    return {picture.name: picture for picture in draw_all(facts)}


def test_a_finished_sweep_has_every_picture(pictures: dict[str, Picture]) -> None:
    assert list(pictures) == [plot.name for plot in PLOTS if plot.name != "budgets"]  # it has one budget


def test_leads_are_drawn_against_the_budget_where_there_are_several() -> None:
    means = {"large_batch": 4.0, "balanced": 4.2, "long_seq": 4.5}
    by_budget = {
        budget: {arm: [mean + above + 0.01 * seed for seed in range(3)] for arm, mean in means.items()}
        for budget, above in ((250, 1.0), (1_000, 0.5), (4_000, 0.0))
    }
    found = ladder(by_budget)
    facts = Facts(found, decide(found))
    picture = next(picture for picture in draw_all(facts) if picture.name == "budgets")
    assert len(picture.panels) == 3, "a panel a pair"
    panel = picture.panels[0]
    for text in ("large_batch over balanced", "250", "1k", "4k", "budget (tokens)"):
        assert text in panel
    assert "predicted, line through the smaller budgets: +0.2" in panel


def test_files_are_a_png_and_a_well_formed_svg(pictures: dict[str, Picture]) -> None:
    for picture in pictures.values():
        assert picture.png.startswith(b"\x89PNG")
        assert ET.fromstring(picture.svg).tag.endswith("svg")


def test_inline_pictures_are_well_formed_and_carry_no_colour_of_their_own(pictures: dict[str, Picture]) -> None:
    for picture in pictures.values():
        for inline in picture.panels:
            ET.fromstring(inline)
            assert not any(colour in inline for colour in CSS_VARIABLES)
            assert set(re.findall(r"#[0-9a-f]{6}\b", inline)) == set()


def test_ids_of_all_inline_pictures_together_are_unique_and_found(pictures: dict[str, Picture]) -> None:
    page = "".join(panel for picture in pictures.values() for panel in picture.panels)
    ids = Counter(re.findall(r'\bid="([^"]+)"', page))
    assert max(ids.values()) == 1
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', page)) <= set(ids)


def test_every_confirm_seed_says_what_it_is(facts: Facts, pictures: dict[str, Picture]) -> None:
    tips = re.findall(r'data-tip="([^"]+)"', "".join(pictures["confirm"].panels))
    for result in facts.cells("confirm"):
        assert any(f"{result.cell.strategy}, confirm" in tip and f"seed {result.cell.seed}," in tip for tip in tips)


def test_a_best_rate_at_the_edge_is_flagged(facts: Facts) -> None:
    edge = changed(facts.results, lambda r: None if r.cell.phase == "explore" and r.cell.lr == 0.005 else r)
    drawn = {picture.name: "".join(picture.panels) for picture in draw_all(judged(edge))}
    assert "best, at the edge" in drawn["rates"]


def test_the_fitted_optimum_is_marked_in_every_arm_that_has_one(facts: Facts, pictures: dict[str, Picture]) -> None:
    fitted = {name: optimum.lr for name, optimum in facts.verdict.optima.items() if optimum.lr is not None}
    assert fitted
    for name, lr in fitted.items():
        assert f'data-tip="{name}: fitted optimum {lr:.4g}, interval ' in "".join(pictures["rates"].panels)


def test_cells_that_were_stopped_are_arrows_with_the_loss_at_the_stop(
    facts: Facts, pictures: dict[str, Picture]
) -> None:
    stopped = [result for result in facts.cells("explore") if result.outcome == "stopped_early"]
    panels = "".join(pictures["rates"].panels)
    assert stopped
    for result in stopped:
        assert f">{result.val_loss:.2f}</text>" in panels


def test_positions_with_few_targets_are_left_out(facts: Facts) -> None:
    scores = facts.confirmed("long_seq")[0].scores
    assert scores is not None
    targets = {(b["first"], b["last"]): b["n_targets"] for b in scores["loss_by_position"]}
    shown = position_losses(facts, "long_seq")
    assert min(targets.values()) < FEWEST_TARGETS
    assert set(shown) == {bucket for bucket, number in targets.items() if number >= FEWEST_TARGETS}


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
        inline = inline_svg(svg_text(figure, salt="p"), tips=tips, title="t")
    tagged = [(element.tag.rpartition("}")[2], element.get("data-tip")) for element in ET.fromstring(inline).iter()]
    assert [pair for pair in tagged if pair[1]] == [
        ("use", "one"),
        ("use", 'two "quoted"'),
        ("use", "<three>"),
        ("g", "a line"),
    ]


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


def test_cells_that_were_stopped_stand_above_the_end_of_the_scale(facts: Facts) -> None:
    with drawing():
        panels = list(mpl.figure.Figure().subplots(1, len(facts.arms)))
        draw_rates(facts, panels, Tips())
    stopped = {result.cell.strategy for result in facts.cells("explore") if result.outcome == "stopped_early"}
    assert stopped
    for arm, panel in zip(facts.arms, panels, strict=True):
        if arm.name in stopped:
            (end,) = [line.get_ydata()[0] for line in panel.lines if list(line.get_xdata()) == [0, 1]]
            heights = [float(y) for marks in panel.collections for _, y in np.asarray(marks.get_offsets())]
            assert max(heights) > end > max(panel.get_yticks())
