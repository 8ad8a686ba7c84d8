"""Pictures of the sweep as work: how far each explore cell came before it was stopped, and what ran when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sweeps import formatting as written
from sweeps.report.facts import Facts, Stretch
from sweeps.report.plots.style import MUTED, PAPER, Tips, arm_colour, arm_legend, label, token_axis
from sweeps.report.plots.training import describe, thinned

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_BARS_PER_ARM = 24
MAX_STRETCHES = 1_500
MAX_LANE_LABELS = 40
MARKS = {
    "completed": "●",
    "stopped_early": "✕ stopped",
    "diverged": "✕ diverged",
    "oom": "✕ memory",
    "failed": "✕ failed",
}


def has_stops(facts: Facts) -> bool:
    """Whether any explore cell trained at all."""
    return any(result.tokens_seen for result in facts.cells("explore"))


def stops_height_in(facts: Facts) -> float:
    """Return the height of a panel with a bar for each explore cell, in inches."""
    most = max((len(facts.cells("explore", arm=arm.name)) for arm in facts.arms), default=1)
    return 0.9 + 0.25 * min(MAX_BARS_PER_ARM, max(3, most))


def draw_stops(facts: Facts, axes: Sequence[Axes], tips: Tips) -> None:
    """Tokens of each explore cell as a bar, by arm and learning rate, with the rungs at which it was ranked."""
    budget = facts.budget_tokens or 1
    for arm, panel in zip(facts.arms, axes, strict=True):
        colour = arm_colour(facts.index[arm.name])
        cells = thinned(facts.cells("explore", arm=arm.name), MAX_BARS_PER_ARM)
        cells.sort(key=lambda result: (result.cell.lr or 0.0, result.cell.adamw_lr or 0.0, result.cell.seed))
        one_seed = len({result.cell.seed for result in cells}) < 2
        names = []
        for place, result in enumerate(cells):
            done = result.outcome == "completed"
            bar = panel.barh(place, result.tokens_seen, height=0.62, color=colour, alpha=1.0 if done else 0.4)
            tips.add(bar.patches[0], [describe(result)])
            inside = result.tokens_seen > 0.6 * budget
            panel.text(
                result.tokens_seen + (-0.015 if inside else 0.015) * budget, place,
                "" if done else MARKS.get(result.outcome or "", "… unfinished"), va="center",
                ha="right" if inside else "left", fontsize=8,
            )  # fmt: skip
            names.append(written.rate(result.cell.lr) + ("" if one_seed else f" · {result.cell.seed}"))
        for rung in facts.rungs_tokens:
            panel.axvline(rung, color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)), zorder=3)
        panel.set_yticks(range(len(names)), names)
        panel.grid(visible=False, axis="y")
        panel.set_xlim(0, 1.02 * budget)
        panel.set_title(label(arm.name), color=colour)
        panel.set_ylabel("lr" if one_seed else "lr · seed")
        token_axis(panel, facts.landmarks)


def merged(stretches: tuple[Stretch, ...]) -> list[list[Stretch]]:
    """Return stretches in groups drawn as one bar: those of one lane, arm and phase with hardly a gap between.

    Up to ``MAX_STRETCHES`` every stretch is a group of its own.
    """
    if len(stretches) <= MAX_STRETCHES:
        return [[stretch] for stretch in stretches]
    span_s = max(item.end_s for item in stretches) - min(item.start_s for item in stretches)
    open_groups: dict[int, list[Stretch]] = {}
    groups: list[list[Stretch]] = []
    for stretch in stretches:
        group = open_groups.get(stretch.lane)
        if (
            group is not None
            and group[-1].cell.cell.strategy == stretch.cell.cell.strategy
            and group[-1].cell.cell.phase == stretch.cell.cell.phase
            and stretch.start_s - group[-1].end_s < span_s / 500
        ):
            group.append(stretch)
        else:
            open_groups[stretch.lane] = [stretch]
            groups.append(open_groups[stretch.lane])
    # Bars that a screen cannot resolve go, shortest first; the cells stay in the report's table.
    return sorted(groups, key=lambda group: group[0].start_s - group[-1].end_s)[:MAX_STRETCHES]


def n_lanes(facts: Facts) -> int:
    """Return how many cells ran at the same time at most."""
    return 1 + max((item.lane for item in facts.stretches), default=0)


def draw_timeline(facts: Facts, axes: Sequence[Axes], tips: Tips) -> None:
    """What ran when: a lane for each cell that ran at the same time, explore pale and judged cells strong."""
    (panel,) = axes
    first_s = min(item.start_s for item in facts.stretches)
    last_s = max(item.end_s for item in facts.stretches)
    unit_s, unit = (1.0, "seconds") if last_s - first_s < 300 else (60.0, "minutes")
    if last_s - first_s > 4 * 3600:
        unit_s, unit = 3600.0, "hours"
    named: set[str] = set()
    for group in merged(facts.stretches):
        start, end = (group[0].start_s - first_s) / unit_s, (group[-1].end_s - first_s) / unit_s
        result = group[0].cell
        arm = result.cell.strategy
        bar = panel.barh(
            -group[0].lane, end - start, left=start, height=0.7, color=arm_colour(facts.index[arm]),
            alpha=0.45 if result.cell.phase == "explore" else 1.0, edgecolor=PAPER, linewidth=0.6,
        )  # fmt: skip
        if result.cell.phase != "explore" and arm not in named:
            bar.set_label(label(arm))
            named.add(arm)
        work = written.duration(sum(item.end_s - item.start_s for item in group))
        text = describe(result) if len(group) == 1 else f"{len(group):,} stretches of {arm}"
        tips.add(bar.patches[0], [f"{text}; {work}"])
    lanes = n_lanes(facts)
    shown = range(lanes) if lanes <= MAX_LANE_LABELS else ()
    panel.set_yticks([-lane for lane in shown], [f"{lane + 1}" for lane in shown])
    panel.set_ylim(-lanes + 0.45, 0.55)
    panel.set_ylabel("lane")
    panel.set_xlabel(f"{unit} since the sweep's first work")
    panel.grid(visible=False, axis="y")
    panel.set_xlim(0, max(1e-9, (last_s - first_s) / unit_s))
    arm_legend(panel)
