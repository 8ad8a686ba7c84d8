"""What a worker leaves in a cell's folder and tells the driver when a segment does not end as it should."""

import math
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moe.errors import CorpusError
from sweeps.errors import SweepHeldError
from sweeps.ledger.cell_folder import CellFolder
from sweeps.ledger.storage import Storage
from sweeps.ledger.sweep_folder import Ledger, PlannedCell
from sweeps.training_data import cache_dir
from sweeps.trial import trainable
from sweeps.trial.device_load import CPU, running_trial
from sweeps.trial.trainable import CELL_LEASE, SegmentJob, run_segment, train_segment
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


def test_a_worker_whose_cell_another_one_has_taken_writes_nothing_more(
    folder: CellFolder, job: SegmentJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.ledger.lease.HEARTBEAT_S", 0.01)
    monkeypatch.setattr(trainable, "build_trainer", lambda *_: EndingTrainer())

    def taken_meanwhile(_: object) -> None:
        lease = folder.storage.read_json(CELL_LEASE)
        heart = next(thread for thread in threading.enumerate() if thread.name == f"lease {CELL_LEASE}")
        while heart.is_alive():  # a beat that was under way may still write over what is written here
            folder.storage.write_json(CELL_LEASE, {**lease, "host": "elsewhere", "pid": 7, "token": "other"})
            heart.join(timeout=0.1)

    with pytest.raises(SweepHeldError, match="taken over by pid 7 on elsewhere"):
        train_segment(job, on_report=taken_meanwhile)
    assert folder.storage.names() == [CELL_LEASE]


def test_a_node_that_lacks_the_corpus_ends_the_sweep_and_fails_no_cell(
    job: SegmentJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, Any]] = []

    def lacking(*_: object, **__: object) -> str:
        raise CorpusError("texts/*.txt matches no file")

    monkeypatch.setattr(trainable, "train_segment", lacking)
    monkeypatch.setattr("ray.tune.report", told.append)
    run_segment(vars(job))
    assert told == [{"ended": "stop_sweep", "reason": "texts/*.txt matches no file"}]


def test_a_checkpoint_whose_manifest_lists_no_files_is_set_aside_and_the_one_before_it_serves(
    folder: CellFolder, job: SegmentJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tokens in (1_024, 2_048):
        folder.checkpoints.save(tokens, EndingTrainer().save)
    folder.storage.write_json("checkpoint-000000000002048/manifest.json", {"schema": 1, "tokens_seen": 2_048})
    monkeypatch.setattr(trainable, "build_trainer", lambda *_: EndingTrainer())
    told: list[str] = []
    assert train_segment(job, on_report=lambda _: None, on_note=told.append) == "done"
    assert len(told) == 1
    assert told[0].startswith("checkpoint at 2,048 tokens set aside, the one before it serves: ")
    assert "manifest.json is damaged: files: Field required" in told[0]
