"""A trainer that ends with its first report, and the job that a worker would train with it: nothing is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from moe.exam_views import ContextUse, ExamScores, LengthLoss, PositionLoss
from moe.report import Report
from sweeps.ledger.sweep_folder import PlannedCell
from sweeps.trial.trainable import SegmentJob


class EndingTrainer:
    """Stands for a trainer that reaches its rung with one report, and sits the exam."""

    def __init__(self, test_loss: float = 1.0, *, tokens_seen: int = 0) -> None:
        self.tokens_seen = tokens_seen
        self.exam_time_s = 1.0
        self.records: list[dict[str, Any]] = []
        self._test_loss = test_loss

    def run(self, until_tokens: int, *, pause: Callable[[], bool]) -> Iterator[Report]:
        self.tokens_seen = until_tokens
        values: dict[str, Any] = {entry.name: 1 for entry in fields(Report)}
        report = Report(**{**values, "tokens_seen": until_tokens})
        self.records.append(report.as_record())
        yield report

    def test_scores(self) -> ExamScores:
        values: dict[str, Any] = {entry.name: 1 for entry in fields(ExamScores)}
        by_document = {"a.py": (1.0, 1)}
        values |= {"loss_by_document": by_document, "common_loss_by_document": by_document}
        values["loss_by_position"] = (PositionLoss(first=0, last=0, loss=1.0, n_targets=1),)
        values["loss_by_length"] = (LengthLoss(eval_len=1, loss=1.0, extrapolation=False),)
        values["context_use"] = ContextUse(beyond_tokens=1, own_loss=1.0, common_loss=1.0, n_targets=1)
        return ExamScores(**{**values, "test_loss": self._test_loss})

    def save(self, folder: Path) -> None:
        (folder / "state.pt").write_text(str(self.tokens_seen))

    def load(self, folder: Path) -> None:
        self.tokens_seen = int((folder / "state.pt").read_text())


def whole_job(runs: Path, planned: PlannedCell, *, sweep: str = "first") -> SegmentJob:
    """The job of training a cell from wherever it is to its budget."""
    return SegmentJob(
        runs_uri=str(runs),
        sweep=sweep,
        cell_id=planned.cell_id,
        until_tokens=planned.cell.budget_tokens,
        threads=1,
        checkpoint_every_s=60.0,
        gpu_fraction=0.5,
        stop_request="stop.json",
    )
