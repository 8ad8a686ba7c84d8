"""A sweep of an earlier version with controls: its cells are read as those of the arms that controls are today."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from search_spaces import Identity, Rate, Space, confirm_cells, explore_cells, extended_space, load_space
from search_spaces.shorthand import control_name
from sweeps.commands.extend import extend_plan
from sweeps.ledger.reading import LedgerReader
from sweeps.ledger.space import current_space, identity_of
from sweeps.ledger.sweep_folder import Ledger
from sweeps.plan.phases import next_cells
from tests.sweeps.ledger.test_sweep_folder import BEGINNING

IDENTITY = identity_of(BEGINNING)


@pytest.fixture
def space() -> Space:
    return load_space(preset="smoke", overrides=["controls=true", "precision=fp32"])


def write_as_before(ledger: Ledger, space: Space, identity: Identity) -> list[str]:
    """Write the sweep as version 0.2.0 did; returns the ids of its cells."""
    rate = Rate(lr=0.01, adamw_lr=0.003)
    cells = [*explore_cells(space, identity), *confirm_cells(space, identity, {a.name: rate for a in space.strategies})]
    controls = {control_name(arm.name): arm.name for arm in space.strategies}
    entries = []
    for cell in cells:
        entry = {**asdict(cell), "reason": "grid" if cell.phase == "explore" else "confirm", "may_stop_early": False}
        if cell.strategy in controls:
            judged = {"phase": "control", "reason": "control"} if cell.phase == "confirm" else {}
            entry |= {"strategy": controls[cell.strategy], **judged}
        entries.append(entry)
    plain = load_space(preset="smoke", overrides=["precision=fp32"]).resolved()
    strategies = [{**arm, "tokens_per_step": 1_024, "predicted_peak_gib": 0.1} for arm in plain["strategies"]]
    ledger.begin({**BEGINNING, "space": {**plain, "controls": True}, "strategies": strategies})
    page = {"schema": 1, "sweep_id": "1", "added_s": 0.0, "because": "", "extension": None, "cells": entries}
    ledger.storage.write_bytes("plan/0001.json", json.dumps(page).encode())
    return [str(cell.cell_id) for cell in cells]


def test_its_cells_are_those_of_the_control_arms_under_their_own_ids(ledger: Ledger, space: Space) -> None:
    ids = write_as_before(ledger, space, IDENTITY)
    results = LedgerReader(ledger).results()  # which computes every id again
    assert [result.cell.cell_id for result in results.cells] == ids
    assert current_space(ledger).resolved() == space.resolved()
    assert results.arm_names == ("large_batch", "balanced", "long_seq")
    assert {subject: arm.name for subject, arm in results.controls.items()} == {
        "large_batch": "large_batch_grouped",
        "balanced": "balanced_grouped",
    }
    judged = results.of("confirm", "balanced_grouped")
    assert [(found.cell.seed, found.cell.arrangement) for found in judged] == [(101, "grouped"), (102, "grouped")]


def test_it_goes_on_with_pages_of_today(ledger: Ledger, space: Space) -> None:
    ids = write_as_before(ledger, space, IDENTITY)
    extended = extend_plan(ledger, current_space(ledger), lr=[0.04])
    results = LedgerReader(ledger).results()  # which computes every id again
    added = [r.cell for r in results.cells if r.cell.cell_id not in ids]
    assert {cell.strategy for cell in added} == {arm.name for arm in extended.strategies}
    assert current_space(ledger).resolved() == extended.resolved()


def test_an_arm_that_it_was_extended_by_had_a_control_too(ledger: Ledger, space: Space) -> None:
    ids = write_as_before(ledger, space, IDENTITY)
    arm = {"name": "short", "micro_batch_size": 8, "seq_len": 128, "grad_accum_steps": 1}
    control = {**arm, "name": "short_grouped", "windows": "grouped", "role": "control"}
    added = extended_space(space, strategies=[arm, control])
    cells = [cell for cell in explore_cells(added, IDENTITY) if cell.strategy.startswith("short")]
    entries = [{**asdict(c), "strategy": "short", "reason": "grid", "may_stop_early": False} for c in cells]
    options = {"lr": [], "adamw_lr": [], "strategies": [arm], "confirm_seeds": None, "budgets": []}
    page = {"schema": 1, "sweep_id": "1", "added_s": 0.0, "because": "", "extension": options, "cells": entries}
    ledger.storage.write_bytes("plan/0002.json", json.dumps(page).encode())
    results = LedgerReader(ledger).results()
    assert {r.cell.strategy for r in results.cells if r.cell.cell_id not in ids} == {"short", "short_grouped"}
    assert results.controls["short"].name == "short_grouped"


def test_nothing_of_it_is_planned_again(ledger: Ledger, space: Space) -> None:
    write_as_before(ledger, space, IDENTITY)
    results = LedgerReader(ledger).results()
    assert next_cells(current_space(ledger), IDENTITY, results, ledger.planned_cells()).cells == ()
