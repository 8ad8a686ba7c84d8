"""Pictures of leads: what they are made of (context, batch diversity), and how they changed during training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from sweeps import formatting as written
from sweeps.report.facts import Facts
from sweeps.report.plots.style import MUTED, PAPER, TEXT, Tips, arm_colour, arm_legend, arm_marker, label, row_name
from sweeps.report.why import CONTEXT_PARTS, CONTROL_PARTS, context_splits, estimate_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sweeps.verdict.rows import ContextSplit, ControlSplit, Estimate


def draw_context(facts: Facts, axes: Sequence[Axes], tips: Tips) -> None:
    """Each lead in own context, and below it what it is made of."""
    _draw_parts(axes[0], facts, context_splits(facts), CONTEXT_PARTS, tips)


def draw_controls(facts: Facts, axes: Sequence[Axes], tips: Tips) -> None:
    """Each short arm's lead over the long one, and below it what is diversity and what is length."""
    _draw_parts(axes[0], facts, facts.verdict.controls or (), CONTROL_PARTS, tips)


def _draw_parts(
    panel: Axes,
    facts: Facts,
    entries: Sequence[ContextSplit | ControlSplit],
    parts: Mapping[str, str],
    tips: Tips,
) -> None:
    """Bars from zero, a group of three for each pair: the lead strong, what it is made of pale, with intervals."""
    from matplotlib.ticker import MaxNLocator

    height = 0.2
    for group, entry in enumerate(entries):
        colour = arm_colour(facts.index[entry.a])
        row_name(panel, -group, f"{label(entry.a, 22)} over {label(entry.b, 22)}", above=0.12)
        for place, (part, name) in enumerate(parts.items()):
            found: Estimate = getattr(entry, part)
            y = -group - place * (height + 0.03)
            bar = panel.barh(y, found.mean, height=height, color=colour, alpha=1.0 if place == 0 else 0.4)
            tips.add(bar.patches[0], [f"{name}: {estimate_text(found)}"])
            ends = [end for end in (found.low, found.high) if end is not None]
            panel.plot(ends, [y] * len(ends), color=TEXT, linewidth=1.1, solid_capstyle="butt")
            side = 1 if found.mean >= 0 else -1
            panel.annotate(
                f"{name} {written.signed(found.mean)}", (side * max(side * x for x in (found.mean, *ends)), y),
                xytext=(6 * side, 0), textcoords="offset points", va="center", ha="left" if side > 0 else "right",
                fontsize=8,
            )  # fmt: skip
    panel.axvline(0, color=MUTED, linewidth=1)
    panel.set_ylim(-len(entries) + 0.28, 0.42)
    panel.set_yticks([])
    panel.spines["left"].set_visible(False)
    panel.xaxis.set_major_locator(MaxNLocator(5))
    # Room for the words beside the bars, which the layout engine does not see.
    low, high = panel.get_xlim()
    span = high - low
    panel.set_xlim(low - (0.5 * span if low < -0.02 * span else 0.05 * span), high + 0.5 * span)
    panel.set_xlabel("nats per token, above zero is ahead")


def has_rungs(facts: Facts) -> bool:
    """Whether the verdict compares arms at two points of the budget at least."""
    return facts.verdict.leading is not None and len(facts.arms) > 1 and len(facts.verdict.by_rung) > 1


def draw_rungs(facts: Facts, axes: Sequence[Axes], tips: Tips) -> None:
    """How far each rival lies above the leading arm at the points of the budget at which all were evaluated."""
    (panel,) = axes
    leading, points = facts.verdict.leading or "", facts.verdict.by_rung
    panel.axhline(0, color=MUTED, linewidth=1, zorder=1)
    tokens_P = np.asarray([point.tokens for point in points], dtype=np.float64)
    rivals = [arm.name for arm in facts.arms if arm.name != leading]
    step = 0.012 * float(np.ptp(tokens_P))
    for place, rival in enumerate(rivals):
        found = [
            pair.above(leading) for point in points for pair in point.pairs if {leading, rival} == {pair.a, pair.b}
        ]
        ends = [(e.mean, e.low, e.high) if e else (None, None, None) for e in found]
        y_P, low_P, high_P = np.asarray(ends, dtype=np.float64).T
        x_P = tokens_P + step * (place - (len(rivals) - 1) / 2)
        index = facts.index[rival]
        colour = arm_colour(index)
        panel.plot(x_P, y_P, color=colour, linestyle=(0, (4, 2)), linewidth=1.1, zorder=2)
        panel.vlines(x_P, low_P, high_P, color=colour, linewidth=2, zorder=2)
        marks = panel.scatter(
            x_P, y_P, s=44, marker=arm_marker(index),
            facecolors=[colour if point.label == "decayed" else PAPER for point in points],
            edgecolors=colour, linewidths=1.3, zorder=3, label=label(rival),
        )  # fmt: skip
        labels = [point.label for point in points]
        tips.add(marks, [f"{rival}: {written.signed(y)}, {word}" for y, word in zip(y_P, labels, strict=True)])
    panel.set_xticks(tokens_P, [f"{written.short_count(point.tokens)}\n{point.label}" for point in points])
    panel.set_xlabel("tokens seen")
    panel.set_ylabel(f"validation loss above\n{label(leading)}")
    arm_legend(panel)
