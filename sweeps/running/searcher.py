"""A Ray Tune ``Searcher`` that hands out the driver's segments as trials and reports to the driver how they ended.

A scheduler beside it ends workers that hang. Ray Tune takes these objects for algorithms, pickles and saves them; none
of that is needed, because the ledger is the sweep. It is a separate module because importing it imports Ray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ray
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

if TYPE_CHECKING:
    from sweeps.running.ray_tune import SegmentSource


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
    """Lets trials run as they come, and kills workers that hang: their trials then end as those of dead ones do."""

    def __init__(self, source: SegmentSource) -> None:
        super().__init__()
        self._source = source

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Ray Tune asks this in every step, at least some times a second."""
        actors = {
            trial.config["cell_id"]: trial.temporary_state.ray_actor
            for trial in tune_controller.get_live_trials()
            if not trial.is_finished() and trial.temporary_state.ray_actor is not None
        }
        for cell_id in self._source.hung(actors.keys()):
            ray.kill(actors[cell_id])
        return super().choose_trial_to_run(tune_controller)
