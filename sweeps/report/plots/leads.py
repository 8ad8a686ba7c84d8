"""Pictures of leads: what they are made of (context, batch diversity), and how they changed as the budget grew."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sweeps import formatting as written
from sweeps.ledger.results import finite
from sweeps.report.facts import Facts, rows
from sweeps.report.plots.style import MUTED, PAPER, TEXT, Tips, arm_colour, arm_marker, label, row_name
from sweeps.report.why import CONTEXT_PARTS, CONTROL_PARTS, from_ahead, parts_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def context_entries(facts: Facts) -> list[dict[str, Any]]:
    """Return the verdict's context identity, each pair seen from the arm that is ahead."""
    found = [from_ahead(entry, tuple(CONTEXT_PARTS)) for entry in rows(facts.verdict.get("context"))]
    drawn = [{pair.get("a"), pair.get("b")} for pair in facts.drawn_pairs]
    return [e for e in found if e["own_lead"] is not None and {e["a"], e["b"]} in drawn]


def control_entries(facts: Facts) -> list[dict[str, Any]]:
    """Return the verdict's controls, each as the lead of a short arm over the long one."""
    found = [parts_of(entry, CONTROL_PARTS) for entry in rows(facts.verdict.get("controls"))]
    return [entry for entry in found if entry["lead"] is not None]


def draw_context(facts: Facts, figure: Figure, tips: Tips, *, narrow: bool) -> None:
    """Each lead in own context, and below it its two parts."""
    _draw_parts(facts, context_entries(facts), CONTEXT_PARTS, figure, tips, narrow=narrow)


def draw_controls(facts: Facts, figure: Figure, tips: Tips, *, narrow: bool) -> None:
    """Each short arm's lead over the long one, and below it what is diversity and what is length."""
    _draw_parts(facts, control_entries(facts), CONTROL_PARTS, figure, tips, narrow=narrow)


def _draw_parts(
    facts: Facts,
    entries: Sequence[Mapping[str, Any]],
    parts: Mapping[str, str],
    figure: Figure,
    tips: Tips,
    *,
    narrow: bool,
) -> None:
    """Bars from zero, a group of three for each pair: the lead strong, its parts pale, each with its interval."""
    from matplotlib.ticker import MaxNLocator

    panel = figure.subplots()
    height = 0.2
    for group, entry in enumerate(entries):
        arm = facts.arm_by_name.get(entry["a"])
        colour = arm_colour(arm.index) if arm else MUTED
        row_name(panel, -group, f"{label(entry['a'], 22)} over {label(entry['b'], 22)}", above=0.12)
        for place, (part, name) in enumerate(parts.items()):
            value, y = entry[part] or 0.0, -group - place * (height + 0.03)
            bar = panel.barh(y, value, height=height, color=colour, alpha=1.0 if place == 0 else 0.4)
            low, high = entry[f"{part}_ci_low"], entry[f"{part}_ci_high"]
            tips.add(bar.patches[0], [f"{name}: {written.signed(value)} ({written.interval(low, high, sign=True)})"])
            if low is not None and high is not None:
                panel.plot([low, high], [y, y], color=TEXT, linewidth=1.1, solid_capstyle="butt")
            end = max(value, high or value) if value >= 0 else min(value, low or value)
            panel.annotate(
                f"{name} {written.signed(value)}", (end, y), xytext=(6 if value >= 0 else -6, 0),
                textcoords="offset points", va="center", ha="left" if value >= 0 else "right", fontsize=8,
            )  # fmt: skip
    panel.axvline(0, color=MUTED, linewidth=1)
    panel.set_ylim(-len(entries) + 0.28, 0.42)
    panel.set_yticks([])
    panel.spines["left"].set_visible(False)
    panel.xaxis.set_major_locator(MaxNLocator(5))
    # Room for the words beside the bars, which the layout engine does not see.
    low, high = panel.get_xlim()
    span = high - low
    share = 0.55 if narrow else 0.2
    panel.set_xlim(low - (share * span if low < -0.02 * span else 0.05 * span), high + share * span)
    panel.set_xlabel("nats per token, above zero is ahead")


def has_rungs(facts: Facts) -> bool:
    """Whether the verdict compares arms at two points of the budget at least."""
    return facts.leading is not None and len(facts.arms) > 1 and len(rows(facts.verdict.get("by_rung"))) > 1


def draw_rungs(facts: Facts, figure: Figure, tips: Tips, *, narrow: bool) -> None:
    """How far each rival lies above the leading arm at the points of the budget at which all sat the exam."""
    panel = figure.subplots()
    panel.axhline(0, color=MUTED, linewidth=1, zorder=1)
    points = rows(facts.verdict.get("by_rung"))
    tokens = [finite(point.get("tokens")) or 0.0 for point in points]
    rivals = [arm for arm in facts.arms if arm.name != facts.leading]
    step = 0.012 * (max(tokens) - min(tokens))
    for place, arm in enumerate(rivals):
        seen = [_rival_above(point, arm.name, facts.leading) for point in points]
        x = np.asarray(tokens) + step * (place - (len(rivals) - 1) / 2)
        y, low, high = (
            np.asarray([math.nan if v is None else v for v in column]) for column in zip(*seen, strict=True)
        )
        colour = arm_colour(arm.index)
        panel.plot(x, y, color=colour, linestyle=(0, (4, 2)), linewidth=1.1, label=label(arm.name), zorder=2)
        panel.vlines(x, low, high, color=colour, linewidth=2, zorder=2)
        decayed = [point.get("label") == "decayed" for point in points]
        marks = panel.scatter(
            x, y, s=44, marker=arm_marker(arm.index), facecolors=[colour if yes else PAPER for yes in decayed],
            edgecolors=colour, linewidths=1.3, zorder=3,
        )  # fmt: skip
        labels = [str(point.get("label", "")) for point in points]
        tips.add(marks, [f"{arm.name}: {written.signed(float(v))}, {word}" for v, word in zip(y, labels, strict=True)])
    names = [f"{written.short_count(t)}\n{p.get('label', '')}" for t, p in zip(tokens, points, strict=True)]
    panel.set_xticks(tokens, names)
    panel.set_xlabel("tokens seen")
    panel.set_ylabel(f"validation loss above\n{label(facts.leading or '')}")
    panel.legend(loc="upper left", ncols=1 if narrow else 4)
    low_y, high_y = panel.get_ylim()
    panel.set_ylim(low_y, high_y + (0.12 * len(rivals) if narrow else 0.18) * (high_y - low_y))


def _rival_above(
    point: Mapping[str, Any], rival: str, leader: str | None
) -> tuple[float | None, float | None, float | None]:
    """Return the rival's loss minus the leader's at one point of the budget, with its interval."""
    for pair in rows(point.get("pairs")):
        middle, low, high = (finite(pair.get(key)) for key in ("difference", "ci_low", "ci_high"))
        if (pair.get("a"), pair.get("b")) == (rival, leader):
            return middle, low, high
        if (pair.get("b"), pair.get("a")) == (rival, leader):
            turned = [None if value is None else -value for value in (middle, high, low)]
            return turned[0], turned[1], turned[2]
    return None, None, None
