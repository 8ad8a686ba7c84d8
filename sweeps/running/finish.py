"""The end of a sweep: verdict, report, and what MLflow is shown of both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from search_spaces import OptunaSearch, Space
from sweeps.formatting import shown_command, with_shown_commands
from sweeps.ledger.reading import LedgerReader
from sweeps.ledger.results import RETRIED_OUTCOMES, SweepResults
from sweeps.ledger.sweep_folder import Ledger
from sweeps.running.winner import best_cell

if TYPE_CHECKING:
    from sweeps.plan.queue import Plan
    from sweeps.tracking.projection import LiveState, SweepView

_SHAPE = ("micro_batch_size", "seq_len", "grad_accum_steps")

Keep = Literal["best", "all"]


def finish(ledger: Ledger, space: Space, console: Console, *, quiet: bool) -> dict[str, Any]:
    """Decide, delete weights that are not needed, write report and verdict, and show them.

    The verdict is written last: a sweep that has it is finished, and a resume of one that was killed before does all
    of this again.
    """
    from sweeps.verdict.decision import decide

    results = LedgerReader(ledger).results()
    verdict = decide(results).as_dict()
    keep_needed_weights(ledger, results, space.keep)
    write_search_study(ledger, space, results)
    write_reports(ledger, results, verdict)
    ledger.write_verdict(verdict)
    if not quiet:
        show_verdict(verdict, console)
        where = f"Report: {ledger.storage.uri}/report.html   MLflow: {shown_command('ui')}"
        console.print(where, markup=False, highlight=False, soft_wrap=True)
    return verdict


def decide_and_write(ledger: Ledger, results: SweepResults) -> dict[str, Any]:
    """The verdict as the ledger supports it now, written as the newest."""
    from sweeps.verdict.decision import decide

    verdict = decide(results).as_dict()
    ledger.write_verdict(verdict)
    return verdict


def write_reports(ledger: Ledger, results: SweepResults, verdict: dict[str, Any]) -> None:
    """Write report and pictures into the sweep's folder, wherever that is."""
    from sweeps.report.report import write_report

    with TemporaryDirectory(prefix="moe-sweeps-report-") as folder:
        write_report(results, verdict, Path(folder))
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                ledger.storage.write_bytes(path.relative_to(folder).as_posix(), path.read_bytes())


def write_search_study(ledger: Ledger, space: Space, results: SweepResults) -> None:
    """With an optuna search, the study as a file that Optuna and its dashboard open."""
    if isinstance(space.search, OptunaSearch):
        from sweeps.plan.search import write_study

        write_study(ledger, space, results)


def keep_needed_weights(ledger: Ledger, results: SweepResults, keep: Keep) -> None:
    """With ``best`` only the best confirm cell of each arm keeps its checkpoint, and what a retry would resume from.

    ``keep`` may have changed since the sweep began.
    """
    if keep == "all":
        return
    best = {str(cell.cell.cell_id) for arm in results.arm_names if (cell := best_cell(results, arm)) is not None}
    for result in results.cells:
        cell_id = str(result.cell.cell_id)
        if result.outcome not in (None, *RETRIED_OUTCOMES) and cell_id not in best:
            ledger.cell_folder(cell_id).checkpoints.delete_all()


def show_verdict(verdict: dict[str, Any], console: Console) -> None:
    """Print the table of arms and the statement."""
    from rich.text import Text

    from sweeps.report.terminal import plain_table

    numbers = ("best lr", "seeds", "test loss ± interval", "tokens/s")
    table = plain_table("Verdict", texts=("arm", "shape"), numbers=numbers)
    for arm in verdict["strategies"]:
        half = None if arm["ci_low"] is None else (arm["ci_high"] - arm["ci_low"]) / 2
        mean = "" if arm["mean"] is None else f"{arm['mean']:.4f}"
        table.add_row(
            Text(arm["name"]),
            "" if None in (shape := [arm[key] for key in _SHAPE]) else "x".join(map(str, shape)),
            "" if arm["best_lr"] is None else f"{arm['best_lr']:g}{' (edge)' if arm['best_lr_at_edge'] else ''}",
            str(len(arm["seeds"])),
            mean if half is None else f"{mean} ± {half:.4f}",
            "" if arm["tokens_per_s"] is None else f"{arm['tokens_per_s']:,.0f}",
        )
    console.print(table)
    statement = with_shown_commands(verdict["statement"])
    console.print(statement, style="bold", markup=False, highlight=False, soft_wrap=not console.is_terminal)


def view_of(ledger: Ledger, plan: Callable[[], Plan | None]) -> Callable[[], SweepView]:
    """A function that reads what MLflow should show now; for one thread."""
    from sweeps.tracking.projection import SweepView

    reader = LedgerReader(ledger)

    def read() -> SweepView:
        results = reader.results()
        now = plan()
        states: dict[str, LiveState] | None = None
        if now is not None:
            states = {planned.cell_id: _live_state(now.state(planned.cell_id)) for planned in now.cells}
        return SweepView(results=results, states=states, verdict=ledger.verdict(), attachments=attachments(ledger))

    return read


def attachments(ledger: Ledger) -> dict[str, bytes]:
    """The sweep's own files that MLflow's parent run carries."""
    names = [name for name in ("verdict.json", "report.html", "report.md") if ledger.storage.exists(name)]
    names += [f"plots/{name}" for name in ledger.storage.names("plots")]
    return {name: ledger.storage.read_bytes(name) for name in names}


def _live_state(state: str) -> LiveState:
    if state in ("running", "queued", "waiting"):
        return state  # type: ignore[return-value]
    return "done"
