"""The folder of a sweep: what was begun, planned and decided stays."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sweeps.errors import BadInputError, DamagedError, SweepHeldError
from sweeps.ledger.storage import Storage
from sweeps.ledger.sweep_folder import Ledger, PlannedCell
from tests.sweeps.ledger.a_cell import CELL

BEGINNING = {
    "sweep_id": "1",
    "created_s": 0.0,
    "space": {},
    "strategies": [],
    "fingerprints": {"corpus": "c", "tokenizer": "t", "exam": "e", "code": "d"},
}


def test_pages_of_two_writers_never_meet(tmp_path: Path) -> None:
    first, second = (Ledger(Storage(str(tmp_path)), "first") for _ in range(2))
    cells = [
        PlannedCell(cell=replace(CELL, cell_id=f"c{number}"), reason="grid", may_stop_early=True) for number in range(3)
    ]
    pages = first.plan_pages()
    second.add_cells(cells[:1], because="second")
    assert not first.add_cells_to(pages, cells[1:2], because="first"), "the plan is not the one that was read"
    first.add_cells(cells[1:2], because="first")
    assert first.storage.names("plan") == ["0001.json", "0002.json"]
    assert Ledger(Storage(str(tmp_path)), "first").planned_cells() == cells[:2]
    (tmp_path / "first" / "plan" / "0001.json").unlink()
    with pytest.raises(DamagedError, match=r"plan/0001\.json is missing; restore it from a copy"):
        Ledger(Storage(str(tmp_path)), "first").add_cells(cells[2:], because="a page is missing")


def test_pages_that_a_beginning_left_that_was_cut_short_do_not_count(ledger: Ledger) -> None:
    old, new = (PlannedCell(cell=replace(CELL, cell_id=i), reason="grid", may_stop_early=True) for i in ("old", "new"))
    ledger.add_cells([old], because="the first grid", sweep_id="1")
    ledger.add_cells([new], because="the first grid", sweep_id="2")
    ledger.begin({**BEGINNING, "sweep_id": "2"})
    ledger.add_cells([replace(old, may_stop_early=False)], because="the first grid, late", sweep_id="1")
    assert ledger.planned_cells() == [new]


def test_a_sweep_is_started_once(ledger: Ledger) -> None:
    ledger.begin({**BEGINNING, "sweep_id": "2"})
    with pytest.raises(SweepHeldError, match="was started by another process"):
        ledger.begin({**BEGINNING, "sweep_id": "3"})
    assert ledger.beginning()["sweep_id"] == "2"


def test_a_sweep_of_version_0_1_is_read_and_not_resumed(ledger: Ledger) -> None:
    ledger.storage.write_bytes("sweep.json", json.dumps({"schema": 1, "sweep": "first", **BEGINNING}).encode())
    assert ledger.beginning()["sweep_id"] == "1"
    with pytest.raises(
        BadInputError, match=r"was started by version 0\.1 of moe-sweeps, which can resume and extend it"
    ):
        ledger.require_current()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"created_s": "yesterday"}, "created_s: Input should be a valid number"),
        ({"created_s": True}, "created_s: Input should be a valid number"),
        ({"created_s": float("inf")}, "created_s: Input should be a finite number"),
        ({"space": []}, "space: Input should be a valid dictionary"),
        ({"strategies": {}}, "strategies: Input should be a valid list"),
        ({"fingerprints": {"corpus": 1}}, "fingerprints.corpus: Input should be a valid string"),
        ({"sweep_id": None}, "sweep_id: Input should be a valid string"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_as_damage(ledger: Ledger, change: dict[str, Any], says: str) -> None:
    text = json.dumps({"schema": 1, "sweep": "first", **BEGINNING, **change})
    ledger.storage.write_bytes("sweep.json", text.encode())
    with pytest.raises(DamagedError, match=r"first/sweep\.json is damaged: ") as damaged:
        ledger.beginning()
    assert says in str(damaged.value)


def test_planned_cells_come_back_as_they_were_added_and_are_never_doubled(ledger: Ledger) -> None:
    planned = PlannedCell(cell=CELL, reason="grid", may_stop_early=True)
    ledger.add_cells([planned], because="the first grid")
    ledger.add_cells([planned], because="again")
    assert ledger.planned_cells() == [planned]
    assert len(ledger.plan_pages()) == 1


def test_an_extension_is_kept_although_it_adds_no_cell(ledger: Ledger) -> None:
    ledger.add_cells([], because="nothing")
    ledger.add_cells([], because="extension", extension={"confirm_seeds": 5})
    assert [page["extension"] for page in ledger.plan_pages()] == [{"confirm_seeds": 5}]


def test_a_sweep_that_is_not_there_is_named_with_the_remedy(ledger: Ledger) -> None:
    with pytest.raises(BadInputError, match=r"there is no sweep 'first' in .*; `sweeps status` lists"):
        ledger.beginning()


def test_verdicts_are_kept_and_one_that_says_the_same_is_not_written_twice(ledger: Ledger) -> None:
    for outcome in ("tie", "tie", "wins"):
        ledger.write_verdict({"outcome": outcome})
    assert ledger.verdict() == {"outcome": "wins"}
    assert ledger.storage.names("verdicts") == ["0001.json", "0002.json"]


def test_a_temporary_file_that_a_crash_left_is_not_seen(ledger: Ledger, tmp_path: Path) -> None:
    ledger.begin(BEGINNING)
    (tmp_path / "first" / ".tmp-sweep.json-1-abcd").write_text('{"schema"')
    assert ledger.storage.names() == ["sweep.json"]
    assert ledger.beginning()["sweep"] == "first"


def test_a_cell_that_is_added_twice_at_once_stands_once_in_the_plan(ledger: Ledger) -> None:
    planned = PlannedCell(cell=CELL, reason="extension", may_stop_early=False)
    ledger.add_cells([planned, planned], because="extension")
    assert ledger.planned_cells() == [planned]


@pytest.mark.parametrize("name", ["first/../first", "..", "", "a/b", ".hidden", "first\n"])
def test_a_name_that_is_not_one_folder_is_refused_wherever_a_ledger_is_opened(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInputError, match=r"name=.* must be 1 to 64 letters, digits"):
        Ledger(Storage(str(tmp_path)), name)


@pytest.mark.parametrize("cell_id", ["../../../victim", "a/b", "", None, 7, ".."])
def test_a_plan_page_that_names_another_folder_as_a_cell_is_damaged(ledger: Ledger, cell_id: object) -> None:
    cell = {**CELL.as_dict(), "cell_id": cell_id, "reason": "grid", "may_stop_early": True}
    page = {"schema": 1, "added_s": 0.0, "because": "", "extension": None, "cells": [cell]}
    ledger.storage.write_json("plan/0001.json", page)
    with pytest.raises(DamagedError, match=r"plan/0001\.json is damaged: cells\.0\.cell_id"):
        ledger.planned_cells()
    if isinstance(cell_id, str):
        with pytest.raises(DamagedError, match="cell_id"):
            ledger.cell_folder(cell_id)
