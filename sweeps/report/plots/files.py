"""Every picture of a report: what it shows, when there is data for it, and how it is drawn and written.

A picture is made of panels. A page lays them out side by side or one below the other, as wide as it is; the PNG and the
SVG file have all of them in one figure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from sweeps.report.facts import Facts
from sweeps.report.plots import answer, budgets, leads, schedule, training
from sweeps.report.plots.style import Tips, drawing, inline_svg, png_bytes, svg_text
from sweeps.report.why import context_splits

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Draw = Callable[[Sequence["Axes"], Tips], None]
Layout = Literal["thirds", "halves", "long"]
WIDTHS_IN: dict[Layout, float] = {"thirds": 4.2, "halves": 4.9, "long": 7.6}
"""Width of a panel: 9-point type is 10 px high on a phone and up to 14 px on a desktop. A long panel is scrolled."""
COLUMNS = {"thirds": 3, "halves": 2, "long": 1}
"""Panels beside each other in the files."""


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One picture: ``draw`` draws on ``panels`` axes, each ``height_in`` inches high for the sweep at hand."""

    name: str
    title: str
    note: str
    available: Callable[[Facts], bool]
    draw: Callable[[Facts, Sequence[Axes], Tips], None]
    height_in: Callable[[Facts], float]
    panels: Callable[[Facts], int] = lambda _: 1
    layout: Layout = "halves"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A drawn plot: ``panels`` are SVG elements for a page, ``svg`` and ``png`` the files with all panels."""

    name: str
    title: str
    note: str
    layout: Layout
    panels: tuple[str, ...]
    svg: str
    png: bytes


def _per_arm(facts: Facts) -> int:
    return len(facts.arms)


PLOTS = (
    Plot(
        name="confirm",
        title="The judged cells",
        note="First, each mark is one confirm seed; a thin line joins cells of one seed, which saw the same tokens. "
        "Then the differences of the arms; an interval that stays clear of zero takes the colour of the better arm. "
        "Bars are {confidence} intervals, of means over seeds, of differences over {over}.",
        available=answer.has_confirm,
        draw=answer.draw_confirm,
        height_in=lambda facts: 1.0 + 0.5 * max(2, len(facts.arms), len(facts.drawn_pairs)),
        panels=lambda facts: 2 if facts.pairs else 1,
    ),
    Plot(
        name="budgets",
        title="Leads against the budget",
        note="Each mark is a lead in test loss between cells whose schedules ended at that budget, paired by seed, "
        "with its {confidence} interval over {over}. The line is fitted in the logarithm of tokens, the band is its "
        "interval. Crosses are what the smaller budgets predicted for the largest: × by a line, + as the last of them.",
        available=budgets.has_trend,
        draw=budgets.draw_trend,
        height_in=lambda _: 2.9,
        panels=lambda facts: len(budgets.drawn_trends(facts)),
        layout="thirds",
    ),
    Plot(
        name="rates",
        title="Loss against learning rate",
        note="Each mark is one explore cell at the end of its schedule. Above the dotted line, which ends the scale, "
        "an arrow is a cell that was stopped earlier, with its loss there (undecayed, not comparable), and a cross one "
        "that diverged or failed. A dashed line is the optimum by a quadratic fit, the pale band its interval.",
        available=answer.has_rates,
        draw=answer.draw_rates,
        height_in=lambda _: 2.9,
        panels=_per_arm,
        layout="thirds",
    ),
    Plot(
        name="context",
        title="What the leads are made of",
        note="The strong bar is a lead in own context; the pale ones are its two parts. Lines are {confidence} "
        "intervals over seeds.",
        available=lambda facts: bool(context_splits(facts)),
        draw=leads.draw_context,
        height_in=lambda facts: 0.7 + 0.85 * len(context_splits(facts)),
    ),
    Plot(
        name="controls",
        title="Diversity or length",
        note="The strong bar is a short arm's lead over the long one; the pale ones are what grouping takes away "
        "(diversity of the batch) and what it leaves (length). Lines are {confidence} intervals over seeds.",
        available=lambda facts: bool(facts.verdict.controls),
        draw=leads.draw_controls,
        height_in=lambda facts: 0.7 + 0.85 * len(facts.verdict.controls or ()),
    ),
    Plot(
        name="rungs",
        title="The lead during training",
        note="Validation loss of the same runs at the points where all were evaluated. Hollow marks are undecayed: the "
        "schedule had not ended there, so they support no claim. Bars are {confidence} intervals of the paired "
        "differences, over seeds.",
        available=leads.has_rungs,
        draw=leads.draw_rungs,
        height_in=lambda _: 3.0,
    ),
    Plot(
        name="positions",
        title="Loss by position",
        note="Where in its context an arm's model earns its loss: mean over confirm seeds, with {confidence} intervals "
        f"over them. Positions with fewer than {answer.FEWEST_TARGETS:,} targets are left out.",
        available=answer.has_positions,
        draw=answer.draw_positions,
        height_in=lambda _: 3.0,
    ),
    Plot(
        name="curves",
        title="Training loss against tokens",
        note="Explore cells are thin and grey, judged cells coloured. Dotted lines are rungs; an arrow with its loss "
        "is where a cell was stopped.",
        available=training.has_curves,
        draw=training.draw_curves,
        height_in=lambda _: 2.9,
        panels=_per_arm,
        layout="thirds",
    ),
    Plot(
        name="progress",
        title="The same cells against time and updates",
        note="Equal tokens are neither equal time nor, where tokens per step differ, equal updates. "
        "Seconds are this machine's. Means over the seeds, smoothed.",
        available=training.has_progress,
        draw=training.draw_progress,
        height_in=lambda _: 2.8,
        panels=lambda _: 2,
    ),
    Plot(
        name="throughput",
        title="Throughput and memory",
        note="Mean over confirm cells (explore cells where there are none), exams apart. "
        "Memory is the peak of tensor bytes, GiB = 2^30.",
        available=training.has_throughput,
        draw=training.draw_throughput,
        height_in=lambda facts: 0.6 + 0.5 * max(2, len(facts.arms)),
        panels=lambda facts: len(training.throughput_metrics(facts)),
        layout="thirds",
    ),
    Plot(
        name="experts",
        title="Load of the experts",
        note="A band spans the cells of an arm. A load of 1 is perfect balance.",
        available=training.has_experts,
        draw=training.draw_experts,
        height_in=lambda _: 2.6,
        panels=lambda _: 2,
    ),
    Plot(
        name="stops",
        title="What early stopping ended",
        note="Tokens of each explore cell by learning rate. Dotted lines are rungs, where cells are ranked within "
        "their own arm.",
        available=schedule.has_stops,
        draw=schedule.draw_stops,
        height_in=schedule.stops_height_in,
        panels=_per_arm,
        layout="thirds",
    ),
    Plot(
        name="timeline",
        title="What ran when",
        note="A bar is one stretch of work on one cell, pale for explore; bars above each other ran at the same time.",
        available=lambda facts: bool(facts.stretches),
        draw=schedule.draw_timeline,
        height_in=lambda facts: 1.1 + min(5.0, 0.4 * max(2, schedule.n_lanes(facts))),
        layout="long",
    ),
)


def draw_all(facts: Facts) -> list[Picture]:
    """Return every picture for which the sweep has data, in the order in which a report shows them."""
    return [
        picture_of(
            name=plot.name,
            title=plot.title,
            note=plot.note.replace("{confidence}", facts.confidence).replace("{over}", facts.over),
            layout=plot.layout,
            panels=plot.panels(facts),
            height_in=plot.height_in(facts),
            draw=partial(plot.draw, facts),
        )
        for plot in PLOTS
        if plot.available(facts)
    ]


def picture_of(
    *, name: str, title: str, note: str, layout: Layout, panels: int, height_in: float, draw: Draw
) -> Picture:
    """Return one picture, drawn once on a figure per panel for the page and once on a single figure for the files."""
    from matplotlib.figure import Figure

    width_in, columns = WIDTHS_IN[layout], min(panels, COLUMNS[layout])
    with drawing():
        single = [Figure(figsize=(width_in, height_in), layout="constrained") for _ in range(panels)]
        tips = Tips()
        draw([figure.subplots() for figure in single], tips)
        inline = tuple(
            inline_svg(svg_text(figure, salt=f"{name}-{place}"), tips=tips, title=title)
            for place, figure in enumerate(single)
        )
        lines = -(-panels // columns)
        whole = Figure(figsize=(width_in * columns, height_in * lines), layout="constrained")
        grid = list(whole.subplots(lines, columns, squeeze=False).flat)
        for unused in grid[panels:]:
            unused.set_visible(False)
        draw(grid[:panels], Tips())
        svg = svg_text(whole, salt=name)
        whole.set_layout_engine("none")  # the layout is done; it would be worked out again for the PNG
        png = png_bytes(whole)
    return Picture(name=name, title=title, note=note, layout=layout, panels=inline, svg=svg, png=png)
