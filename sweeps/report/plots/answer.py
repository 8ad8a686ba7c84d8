"""Pictures of the answer: confirm seeds and their differences, learning rates, loss by position."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sweeps import formatting as written
from sweeps.ledger.results import finite
from sweeps.report.facts import Facts
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
from sweeps.report.plots.training import describe, thinned
from sweeps.verdict.leads import estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sweeps.ledger.results import CellResult
    from sweeps.verdict.rows import ArmResult

MAX_RATE_POINTS_PER_ARM = 500
CROWD = 60
"""So many marks are drawn pale, without rims and without words."""
FEWEST_TARGETS = 1_000
"""A mean loss over fewer targets is noise of the exam's documents, which the interval over seeds does not show."""


def has_confirm(facts: Facts) -> bool:
    """Whether any confirm cell at a judged rate has a test loss."""
    return any(result.test_loss is not None for arm in facts.arms for result in facts.confirmed(arm.name))


def draw_confirm(facts: Facts, axes: Sequence[Axes], tips: Tips) -> None:
    """Test loss of every confirm seed, seeds of one number joined, and the paired differences of arms."""
    _draw_seeds(axes[0], facts, tips)
    if len(axes) > 1:
        _draw_differences(axes[1], facts, tips)


def _draw_seeds(panel: Axes, facts: Facts, tips: Tips) -> None:
    arms = [arm for arm in facts.arms if any(r.test_loss is not None for r in facts.confirmed(arm.name))]
    place_of_seed: dict[int, list[tuple[float, float]]] = {}
    for place, arm in enumerate(arms):
        cells = [result for result in facts.confirmed(arm.name) if result.test_loss is not None]
        for result in cells:
            place_of_seed.setdefault(result.cell.seed, []).append((result.test_loss or math.nan, -place))
        index = facts.index[arm.name]
        colour = arm_colour(index)
        if arm.ci_low is not None and arm.ci_high is not None:
            ends = [arm.ci_low, arm.ci_high]
            panel.plot(ends, [-place, -place], color=colour, alpha=0.28, linewidth=9, solid_capstyle="butt")
        if arm.mean is not None:
            (tick,) = panel.plot([arm.mean], [-place], "|", color=colour, markersize=20, markeredgewidth=2.6, zorder=3)
            span = written.interval(arm.ci_low, arm.ci_high)
            tips.add(tick, [f"{arm.name}: mean {written.loss(arm.mean)}, interval {span}"])
        points = panel.scatter(
            [result.test_loss or math.nan for result in cells], [-place] * len(cells), s=34, color=colour,
            marker=arm_marker(index), edgecolors=PAPER, linewidths=0.7, zorder=4,
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


def _draw_differences(panel: Axes, facts: Facts, tips: Tips) -> None:
    margin, pairs = facts.verdict.margin, facts.drawn_pairs
    if margin is not None:
        panel.axvspan(-margin.value, margin.value, color=BAND, linewidth=0, zorder=0)
    panel.axvline(0, color=MUTED, linewidth=1, zorder=1)
    for place, pair in enumerate(pairs):
        found = pair.above(pair.b)
        assert found is not None
        colour = arm_colour(facts.index[pair.a if found.mean < 0 else pair.b]) if found.is_clear else MUTED
        if found.low is not None and found.high is not None:
            ends = [found.low, found.high]
            panel.plot(ends, [-place, -place], color=colour, linewidth=2.2, solid_capstyle="butt", zorder=3)
        (dot,) = panel.plot([found.mean], [-place], "o", color=colour, markersize=6.5, markeredgecolor=PAPER, zorder=4)
        name = f"{label(pair.a, 20)} − {label(pair.b, 20)}"
        span = written.interval(found.low, found.high, sign=True)
        tips.add(dot, [f"{name}: {written.signed(found.mean)} ({span})"])
        row_name(panel, -place, name)
    panel.set_ylim(-len(pairs) + 0.5, 0.75)
    _bare_rows(panel)
    panel.set_xlabel("difference of test losses" + (", margin shaded" if margin else ""))
    panel.set_title("Differences of the arms")


def _bare_rows(panel: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    panel.set_yticks([])
    panel.spines["left"].set_visible(False)
    panel.xaxis.set_major_locator(MaxNLocator(5))


def has_rates(facts: Facts) -> bool:
    """Whether any explore cell has a validation loss."""
    return any(result.val_loss is not None for result in facts.cells("explore"))


def draw_rates(facts: Facts, axes: Sequence[Axes], tips: Tips) -> None:
    """Validation loss against learning rate per arm, scaled to the cells whose schedule ended."""
    explored = [result for result in facts.cells("explore") if result.cell.lr]
    ended = [result.val_loss for result in explored if result.outcome == "completed"]
    known = ended or [result.val_loss for result in explored]
    losses = sorted(loss for loss in known if loss is not None) or [0.0]
    # One arm's hopeless rate must not flatten the bowls of the others.
    top = min(losses[-1], losses[0] + 3.0 * (losses[len(losses) // 2] - losses[0] + 1e-3))
    room = 0.16 * (top - losses[0]) or 0.01
    rates = [result.cell.lr or 1.0 for result in explored]
    for arm, panel in zip(facts.arms, axes, strict=True):
        panel.set_ylim(losses[0] - room, top + 4.2 * room)
        log_ticks(panel, rates, limit=5)
        panel.set_xlim(min(rates) / 1.3, max(rates) * 1.3)
        _draw_arm_rates(panel, facts, arm, top + 1.2 * room, tips)
        if any(result.cell.strategy == arm.name and result.outcome not in ("completed", None) for result in explored):
            _end_scale(panel, top + 0.6 * room)
        panel.set_title(label(arm.name), color=arm_colour(facts.index[arm.name]))
        panel.set_xlabel("learning rate (Muon)")
        panel.set_ylabel("validation loss (nats per token)")


def _end_scale(panel: Axes, height: float) -> None:
    """Above ``height`` there is no scale: a line, and no ticks beyond it."""
    panel.axhline(height, color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)), zorder=1)
    low, high = panel.get_ylim()
    panel.set_yticks([tick for tick in panel.get_yticks() if low <= tick < height])
    panel.set_ylim(low, high)


def _draw_arm_rates(panel: Axes, facts: Facts, arm: ArmResult, ceiling: float, tips: Tips) -> None:
    index = facts.index[arm.name]
    cells = [result for result in facts.cells("explore", arm=arm.name) if result.cell.lr]
    _draw_best(panel, facts, arm, tips)
    ended = [result for result in cells if result.outcome == "completed" and result.val_loss is not None]
    by_rate: dict[float, list[float]] = {}
    for result in ended:
        by_rate.setdefault(result.cell.lr or 0.0, []).append(result.val_loss or 0.0)
    means = [(lr, float(np.mean(by_rate[lr]))) for lr in sorted(by_rate)]
    if means:
        panel.plot(*zip(*means, strict=True), color=arm_colour(index), alpha=0.5, zorder=2)
        shown = thinned(ended, MAX_RATE_POINTS_PER_ARM)
        crowded = len(shown) > CROWD
        points = panel.scatter(
            [result.cell.lr or math.nan for result in shown],
            [min(result.val_loss or math.nan, ceiling) for result in shown],
            color=arm_colour(index), edgecolors="none" if crowded else PAPER, alpha=0.5 if crowded else 1.0,
            marker=arm_marker(index), s=36, linewidths=1.0, zorder=3,
        )  # fmt: skip
        tips.add(points, [describe(result) for result in shown])
    _draw_stopped(panel, [r for r in cells if r.outcome not in ("completed", None)], ceiling, tips)


def _draw_stopped(panel: Axes, cells: Sequence[CellResult], ceiling: float, tips: Tips) -> None:
    """Cells whose schedule did not end, above all others: an arrow with the loss at the stop, or a cross."""
    looks: list[tuple[str, Any, list[CellResult]]] = [
        ("^", MUTED, [r for r in cells if r.outcome == "stopped_early"]),
        ("x", TEXT, [r for r in cells if r.outcome != "stopped_early"]),
    ]
    for marker, colour, shown in looks:
        if not shown:
            continue
        x = [result.cell.lr or math.nan for result in shown]
        tips.add(
            panel.scatter(x, [ceiling] * len(x), marker=marker, color=colour, s=30, zorder=4),
            [describe(result) for result in shown],
        )
    values: dict[float, list[str]] = {}
    for result in looks[0][2]:
        if result.val_loss is not None:
            values.setdefault(result.cell.lr or 0.0, []).append(f"{result.val_loss:.2f}")
    if len(looks[0][2]) <= CROWD:
        for lr, texts in values.items():
            text = texts[0] if len(texts) == 1 else f"{min(texts)} to\n{max(texts)}"
            panel.annotate(
                text, (lr, ceiling), xytext=(0, 5), textcoords="offset points", ha="center", va="bottom", fontsize=8,
                color=MUTED,
            )  # fmt: skip


def _draw_best(panel: Axes, facts: Facts, arm: ArmResult, tips: Tips) -> None:
    """Mark the chosen rate, the fitted optimum and its interval where there is one, and a best rate at the edge."""
    colour, optimum = arm_colour(facts.index[arm.name]), facts.verdict.optima.get(arm.name)
    if optimum is not None:
        panel.axvspan(optimum.lr_low, optimum.lr_high, color=colour, alpha=0.1, linewidth=0, zorder=0)
        if optimum.lr is not None:
            line = panel.axvline(optimum.lr, color=colour, linewidth=1, linestyle=(0, (3, 2)), zorder=1)
            span = f"{written.rate(optimum.lr_low)} to {written.rate(optimum.lr_high)}"
            tips.add(line, [f"{arm.name}: fitted optimum {written.rate(optimum.lr)}, interval {span}"])
    if arm.best_lr is None:
        return
    at_edge = bool(arm.best_lr_at_edge)
    panel.axvline(arm.best_lr, color=TEXT if at_edge else colour, linewidth=5, alpha=0.22, zorder=0)
    left, right = panel.get_xlim()
    beyond_middle = arm.best_lr > math.sqrt(left * right)
    panel.annotate(
        "best, at the edge" if at_edge else "best", (arm.best_lr, 0.985), xycoords=("data", "axes fraction"),
        xytext=(-6 if beyond_middle else 6, 0), textcoords="offset points", ha="right" if beyond_middle else "left",
        va="top", weight="bold" if at_edge else "normal",
    )  # fmt: skip


def position_losses(facts: Facts, arm: str) -> dict[tuple[int, int], list[float]]:
    """Return an arm's losses by position, as first and last one, over confirm seeds; none of few targets."""
    found: dict[tuple[int, int], list[float]] = {}
    for result in facts.confirmed(arm):
        for bucket in (result.scores or {}).get("loss_by_position") or ():
            loss = finite(bucket["loss"])
            if loss is not None and bucket["n_targets"] >= FEWEST_TARGETS:
                found.setdefault((int(bucket["first"]), int(bucket["last"])), []).append(loss)
    return found


def has_positions(facts: Facts) -> bool:
    """Whether any confirm cell at a judged rate knows its loss by position."""
    return any(position_losses(facts, arm.name) for arm in facts.arms)


def draw_positions(facts: Facts, axes: Sequence[Axes], tips: Tips) -> None:
    """Loss by position within an arm's own context: the mean over confirm seeds with its interval."""
    (panel,) = axes
    ticks: set[float] = set()
    for arm in facts.arms:
        by_bucket = position_losses(facts, arm.name)
        if not by_bucket:
            continue
        buckets, index = sorted(by_bucket), facts.index[arm.name]
        x = [math.sqrt((first + 1) * (last + 1)) for first, last in buckets]
        found = [estimate(np.asarray(by_bucket[bucket]), facts.verdict.looks.alpha) for bucket in buckets]
        means = [entry.mean for entry in found]
        ticks.update(2.0 ** round(math.log2(last + 1)) for _, last in buckets)
        panel.plot(x, means, color=arm_colour(index))
        ends = [(entry.low or entry.mean, entry.high or entry.mean) for entry in found]
        panel.vlines(x, *zip(*ends, strict=True), color=arm_colour(index), linewidth=1.6)
        points = panel.scatter(
            x, means, s=26, color=arm_colour(index), marker=arm_marker(index), edgecolors=PAPER, zorder=3,
            label=label(arm.name),
        )  # fmt: skip
        texts = [f"{arm.name}, positions {first + 1} to {last + 1}" for first, last in buckets]
        tips.add(points, [f"{text}: {written.loss(mean)}" for text, mean in zip(texts, means, strict=True)])
    log_ticks(panel, sorted(ticks), limit=7)
    panel.set_xlabel("position in the arm's own context (tokens)")
    panel.set_ylabel("test loss (nats per token)")
    arm_legend(panel)
