"""A Ray Tune ``Searcher`` that hands out the driver's segments as trials and reports to the driver how they ended.

A scheduler beside it ends workers that hang, and trials that no node may run. Ray Tune takes both for algorithms,
pickles and saves them; none of that is needed, because the ledger is the sweep. It is a separate module because
importing it imports Ray.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from sweeps.cluster.connection import live_nodes
from sweeps.cluster.machines import GROWTH_VARIABLE
from sweeps.packing.shares import Share

if TYPE_CHECKING:
    from sweeps.running.ray_tune import SegmentSource

_LOOK_EVERY_S: Final = 1.0


class _Unsaved:
    """What Ray Tune copies and pickles without need."""

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __deepcopy__(self, _memo: object) -> Any:
        return self


class SegmentSearcher(_Unsaved, Searcher):  # type: ignore[misc]
    """Hands out segments and reports how they ended."""

    def __init__(self, source: SegmentSource) -> None:
        super().__init__()
        self._source = source
        self._cells: dict[str, str] = {}

    def set_search_properties(self, *_args: object, **_spec: object) -> bool:
        """Accept whatever Ray Tune sets: nothing is searched here."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next segment as a trial's config; None to be asked again, FINISHED to end."""
        job = self._source.take()
        if job == "finished":
            return str(Searcher.FINISHED)
        if job == "wait":
            return None
        self._cells[trial_id] = job.cell_id
        return vars(job)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass on a report of a running segment."""
        if result.get("ended") is None:
            self._source.report(self._cells[trial_id], result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Pass on the end of a segment; a trial that Ray calls an error lost its worker."""
        self._source.done(self._cells.pop(trial_id), None if error else result)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""


class SegmentScheduler(_Unsaved, FIFOScheduler):  # type: ignore[misc]
    """Lets trials run as they come, and ends those whose workers hang, and those that no node is left for."""

    def __init__(self, source: SegmentSource, share: Share) -> None:
        super().__init__()
        self._source = source
        self._share = share
        self._looked_s = 0.0

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Ray Tune asks this in every step, at least some times a second."""
        now_s = time.monotonic()
        if now_s - self._looked_s > _LOOK_EVERY_S:
            self._looked_s = now_s
            self._look(tune_controller)
        return super().choose_trial_to_run(tune_controller)

    def _look(self, tune_controller: Any) -> None:
        live = [trial for trial in tune_controller.get_live_trials() if not trial.is_finished()]
        actors = {trial.config["cell_id"]: trial.temporary_state.ray_actor for trial in live}
        at_work = {cell_id: actor for cell_id, actor in actors.items() if actor is not None}
        for cell_id in self._source.hung(at_work.keys()):
            ray.kill(at_work[cell_id])  # its trial ends as that of a dead worker does
        for trial in live:
            if trial.config["cell_id"] not in at_work and trial.config["avoid"] and not self._has_place(trial):
                self._source.nowhere()
                tune_controller.stop_trial(trial)

    def _has_place(self, trial: Any) -> bool:
        """Whether a node is up, or may still come up, that the trial may run on."""
        needed = placement(self._share, ()).required_resources
        return bool(os.environ.get(GROWTH_VARIABLE)) or any(
            all(node["Resources"].get(name, 0) >= amount for name, amount in needed.items())
            for node in live_nodes()
            if node["NodeManagerAddress"] not in trial.config["avoid"]
        )


def placement(share: Share, avoid: Collection[str]) -> tune.PlacementGroupFactory:
    """What a trial asks of Ray: its share of a machine, on no node with an address that is to be avoided.

    An actor is only reused for an equal demand, so none of an avoided node is.
    """
    nodes = [node["NodeID"] for node in live_nodes() if node["NodeManagerAddress"] in avoid] if avoid else []
    return _demand(share, tuple(nodes))


@cache  # Ray looks demands up in every step, and compares those that are not one object field by field
def _demand(share: Share, avoided: tuple[str, ...]) -> tune.PlacementGroupFactory:
    bundle = {"CPU": share.threads, "GPU": share.gpu_fraction}
    if not avoided:
        return tune.PlacementGroupFactory([bundle])
    elsewhere = {"ray.io/node-id": f"!in({','.join(avoided)})"}
    return tune.PlacementGroupFactory([bundle], bundle_label_selector=[elsewhere])
