"""Rare failures: a run far above the median of its own arm says that the arm's mean hides more than its spread shows.

Skewed or spiking losses make false wins exactly where no spike was drawn among the seeds of one look. The explore cell
at the chosen rate and earlier confirm seeds are further draws, and they are looked at before a win is stated.
"""

# C cells of an arm

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from sweeps.ledger.results import CellResult, SweepResults, finite
from sweeps.verdict.best_rate import Choice
from sweeps.verdict.confirmed import Confirmed
from sweeps.verdict.statistics import Flags, Floats

SPIKE_SDS = 5.0
"""Rivals' pooled standard deviations above the median from which one run withholds its arm's win."""


@dataclass(frozen=True, kw_only=True)
class Spike:
    """A full-budget run of the arm that would win, ``sds`` of its rivals' standard deviations above its median."""

    arm: str
    phase: str
    seed: int
    sds: float


def spike_sds(own_C: Floats, rivals: Sequence[Floats]) -> Floats:
    """Return how far each of an arm's losses [..., C] lies above their median, in pooled sds of its rivals [..., C].

    Zero where the rivals have no spread to measure by.
    """
    df = sum(rival_C.shape[-1] - 1 for rival_C in rivals)
    above_C = own_C - np.median(own_C, axis=-1, keepdims=True)
    if df == 0:
        return np.zeros_like(above_C)
    squares = sum(((rival_C - rival_C.mean(axis=-1, keepdims=True)) ** 2).sum(axis=-1) for rival_C in rivals)
    sd = np.sqrt(np.asarray(squares) / df)[..., None]
    return np.where(sd > 0, above_C / np.where(sd > 0, sd, 1.0), 0.0)


def has_spike(own_C: Floats, rivals: Sequence[Floats]) -> Flags:
    """Return whether any of an arm's losses is a spike, over leading axes."""
    return np.asarray((spike_sds(own_C, rivals) > SPIKE_SDS).any(axis=-1))


def spike_of(results: SweepResults, confirmed: Confirmed, choice: Choice | None, arm: str) -> Spike | None:
    """Return the highest spike among an arm's full-budget cells at its chosen rate, explore and confirm.

    Confirm cells are compared on test loss, all cells on validation loss.
    """
    explored = [r for r in results.of("explore", arm) if choice is not None and choice.is_rate_of(r)]
    found: list[Spike] = []
    for metric, cells in (("test_loss", []), ("val_loss", explored)):
        own = _known([*cells, *confirmed.cells[arm].values()], metric)
        rivals = [_known(confirmed.cells[other].values(), metric) for other in confirmed.arms if other != arm]
        if len(own) < 3:
            continue
        values = np.asarray([loss for _, loss in own])
        sds = spike_sds(values, [np.asarray([loss for _, loss in rival]) for rival in rivals if len(rival) > 1])
        place = int(sds.argmax())
        if sds[place] > SPIKE_SDS:
            cell = own[place][0].cell
            found.append(Spike(arm=arm, phase=cell.phase, seed=cell.seed, sds=float(sds[place])))
    return max(found, key=lambda spike: spike.sds, default=None)


def _known(cells: Iterable[CellResult], metric: str) -> list[tuple[CellResult, float]]:

    return [
        (result, loss)
        for result in cells
        if result.reached_budget and (loss := finite(getattr(result, metric))) is not None
    ]
