"""MLflow beside the ledger, field by field, after all that can happen to a sweep."""

from __future__ import annotations

import pytest
from mlflow import MlflowClient

from sweeps.ledger.storage import Storage
from sweeps.ledger.sweep_folder import Ledger
from sweeps.running.finish import view_of
from tests.integration.sweeping import Sweeps, end_with_children, wait_for
from tests.sweeps.what_mlflow_holds import assert_shows, everything

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_after_a_kill_a_resume_an_extension_and_two_syncs_mlflow_shows_the_ledger_and_nothing_twice(
    sweeps: Sweeps,
) -> None:
    process = sweeps.start("run", "--space", "slow.toml", "--name", "first")
    wait_for(lambda: any((sweeps.runs / "first" / "cells").glob("*/outcome.json")))
    end_with_children(process)
    sweeps("resume", "first")
    sweeps("extend", "first", "--lr", "0.04", "--seeds", "4")
    sweeps("sync", "first")
    client = MlflowClient(f"sqlite:///{sweeps.runs}/mlflow.db")
    ledger = Ledger(Storage(str(sweeps.runs)), "first")
    assert_shows(client, view_of(ledger, lambda: None)())
    before = everything(client, "first")
    sweeps("sync", "first")
    assert everything(client, "first") == before
    assert {info["status"] for info, *_ in before.values()} == {"FINISHED"}
