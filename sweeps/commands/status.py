"""``sweeps status``: what the ledger says of a sweep, while it runs elsewhere or after it ended."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from search_spaces import Space, SpaceErrors
from sweeps.errors import SweepError
from sweeps.formatting import duration
from sweeps.ledger.lease import CELL_LEASE, DRIVER_LEASE, living_holder
from sweeps.ledger.reading import LedgerReader
from sweeps.ledger.space import space_of
from sweeps.ledger.storage import Storage
from sweeps.ledger.sweep_folder import Ledger, sweep_names
from sweeps.plan.forecast import forecast_from_records
from sweeps.plan.queue import Plan, progress_of
from sweeps.running.driver import stopping_rule
from sweeps.shown_commands import shown_command, with_shown_commands
from sweeps.verdict.verdict import before_extension

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

_OF_VERDICT = ("outcome", "winner", "statement", "last_decided")


def list_of_sweeps(runs: Storage) -> list[dict[str, Any]]:
    """Every sweep, oldest first: name, when it began, cells by state, outcome of its verdict, who runs it.

    Sweeps that cannot be read come last and hide no other: of them there is the name and the ``problem``.
    """
    keys = ("sweep", "created_s", "cells_by_state", "verdict", "running_at")
    found: list[dict[str, Any]] = []
    unreadable: list[dict[str, Any]] = []
    for name in sweep_names(runs):
        try:
            entry = status_of(Ledger(runs, name))
        except (SweepError, SpaceErrors) as error:
            unreadable.append({**dict.fromkeys(keys), "sweep": name, "cells_by_state": {}, "problem": str(error)})
        else:
            found.append({key: entry[key] for key in keys})
    return sorted(found, key=lambda entry: float(entry["created_s"])) + unreadable


def status_of(ledger: Ledger) -> dict[str, Any]:
    """One sweep: cells with their states, tokens, rungs, verdict, who runs it."""
    return _read(ledger).table


@dataclass(frozen=True, kw_only=True)
class _Status:
    """What the ledger says at one moment: the plan, the newest record of each cell, and ``table``, the contract."""

    plan: Plan
    newest: Mapping[str, Mapping[str, Any]]
    table: dict[str, Any]


def _read(ledger: Ledger) -> _Status:
    planned = ledger.planned_cells()
    results = LedgerReader(ledger).results()
    space = space_of(results.beginning)
    holder = living_holder(ledger.storage, DRIVER_LEASE)
    plan = Plan(stopping_rule(space), planned)
    newest: dict[str, Mapping[str, Any]] = {entry.cell_id: {} for entry in planned}
    for result in results.cells:
        cell_id = str(result.cell.cell_id)
        if cell_id not in newest:
            continue  # the driver that runs the sweep has just added it
        plan.ended(cell_id, progress_of(result))
        newest[cell_id] = result.records[-1] if result.records else {}
        if holder and result.outcome is None and living_holder(ledger.cell_folder(cell_id).storage, CELL_LEASE):
            plan.started(cell_id)
    cells = [
        {
            **entry.cell.as_dict(),
            "state": plan.state(entry.cell_id),
            "tokens_seen": plan.progress(entry.cell_id).tokens_seen,
            "val_loss": newest[entry.cell_id].get("val_loss"),
        }
        for entry in plan.cells
    ]
    verdict = ledger.verdict()
    table = {
        "schema": 1,
        "sweep": ledger.name,
        "created_s": results.beginning["created_s"],
        "running_at": None if holder is None else str(holder),
        "budget_tokens": space.budget_tokens,
        "budgets_tokens": list(space.budgets_tokens),
        "rungs_tokens": list(space.rungs_tokens),
        "tokens_seen": sum(cell["tokens_seen"] for cell in cells),
        "seconds_left": None if holder is None else _seconds_left(space, plan, newest),
        "cells_by_state": dict(Counter(str(cell["state"]) for cell in cells)),
        "cells": cells,
        "verdict": None if verdict is None else {key: verdict.get(key) for key in _OF_VERDICT},
    }
    return _Status(plan=plan, newest=newest, table=table)


def render_list(found: list[dict[str, Any]], runs_dir: str) -> Table | str:
    """The list for a terminal."""
    from rich.markup import escape
    from rich.table import Table

    if not found:
        return f"No sweep in {runs_dir} yet; begin one with: {shown_command('run')}"
    table = Table()
    for column in ("sweep", "started", "cells", "verdict", ""):
        table.add_column(column)
    for entry in found:
        if "problem" in entry:
            table.add_row(entry["sweep"], "", "", "", escape(with_shown_commands(entry["problem"])))
            continue
        started = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry["created_s"]))
        cells = ", ".join(f"{count} {state}" for state, count in entry["cells_by_state"].items())
        verdict = "" if entry["verdict"] is None else _outcome(entry["verdict"])
        running = f"running at {entry['running_at']}" if entry["running_at"] else ""
        table.add_row(entry["sweep"], started, cells, verdict, running)
    return table


def render_status(ledger: Ledger) -> Group:
    """One sweep for a terminal: the table that a running sweep shows, and its verdict."""
    from rich.console import Group
    from rich.text import Text

    from sweeps.running.live_table import sweep_table

    status = _read(ledger)
    found = status.table
    cells = ", ".join(f"{count} {state}" for state, count in found["cells_by_state"].items())
    if found["running_at"]:
        left = found["seconds_left"]
        how = f"running at {found['running_at']}" + ("" if left is None else f", about {duration(round(left))} left")
    elif found["verdict"] is None:
        how = f"not running; resume it with: {shown_command('resume', ledger.name)}"
    else:
        how = found["verdict"]["statement"]
        if last := found["verdict"]["last_decided"]:
            how = f"{before_extension(last)}\n{_outcome(found['verdict'])}: {how}"
        how = with_shown_commands(how)
    table = sweep_table(status.plan, status.newest, ledger.name)
    return Group(table, Text(f"{cells}; {found['tokens_seen']:,} tokens"), Text(how))


def _outcome(verdict: Mapping[str, Any]) -> str:
    """How a sweep ended; of one that was extended since it was decided, what was decided too."""
    last = verdict["last_decided"]
    return str(verdict["outcome"]) if last is None else f"{last['outcome']} before, {verdict['outcome']} now"


def _seconds_left(space: Space, plan: Plan, newest: Mapping[str, Mapping[str, Any]]) -> float | None:
    """What is left at the speed of the newest records, with as many workers as run now or ran on one device."""
    reported = {cell_id: record for cell_id, record in newest.items() if record}
    counted = (int(record["concurrent_trials"] or 1) for record in reported.values())
    workers = max(len(plan.running), *counted, 1)
    return forecast_from_records(space, plan, reported, workers).seconds_left
