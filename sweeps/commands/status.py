"""What a sweep's ledger says from outside, while it runs elsewhere or after it ended."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from search_spaces import Space, SpaceErrors
from sweeps.errors import SweepError
from sweeps.ledger.lease import CELL_LEASE, DRIVER_LEASE, living_holder
from sweeps.ledger.reading import LedgerReader
from sweeps.ledger.space import current_space
from sweeps.ledger.storage import Storage
from sweeps.ledger.sweep_folder import Ledger, sweep_names
from sweeps.plan.forecast import forecast_from_records
from sweeps.plan.queue import Plan, progress_of
from sweeps.running.driver import stopping_rule

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table


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
    return _status(ledger, *_plan_of(ledger))


def _status(ledger: Ledger, plan: Plan, newest: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    beginning = ledger.beginning()
    space = current_space(ledger)
    cells = [
        {
            **planned.cell.as_dict(),
            "state": plan.state(planned.cell_id),
            "tokens_seen": plan.progress(planned.cell_id).tokens_seen,
            "val_loss": newest[planned.cell_id].get("val_loss"),
        }
        for planned in plan.cells
    ]
    verdict = ledger.verdict()
    holder = living_holder(ledger.storage, DRIVER_LEASE)
    return {
        "schema": 1,
        "sweep": ledger.name,
        "created_s": beginning["created_s"],
        "running_at": None if holder is None else str(holder),
        "budget_tokens": space.budget_tokens,
        "rungs_tokens": list(space.rungs_tokens),
        "tokens_seen": sum(cell["tokens_seen"] for cell in cells),
        "seconds_left": None if holder is None else _seconds_left(space, plan, newest),
        "cells_by_state": dict(Counter(str(cell["state"]) for cell in cells)),
        "cells": cells,
        "verdict": None if verdict is None else {key: verdict[key] for key in ("outcome", "winner", "statement")},
    }


def render_list(found: list[dict[str, Any]], runs_dir: str) -> Table | str:
    """The list for a terminal."""
    from rich.markup import escape
    from rich.table import Table

    if not found:
        return f"No sweep in {runs_dir} yet; `sweeps run` begins one."
    table = Table()
    for column in ("sweep", "begun", "cells", "verdict", ""):
        table.add_column(column)
    for entry in found:
        if "problem" in entry:
            table.add_row(entry["sweep"], "", "", "", escape(entry["problem"]))
            continue
        begun = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry["created_s"]))
        cells = ", ".join(f"{count} {state}" for state, count in entry["cells_by_state"].items())
        verdict = "" if entry["verdict"] is None else entry["verdict"]["outcome"]
        running = f"running at {entry['running_at']}" if entry["running_at"] else ""
        table.add_row(entry["sweep"], begun, cells, verdict, running)
    return table


def render_status(ledger: Ledger) -> Group:
    """One sweep for a terminal: the table that a running sweep shows, and its verdict."""
    from rich.console import Group
    from rich.text import Text

    from sweeps.running.live_table import spoken_duration, sweep_table

    plan, newest = _plan_of(ledger)
    found = _status(ledger, plan, newest)
    table = sweep_table(plan, newest, ledger.name)
    cells = ", ".join(f"{count} {state}" for state, count in found["cells_by_state"].items())
    if found["running_at"]:
        left = found["seconds_left"]
        how = f"running at {found['running_at']}" + ("" if left is None else f", about {spoken_duration(left)} left")
    elif found["verdict"] is None:
        how = f"not running; go on with: sweeps resume {ledger.name}"
    else:
        how = f"{found['verdict']['outcome']}: {found['verdict']['statement']}"
    return Group(table, Text(f"{cells}; {found['tokens_seen']:,} tokens"), Text(how))


def _seconds_left(space: Space, plan: Plan, newest: Mapping[str, Mapping[str, Any]]) -> float | None:
    """What is left at the speed of the newest records, shared among as many trials as run now or ran on one device."""
    reported = {cell_id: record for cell_id, record in newest.items() if record}
    counted = (int(record["concurrent_trials"] or 1) for record in reported.values())
    workers = max(len(plan.running), *counted, 1)
    return forecast_from_records(space, plan, reported, workers).seconds_left


def _plan_of(ledger: Ledger) -> tuple[Plan, dict[str, dict[str, Any]]]:
    space = current_space(ledger)
    planned = ledger.planned_cells()
    plan = Plan(stopping_rule(space), planned)
    newest: dict[str, dict[str, Any]] = {entry.cell_id: {} for entry in planned}
    for result in LedgerReader(ledger).results().cells:
        cell_id = str(result.cell.cell_id)
        if cell_id not in newest:
            continue  # the driver that runs the sweep has just added it
        plan.ended(cell_id, progress_of(result))
        newest[cell_id] = dict(result.records[-1]) if result.records else {}
        if result.outcome is None and living_holder(ledger.cell_folder(cell_id).storage, CELL_LEASE):
            plan.started(cell_id)
    return plan, newest
