"""The status of sweeps: what the list and the page of one sweep say of an extended one."""

from pathlib import Path

from rich.console import Console

from search_spaces import explore_cells, load_space
from sweeps.commands.status import list_of_sweeps, render_list, render_status
from sweeps.ledger.space import identity_of
from sweeps.ledger.storage import Storage
from sweeps.ledger.sweep_folder import Ledger
from sweeps.plan.phases import first_cells
from tests.sweeps import made_up_sweep as made_up

LAST = {"outcome": "wins", "winner": "balanced", "statement": "balanced wins by far.", "verdict": "verdicts/0001.json"}


def test_what_was_decided_before_an_extension_is_not_forgotten(tmp_path: Path) -> None:
    runs = Storage(str(tmp_path))
    ledger = Ledger(runs, "first")
    space = load_space(preset="smoke")
    cells = first_cells(space, explore_cells(space, identity_of(made_up.beginning())))
    ledger.add_cells(cells, because="the first grid")
    shapes = [{**strategy.model_dump(), "tokens_per_step": 1_024} for strategy in space.strategies]
    ledger.begin({**made_up.beginning(), "space": space.resolved(), "strategies": shapes})
    ledger.write_verdict({**made_up.verdict(outcome="exploratory").as_dict(), "last_decided": LAST})

    console = Console(width=200)
    with console.capture() as captured:
        console.print(render_list(list_of_sweeps(runs), str(tmp_path)))
        console.print(render_status(ledger))
    shown = captured.get()
    assert shown.count("wins before, exploratory now") == 2
    assert "Last decided verdict (verdicts/0001.json): balanced wins by far." in shown
