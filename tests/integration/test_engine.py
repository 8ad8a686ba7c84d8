"""Ray Tune as the engine, without a sweep around it: what a worker does to the next one."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest

from sweeps.engine.ray_engine import Share, local_ray, run_trials
from sweeps.engine.trainable import SegmentJob

pytestmark = [pytest.mark.slow, pytest.mark.faults]

SEGMENTS = 3
CLEAN_UP_S = 4.0  # longer than the two seconds that Ray Tune grants the thread of a trial that it has stopped


class Handing:
    """A desk that hands out segments and keeps how they ended."""

    def __init__(self) -> None:
        self.left = [f"cell-{number}" for number in range(SEGMENTS)]
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
        )

    def report(self, cell_id: str, record: Mapping[str, Any]) -> None: ...

    def done(self, cell_id: str, result: Mapping[str, Any] | None) -> None:
        self.ended.append((cell_id, None if result is None else result.get("ended")))


def test_a_trial_whose_clean_up_is_slow_costs_the_next_one_nothing_but_time(tmp_path: Path) -> None:
    folder = str(tmp_path)

    def slow_to_clean_up(config: dict[str, Any]) -> None:
        from ray import tune

        try:
            Path(folder, config["cell_id"]).touch()
            tune.report({"ended": "done"})
        finally:
            time.sleep(CLEAN_UP_S)

    desk = Handing()
    with local_ray(workers=1, threads=1, declared_gpus=None):
        run_trials(desk, Share(threads=1, gpu_fraction=0.0), slots=1, storage_uri=None, trainable=slow_to_clean_up)
    assert desk.ended == [(f"cell-{number}", "done") for number in range(SEGMENTS)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"cell-{number}" for number in range(SEGMENTS)]
