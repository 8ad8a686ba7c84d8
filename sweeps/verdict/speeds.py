"""How fast arms train, by records that were made under the same load: no other seconds compare."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

from sweeps.ledger.results import CellResult, finite

ENOUGH_RECORDS = 3
"""Per arm under one load: of fewer, the median is that of a first step or of an end that others have left."""


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """Tokens per second of training of each arm, exams left out.

    ``concurrent_trials`` is how many trials shared a device whenever it was measured; None where the arms have no load
    in common, so that their speeds do not compare.
    """

    tokens_per_s: Mapping[str, float]
    concurrent_trials: int | None


def measured_speeds(cells_of_arms: Mapping[str, Iterable[CellResult]]) -> Speeds | None:
    """Medians over the records of cells that reached their budget, at the load under which every arm has most records.

    Without such a load, medians over cells under whatever load; None where an arm has no speed at all.
    """
    ended = {arm: [result for result in cells if result.reached_budget] for arm, cells in cells_of_arms.items()}
    by_load = {arm: _by_load(cells) for arm, cells in ended.items()}
    loads = set.intersection(*(set(found) for found in by_load.values())) if by_load else set()
    counts = {load: min(len(found[load]) for found in by_load.values()) for load in loads}
    if counts and max(counts.values()) >= ENOUGH_RECORDS:
        load = min(counts, key=lambda load: (-counts[load], load))
        return Speeds(tokens_per_s={arm: median(by_load[arm][load]) for arm in by_load}, concurrent_trials=load)
    speeds = {arm: found for arm, cells in ended.items() if (found := _whole(cells)) is not None}
    return Speeds(tokens_per_s=speeds, concurrent_trials=None) if len(speeds) == len(ended) > 0 else None


def _by_load(cells: Iterable[CellResult]) -> dict[int, list[float]]:
    """Tokens per second of every record, by how many trials were counted when it was made."""
    found: dict[int, list[float]] = defaultdict(list)
    for result in cells:
        for record in result.records:
            load, speed = finite(record.get("concurrent_trials")), finite(record.get("tokens_per_s"))
            if load and speed:
                found[int(load)].append(speed)
    return found


def _whole(cells: Iterable[CellResult]) -> float | None:
    """Median over cells of all their tokens in all their seconds."""
    times = [(result.tokens_seen, result.last("train_time_s")) for result in cells]
    speeds = [tokens / seconds for tokens, seconds in times if seconds]
    return median(speeds) if speeds else None
