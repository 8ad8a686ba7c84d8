"""The picture of the budget as an axis: each lead against tokens, with the fitted line and what predicted the last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sweeps import formatting as written
from sweeps.report.facts import Facts
from sweeps.report.plots.style import MUTED, TEXT, Tips, arm_colour, arm_marker, label, log_ticks
from sweeps.report.why import estimate_text
from sweeps.verdict.trend_rows import PairTrend

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def drawn_trends(facts: Facts) -> list[PairTrend]:
    """Return the pairs that a picture has room for, those of the leading arm first."""
    drawn = [frozenset((pair.a, pair.b)) for pair in facts.drawn_pairs]
    found = [pair for pair in facts.verdict.trend.pairs if frozenset((pair.a, pair.b)) in drawn]
    return sorted(found, key=lambda pair: drawn.index(frozenset((pair.a, pair.b))))


def has_trend(facts: Facts) -> bool:
    """Whether leads are known at two budgets."""
    return bool(drawn_trends(facts))


def draw_trend(facts: Facts, axes: Sequence[Axes], tips: Tips) -> None:
    """A panel a pair: the lead of the arm ahead at the largest budget."""
    for panel, pair in zip(axes, drawn_trends(facts), strict=True):
        _draw_pair(panel, facts, pair, tips)


def _draw_pair(panel: Axes, facts: Facts, pair: PairTrend, tips: Tips) -> None:
    colour = arm_colour(facts.index[pair.a])
    panel.axhline(0, color=MUTED, linewidth=1, zorder=1)
    line = [point for point in pair.line if point.lead.low is not None and point.lead.high is not None]
    x_P = np.asarray([point.tokens for point in line], dtype=np.float64)
    panel.fill_between(
        x_P, [point.lead.low or 0.0 for point in line], [point.lead.high or 0.0 for point in line],
        color=colour, alpha=0.12, linewidth=0, zorder=1,
    )  # fmt: skip
    panel.plot(x_P, [point.lead.mean for point in line], color=colour, linestyle=(0, (4, 2)), linewidth=1.1, zorder=2)
    tokens_K = [at.budget_tokens for at in pair.leads]
    for at in pair.leads:
        if at.lead.low is not None and at.lead.high is not None:
            panel.vlines(at.budget_tokens, at.lead.low, at.lead.high, color=colour, linewidth=2, zorder=3)
    marker, leads_K = arm_marker(facts.index[pair.a]), [at.lead.mean for at in pair.leads]
    marks = panel.scatter(tokens_K, leads_K, s=40, color=colour, marker=marker, zorder=4)
    tips.add(marks, [f"{written.count(at.budget_tokens)} tokens: {estimate_text(at.lead)}" for at in pair.leads])
    ways = {"line": ("x", "line through the smaller budgets"), "persistence": ("+", "as at the budget before")}
    for entry in pair.predictions:
        sign, by = ways[entry.by]
        cross = panel.scatter([tokens_K[-1]], [entry.predicted], marker=sign, color=TEXT, s=36, zorder=5)
        tips.add(cross, [f"predicted, {by}: {written.signed(entry.predicted)}"])
    log_ticks(panel, [float(tokens) for tokens in tokens_K], limit=6, text=written.short_count)
    panel.set_title(f"{label(pair.a, 18)} over {label(pair.b, 18)}")
    panel.set_xlabel("budget (tokens)")
    panel.set_ylabel("lead (nats per token)")
