"""Ray as the engine: segments run as trials of Ray Tune, and nothing that must survive is kept in Ray.

A Ray Tune ``Searcher`` asks the driver for the next segment whenever a worker is free; the trainable runs it and
returns. The scheduler ends only trials whose workers hang, workers are reused, and Ray's own state is disposable.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, Protocol

from sweeps.packing.shares import Share
from sweeps.trial.trainable import SegmentJob, run_segment

Trainable = Callable[[dict[str, Any]], None]


class SegmentSource(Protocol):
    """What decides which segment runs next: the driver."""

    def take(self) -> SegmentJob | Literal["wait", "finished"]:
        """The next segment for a free worker."""
        ...

    def report(self, cell_id: str, record: Mapping[str, Any]) -> None:
        """A running segment reported."""
        ...

    def hung(self, at_work: Collection[str]) -> Collection[str]:
        """Those of the cells that workers have now whose worker is to be ended; asked again and again."""
        ...

    def nowhere(self) -> None:
        """No node is left for a segment that waits for one; it is ended."""
        ...

    def done(self, cell_id: str, result: Mapping[str, Any] | None) -> None:
        """A segment ended; None where its worker died."""
        ...


class Engine(Protocol):
    """What runs segments: ``run_trials``, or another one in tests."""

    def __call__(
        self, source: SegmentSource, share: Share, *, slots: int, storage_uri: str | None, trainable: Trainable
    ) -> None:
        """Run the segments of ``source``, so many at once, until it says that it is finished."""
        ...


@contextmanager
def _results_left_alone() -> Iterator[None]:
    """Pass what Ray raises where it makes a result of a trial that never had a folder: its node was lost before.

    All trials have ended by then, and their results are in the ledger.
    """
    try:
        yield
    except RuntimeError as error:
        if "trial_dir_name" not in str(error):
            raise


def run_trials(
    source: SegmentSource, share: Share, *, slots: int, storage_uri: str | None, trainable: Trainable = run_segment
) -> None:
    """Let Ray Tune run the segments of ``source``, ``slots`` at once, until there are no more.

    ``storage_uri`` is where Ray may leave its own state; None for a temporary folder of this machine.
    """
    from ray import tune
    from ray.tune import FailureConfig, RunConfig, TuneConfig, Tuner

    from sweeps.running.searcher import SegmentScheduler, SegmentSearcher, placement

    folder = storage_uri or tempfile.mkdtemp(prefix="moe-sweeps-ray-")
    try:
        tuner = Tuner(
            tune.with_resources(trainable, lambda config: placement(share, config["avoid"])),
            tune_config=TuneConfig(
                search_alg=SegmentSearcher(source),
                scheduler=SegmentScheduler(source, share),
                num_samples=-1,
                max_concurrent_trials=slots,
                reuse_actors=True,
            ),
            run_config=RunConfig(
                name="segments",
                storage_path=folder,
                verbose=0,
                callbacks=[],
                failure_config=FailureConfig(max_failures=0),
            ),
        )
        with _results_left_alone():
            tuner.fit()
    finally:
        if storage_uri is None:
            shutil.rmtree(folder, ignore_errors=True)
