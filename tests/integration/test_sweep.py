"""A whole sweep: from nothing to a verdict, killed, interrupted, and neither."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.integration.sweeping import Sweeps, decided, unfinished_checkpoints, wait_for

VERDICT_KEYS = {
    "schema", "sweep", "outcome", "winner", "statement", "metric", "alpha", "margin", "budget_tokens", "strategies",
    "pairs", "seeds_needed", "looks", "context", "controls", "by_rung", "by_budget", "by_budget_tokens",
    "trend", "caveats",
    "documents_needed", "exam", "excluded", "last_decided", "pairing", "tie_at_chosen_rates",
}  # fmt: skip


def ended_cells(runs: Path, name: str, phase: str) -> int:
    found = (runs / name / "cells").glob("*/outcome.json")
    return sum(json.loads(path.read_text())["phase"] == phase for path in found)


def ended_s(sweeps: Sweeps, name: str) -> dict[str, float]:
    """When each cell that has an outcome got it."""
    return {cell_id: found["ended_s"] for cell_id, found in sweeps.outcomes(name).items()}


def test_a_sweep_runs_to_its_verdict_and_mlflow_shows_each_cell_once(undisturbed: Sweeps) -> None:
    said = (undisturbed.folder / "first.txt").read_text()
    verdict = undisturbed.verdict("first")
    assert set(verdict) == VERDICT_KEYS
    plain = re.sub(r"[^\s`]*/sweeps ", "sweeps ", " ".join(said.split()))
    assert verdict["statement"] in re.sub(r" --runs-dir [^\s`]+", "", plain)
    assert "<html" in (undisturbed.runs / "first" / "report.html").read_text()
    outcomes = undisturbed.outcomes("first")
    assert Counter((found["phase"], found["outcome"]) for found in outcomes.values()) == {
        ("explore", "completed"): 2,
        ("explore", "stopped_early"): 2,
        ("confirm", "completed"): 6,
    }
    mlflow_shows_each_cell_once(undisturbed, "first")


def mlflow_shows_each_cell_once(sweeps: Sweeps, name: str) -> None:
    from mlflow import MlflowClient

    outcomes = sweeps.outcomes(name)
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


def test_a_finished_sweep_is_neither_run_again_nor_overwritten(undisturbed: Sweeps) -> None:
    assert undisturbed("resume", "first").strip().endswith("sweep first is finished; nothing to run")
    assert "never overwritten" in undisturbed("run", "--space", "space.toml", "--name", "first", code=2)


def test_a_sweep_that_was_killed_is_resumed_to_the_verdict_of_one_that_was_not(
    undisturbed: Sweeps, killed: Sweeps, resumed: Sweeps
) -> None:
    before = ended_s(killed, "first")
    assert 0 < len(before) < len(undisturbed.outcomes("first"))
    assert unfinished_checkpoints(killed.runs / "first"), "a cell goes on from its checkpoint"
    assert before.items() <= ended_s(resumed, "first").items(), "what had an outcome was not run again"
    assert resumed.end_of("first") == undisturbed.end_of("first")
    assert decided(str(resumed.runs), "first") == decided(str(undisturbed.runs), "first")
    mlflow_shows_each_cell_once(resumed, "first")


@pytest.mark.slow
def test_records_count_the_trials_that_ran_and_a_judged_cell_runs_alone_when_that_is_requested(sweeps: Sweeps) -> None:
    options = ["--set", "resources.workers=2", "--set", "seeds.confirm=1"]
    sweeps("run", "--space", "space.toml", "--name", "first", "--exclusive", *options)
    phases = {cell_id: found["phase"] for cell_id, found in sweeps.outcomes("first").items()}
    counted: dict[str, set[int | None]] = {"explore": set(), "confirm": set()}
    for path in (sweeps.runs / "first" / "cells").glob("*/segments/*.json"):
        records = json.loads(path.read_text())["records"]
        counted[phases[path.parents[1].name]] |= {record["concurrent_trials"] for record in records}
    assert 2 in counted["explore"] <= {None, 1, 2}
    assert counted["confirm"] == {1}


@pytest.mark.slow
def test_a_plan_measures_its_speed_and_the_sweep_notes_how_long_it_took(undisturbed: Sweeps) -> None:
    planned = json.loads(undisturbed("plan", "--space", "space.toml", "--price-per-hour", "2", "--json"))
    assert planned["hours_source"] == "measured by some steps of each arm"
    assert planned["cost"] == 2 * planned["hours"]
    [session] = [json.loads(path.read_text()) for path in (undisturbed.runs / "first" / "sittings").iterdir()]
    assert not session["interrupted"]
    assert session["first_estimate_s"] > 0
    assert "first estimate" in (undisturbed.folder / "first.txt").read_text()


@pytest.mark.slow
def test_interrupted_in_explore_and_in_confirm_it_ends_as_if_it_had_not_been_and_a_second_driver_is_refused(
    sweeps: Sweeps, undisturbed: Sweeps
) -> None:
    process = sweeps.start("run", "--space", "space.toml", "--name", "first")
    wait_for(lambda: any((sweeps.runs / "first" / "cells").glob("*/lease/*.json")), "a running trial", process)
    assert f"held by pid {process.pid} on " in sweeps("resume", "first", code=2)
    interrupted(process)
    assert ended_cells(sweeps.runs, "first", "confirm") < 6

    process = sweeps.start("resume", "first")
    wait_for(lambda: ended_cells(sweeps.runs, "first", "confirm") >= 1, "a confirm cell with an outcome", process)
    ended_before = set(sweeps.outcomes("first"))
    interrupted(process)
    written = {cell_id: ended_s(sweeps, "first")[cell_id] for cell_id in ended_before}

    sweeps("resume", "first")
    assert written.items() <= ended_s(sweeps, "first").items(), "what had an outcome was not run again"
    assert sweeps.end_of("first") == undisturbed.end_of("first")


def interrupted(process: subprocess.Popen[str]) -> None:
    """Press Ctrl-C; the sweep ends with the command that goes on."""
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate()
    assert process.returncode == 130, said
    assert "sweeps resume first" in said
