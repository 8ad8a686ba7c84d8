"""Pictures of the answer: confirm seeds and their differences, learning rates, loss by position."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sweeps import formatting as written
from sweeps.ledger.results import finite
from sweeps.report.facts import Arm, Facts, rows
from sweeps.report.plots.style import (
    BAND,
    MUTED,
    PAPER,
    TEXT,
    Tips,
    arm_colour,
    arm_legend,
    arm_marker,
    label,
    log_ticks,
    row_name,
)
from sweeps.report.plots.training import describe, panels, thinned

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sweeps.verdict.optimum import Optimum

MAX_RATE_POINTS_PER_ARM = 500
CROWD = 60


def has_confirm(facts: Facts) -> bool:
    """Whether any confirm cell at a judged rate has a test loss."""
    return any(result.test_loss is not None for arm in facts.arms for result in facts.confirmed(arm.name))


def draw_confirm(facts: Facts, figure: Figure, tips: Tips, *, narrow: bool) -> None:
    """Test loss of every confirm seed, seeds of one number joined, beside the paired differences of arms."""
    judged = [pair for pair in facts.drawn_pairs if finite(pair.get("difference")) is not None]
    arms = [arm for arm in facts.arms if any(r.test_loss is not None for r in facts.confirmed(arm.name))]
    if not judged:
        _draw_seeds(figure.subplots(), facts, arms, tips)
        return
    if narrow:
        left, right = figure.subplots(2, 1, height_ratios=[len(arms) + 1, len(judged) + 1])
    else:
        left, right = figure.subplots(1, 2)
    _draw_seeds(left, facts, arms, tips)
    _draw_differences(right, facts, judged, tips)


def _draw_seeds(panel: Axes, facts: Facts, arms: Sequence[Arm], tips: Tips) -> None:
    place_of_seed: dict[int, list[tuple[float, float]]] = {}
    for place, arm in enumerate(arms):
        cells = [result for result in facts.confirmed(arm.name) if result.test_loss is not None]
        for result in cells:
            place_of_seed.setdefault(result.cell.seed, []).append((result.test_loss or math.nan, -place))
        low, high, mean = (finite(arm.row.get(key)) for key in ("ci_low", "ci_high", "mean"))
        colour = arm_colour(arm.index)
        if low is not None and high is not None:
            panel.plot([low, high], [-place, -place], color=colour, alpha=0.28, linewidth=9, solid_capstyle="butt")
        if mean is not None:
            (tick,) = panel.plot([mean], [-place], "|", color=colour, markersize=20, markeredgewidth=2.6, zorder=3)
            tips.add(tick, [f"{arm.name}: mean {written.loss(mean)}, interval {written.interval(low, high)}"])
        points = panel.scatter(
            [result.test_loss or math.nan for result in cells], [-place] * len(cells), s=34, color=colour,
            marker=arm_marker(arm.index), edgecolors=PAPER, linewidths=0.7, zorder=4,
        )  # fmt: skip
        tips.add(points, [describe(result) for result in cells])
        row_name(panel, -place, label(arm.name))
    for joined in place_of_seed.values():
        if len(joined) > 1:
            panel.plot(*np.asarray(joined).T, color=MUTED, linewidth=0.7, alpha=0.6, zorder=1)
    panel.set_ylim(-len(arms) + 0.55, 0.75)
    _bare_rows(panel)
    panel.set_xlabel("test loss (nats per token), lower is better")
    panel.set_title("Every confirm seed, and the mean's interval")


def _draw_differences(panel: Axes, facts: Facts, pairs: Sequence[Mapping[str, Any]], tips: Tips) -> None:
    margin = finite(facts.verdict.get("margin"))
    if margin:
        panel.axvspan(-margin, margin, color=BAND, linewidth=0, zorder=0)
    panel.axvline(0, color=MUTED, linewidth=1, zorder=1)
    for place, pair in enumerate(pairs):
        middle = finite(pair.get("difference")) or 0.0
        low, high = finite(pair.get("ci_low")), finite(pair.get("ci_high"))
        clear = low is not None and high is not None and low * high > 0
        better = facts.arm_by_name.get(str(pair.get("a") if middle < 0 else pair.get("b")))
        colour = arm_colour(better.index) if clear and better else MUTED
        if low is not None and high is not None:
            panel.plot([low, high], [-place, -place], color=colour, linewidth=2.2, solid_capstyle="butt", zorder=3)
        (dot,) = panel.plot([middle], [-place], "o", color=colour, markersize=6.5, markeredgecolor=PAPER, zorder=4)
        name = f"{label(str(pair.get('a')), 20)} − {label(str(pair.get('b')), 20)}"
        tips.add(dot, [f"{name}: {written.signed(middle)} ({written.interval(low, high, sign=True)})"])
        row_name(panel, -place, name)
    panel.set_ylim(-len(pairs) + 0.5, 0.75)
    _bare_rows(panel)
    panel.set_xlabel("difference of test losses" + (", margin shaded" if margin else ""))
    panel.set_title("Paired differences, seed by seed")


def _bare_rows(panel: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    panel.set_yticks([])
    panel.spines["left"].set_visible(False)
    panel.xaxis.set_major_locator(MaxNLocator(5))


def has_rates(facts: Facts) -> bool:
    """Whether any explore cell has a validation loss."""
    return any(result.val_loss is not None for result in facts.cells("explore"))


def draw_rates(facts: Facts, figure: Figure, tips: Tips, *, narrow: bool) -> None:
    """Validation loss against learning rate per arm, scaled to the cells whose schedule ended."""
    axes = panels(figure, len(facts.arms), narrow=narrow)
    explored = [result for result in facts.cells("explore") if result.cell.lr]
    known = [result for result in explored if result.val_loss is not None]
    losses = sorted(r.val_loss or 0.0 for r in known if r.outcome == "completed") or sorted(
        r.val_loss or 0.0 for r in known
    )
    # One arm's hopeless rate must not flatten the bowls of the others.
    top = min(losses[-1], losses[0] + 3.0 * (losses[len(losses) // 2] - losses[0] + 1e-3))
    room = 0.16 * (top - losses[0]) or 0.01
    axes[0].set_ylim(losses[0] - room, top + 3.4 * room)
    rates = [result.cell.lr or 1.0 for result in explored]
    for arm, panel in zip(facts.arms, axes, strict=True):
        log_ticks(panel, rates, limit=5)
        panel.set_xlim(min(rates) / 1.25, max(rates) * 1.25)
        _draw_arm_rates(panel, facts, arm, top + 1.5 * room, tips)
        panel.set_title(label(arm.name), color=arm_colour(arm.index))
        panel.set_xlabel("learning rate (Muon)")
    axes[0].set_ylabel("validation loss (nats per token)")


def _draw_arm_rates(panel: Axes, facts: Facts, arm: Arm, ceiling: float, tips: Tips) -> None:
    cells = [result for result in facts.cells("explore", arm=arm.name) if result.cell.lr]
    look: dict[str, Any] = {"marker": arm_marker(arm.index), "s": 36, "linewidths": 1.0, "zorder": 3}
    _draw_best(panel, arm, facts.optima.get(arm.name), tips)
    by_rate: dict[float, list[float]] = {}
    for result in cells:
        if result.outcome == "completed" and result.val_loss is not None:
            by_rate.setdefault(result.cell.lr or 0.0, []).append(result.val_loss)
    if by_rate:
        rates = sorted(by_rate)
        means = [float(np.mean(by_rate[lr])) for lr in rates]
        panel.plot(rates, means, color=arm_colour(arm.index), alpha=0.5, zorder=2)
    known = thinned([result for result in cells if result.val_loss is not None], MAX_RATE_POINTS_PER_ARM)
    for decayed in (True, False):
        shown = [result for result in known if (result.outcome == "completed") == decayed]
        # White rims tell a few marks apart and hide a crowd.
        crowded = len(shown) > CROWD
        if shown:
            points = panel.scatter(
                [result.cell.lr or math.nan for result in shown],
                [min(result.val_loss or math.nan, ceiling) for result in shown],
                color=arm_colour(arm.index) if decayed else None,
                facecolors=None if decayed else "none",
                edgecolors=("none" if crowded else PAPER) if decayed else MUTED,
                alpha=0.5 if crowded else 1.0,
                **look,
            )
            tips.add(points, [describe(result) for result in shown])
    lost = [result for result in cells if result.outcome in ("diverged", "oom", "failed")]
    if lost:
        x = [result.cell.lr or math.nan for result in lost]
        crosses = panel.scatter(x, [ceiling] * len(lost), marker="x", color=TEXT, s=34, zorder=4)
        tips.add(crosses, [describe(result) for result in lost])


def _draw_best(panel: Axes, arm: Arm, optimum: Optimum | None, tips: Tips) -> None:
    """Mark the chosen rate, the fitted optimum and its interval where there is one, and a best rate at the edge."""
    best, at_edge = finite(arm.row.get("best_lr")), bool(arm.row.get("best_lr_at_edge"))
    if optimum is not None:
        panel.axvspan(optimum.lr_low, optimum.lr_high, color=arm_colour(arm.index), alpha=0.1, linewidth=0, zorder=0)
        if optimum.lr is not None:
            line = panel.axvline(optimum.lr, color=arm_colour(arm.index), linewidth=1, linestyle=(0, (3, 2)), zorder=1)
            span = f"{written.rate(optimum.lr_low)} to {written.rate(optimum.lr_high)}"
            tips.add(line, [f"{arm.name}: fitted optimum {written.rate(optimum.lr)}, interval {span}"])
    if best is None:
        return
    panel.axvline(best, color=TEXT if at_edge else arm_colour(arm.index), linewidth=5, alpha=0.22, zorder=0)
    left, right = panel.get_xlim()
    beyond_middle = best > math.sqrt(left * right)
    panel.annotate(
        "best, at the edge" if at_edge else "best", (best, 0.985), xycoords=("data", "axes fraction"),
        xytext=(-6 if beyond_middle else 6, 0), textcoords="offset points", ha="right" if beyond_middle else "left",
        va="top", weight="bold" if at_edge else "normal",
    )  # fmt: skip


def position_buckets(scores: Mapping[str, Any] | None) -> list[tuple[int, int, float]]:
    """Return the loss by position as (first, last + 1, nats per token), from one confirm cell's exam scores."""
    found = []
    for bucket in rows((scores or {}).get("loss_by_position")):
        start, end, loss = (finite(bucket.get(key)) for key in ("first", "last", "loss"))
        if start is not None and end is not None and loss is not None:
            found.append((round(start), round(end) + 1, loss))
    return found


def has_positions(facts: Facts) -> bool:
    """Whether any confirm cell at a judged rate knows its loss by position."""
    return any(position_buckets(result.scores) for arm in facts.arms for result in facts.confirmed(arm.name))


def draw_positions(facts: Facts, figure: Figure, tips: Tips, *, narrow: bool) -> None:
    """Loss by position within an arm's own context, the mean over confirm seeds."""
    panel = figure.subplots()
    ticks: set[float] = set()
    for arm in facts.arms:
        by_bucket: dict[tuple[int, int], list[float]] = {}
        for result in facts.confirmed(arm.name):
            for start, end, loss in position_buckets(result.scores):
                by_bucket.setdefault((start, end), []).append(loss)
        if not by_bucket:
            continue
        buckets = sorted(by_bucket)
        x = [math.sqrt((start + 1) * end) for start, end in buckets]
        y = [float(np.mean(by_bucket[bucket])) for bucket in buckets]
        ticks.update(2.0 ** round(math.log2(end)) for _, end in buckets)
        panel.plot(x, y, color=arm_colour(arm.index))
        points = panel.scatter(
            x, y, s=32, color=arm_colour(arm.index), marker=arm_marker(arm.index), edgecolors=PAPER, zorder=3,
            label=label(arm.name),
        )  # fmt: skip
        tips.add(
            points,
            [f"{arm.name}, positions {s + 1} to {e}: {written.loss(v)}" for (s, e), v in zip(buckets, y, strict=True)],
        )
    log_ticks(panel, sorted(ticks), limit=5 if narrow else 10)
    panel.set_xlabel("position in the arm's own context (tokens)")
    panel.set_ylabel("test loss (nats per token)")
    arm_legend(panel, len(facts.arms), narrow=narrow)
