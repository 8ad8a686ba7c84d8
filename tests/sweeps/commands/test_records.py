"""What ``sweeps records`` writes and says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sweeps.commands.records import require_table, write_records
from sweeps.errors import BadInputError
from sweeps.ledger.results import SweepResults
from sweeps.verdict.decision import decide
from tests.sweeps.planted_sweep import cell, confirm, explore, sweep


@pytest.mark.parametrize("name", ["first.csv", "first.parquet"])
def test_it_says_how_to_judge_the_table_and_that_this_gives_the_same(
    tmp_path: Path, finished: SweepResults, name: str
) -> None:
    lines = write_records(finished, tmp_path / name)
    n_reports = sum(len(result.records) for result in finished.cells)
    margin = decide(finished).margin
    assert margin is not None
    assert lines[0] == f"{tmp_path / name}: {n_reports} reports of 27 cells"
    assert lines[1].startswith("Judge it: ")
    assert lines[1].endswith(f"verdict --records {tmp_path / name} --margin {margin.value!r}")
    assert lines[2].startswith("It gives what the sweep's own verdict gives, with the same means and intervals: ")
    assert lines[3].startswith("Not in the file: corpus, model, machine and code")


def test_a_shared_alpha_is_in_the_command(tmp_path: Path) -> None:
    planned = sweep([*explore(), *confirm(records=({"tokens_seen": 1_000},))], verdict={"alpha": 0.05, "looks": 2})
    lines = write_records(planned, tmp_path / "first.csv")
    assert " --alpha 0.025 --margin " in lines[1]
    assert lines[2].startswith("It gives what the sweep's own verdict gives")


def test_a_difference_is_said_with_its_cause(tmp_path: Path) -> None:
    cells = [*explore(), *confirm(records=({"tokens_seen": 1_000},))]
    first = decide(sweep(cells)).as_dict()
    more = [cell(arm, 0.02, 106, "confirm", loss=loss) for arm, loss in (("large_batch", 4.4), ("balanced", 4.6))]
    extended = sweep([*cells, *more, cell("long_seq", 0.02, 106, "confirm", loss=4.8)], verdicts=[first])
    lines = write_records(extended, tmp_path / "first.csv")
    assert "It gives wins (large_batch wins" in lines[2]
    assert "where the sweep's own verdict is exploratory" in lines[2]
    assert lines[2].endswith("it was decided on seeds 101, 102, 103, 104 and 105 before, and leaves them out")


def test_the_bounds_of_a_search_are_not_in_the_table(tmp_path: Path) -> None:
    search = {"kind": "optuna", "lr_low": 0.001, "lr_high": 0.5}
    curves = {arm: {0.01: 4.6, 0.02: loss} for arm, loss in (("large_batch", 4.4), ("balanced", 4.5))}
    cells = [*explore(curves), *confirm(records=({"tokens_seen": 1_000},))]
    cells = [found for found in cells if found.cell.strategy in curves]
    lines = write_records(sweep(cells, search=search), tmp_path / "first.csv")
    assert lines[2].startswith("It gives withheld")
    assert "the bounds of its search are not in the file" in lines[2]


def test_records_of_one_arm_are_written_although_no_verdict_can_be_made(tmp_path: Path, finished: SweepResults) -> None:
    one = replace(finished, cells=tuple(found for found in finished.cells if found.cell.strategy == "balanced"))
    lines = write_records(one, tmp_path / "first.csv")
    assert lines[1] == "No verdict can be made from it: one arm only (balanced); a verdict compares two or more"


def test_a_sweep_without_records_writes_nothing(tmp_path: Path) -> None:
    planned = sweep([cell("balanced", 0.02, 1, outcome=None, tokens_seen=0)])
    with pytest.raises(BadInputError, match="sweep planted has no record that counts yet; `sweeps resume planted`"):
        write_records(planned, tmp_path / "first.csv")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "taken.csv").touch()
    for out, says in (
        (tmp_path / "a.xlsx", r"a\.xlsx must end in \.csv or \.parquet; choose one of them"),
        (tmp_path / "a", r"must end in \.csv or \.parquet"),
        (tmp_path / "taken.csv", r"taken\.csv exists already and is not overwritten; choose another --out"),
        (tmp_path / "nowhere" / "a.csv", r"the folder .*nowhere does not exist; create it, or choose another --out"),
    ):
        with pytest.raises(BadInputError, match=says):
            require_table(out)
