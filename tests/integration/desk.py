"""A desk that hands out named segments, without a sweep behind it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

from sweeps.trial.trainable import SegmentJob


class Desk:
    """Hands out one segment for each cell, and keeps how they ended in ``ended``: None where the worker died."""

    def __init__(self, cell_ids: Iterable[str]) -> None:
        self.left = list(cell_ids)
        self.ended: list[tuple[str, object]] = []

    def take(self) -> SegmentJob | Literal["wait", "finished"]:
        if not self.left:
            return "finished"
        return SegmentJob(
            runs_uri="",
            sweep="",
            cell_id=self.left.pop(0),
            until_tokens=0,
            threads=1,
            checkpoint_every_s=60.0,
            gpu_fraction=0.0,
            stop_request="stop.json",
        )

    def report(self, cell_id: str, record: Mapping[str, Any]) -> None: ...

    def hung(self, at_work: Collection[str]) -> Collection[str]:
        return ()

    def nowhere(self) -> None:
        raise AssertionError("the node of this test is gone")

    def done(self, cell_id: str, result: Mapping[str, Any] | None) -> None:
        self.ended.append((cell_id, None if result is None else result.get("ended")))
