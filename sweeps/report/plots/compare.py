"""The picture of a comparison: the same pairs of arms in several sweeps, each with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sweeps import formatting as written
from sweeps.report.plots.files import Picture, picture_of
from sweeps.report.plots.style import MUTED, PAPER, Tips, arm_colour, label, row_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sweeps.report.compare import SharedPair
    from sweeps.report.facts import Facts


def draw_pairs(pairs: Sequence[SharedPair], sweeps: Sequence[Facts]) -> Picture:
    """Return the picture of every shared pair: a row for each sweep in the colour of the arm it calls better."""
    colours = {arm.name: arm_colour(arm.index) for arm in sweeps[0].arms}

    def draw(figure: Figure, tips: Tips, *, narrow: bool) -> None:
        panel = figure.subplots()
        panel.axvline(0, color=MUTED, linewidth=1, zorder=1)
        y, heads = 0.0, []
        for pair in pairs:
            heads.append((y, f"{label(pair.a, 20)} − {label(pair.b, 20)}"))
            for side in pair.sides:
                y -= 1.0
                if side.difference is None:
                    continue
                colour = colours.get(side.better, MUTED)
                if side.low is not None and side.high is not None:
                    panel.plot(
                        [side.low, side.high], [y, y], color=colour, linewidth=2.2, solid_capstyle="butt", zorder=3
                    )
                (dot,) = panel.plot(
                    [side.difference], [y], "o", color=colour, markersize=6.5, markeredgecolor=PAPER, zorder=4
                )
                span = written.interval(side.low, side.high, sign=True)
                tips.add(dot, [f"{side.sweep}: {written.signed(side.difference)} ({span})"])
                end = side.difference if side.high is None else side.high
                panel.annotate(
                    label(side.sweep, 24),
                    (end, y),
                    xytext=(7, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8.5,
                )
            y -= 1.2
        for place, text in heads:
            row_name(panel, place - 0.6, text, above=0.0)
        panel.set_ylim(y + 0.5, 0.7)
        low, high = panel.get_xlim()
        panel.set_xlim(low, high + (0.35 if narrow else 0.15) * (high - low))
        panel.set_yticks([])
        panel.spines["left"].set_visible(False)
        panel.set_xlabel("difference of test losses, below zero the first arm is better")

    rows = sum(1.2 + len(pair.sides) for pair in pairs)
    return picture_of(
        name="pairs",
        title="The same pairs in each sweep",
        note="A mark takes the colour of the arm that the sweep's verdict calls better, grey where it calls neither.",
        heights=(0.8 + 0.28 * rows, 0.8 + 0.28 * rows),
        draw=draw,
    )
