"""A whole sweep: from nothing to a verdict, interrupted and not."""

import json
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.integration.sweeping import Sweeps, wait_for

pytestmark = pytest.mark.slow

VERDICT_KEYS = {
    "schema", "sweep", "outcome", "winner", "statement", "metric", "alpha", "margin", "budget_tokens", "strategies",
    "pairs", "seeds_needed", "looks", "context", "controls", "by_rung", "by_budget", "caveats",
}  # fmt: skip


def ended_cells(runs: Path, name: str, phase: str) -> int:
    found = (runs / name / "cells").glob("*/outcome.json")
    return sum(json.loads(path.read_text())["phase"] == phase for path in found)


def test_a_sweep_runs_to_its_verdict_and_mlflow_shows_each_cell_once(sweeps: Sweeps) -> None:
    said = sweeps("run", "--space", "space.toml", "--name", "first")
    verdict = json.loads((sweeps.runs / "first" / "verdict.json").read_text())
    assert set(verdict) == {*VERDICT_KEYS, "checksum"}
    assert verdict["statement"] in " ".join(said.split())
    assert "<html" in (sweeps.runs / "first" / "report.html").read_text()
    outcomes = sweeps.outcomes("first")
    assert Counter((found["phase"], found["outcome"]) for found in outcomes.values()) == {
        ("explore", "completed"): 2,
        ("explore", "stopped_early"): 2,
        ("confirm", "completed"): 6,
    }
    what_mlflow_shows_equals_the_ledger(sweeps, "first", outcomes)
    assert sweeps("resume", "first").strip().endswith("sweep first is finished; nothing to run")
    assert "never overwritten" in sweeps("run", "--space", "space.toml", "--name", "first", code=2)


def test_records_count_the_trials_that_ran_and_a_judged_cell_runs_alone_when_that_is_wished(sweeps: Sweeps) -> None:
    sweeps("run", "--space", "slow.toml", "--name", "first", "--exclusive", "--set", "resources.workers=2")
    phases = {cell_id: found["phase"] for cell_id, found in sweeps.outcomes("first").items()}
    counted: dict[str, set[int | None]] = {"explore": set(), "confirm": set()}
    for path in (sweeps.runs / "first" / "cells").glob("*/segments/*.json"):
        records = json.loads(path.read_text())["records"]
        counted[phases[path.parents[1].name]] |= {record["concurrent_trials"] for record in records}
    assert 2 in counted["explore"] <= {None, 1, 2}
    assert counted["confirm"] == {1}


def test_a_plan_measures_its_speed_and_the_sweep_notes_how_long_it_took(sweeps: Sweeps) -> None:
    planned = json.loads(sweeps("plan", "--space", "space.toml", "--price-per-hour", "2", "--json"))
    assert planned["hours_source"] == "measured by some steps of each arm"
    assert planned["cost"] == 2 * planned["hours"]
    said = sweeps("run", "--space", "space.toml", "--name", "first")
    [sitting] = [json.loads(path.read_text()) for path in (sweeps.runs / "first" / "sittings").iterdir()]
    assert not sitting["interrupted"]
    assert sitting["first_estimate_s"] > 0
    assert "the first estimate was" in said


def what_mlflow_shows_equals_the_ledger(sweeps: Sweeps, name: str, outcomes: dict[str, dict[str, object]]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{sweeps.runs}/mlflow.db")
    experiment = client.get_experiment_by_name(name)
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    parents = [run for run in runs if "cell_id" not in run.data.tags]
    assert len(parents) == 1
    children = {run.data.tags["cell_id"]: run for run in runs if "cell_id" in run.data.tags}
    assert len(runs) == len(children) + 1
    assert children.keys() == outcomes.keys()
    for cell_id, run in children.items():
        assert run.data.tags["mlflow.parentRunId"] == parents[0].info.run_id
        history = client.get_metric_history(run.info.run_id, "val_loss")
        assert history[-1].value == outcomes[cell_id]["val_loss"]
        assert history[-1].step == outcomes[cell_id]["tokens_seen"]
        assert len({point.step for point in history}) == len(history)


def test_interrupted_in_explore_and_in_confirm_it_ends_as_if_it_had_not_been(sweeps: Sweeps) -> None:
    sweeps("run", "--space", "slow.toml", "--name", "undisturbed")
    process = sweeps.start("run", "--space", "slow.toml", "--name", "first")
    wait_for(lambda: any((sweeps.runs / "first" / "cells").glob("*/lease/*.json")))
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert "sweeps resume first" in said
    assert ended_cells(sweeps.runs, "first", "confirm") == 0

    process = sweeps.start("resume", "first")
    wait_for(lambda: ended_cells(sweeps.runs, "first", "confirm") >= 1)
    ended_before = set(sweeps.outcomes("first"))
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 130, said
    written = {cell_id: sweeps.outcomes("first")[cell_id]["ended_s"] for cell_id in ended_before}

    sweeps("resume", "first")
    after = sweeps.outcomes("first")
    assert {cell_id: after[cell_id]["ended_s"] for cell_id in ended_before} == written
    assert sweeps.losses("first") == sweeps.losses("undisturbed")


def test_an_extension_runs_new_cells_alone_and_keeps_the_verdict_before_it(sweeps: Sweeps) -> None:
    sweeps("run", "--space", "space.toml", "--name", "first")
    before = {cell_id: found["ended_s"] for cell_id, found in sweeps.outcomes("first").items()}
    verdict = json.loads((sweeps.runs / "first" / "verdict.json").read_text())
    sweeps("extend", "first", "--lr", "0.04", "--seeds", "5")
    after = sweeps.outcomes("first")
    assert {cell_id: after[cell_id]["ended_s"] for cell_id in before} == before
    new = [found for cell_id, found in after.items() if cell_id not in before]
    assert sorted((c["strategy"], c["lr"]) for c in new if c["phase"] == "explore") == [("long", 0.04), ("short", 0.04)]
    assert {found["outcome"] for found in new} == {"completed"}, "added rates run to the full budget"
    judged = json.loads((sweeps.runs / "first" / "verdict.json").read_text())
    assert {arm["name"]: arm["seeds"] for arm in judged["strategies"]} == {
        "short": [101, 102, 103, 104, 105],
        "long": [101, 102, 103, 104, 105],
    }
    kept = sorted((sweeps.runs / "first" / "verdicts").glob("*.json"))
    assert [json.loads(path.read_text()) for path in kept] == [verdict, judged]


@pytest.mark.faults
def test_a_second_driver_is_refused_with_the_first_ones_host_and_pid(sweeps: Sweeps) -> None:
    process = sweeps.start("run", "--space", "slow.toml", "--name", "first")
    wait_for((sweeps.runs / "first" / "sweep.json").exists)
    assert f"held by pid {process.pid} on " in sweeps("resume", "first", code=2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
