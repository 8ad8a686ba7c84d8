"""What a worker leaves in a cell's folder and tells the driver when a segment does not end as it should."""

import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moe.errors import CorpusError
from moe.report import Report
from sweeps.engine import trainable
from sweeps.engine.neighbours import CPU, running_trial
from sweeps.engine.trainable import CELL_LEASE, SegmentJob, run_segment, train_segment
from sweeps.errors import SweepHeldError
from sweeps.ledger.storage import Storage
from sweeps.ledger.sweep_folder import CellFolder, Ledger, PlannedCell
from sweeps.material import cache_dir
from tests.sweeps import made_up_sweep as made_up

PLANNED = PlannedCell(cell=made_up.cell(phase="confirm"), reason="confirm", may_stop_early=False)


class OneReport:
    """Stands for a trainer that reaches its budget with one report."""

    def __init__(self, test_loss: float = 1.0) -> None:
        self.tokens_seen = 0
        self.exam_time_s = 1.0
        self.records: list[dict[str, Any]] = []
        self._test_loss = test_loss

    def run(self, until_tokens: int, *, pause: Callable[[], bool]) -> Iterator[Report]:
        self.tokens_seen = until_tokens
        values: dict[str, Any] = {entry.name: 1 for entry in fields(Report)}
        report = Report(**{**values, "tokens_seen": until_tokens})
        self.records.append(report.as_record())
        yield report

    def test_scores(self) -> SimpleNamespace:
        return SimpleNamespace(test_loss=self._test_loss, as_dict=lambda: {"test_loss": self._test_loss})

    def save(self, folder: Path) -> None:
        (folder / "state.pt").write_bytes(b"state")


@pytest.fixture
def folder(tmp_path: Path) -> CellFolder:
    ledger = Ledger(Storage(str(tmp_path)), "first")
    ledger.add_cells([PLANNED], because="confirm")
    return ledger.cell_folder(PLANNED.cell_id)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SegmentJob:
    monkeypatch.setenv("SWEEPS_CACHE_DIR", str(tmp_path / "cache"))
    return SegmentJob(
        runs_uri=str(tmp_path),
        sweep="first",
        cell_id=PLANNED.cell_id,
        until_tokens=PLANNED.cell.budget_tokens,
        threads=1,
        checkpoint_every_s=60.0,
        gpu_fraction=0.0,
    )


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_test_loss_that_is_not_finite_ends_its_cell_as_diverged(
    folder: CellFolder, job: SegmentJob, monkeypatch: pytest.MonkeyPatch, loss: float
) -> None:
    monkeypatch.setattr(trainable, "build_trainer", lambda *_: OneReport(loss))
    assert train_segment(job, on_report=lambda _: None) == "done"
    outcome = folder.outcome()
    assert outcome is not None
    assert (outcome["outcome"], outcome["reason"]) == ("diverged", f"the test loss is {loss}")
    assert outcome["test_loss"] is None
    assert len(folder.records()) == 1


def test_a_record_says_how_many_trials_ran_at_its_moment(
    folder: CellFolder, job: SegmentJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainable, "build_trainer", lambda *_: OneReport())
    with running_trial(cache_dir(), CPU), running_trial(cache_dir(), "gpu 0"):
        train_segment(job, on_report=lambda _: None)
    assert [record["concurrent_trials"] for record in folder.records()] == [2]


def test_a_worker_whose_cell_another_one_has_taken_writes_nothing_more(
    folder: CellFolder, job: SegmentJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.ledger.lease.HEARTBEAT_S", 0.01)
    monkeypatch.setattr(trainable, "build_trainer", lambda *_: OneReport())

    def taken_meanwhile(_: object) -> None:
        lease = folder.storage.read_json(CELL_LEASE)
        folder.storage.write_json(CELL_LEASE, {**lease, "host": "elsewhere", "pid": 7, "token": "other"})
        next(thread for thread in threading.enumerate() if thread.name == f"lease {CELL_LEASE}").join(timeout=10)

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
