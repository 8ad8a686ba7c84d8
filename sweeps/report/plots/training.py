"""Pictures of how the cells trained: loss against tokens, time and updates, throughput and memory, expert load."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sweeps import formatting as written
from sweeps.report.facts import JUDGED, Facts, curve, mean_of, speed_of
from sweeps.report.plots.style import GRID, MUTED, PAPER, Tips, arm_colour, arm_legend, arm_marker, label, token_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sweeps.ledger.results import CellResult

MAX_CURVES_PER_ARM = 40
MAX_POINTS_PER_CURVE = 120


def thinned(cells: Sequence[CellResult], limit: int = MAX_CURVES_PER_ARM) -> list[CellResult]:
    """Return at most ``limit`` cells spread evenly over their order by loss, best and worst among them."""
    ordered = sorted(cells, key=lambda result: (result.val_loss is None, result.val_loss or 0.0))
    if len(ordered) <= limit:
        return ordered
    return [ordered[round(i * (len(ordered) - 1) / (limit - 1))] for i in range(limit)]


def thin_curve(x_P: np.ndarray, y_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return every n-th point of a curve and its last one, so that at most ``MAX_POINTS_PER_CURVE`` are drawn."""
    if x_P.size <= MAX_POINTS_PER_CURVE:
        return x_P, y_P
    kept = np.unique(np.linspace(0, x_P.size - 1, MAX_POINTS_PER_CURVE).round().astype(int))
    return x_P[kept], y_P[kept]


def smoothed(y_G: np.ndarray, reach: int = 4) -> np.ndarray:
    """Return a running mean over ``reach`` points to either side, over those that are there near the ends."""
    sums = np.concatenate([[0.0], np.cumsum(y_G)])
    places = np.arange(y_G.size)
    first, end = np.maximum(places - reach, 0), np.minimum(places + reach + 1, y_G.size)
    return np.asarray((sums[end] - sums[first]) / (end - first))


def describe(result: CellResult) -> str:
    """Return what a tip says about a cell."""
    cell = result.cell
    parts = [f"{cell.strategy}, {cell.phase}, lr {written.rate(cell.lr)}, seed {cell.seed}"]
    parts.append(f"{result.outcome or 'unfinished'} at {written.short_count(result.tokens_seen)} tokens")
    if result.val_loss is not None:
        parts.append(f"validation {written.loss(result.val_loss)}")
    if result.test_loss is not None:
        parts.append(f"test {written.loss(result.test_loss)}")
    return ", ".join(parts)


def has_curves(facts: Facts) -> bool:
    """Whether any cell has a curve of training loss."""
    return any(curve(result, "train_loss")[0].size > 1 for result in facts.results.cells)


def draw_curves(facts: Facts, axes: Sequence[Axes], tips: Tips) -> None:
    """Training loss of every cell against tokens: explore thin, confirm strong, an arrow where a cell was stopped."""
    tails: list[float] = []
    for arm, panel in zip(facts.arms, axes, strict=True):
        colour = arm_colour(facts.index[arm.name])
        for explored in (True, False):
            cells = facts.cells("explore", arm=arm.name) if explored else facts.cells(*JUDGED, arm=arm.name)
            for result in thinned(cells):
                x_P, y_P = thin_curve(*curve(result, "train_loss"))
                if not x_P.size:
                    continue
                tails.extend(y_P[x_P >= 0.08 * facts.budget_tokens])
                look: dict[str, Any] = {"color": MUTED, "alpha": 0.6, "linewidth": 0.9, "zorder": 2}
                if not explored:
                    look = {"color": colour, "alpha": 0.95, "linewidth": 1.6, "zorder": 3}
                (line,) = panel.plot(x_P, y_P, **look)
                tips.add(line, [describe(result)])
                _mark_stop(panel, result, float(x_P[-1]), float(y_P[-1]))
        for rung in facts.rungs_tokens:
            panel.axvline(rung, color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)), zorder=1)
        panel.set_title(label(arm.name), color=colour)
        panel.set_ylabel("training loss (nats per token)")
        token_axis(panel, facts.landmarks)
    if tails:
        low, high = float(np.min(tails)), float(np.quantile(tails, 0.995))
        for panel in axes:
            panel.set_ylim(low - 0.06 * (high - low), high + 0.1 * (high - low) + 1e-6)


def _mark_stop(panel: Axes, result: CellResult, x: float, y: float) -> None:
    if result.outcome == "stopped_early":
        panel.plot(x, y, ">", color=MUTED, markersize=4.5, zorder=4)
        panel.annotate(f"{y:.2f}", (x, y), xytext=(5, 0), textcoords="offset points", va="center", fontsize=7.5,
                       color=MUTED, annotation_clip=True)  # fmt: skip
    elif result.outcome in ("diverged", "oom", "failed"):
        panel.plot(x, y, "x", color=MUTED, markersize=5, zorder=4)


def has_progress(facts: Facts) -> bool:
    """Whether confirm cells have curves, which is what is compared in time and in updates."""
    return any(
        curve(result, "train_loss", x_key)[0].size > 1
        for result in facts.cells("confirm")
        for x_key in ("train_time_s", "step")
    )


def draw_progress(facts: Facts, axes: Sequence[Axes], tips: Tips) -> None:
    """Training loss of confirm cells against seconds of training and against optimizer steps, the mean over seeds."""
    for panel, x_key, name in ((axes[0], "train_time_s", "seconds of training"), (axes[1], "step", "updates")):
        ends = []
        for arm in facts.arms:
            curves = [
                drawn
                for result in facts.cells("confirm", arm=arm.name)
                if (drawn := curve(result, "train_loss", x_key))[0].size > 1
            ]
            if not curves:
                continue
            # Seeds of an arm report at the same tokens but not at the same second: average over equal progress.
            at_G = np.linspace(0.04, 1, MAX_POINTS_PER_CURVE)
            x_G = np.mean([np.interp(at_G, np.linspace(0, 1, x.size), x) for x, _ in curves], axis=0)
            y_G = smoothed(np.mean([np.interp(at_G, np.linspace(0, 1, y.size), y) for _, y in curves], axis=0))
            index = facts.index[arm.name]
            (line,) = panel.plot(x_G, y_G, color=arm_colour(index), label=label(arm.name))
            tips.add(line, [f"{arm.name}, mean of {written.plural(len(curves), 'seed')}"])
            (end,) = panel.plot(
                x_G[-1:], y_G[-1:], arm_marker(index), color=arm_colour(index), markersize=6, markeredgecolor=PAPER,
            )  # fmt: skip
            tips.add(end, [f"{arm.name}: {written.loss(float(y_G[-1]))} at {x_G[-1]:,.0f} {name}"])
            ends.append(y_G[x_G >= 0.1 * x_G[-1]].max())
        panel.set_xlabel(name)
        panel.set_xlim(left=0)
        if ends:
            panel.set_ylim(top=max(ends))
        panel.set_ylabel("training loss (nats per token)")
        arm_legend(panel)


def has_throughput(facts: Facts) -> bool:
    """Whether any record says how fast a cell was."""
    return any(result.last("tokens_per_s") is not None for result in facts.results.cells)


def throughput_metrics(facts: Facts) -> list[tuple[str, str]]:
    """Return what is known of the arms' speed and memory, as a record's key and a title."""
    found = [("tokens_per_s", "tokens per second"), ("peak_mem_allocated_gib", "peak memory (GiB)")]
    if any(result.last("mfu_pct") is not None for result in facts.results.cells):
        found.append(("mfu_pct", "model-FLOPs utilisation (%)"))
    return found


def draw_throughput(facts: Facts, axes: Sequence[Axes], tips: Tips) -> None:
    """Tokens per second and peak memory, a bar per arm with its value written on it."""
    for panel, (key, name) in zip(axes, throughput_metrics(facts), strict=True):
        known = []
        for arm in facts.arms:
            found = facts.timed(arm.name)
            value = mean_of(speed_of(r) if key == "tokens_per_s" else r.last(key) for r in found)
            if value is not None:
                known.append((arm, value))
        top = max((value for _, value in known), default=1.0)
        for place, (arm, value) in enumerate(known):
            bar = panel.barh(-place, value, height=0.42, color=arm_colour(facts.index[arm.name]))
            tips.add(bar.patches[0], [f"{arm.name}: {value:,.4g} {name}"])
            text = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
            panel.text(value + 0.02 * top, -place, text, va="center", color=MUTED)
            panel.text(0, -place + 0.27, label(arm.name), va="bottom")
        panel.set_xlim(0, 1.18 * top if top > 0 else 1)
        panel.set_ylim(-len(known) + 0.55, 0.85)
        panel.set_xticks([])
        panel.set_yticks([])
        panel.spines[["left", "bottom"]].set_visible(False)
        panel.set_title(name)


def has_experts(facts: Facts) -> bool:
    """Whether any cell has a curve of how evenly the experts were used."""
    return any(curve(result, "expert_load_max_over_mean")[0].size > 1 for result in facts.results.cells)


def draw_experts(facts: Facts, axes: Sequence[Axes], tips: Tips) -> None:
    """Load of the busiest expert over the mean load, and the router's entropy, against tokens."""
    names = ("load of the busiest expert (mean = 1)", "entropy of the router (nats)")
    for panel, key, name in zip(axes, ("expert_load_max_over_mean", "router_entropy"), names, strict=True):
        for arm in facts.arms:
            _draw_spread(panel, facts, arm.name, key, tips)
        panel.set_ylabel(name)
        token_axis(panel, facts.landmarks)
        arm_legend(panel)
    axes[0].axhline(1, color=GRID, linewidth=1.2)


def _draw_spread(panel: Axes, facts: Facts, arm: str, key: str, tips: Tips) -> None:
    """Draw the mean over an arm's cells against tokens, with the band from the lowest to the highest cell."""
    curves = [drawn for result in thinned(facts.timed(arm)) if (drawn := curve(result, key))[0].size > 1]
    if not curves:
        return
    x_G, _ = thin_curve(*max(curves, key=lambda drawn: drawn[0][-1]))
    y_CG = np.asarray([np.interp(x_G, x, y, right=np.nan) for x, y in curves])
    colour = arm_colour(facts.index[arm])
    mean_G = np.nanmean(y_CG, axis=0)
    panel.fill_between(x_G, np.nanmin(y_CG, axis=0), np.nanmax(y_CG, axis=0), color=colour, alpha=0.15, linewidth=0)
    (line,) = panel.plot(x_G, mean_G, color=colour, label=label(arm))
    tips.add(line, [f"{arm}: {mean_G[-1]:.3g} at the end, mean of {written.plural(len(curves), 'cell')}"])
