"""What is shown while a sweep runs: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from search_spaces import Space, planned_cells
from sweeps.formatting import duration, short_count
from sweeps.ledger.sweep_folder import PlannedCell
from sweeps.plan.forecast import forecast_from_records
from sweeps.plan.phases import VIEWS
from sweeps.plan.queue import Plan
from sweeps.shown_commands import with_shown_commands

_MARKS: Final = {
    "running": ("▶", "bold cyan"),
    "queued": ("·", "dim"),
    "waiting": ("‖", "yellow"),
    "completed": ("✓", "green"),
    "stopped_early": ("✂", "dim"),
    "diverged": ("↯", "red"),
    "oom": ("!", "red"),
    "failed": ("!", "red"),
}
_LEGEND: Final = "▶ running  ‖ at a rung  ✂ stopped early  ✓ done  ↯ diverged  ! failed"
_LINES_KEPT: Final = 4
_PLAIN_EVERY_S: Final = 15.0
ENOUGH_TO_ESTIMATE: Final = 0.02
"""Share of a sweep's tokens after which its time is first estimated."""
SILENCE_S: Final = 60.0
"""Without a report for this long, the summary says which trials it waits for."""


class SweepWatch:
    """Keeps the newest record of every cell, and prints what happens as plain lines."""

    def __init__(self, console: Console, space: Space, name: str, workers: int, *, quiet: bool = False) -> None:
        self._console = console
        self._space = space
        self._name = name
        self._workers = workers
        self._quiet = quiet
        self._foreseen = Counter(cell.phase for cell in planned_cells(space))
        self._plan: Plan | None = None
        self._newest: dict[str, Mapping[str, Any]] = {}
        self._started_s = time.monotonic()
        self._last_summary_s = 0.0
        self._last_report_s = time.monotonic()
        self.first_estimate_s: float | None = None
        """Wall time of this session as it was first estimated; None until enough is trained."""

    def on_report(self, cell_id: str, record: Mapping[str, Any]) -> None:
        """Keep what a running cell reported."""
        self._keep(cell_id, record)
        if not self._quiet and time.monotonic() - self._last_summary_s > _PLAIN_EVERY_S:
            self._last_summary_s = time.monotonic()
            self.say(self.summary())

    def on_change(self, plan: Plan) -> None:
        """Keep the plan."""
        self._plan = plan

    def _keep(self, cell_id: str, record: Mapping[str, Any]) -> None:
        self._newest[cell_id] = record
        self._last_report_s = time.monotonic()
        if self.first_estimate_s is None and self._plan is not None:
            left = forecast_from_records(self._space, self._plan, self._newest, self._workers)
            if left.seconds_left is not None and left.share_done >= ENOUGH_TO_ESTIMATE:
                self.first_estimate_s = time.monotonic() - self._started_s + left.seconds_left

    def say(self, line: str) -> None:
        """Print one line with the time since the start."""
        if not self._quiet:
            shown = escape(with_shown_commands(line))
            self._console.print(f"[dim]{self._since():>12}[/]  {shown}", soft_wrap=True, highlight=False)

    def _since(self) -> str:
        return duration(round(time.monotonic() - self._started_s))

    def summary(self) -> str:
        """One line: cells, share of tokens, speed, time left."""
        if self._plan is None:
            return "starting"
        newest = dict(self._newest)  # a copy: the terminal's thread reads while the driver's adds
        states = {p.cell_id: self._plan.state(p.cell_id) for p in self._plan.cells}
        ended = sum(state not in ("running", "queued", "waiting") for state in states.values())
        left = forecast_from_records(self._space, self._plan, newest, self._workers)
        parts = [f"{ended} of {self._all_cells()} cells ended", f"{left.share_done:.0%} of tokens"]
        speed = sum(
            float(newest[cell_id]["tokens_per_s"])
            for cell_id, state in states.items()
            if state == "running" and cell_id in newest
        )
        if speed:
            parts.append(f"{speed:,.0f} tokens/s")
        elif "running" in states.values():
            parts.append("workers are starting")
        if left.seconds_left and round(left.seconds_left):
            parts.append(f"about {duration(round(left.seconds_left))} left")
        silent_s = time.monotonic() - self._last_report_s
        if silent_s > SILENCE_S:
            parts.append(f"no report for {duration(round(silent_s))}{self._awaited(states)}")
        return " · ".join(parts)

    def _all_cells(self) -> int:
        """Cells of the whole sweep: the planned ones, and those of later phases that are not planned yet."""
        assert self._plan is not None
        planned = Counter(entry.cell.phase for entry in self._plan.cells)
        later = {phase: count for phase, count in self._foreseen.items() if phase != "explore"}
        return planned.total() + sum(max(0, count - planned[phase]) for phase, count in later.items())

    def _awaited(self, states: Mapping[str, str]) -> str:
        assert self._plan is not None
        waiting = [str(self._plan.planned(cell_id)) for cell_id, state in states.items() if state == "running"]
        return f": waiting for {', '.join(waiting[:3])} (a slow step, or a node that has to start)" if waiting else ""

    @contextmanager
    def shown(self) -> Iterator[None]:
        """While the block runs, a sweep without reports says once a minute what it waits for."""
        ended = threading.Event()

        def report_silence() -> None:
            while not ended.wait(SILENCE_S):
                if time.monotonic() - self._last_report_s > SILENCE_S:
                    self.say(self.summary())

        thread = threading.Thread(target=report_silence, name="silence", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


class LiveSweepWatch(SweepWatch):
    """The same on a terminal: a table of arms by rates that redraws itself, the newest lines below."""

    def __init__(self, console: Console, space: Space, name: str, workers: int) -> None:
        super().__init__(console, space, name, workers)
        self._lines: deque[tuple[str, str]] = deque(maxlen=_LINES_KEPT)

    def on_report(self, cell_id: str, record: Mapping[str, Any]) -> None:
        """Keep what a running cell reported; the table shows it at its next redraw."""
        self._keep(cell_id, record)

    def say(self, line: str) -> None:
        """Show a line under the table; older ones scroll away, the ledger keeps what matters."""
        self._lines.append((self._since(), with_shown_commands(line)))

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Redraw four times a second until the block ends; the last picture stays."""
        with Live(console=self._console, refresh_per_second=4, get_renderable=self.picture, vertical_overflow="crop"):
            yield

    def picture(self) -> Group:
        """The table, the summary and the newest lines."""
        lines = Table.grid(padding=(0, 2, 0, 0))  # what does not fit goes on below its own column
        for since, line in list(self._lines):
            lines.add_row(Text(since, style="dim", justify="right"), Text(line, style="dim"))
        if self._plan is None:
            return Group(Text("starting ..."), lines)
        return Group(
            sweep_table(self._plan, self._newest, self._name),
            Text(_LEGEND, style="dim"),
            Text(self.summary()),
            lines,
        )


def open_watch(console: Console, space: Space, name: str, workers: int, *, quiet: bool) -> SweepWatch:
    """A live view where the console is a terminal, plain lines where it is not."""
    if console.is_terminal and not quiet:
        return LiveSweepWatch(console, space, name, workers)
    return SweepWatch(console, space, name, workers, quiet=quiet)


def sweep_table(plan: Plan, newest: Mapping[str, Mapping[str, Any]], name: str) -> Table:
    """Arms as rows, explored rates and confirm seeds as columns, each cell's state and loss."""
    title = f"{name}: validation losses"
    table = Table(title=title, title_justify="left", title_style="bold", pad_edge=False, box=None, padding=(0, 1))
    rates = sorted({p.cell.lr for p in plan.cells if p.cell.phase == "explore" and p.cell.lr is not None})
    phases = list(dict.fromkeys(p.cell.phase for p in plan.cells if p.cell.phase != "explore"))
    table.add_column("arm", no_wrap=True)
    for rate in rates:
        table.add_column(f"lr {rate:g}", no_wrap=True)
    for phase in phases or ["confirm"]:
        table.add_column(f"{phase} seeds", no_wrap=True)
    rows: dict[tuple[int, str], dict[float | str | None, list[PlannedCell]]] = {}
    several = len({p.cell.budget_tokens for p in plan.cells if p.cell.phase not in VIEWS}) > 1
    for p in plan.cells:
        budget = p.cell.budget_tokens if several and p.cell.phase not in VIEWS else 0
        row = rows.setdefault((budget, p.cell.strategy), {})
        row.setdefault(p.cell.lr if p.cell.phase == "explore" else p.cell.phase, []).append(p)
    for (budget, strategy), row in rows.items():
        label = f"{strategy} {short_count(budget)}" if budget else strategy
        explored = [_explored(row.get(rate, []), plan, newest) for rate in rates]
        seeds = [_seeds(row.get(phase, []), plan) for phase in phases or ["confirm"]]
        table.add_row(Text(label, style="bold"), *explored, *seeds)
    return table


def _explored(cells: list[PlannedCell], plan: Plan, newest: Mapping[str, Mapping[str, Any]]) -> Text:
    """One explored rate: mark, newest validation loss, and how far a running one is."""
    shown = Text()
    for planned in cells:
        mark, style = _MARKS[plan.state(planned.cell_id)]
        losses = plan.progress(planned.cell_id).exam_losses
        loss = f" {losses[max(losses)]:.3f}" if losses else ""
        record = newest.get(planned.cell_id)
        if plan.state(planned.cell_id) == "running" and record:  # empty before its first report
            loss += f" {record['tokens_seen'] / planned.cell.budget_tokens:.0%}"
        shown.append(f"{' ' if shown else ''}{mark}{loss}", style=style)
    return shown


def _seeds(cells: list[PlannedCell], plan: Plan) -> Text:
    """A row of marks, one per seed."""
    shown = Text()
    for planned in cells:
        mark, style = _MARKS[plan.state(planned.cell_id)]
        shown.append(mark, style=style)
    return shown


def time_taken(wall_s: float, first_estimate_s: float | None) -> str:
    """How long a session took, and how far off its first estimate was."""
    took = f"took {duration(round(wall_s))}"
    if first_estimate_s is None:
        return took
    off = f"{abs(first_estimate_s / wall_s - 1):.0%} too {'high' if first_estimate_s > wall_s else 'low'}"
    return f"{took}; first estimate {duration(round(first_estimate_s))} ({off})"
