"""What a report reads out of a sweep's results and its verdict: arms in order, cells by outcome, cost, work in time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from sweeps.ledger.results import finite

if TYPE_CHECKING:
    from moe.config import ModelConfig
    from sweeps.ledger.results import CellResult, SweepResults
    from sweeps.verdict.rows import ArmResult, PairResult
    from sweeps.verdict.verdict import Verdict

JUDGED = ("confirm", "time", "flops")
MAX_DRAWN_PAIRS = 10
SEGMENT_GAP_S = 1.0
"""A pause longer than this between two records of a cell (beyond the work they account for) ends a stretch of work."""


def mapping(value: object) -> Mapping[str, Any]:
    """Return ``value`` if it is a mapping, else an empty one, for what ``sweep.json`` does not have."""
    return value if isinstance(value, Mapping) else {}


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Uninterrupted work on one cell, in seconds since 1970, on one lane of the timeline."""

    lane: int
    start_s: float
    end_s: float
    cell: CellResult


class Facts:
    """Everything that tables, sentences and pictures share, derived once from results and verdict.

    ``price_per_hour`` is that of a device (a GPU, or the machine without one), where the reader has given one.
    """

    def __init__(self, results: SweepResults, verdict: Verdict, price_per_hour: float | None = None) -> None:
        self.results = results
        self.price_per_hour = price_per_hour
        self.verdict = verdict
        self.beginning = mapping(results.beginning)
        self.space = results.space

    @property
    def arms(self) -> tuple[ArmResult, ...]:
        """What came out for every strategy, in the order in which it was asked for."""
        return self.verdict.strategies

    @cached_property
    def index(self) -> dict[str, int]:
        """The place of each arm in that order: it decides the arm's colour and marker everywhere.

        A control is drawn as the arm that it explains.
        """
        places = {arm.name: place for place, arm in enumerate(self.arms)}
        return places | {control.name: places[arm] for arm, control in self.results.controls.items()}

    @property
    def budget_tokens(self) -> int:
        """The budget of every explore and confirm cell."""
        return self.verdict.budget_tokens

    @cached_property
    def rungs_tokens(self) -> tuple[int, ...]:
        """Where early stopping ranks, without the full budget; none where it does not."""
        if self.results.rule("early_stopping", "kind", "none") == "none":
            return ()
        return tuple(int(tokens) for tokens in self.space.get("rungs_tokens") or ())

    @property
    def landmarks(self) -> tuple[int, ...]:
        """The rungs and the budget: where a token axis has its ticks."""
        return (*self.rungs_tokens, self.budget_tokens) if self.budget_tokens else self.rungs_tokens

    @property
    def confidence(self) -> str:
        """The level of the verdict's intervals, as ``95%``: alpha divided by the looks."""
        return f"{100 * (1 - self.verdict.looks.alpha):.4g}%"

    @property
    def over(self) -> str:
        """What the intervals of differences are over: documents of the exam too, where losses by document are known."""
        units = self.verdict.exam.units
        return f"seeds and {units} of the exam" if units else "seeds"

    @cached_property
    def outcomes(self) -> Counter[str]:
        """Number of cells by outcome, ``unfinished`` for those that have none yet."""
        return Counter(result.outcome or "unfinished" for result in self.results.cells)

    def cells(self, *phases: str, arm: str | None = None) -> list[CellResult]:
        """Return the largest budget's cells of the given phases (all when none is named), of one arm or of all."""
        return [
            result
            for result in self.results.seen
            if (not phases or result.cell.phase in phases) and (arm is None or result.cell.strategy == arm)
        ]

    def confirmed(self, arm: str) -> list[CellResult]:
        """Return an arm's confirm cells at the rate at which it is judged: after an extension there may be others."""
        choice = self.verdict.choices.get(arm)
        return [result for result in self.cells("confirm", arm=arm) if choice is None or choice.is_rate_of(result)]

    def timed(self, arm: str) -> list[CellResult]:
        """Return the cells by which an arm's speed and memory are shown: confirm cells, else all of its cells."""
        return self.cells("confirm", arm=arm) or self.cells(arm=arm)

    @cached_property
    def pairs(self) -> list[PairResult]:
        """The measured pairs of the verdict, those of the leading arm first, its closest rival before the others."""
        leading = self.verdict.leading

        def order(pair: PairResult) -> tuple[bool, float]:
            return leading not in pair, abs(pair.difference or 0.0)

        return sorted((pair for pair in self.verdict.pairs if pair.difference is not None), key=order)

    @property
    def leads(self) -> list[PairResult]:
        """The pairs of the leading arm, the closest rival's first."""
        return [pair for pair in self.pairs if self.verdict.leading in pair]

    @property
    def drawn_pairs(self) -> list[PairResult]:
        """The pairs that a picture has room for: all of a few arms, else those of the leading arm."""
        return self.pairs if len(self.pairs) <= MAX_DRAWN_PAIRS else self.leads

    @cached_property
    def model(self) -> ModelConfig | None:
        """The model's shape, None where the sweep does not say it in full."""
        from moe.config import ModelConfig

        said = {**mapping(self.space.get("model")), "vocab_size": self.beginning.get("vocab_size")}
        known = {field.name: said[field.name] for field in fields(ModelConfig) if said.get(field.name) is not None}
        try:
            return ModelConfig(**known)
        except TypeError:
            return None

    @cached_property
    def tokens_trained(self) -> int:
        """Training tokens of all cells together."""
        return sum(result.tokens_seen for result in self.results.cells)

    @cached_property
    def tokens_not_spent(self) -> int:
        """Tokens that early stopping saved."""
        stopped = [result for result in self.results.cells if result.outcome == "stopped_early"]
        return sum(max(0, result.cell.budget_tokens - result.tokens_seen) for result in stopped)

    def seconds(self, key: str) -> float:
        """Return the seconds that records count under ``key``, summed over cells."""
        return sum(result.last(key) or 0.0 for result in self.results.cells)

    @cached_property
    def stretches(self) -> tuple[Stretch, ...]:
        """Work on cells as it lay in time, each stretch on the first lane that was free, as workers take turns."""
        found = sorted(
            ((start, end, result) for result in self.results.cells for start, end in worked(result)),
            key=lambda stretch: stretch[:2],
        )
        free_at: list[float] = []
        placed = []
        for start, end, result in found:
            # Two clocks meet here (the worker's wall clock and its stopwatch), so stretches may overlap a little.
            slack = min(0.5, 0.2 * (end - start))
            lane = next((i for i, free in enumerate(free_at) if free <= start + slack), len(free_at))
            start_s = max([start, *free_at[lane : lane + 1]])
            free_at[lane : lane + 1] = [end]
            placed.append(Stretch(lane=lane, start_s=start_s, end_s=end, cell=result))
        return tuple(placed)

    @cached_property
    def wall_time_s(self) -> float | None:
        """Seconds from the first work to the last, pauses between interruptions included."""
        if not self.stretches:
            return None
        return max(item.end_s for item in self.stretches) - min(item.start_s for item in self.stretches)


def speed_of(result: CellResult) -> float | None:
    """Return a cell's tokens per second of training over all of its run: a single record's is noisy."""
    tokens, seconds = result.last("tokens_seen"), result.last("train_time_s")
    return tokens / seconds if tokens and seconds else result.last("tokens_per_s")


def mean_of(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are known; None when none is."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def curve(result: CellResult, key: str, x_key: str = "tokens_seen") -> tuple[np.ndarray, np.ndarray]:
    """Return a cell's records as two float arrays [P], x and y, without the records that lack either."""
    points = [
        (x, y)
        for record in result.records
        if (x := finite(record.get(x_key))) is not None and (y := finite(record.get(key))) is not None
    ]
    if not points:
        return np.empty(0), np.empty(0)
    x_P, y_P = np.asarray(points, dtype=np.float64).T
    return x_P, y_P


def worked(result: CellResult) -> list[tuple[float, float]]:
    """Return the stretches of wall-clock time in which a cell was worked on.

    A record says when it was made and how much training and exam time the cell had used by then; a record whose time
    of making is later than the one before by more than that work took opens a new stretch.
    """
    stretches: list[tuple[float, float]] = []
    used_before_s = 0.0
    for record in result.records:
        end_s = finite(record.get("timestamp_s"))
        if end_s is None:
            continue
        used_s = sum(finite(record.get(f"{what}_time_s")) or 0.0 for what in ("train", "counting", "exam"))
        start_s = end_s - max(0.0, used_s - used_before_s)
        used_before_s = used_s
        if stretches and start_s - stretches[-1][1] < SEGMENT_GAP_S:
            stretches[-1] = (stretches[-1][0], max(end_s, stretches[-1][1]))
        else:
            stretches.append((start_s, end_s))
    return stretches
