"""What MLflow should show, as a function of the ledger: no MLflow is needed to say it."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from sweeps.cluster.addresses import without_credentials
from sweeps.errors import BadInputError
from sweeps.ledger.results import CellResult
from sweeps.tracking.note import MAX_NOTE_CHARS, parent_note
from sweeps.tracking.projection import SweepView, cell_points, desired_sweep, points_digest, run_name
from sweeps.tracking.store import tracking_store
from sweeps.verdict.findings import Check
from tests.sweeps import made_up_sweep as made_up


def test_a_run_is_named_as_people_speak_of_it() -> None:
    assert run_name(made_up.cell("balanced", 0.02, 3, "confirm")) == "balanced lr=0.02 seed=3 confirm"
    control = made_up.cell("balanced_grouped", 0.02, 3, "confirm", arrangement="grouped")
    assert run_name(control) == "balanced_grouped lr=0.02 seed=3 confirm"


def test_a_name_tells_the_adamw_rate_only_where_it_tells_runs_apart() -> None:
    cells = [made_up.cell(adamw_lr=0.001), made_up.cell(adamw_lr=0.003, cell_id="other"), made_up.cell("long_seq")]
    view = SweepView(results=made_up.results([CellResult(cell=each) for each in cells]))
    assert [run.name for run in desired_sweep(view).cells] == [
        "balanced lr=0.02 adamw_lr=0.001 seed=1 explore",
        "balanced lr=0.02 adamw_lr=0.003 seed=1 explore",
        "long_seq lr=0.02 seed=1 explore",
    ]


def test_the_step_of_a_point_is_tokens_seen_and_its_time_is_the_records() -> None:
    result = made_up.underway(made_up.cell(), n_records=1)
    held = {point.key: point for point in cell_points(result)}
    first = result.records[0]
    assert held["val_loss"].step == 1_024
    assert held["val_loss"].timestamp_ms == round(first["timestamp_s"] * 1000)
    assert held["val_loss"].value == first["val_loss"]
    assert "mfu_pct" not in held, "None on unknown hardware is no point"
    assert "tokens_seen" not in held


def test_what_is_not_finite_makes_no_point() -> None:
    bad = made_up.record(1_024, train_loss=math.nan, grad_norm=math.inf)
    keys = {point.key for point in cell_points(CellResult(cell=made_up.cell(), records=(bad,)))}
    assert "val_loss" in keys
    assert not keys & {"train_loss", "grad_norm"}


def test_test_loss_comes_with_the_outcome_and_at_the_end() -> None:
    done = made_up.finished(made_up.cell(phase="confirm"))
    assert cell_points(done)[-1] == ("test_loss", done.test_loss, cell_points(done)[-2].timestamp_ms, done.tokens_seen)
    assert "test_loss" not in {point.key for point in cell_points(replace(done, outcome=None))}


def test_a_cell_that_goes_on_only_adds_points_at_the_end() -> None:
    which = made_up.cell(phase="confirm")
    before, after = cell_points(made_up.underway(which)), cell_points(made_up.finished(which))
    assert after[: len(before)] == before
    assert points_digest(after[: len(before)]) == points_digest(before)
    assert points_digest(after) != points_digest(before)


@pytest.mark.parametrize(
    ("outcome", "state", "status"),
    [
        (None, "queued", "SCHEDULED"),
        (None, "waiting", "SCHEDULED"),
        (None, "running", "RUNNING"),
        ("completed", "done", "FINISHED"),
        ("stopped_early", "done", "FINISHED"),
        ("diverged", "done", "FAILED"),
        ("oom", "done", "FAILED"),
        ("failed", "done", "FAILED"),
        ("completed", "running", "FINISHED"),
    ],
)
def test_status_tells_what_a_cell_does_while_a_driver_runs(outcome: str | None, state: Any, status: str) -> None:
    result = replace(made_up.underway(made_up.cell()), outcome=outcome)
    view = SweepView(results=made_up.results([result]), states={str(result.cell.cell_id): state})
    desired = desired_sweep(view)
    assert desired.cells[0].status == status
    assert desired.parent.status == "RUNNING"
    assert desired.cells[0].tags.get("outcome") == outcome


def test_without_a_driver_nothing_is_running() -> None:
    begun, not_begun = made_up.underway(made_up.cell()), CellResult(cell=made_up.cell("long_seq"))
    desired = desired_sweep(SweepView(results=made_up.results([begun, not_begun])))
    assert [run.status for run in desired.cells] == ["KILLED", "SCHEDULED"]
    assert desired.parent.status == "KILLED"


def test_the_parent_is_finished_once_every_cell_has_an_outcome_and_a_verdict_is_there() -> None:
    results = made_up.finished_sweep()
    assert desired_sweep(SweepView(results=results)).parent.status == "KILLED"
    assert desired_sweep(SweepView(results=results, verdict=made_up.verdict())).parent.status == "FINISHED"


def test_a_cell_whose_rate_is_undecided_has_no_run() -> None:
    undecided = made_up.cell(lr=0.02, phase="confirm", cell_id=None)
    assert desired_sweep(SweepView(results=made_up.results([CellResult(cell=undecided)]))).cells == ()


def test_tags_and_params_hold_the_cells_point_the_model_and_where_it_comes_from() -> None:
    run = desired_sweep(SweepView(results=made_up.finished_sweep(), verdict=made_up.verdict())).cells[-1]
    expected = {"sweep_id": "feed0001", "phase": "confirm", "strategy": "balanced", "seed": "103", "lr": "0.02"}
    assert expected.items() <= run.tags.items()
    assert run.tags["mlflow.source.git.commit"].startswith("0123456789")
    assert run.tags["precision"] == "fp32"
    shape = {"micro_batch_size": "8", "seq_len": "256", "grad_accum_steps": "1", "tokens_per_step": "2048"}
    assert {**shape, "lr": "0.02", "model.d_model": "64", "budget_tokens": "4096"}.items() <= run.params.items()


def test_summary_metrics_carry_the_arm_in_their_name_and_leave_out_what_is_unknown() -> None:
    summary = desired_sweep(SweepView(results=made_up.finished_sweep(), verdict=made_up.verdict())).summary
    assert summary["summary/balanced.test_loss"] == 5.25
    assert summary["summary/long_seq.best_lr"] == 0.02
    assert not [key for key in summary if "common_context_loss" in key]


def test_the_note_has_the_statement_the_table_of_arms_the_cells_and_links() -> None:
    view = SweepView(
        results=made_up.finished_sweep(),
        verdict=made_up.verdict(),
        attachments={"report.html": b"", "plots/a.png": b""},
    )
    note = parent_note(view, "#/experiments/1/runs/abc/artifacts")
    assert note.startswith("**wins**: balanced learns best at 4,096 tokens.")
    row = ("balanced", "8 x 256 x 1", "0.02", "5.2500", "5.2300 to 5.2700", "1,024", "0.25 GiB")
    assert row in [tuple(field.strip() for field in line.strip("|").split("|")) for line in note.splitlines()]
    assert "12 cells: 10 completed, 1 diverged, 1 stopped_early." in note
    assert "[report.html](#/experiments/1/runs/abc/artifacts/report.html?workflowType=machine_learning)" in note


def test_a_note_too_long_for_mlflow_is_cut_and_says_so() -> None:
    verdict = replace(made_up.verdict(), checks=(Check(rule=13, kept=False, sentence="x" * 9_000),))
    note = parent_note(SweepView(results=made_up.finished_sweep(), verdict=verdict), "")
    assert len(note) <= MAX_NOTE_CHARS + 100
    assert note.endswith("(cut: see the report)")


def test_the_store_is_sqlite_beside_the_sweeps_unless_the_environment_names_another() -> None:
    store = tracking_store("/data/my runs", {})
    assert store.uri == "sqlite:////data/my runs/mlflow.db"
    assert store.artifact_location("first") == "file:///data/my%20runs/mlartifacts/first"
    server = tracking_store("/data/runs", {"MLFLOW_TRACKING_URI": "https://ada:secret@tracking.example:5000"})
    assert server.is_server
    assert server.artifact_location("first") is None
    assert server.label == "https://tracking.example:5000"


@pytest.mark.parametrize("folder", ["50% off", "a#b", "ü;&+"])
def test_the_store_may_stand_in_a_folder_of_any_name_that_mlflow_reads_as_it_is(folder: str) -> None:
    assert tracking_store(f"/data/{folder}", {}).uri == f"sqlite:////data/{folder}/mlflow.db"


@pytest.mark.parametrize("folder", ["20%25", "a?b"])
def test_a_folder_whose_name_mlflow_reads_otherwise_is_refused(folder: str) -> None:
    with pytest.raises(BadInputError, match="give another --runs-dir"):
        tracking_store(f"/data/{folder}", {})


def test_a_bucket_of_runs_still_has_a_local_store() -> None:
    assert tracking_store("s3://bucket/runs", {}).uri.endswith("/runs/mlflow.db")
    assert "s3:" not in tracking_store("s3://bucket/runs", {}).uri


def test_credentials_are_cut_out_of_every_address_in_a_message() -> None:
    text = "API request to https://ada:pass@host/api failed; postgresql+psycopg2://u:p@db:5432/mlflow"
    assert without_credentials(text) == "API request to https://host/api failed; postgresql+psycopg2://db:5432/mlflow"


@pytest.mark.parametrize("password", ["p@ss", "pa/ss", "p:a/s@s", "12/34"])
def test_no_part_of_an_odd_password_is_left(password: str) -> None:
    assert (
        without_credentials(f"at postgresql://u:{password}@db:5432/mlflow, then")
        == "at postgresql://db:5432/mlflow, then"
    )
    asked = f"postgresql://db/mlflow?user=u&password={password}&sslmode=require"
    assert without_credentials(asked) == "postgresql://db/mlflow?user=u&password=&sslmode=require"


def test_an_address_without_credentials_is_left_as_it_is() -> None:
    for uri in ("sqlite:////home/a@b/mlflow.db", "http://127.0.0.1:5000/#/experiments/1", "s3://bucket/a@b"):
        assert without_credentials(uri) == uri


def test_importing_tracking_loads_no_mlflow() -> None:
    code = (
        "import sys, sweeps.tracking.projector, sweeps.tracking.thread, sweeps.tracking.registry, sweeps.tracking.ui;"
        "assert not {'mlflow', 'torch', 'sqlalchemy'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
