"""The end of a sweep: verdict, report, and what MLflow is shown of both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

from rich.console import Console

from search_spaces import OptunaSearch, Space
from sweeps.ledger.reading import LedgerReader
from sweeps.ledger.results import RETRIED_OUTCOMES, SweepResults
from sweeps.ledger.sweep_folder import Ledger
from sweeps.running.winner import best_cell
from sweeps.shown_commands import shown_command

if TYPE_CHECKING:
    from sweeps.plan.queue import Plan
    from sweeps.tracking.projection import LiveState, SweepView
    from sweeps.verdict.verdict import Verdict

Keep = Literal["best", "all"]


def finish(ledger: Ledger, space: Space, console: Console, *, quiet: bool) -> Verdict:
    """Decide, delete weights that are not needed, write report and verdict, and show them.

    The verdict is written last: a sweep that has it is finished, and a resume of one that was killed before does all
    of this again.
    """
    from sweeps.verdict.decision import decide

    results = LedgerReader(ledger).results()
    verdict = decide(results)
    keep_needed_weights(ledger, results, space.keep)
    write_search_study(ledger, space, results)
    write_reports(ledger, results, verdict)
    ledger.write_verdict(verdict.as_dict())
    if not quiet:
        from sweeps.report.terminal import show_verdict

        show_verdict(verdict, console)
        where = f"Report: {ledger.storage.uri}/report.html   MLflow: {shown_command('ui')}"
        console.print(where, markup=False, highlight=False, soft_wrap=True)
    return verdict


def write_reports(ledger: Ledger, results: SweepResults, verdict: Verdict, price_per_hour: float | None = None) -> None:
    """Write report and pictures into the sweep's folder, wherever that is."""
    from sweeps.report.report import write_report

    with TemporaryDirectory(prefix="moe-sweeps-report-") as folder:
        write_report(results, verdict, Path(folder), price_per_hour)
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
            ledger.cell_folder(cell_id).delete_checkpoints()


def view_of(ledger: Ledger, plan: Callable[[], Plan | None]) -> Callable[[], SweepView]:
    """A function that reads what MLflow should show now; for one thread. A sweep that runs has no verdict."""
    from sweeps.tracking.projection import SweepView
    from sweeps.verdict.decision import decide

    reader = LedgerReader(ledger)

    def read() -> SweepView:
        results = reader.results()
        now = plan()
        states: dict[str, LiveState] | None = None
        if now is not None:
            states = {planned.cell_id: _live_state(now.state(planned.cell_id)) for planned in now.cells}
        verdict = decide(results) if now is None and ledger.verdict() is not None else None
        return SweepView(results=results, states=states, verdict=verdict, attachments=attachments(ledger))

    return read


def attachments(ledger: Ledger) -> dict[str, bytes]:
    """The sweep's own files that MLflow's parent run carries."""
    names = [name for name in ("verdict.json", "report.html", "report.md", "space.toml") if ledger.storage.exists(name)]
    names += [f"plots/{name}" for name in ledger.storage.names("plots")]
    return {name: ledger.storage.read_bytes(name) for name in names}


def _live_state(state: str) -> LiveState:
    if state in ("running", "queued", "waiting"):
        return state  # type: ignore[return-value]
    return "done"
