"""The status of sweeps: what the list and the page of one sweep say of an extended one."""

from pathlib import Path
from typing import Any

from rich.console import Console

from search_spaces import explore_cells, load_space
from sweeps.commands.status import list_of_sweeps, render_list, render_status
from sweeps.ledger.lease import CELL_LEASE, DRIVER_LEASE, Lease
from sweeps.ledger.space import identity_of
from sweeps.ledger.storage import Storage
from sweeps.ledger.sweep_folder import Ledger
from sweeps.plan.phases import first_cells
from tests.sweeps import made_up_sweep as made_up

LAST = {"outcome": "wins", "winner": "balanced", "statement": "balanced wins by far.", "verdict": "verdicts/0001.json"}


def sweep_in(folder: Path) -> Ledger:
    ledger = Ledger(Storage(str(folder)), "first")
    space = load_space(preset="smoke")
    cells = first_cells(space, explore_cells(space, identity_of(made_up.beginning())))
    ledger.add_cells(cells, because="the first grid")
    shapes = [{**strategy.model_dump(), "tokens_per_step": 1_024} for strategy in space.strategies]
    ledger.begin({**made_up.beginning(), "space": space.resolved(), "strategies": shapes})
    return ledger


def shown(*what: Any) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(*what)
    return captured.get()


def test_cells_whose_driver_was_killed_do_not_run(tmp_path: Path) -> None:
    ledger = sweep_in(tmp_path)
    driver = Lease(ledger.storage, DRIVER_LEASE)
    cell = Lease(ledger.cell_folder(ledger.planned_cells()[0].cell_id).storage, CELL_LEASE)
    driver.acquire()
    cell.acquire()
    try:
        assert "1 running, 5 queued" in shown(render_status(ledger))
        driver.release()
        assert "6 queued" in shown(render_status(ledger)), "a worker's lease outlives its driver for seconds"
        assert "not running; resume it with: " in shown(render_status(ledger))
    finally:
        cell.release()
        driver.release()


def test_a_verdict_is_not_introduced_by_its_own_name(tmp_path: Path) -> None:
    ledger = sweep_in(tmp_path)
    verdict = {**made_up.verdict(outcome="exploratory").as_dict(), "statement": "No verdict yet: 2 seeds per arm."}
    ledger.write_verdict(verdict)
    assert shown(render_status(ledger)).splitlines()[-1] == "No verdict yet: 2 seeds per arm."


def test_what_was_decided_before_an_extension_is_not_forgotten(tmp_path: Path) -> None:
    runs = Storage(str(tmp_path))
    ledger = sweep_in(tmp_path)
    ledger.write_verdict({**made_up.verdict(outcome="exploratory").as_dict(), "last_decided": LAST})

    text = shown(render_list(list_of_sweeps(runs), str(tmp_path))) + shown(render_status(ledger))
    assert text.count("wins before, exploratory now") == 2
    assert "Last decided verdict (verdicts/0001.json): balanced wins by far." in text
