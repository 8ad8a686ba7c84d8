"""A sweep that was killed and resumed, and then extended: what runs, what is kept, and what MLflow shows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from sweeps.ledger.storage import Storage
from sweeps.ledger.sweep_folder import Ledger
from sweeps.running.finish import view_of
from tests.integration.conftest import sweeps_in
from tests.integration.sweeping import Sweeps
from tests.sweeps.what_mlflow_holds import assert_shows, everything

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def extended(
    tmp_path_factory: pytest.TempPathFactory, corpus: Path, token_cache: Path, resumed: Sweeps
) -> Iterator[Sweeps]:
    with sweeps_in(tmp_path_factory.mktemp("extended"), corpus, token_cache) as made:
        made.copy(resumed)
        made("extend", "first", "--lr", "0.04", "--seeds", "5")
        yield made


def test_an_extension_runs_new_cells_alone_and_keeps_the_verdict_before_it(extended: Sweeps, resumed: Sweeps) -> None:
    before, after = resumed.outcomes("first"), extended.outcomes("first")
    assert {cell_id: after[cell_id] for cell_id in before} == before
    new = [found for cell_id, found in after.items() if cell_id not in before]
    assert sorted((c["strategy"], c["lr"]) for c in new if c["phase"] == "explore") == [("long", 0.04), ("short", 0.04)]
    assert {found["outcome"] for found in new} == {"completed"}, "added rates run to the full budget"
    judged = extended.verdict("first")
    assert {arm["name"]: arm["seeds"] for arm in judged["strategies"]} == {
        "short": [101, 102, 103, 104, 105],
        "long": [101, 102, 103, 104, 105],
    }
    kept = Storage(str(extended.runs)).child("first/verdicts")
    assert [kept.read_json(name) for name in sorted(kept.names())] == [resumed.verdict("first"), judged]


def test_after_a_kill_a_resume_an_extension_and_two_syncs_mlflow_shows_the_ledger_and_nothing_twice(
    extended: Sweeps,
) -> None:
    extended("sync", "first")
    client = MlflowClient(f"sqlite:///{extended.runs}/mlflow.db")
    ledger = Ledger(Storage(str(extended.runs)), "first")
    assert_shows(client, view_of(ledger, lambda: None)())
    before = everything(client, "first")
    extended("sync", "first")
    assert everything(client, "first") == before
    assert {info["status"] for info, *_ in before.values()} == {"FINISHED"}
