"""Every picture of a report: what it shows, when there is data for it, and its files (PNG, SVG, inline SVG)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from sweeps.report.facts import Facts
from sweeps.report.plots import answer as plots_answer
from sweeps.report.plots import leads as plots_leads
from sweeps.report.plots import schedule as plots_schedule
from sweeps.report.plots import training as plots_training
from sweeps.report.plots.style import NARROW_IN, WIDE_IN, Tips, drawing, inline_svg, png_bytes, svg_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Draw(Protocol):
    """Draws on an empty figure; ``narrow`` asks for panels one below the other, for a phone."""

    def __call__(self, facts: Facts, figure: Figure, tips: Tips, *, narrow: bool) -> None:
        """Draw."""


class DrawOn(Protocol):
    """A ``Draw`` that knows its data."""

    def __call__(self, figure: Figure, tips: Tips, *, narrow: bool) -> None:
        """Draw."""


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One picture: ``heights`` gives its height in inches, wide and narrow, for the sweep at hand."""

    name: str
    title: str
    note: str
    available: Callable[[Facts], bool]
    draw: Draw
    heights: Callable[[Facts], tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A drawn plot: ``inline_wide`` and ``inline_narrow`` are SVG elements for a page, the rest files of their own."""

    name: str
    title: str
    note: str
    inline_wide: str
    inline_narrow: str
    svg: str
    png: bytes


def _per_arm(wide: float, narrow: float) -> Callable[[Facts], tuple[float, float]]:
    """Heights of panels that a wide figure puts in rows of four and a narrow one in a column."""
    return lambda facts: (wide * -(-max(1, len(facts.arms)) // 4), 0.3 + narrow * max(1, len(facts.arms)))


def _rows(facts: Facts) -> tuple[float, float]:
    arms, pairs = max(2, len(facts.arms)), max(2, len(facts.drawn_pairs))
    return 0.95 + 0.62 * max(arms, pairs), 1.9 + 0.62 * (arms + pairs)


def _lead_groups(entries: Callable[[Facts], list[dict[str, Any]]]) -> Callable[[Facts], tuple[float, float]]:
    """Heights of groups of three bars."""

    def heights(facts: Facts) -> tuple[float, float]:
        number = max(1, len(entries(facts)))
        return 0.7 + 0.85 * number, 0.7 + 0.85 * number

    return heights


def _bars(facts: Facts) -> tuple[float, float]:
    arms = max(2, len(facts.arms))
    return 0.7 + 0.52 * arms, 1.0 + 2 * 0.56 * arms + 0.6


def _stops(facts: Facts) -> tuple[float, float]:
    most = max((len(facts.cells("explore", arm=arm.name)) for arm in facts.arms), default=1)
    bars = min(plots_schedule.MAX_BARS_PER_ARM, max(3, most))
    lines = -(-max(1, len(facts.arms)) // 4)
    return lines * (0.9 + 0.25 * bars), len(facts.arms) * (0.85 + 0.24 * bars)


def _lanes(facts: Facts) -> tuple[float, float]:
    lanes = 1 + max((item.lane for item in facts.stretches), default=0)
    height = 1.1 + min(5.0, 0.42 * max(2, lanes))
    return height, height + 0.25


PLOTS = (
    Plot(
        name="confirm",
        title="The judged cells",
        note="Each mark is one confirm seed; a thin line joins cells of the same seed, which saw the same tokens. "
        "Bars are {confidence} intervals.",
        available=plots_answer.has_confirm,
        draw=plots_answer.draw_confirm,
        heights=_rows,
    ),
    Plot(
        name="rates",
        title="Loss against learning rate",
        note="Each mark is one explore cell. Hollow marks were stopped before their schedule ended (undecayed, not "
        "comparable); a cross diverged or failed; what lies above the scale is drawn at its upper end. A dashed line "
        "is the optimum by a quadratic fit, the pale band its interval.",
        available=plots_answer.has_rates,
        draw=plots_answer.draw_rates,
        heights=_per_arm(2.9, 2.4),
    ),
    Plot(
        name="context",
        title="What the leads are made of",
        note="The strong bar is a lead in own context; the pale ones are its two parts. Lines are {confidence} "
        "intervals.",
        available=lambda facts: bool(plots_leads.context_entries(facts)),
        draw=plots_leads.draw_context,
        heights=_lead_groups(plots_leads.context_entries),
    ),
    Plot(
        name="controls",
        title="Diversity or length",
        note="The strong bar is a short arm's lead over the long one; the pale ones are what grouping takes away "
        "(diversity of the batch) and what it leaves (length). Lines are {confidence} intervals.",
        available=lambda facts: bool(plots_leads.control_entries(facts)),
        draw=plots_leads.draw_controls,
        heights=_lead_groups(plots_leads.control_entries),
    ),
    Plot(
        name="rungs",
        title="The lead as the budget grew",
        note="Hollow marks are undecayed: their schedule had not ended there, so they support no claim. "
        "Only the full budget is judged. Bars are {confidence} intervals of the paired differences.",
        available=plots_leads.has_rungs,
        draw=plots_leads.draw_rungs,
        heights=lambda _: (3.0, 3.0),
    ),
    Plot(
        name="positions",
        title="Loss by position",
        note="Where in its context an arm's model earns its loss, mean over confirm seeds.",
        available=plots_answer.has_positions,
        draw=plots_answer.draw_positions,
        heights=lambda _: (3.2, 3.0),
    ),
    Plot(
        name="curves",
        title="Training loss against tokens",
        note="Explore cells are thin and grey, judged cells coloured. Dotted lines are rungs, a cross is where a cell "
        "was stopped.",
        available=plots_training.has_curves,
        draw=plots_training.draw_curves,
        heights=_per_arm(3.1, 2.3),
    ),
    Plot(
        name="progress",
        title="The same cells against time and updates",
        note="Equal tokens are neither equal time nor, where tokens per step differ, equal updates. "
        "Seconds are this machine's. Means over the seeds, smoothed.",
        available=plots_training.has_progress,
        draw=plots_training.draw_progress,
        heights=lambda _: (3.0, 5.0),
    ),
    Plot(
        name="throughput",
        title="Throughput and memory",
        note="Mean over confirm cells (explore cells where there are none), exams apart. "
        "Memory is the peak of tensor bytes, GiB = 2^30.",
        available=plots_training.has_throughput,
        draw=plots_training.draw_throughput,
        heights=_bars,
    ),
    Plot(
        name="experts",
        title="Load of the experts",
        note="A band spans the cells of an arm. A load of 1 is perfect balance.",
        available=plots_training.has_experts,
        draw=plots_training.draw_experts,
        heights=lambda _: (2.8, 4.8),
    ),
    Plot(
        name="stops",
        title="What early stopping ended",
        note="Tokens of each explore cell by learning rate. Dotted lines are rungs, where cells are ranked within "
        "their own arm.",
        available=plots_schedule.has_stops,
        draw=plots_schedule.draw_stops,
        heights=_stops,
    ),
    Plot(
        name="timeline",
        title="What ran when",
        note="A bar is one stretch of work on one cell, pale for explore; bars above each other ran at the same time.",
        available=plots_schedule.has_timeline,
        draw=plots_schedule.draw_timeline,
        heights=_lanes,
    ),
)


def draw_all(facts: Facts) -> list[Picture]:
    """Return every picture for which the sweep has data, in the order in which a report shows them."""
    return [
        picture_of(
            name=plot.name,
            title=plot.title,
            note=plot.note.replace("{confidence}", facts.confidence),
            heights=plot.heights(facts),
            draw=partial(plot.draw, facts),
        )
        for plot in PLOTS
        if plot.available(facts)
    ]


def picture_of(name: str, title: str, note: str, heights: tuple[float, float], draw: DrawOn) -> Picture:
    """Return one picture, drawn once wide and once narrow; ``heights`` are in inches."""
    from matplotlib.figure import Figure

    inline = []
    svg, png = "", b""
    with drawing():
        for size, width, height in zip(("wide", "narrow"), (WIDE_IN, NARROW_IN), heights, strict=True):
            figure = Figure(figsize=(width, height), layout="constrained")
            tips = Tips()
            draw(figure, tips, narrow=size == "narrow")
            document = svg_text(figure)
            figure.set_layout_engine("none")  # the layout is done; it would be worked out again for the PNG
            inline.append(inline_svg(document, prefix=f"{name}-{size}", tips=tips, title=title, css_class=size))
            if size == "wide":
                svg, png = document, png_bytes(figure)
    return Picture(name=name, title=title, note=note, inline_wide=inline[0], inline_narrow=inline[1], svg=svg, png=png)
