"""The picture of a comparison: the same pairs of arms in several sweeps, each with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sweeps import formatting as written
from sweeps.report.plots.files import Picture, picture_of
from sweeps.report.plots.style import MUTED, PAPER, Tips, arm_colour, label, row_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sweeps.report.compare import SharedPair
    from sweeps.report.facts import Facts


def draw_pairs(pairs: Sequence[SharedPair], sweeps: Sequence[Facts]) -> Picture:
    """Return the picture of every shared pair: a row for each sweep in the colour of the arm it calls better."""

    def draw(axes: Sequence[Axes], tips: Tips) -> None:
        (panel,) = axes
        panel.axvline(0, color=MUTED, linewidth=1, zorder=1)
        y = 0.0
        for shared in pairs:
            row_name(panel, y - 0.6, f"{label(shared.a, 20)} − {label(shared.b, 20)}", above=0.0)
            for facts, pair in zip(sweeps, shared.of_sweeps, strict=True):
                y -= 1.0
                found = pair.above(shared.b)
                if found is None:
                    continue
                colour = MUTED if pair.better is None else arm_colour(sweeps[0].index[pair.better])
                ends = [end for end in (found.low, found.high) if end is not None]
                panel.plot(ends, [y] * len(ends), color=colour, linewidth=2.2, solid_capstyle="butt", zorder=3)
                (dot,) = panel.plot([found.mean], [y], "o", color=colour, markersize=6.5, markeredgecolor=PAPER)
                name, span = facts.results.name, written.interval(found.low, found.high, sign=True)
                tips.add(dot, [f"{name}: {written.signed(found.mean)} ({span})"])
                end = (max([found.mean, *ends]), y)
                panel.annotate(
                    label(name, 24), end, xytext=(7, 0), textcoords="offset points", va="center", fontsize=8.5
                )
            y -= 1.2
        panel.set_ylim(y + 0.5, 0.7)
        low, high = panel.get_xlim()
        panel.set_xlim(low, high + 0.25 * (high - low))  # room for the names, which the layout engine does not see
        panel.set_yticks([])
        panel.spines["left"].set_visible(False)
        panel.set_xlabel("difference of test losses, below zero the first arm is better")

    rows = sum(1.2 + len(sweeps) for _ in pairs)
    return picture_of(
        name="pairs",
        title="The same pairs in each sweep",
        note="A mark takes the colour of the arm that the sweep's verdict calls better, grey where it calls neither.",
        layout="long",
        panels=1,
        height_in=0.8 + 0.3 * rows,
        draw=draw,
    )
