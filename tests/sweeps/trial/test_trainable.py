"""What a worker leaves in a cell's folder and tells the driver when a segment does not end as it should."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from moe.errors import CorpusError
from sweeps.errors import SweepHeldError
from sweeps.ledger.cell_folder import CellFolder, CellWriter
from sweeps.ledger.lease import CELL_LEASE
from sweeps.ledger.storage import Storage
from sweeps.ledger.sweep_folder import Ledger, PlannedCell
from sweeps.training_data import cache_dir
from sweeps.trial import trainable
from sweeps.trial.device_load import CPU, running_trial
from sweeps.trial.trainable import SegmentJob, run_segment, train_segment
from tests.sweeps import made_up_sweep as made_up
from tests.sweeps.ending_trainer import EndingTrainer, whole_job

PLANNED = PlannedCell(cell=made_up.cell(phase="confirm"), reason="confirm", may_stop_early=False)


@pytest.fixture
def folder(tmp_path: Path) -> CellFolder:
    ledger = Ledger(Storage(str(tmp_path)), "first")
    ledger.add_cells([PLANNED], because="confirm")
    return ledger.cell_folder(PLANNED.cell_id)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SegmentJob:
    monkeypatch.setenv("SWEEPS_CACHE_DIR", str(tmp_path / "cache"))
    return whole_job(tmp_path, PLANNED)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_test_loss_that_is_not_finite_ends_its_cell_as_diverged(
    folder: CellFolder, job: SegmentJob, monkeypatch: pytest.MonkeyPatch, loss: float
) -> None:
    monkeypatch.setattr(trainable, "build_trainer", lambda *_: EndingTrainer(loss))
    assert train_segment(job, on_report=lambda _: None) == "done"
    outcome = folder.outcome()
    assert outcome is not None
    assert (outcome["outcome"], outcome["reason"]) == ("diverged", f"the test loss is {loss}")
    assert outcome["test_loss"] is None
    assert len(folder.records()) == 1


def test_a_record_says_how_many_trials_ran_at_its_moment(
    folder: CellFolder, job: SegmentJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainable, "build_trainer", lambda *_: EndingTrainer())
    with running_trial(cache_dir(), CPU), running_trial(cache_dir(), "gpu 0"):
        train_segment(replace(job, gpu_fraction=0.0), on_report=lambda _: None)
    assert [record["concurrent_trials"] for record in folder.records()] == [2]


def test_a_worker_whose_cell_another_one_has_taken_writes_no_record_more(
    folder: CellFolder, job: SegmentJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.ledger.lease.TRUSTED_S", -1.0)
    monkeypatch.setattr(trainable, "build_trainer", lambda *_: EndingTrainer())

    def taken_meanwhile(_: object) -> None:
        lease = folder.storage.read_json(f"{CELL_LEASE}/000001.json")
        folder.storage.write_json(f"{CELL_LEASE}/000002.json", {**lease, "host": "elsewhere", "token": "other"})

    with pytest.raises(SweepHeldError, match=r"taken over by pid \d+ on elsewhere"):
        train_segment(job, on_report=taken_meanwhile)
    assert folder.records() == []
    assert folder.storage.names("segments") == []


def test_a_cell_that_ended_while_its_lease_was_waited_for_is_not_trained_again(
    folder: CellFolder, job: SegmentJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.write_outcome(PLANNED.cell, "completed", tokens_seen=job.until_tokens, val_loss=1.0)
    monkeypatch.setattr(trainable, "build_trainer", lambda *_: pytest.fail("it has its outcome"))
    assert train_segment(job, on_report=lambda _: None) == "done"


def test_between_two_reports_the_worker_does_what_it_is_given_to_do(
    folder: CellFolder, job: SegmentJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[Any] = []
    monkeypatch.setattr(trainable, "build_trainer", lambda *_: EndingTrainer())
    monkeypatch.setattr("ray.tune.report", lambda record: happened.append(("reported", record["ended"])))
    run_segment(vars(job), after_report=lambda report: happened.append(("after", report.tokens_seen)))
    assert happened == [("reported", None), ("after", job.until_tokens), ("reported", "done")]


def test_a_node_that_lacks_the_mount_ends_no_cell(
    job: SegmentJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, Any]] = []
    monkeypatch.setattr("ray.tune.report", told.append)
    run_segment({**vars(job), "runs_uri": str(tmp_path / "not-mounted")})
    assert [report["ended"] for report in told] == ["world_fault"]
    assert "is the storage mounted there?" in told[0]["reason"]


def test_a_full_temporary_folder_ends_no_cell(
    folder: CellFolder, job: SegmentJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(EndingTrainer):
        def save(self, folder: Path) -> None:
            torch.save(torch.zeros(1 << 16), "/dev/full")  # what torch says where a disk is full

    monkeypatch.setattr(trainable, "build_trainer", lambda *_: Full())
    told: list[dict[str, Any]] = []
    monkeypatch.setattr("ray.tune.report", told.append)
    budget = PLANNED.cell.budget_tokens
    run_segment({**vars(job), "until_tokens": budget // 2})
    assert told[-1]["ended"] == "world_fault", told[-1]
    assert "is its disk full?" in told[-1]["reason"]
    assert folder.outcome() is None


def test_a_node_that_lacks_the_corpus_ends_the_sweep_and_fails_no_cell(
    job: SegmentJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, Any]] = []

    def lacking(*_: object, **__: object) -> str:
        raise CorpusError("texts/*.txt matches no file")

    monkeypatch.setattr(trainable, "train_segment", lacking)
    monkeypatch.setattr("ray.tune.report", told.append)
    run_segment(vars(job))
    assert told == [{"ended": "world_fault", "reason": "texts/*.txt matches no file"}]


def test_a_checkpoint_whose_manifest_lists_no_files_is_set_aside_and_the_one_before_it_serves(
    folder: CellFolder, job: SegmentJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = CellWriter(folder, "000000-cafe")
    for tokens in (1_024, 2_048):
        writer.save(tokens, EndingTrainer(tokens_seen=tokens).save)
    folder.storage.write_json("checkpoint-000000000002048-000000-cafe/manifest.json", {"tokens_seen": 2_048})
    monkeypatch.setattr(trainable, "build_trainer", lambda *_: EndingTrainer())
    told: list[str] = []
    assert train_segment(job, on_report=lambda _: None, on_note=told.append) == "done"
    assert len(told) == 1
    assert told[0].startswith("checkpoint at 2,048 tokens set aside, the one before it serves: ")
    assert "manifest.json is damaged: it has no files" in told[0]
