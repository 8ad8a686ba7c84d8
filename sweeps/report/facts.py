"""What a report reads out of a sweep's results and its verdict: arms in order, curves, cost, the work of workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from sweeps.ledger.results import finite

if TYPE_CHECKING:
    from moe.config import ModelConfig
    from sweeps.ledger.results import CellResult, SweepResults
    from sweeps.verdict.decision import Verdict
    from sweeps.verdict.optimum import Optimum

JUDGED = ("confirm", "control", "time")
MAX_DRAWN_PAIRS = 10
SEGMENT_GAP_S = 1.0
"""A pause longer than this between two records of a cell (beyond the work they account for) ends a stretch of work."""


def mapping(value: object) -> Mapping[str, Any]:
    """Return ``value`` if it is a mapping, else an empty one: a part of the ledger that a sweep does not have."""
    return value if isinstance(value, Mapping) else {}


def rows(value: object) -> list[Mapping[str, Any]]:
    """Return the mappings in a list, and nothing for a part that is null or absent."""
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, list | tuple) else []


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One strategy as the report shows it; ``index`` decides its colour and its marker everywhere."""

    name: str
    index: int
    shape: Mapping[str, Any]
    row: Mapping[str, Any]

    @property
    def tokens_per_step(self) -> int | None:
        """Target tokens of one optimizer step."""
        found = finite(self.shape.get("tokens_per_step") or self.row.get("tokens_per_step"))
        return None if found is None else round(found)

    @property
    def shape_text(self) -> str:
        """``32 × 64``, with the number of micro-batches when a step has several."""
        batch, length = self.shape.get("micro_batch_size"), self.shape.get("seq_len")
        if batch is None or length is None:
            return ""
        accumulation = self.shape.get("grad_accum_steps") or 1
        return f"{batch} × {length}" + (f" × {accumulation}" if accumulation != 1 else "")


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Uninterrupted work on one cell, in seconds since 1970, on one lane of the timeline."""

    lane: int
    start_s: float
    end_s: float
    cell: CellResult


class Facts:
    """Everything that tables, sentences and pictures share, derived once from results and verdict."""

    def __init__(self, results: SweepResults, verdict: Mapping[str, Any]) -> None:
        self.results = results
        self.verdict = verdict
        self.beginning = mapping(results.beginning)
        self.space = mapping(self.beginning.get("space"))

    @cached_property
    def arms(self) -> tuple[Arm, ...]:
        """Every strategy of the sweep, in the order in which it was asked for."""
        shapes = {str(row.get("name")): row for row in rows(self.beginning.get("strategies"))}
        judged = {str(row.get("name")): row for row in rows(self.verdict.get("strategies"))}
        names = dict.fromkeys([*shapes, *judged, *(result.cell.strategy for result in self.results.cells)])
        return tuple(
            Arm(name=name, index=i, shape=shapes.get(name) or judged.get(name) or {}, row=judged.get(name, {}))
            for i, name in enumerate(names)
        )

    @cached_property
    def arm_by_name(self) -> dict[str, Arm]:
        """Arms by their name."""
        return {arm.name: arm for arm in self.arms}

    @cached_property
    def budget_tokens(self) -> int | None:
        """The budget of every explore and confirm cell."""
        found = finite(self.verdict.get("budget_tokens")) or finite(self.space.get("budget_tokens"))
        if found is None:
            found = max((result.cell.budget_tokens for result in self.results.cells), default=None)
        return None if found is None else round(found)

    @cached_property
    def rungs_tokens(self) -> tuple[int, ...]:
        """Where early stopping ranks, without the full budget; none where it does not."""
        if mapping(self.space.get("early_stopping")).get("kind") in (None, "none"):
            return ()
        values = (finite(value) for value in self.space.get("rungs_tokens") or ())
        return tuple(round(value) for value in values if value is not None)

    @property
    def landmarks(self) -> tuple[int, ...]:
        """The rungs and the budget: where a token axis has its ticks."""
        return (*self.rungs_tokens, self.budget_tokens) if self.budget_tokens else self.rungs_tokens

    @cached_property
    def decided(self) -> Verdict:
        """The verdict decided again, for what ``verdict.json`` has no key for: optima, resampling, the next command."""
        from sweeps.verdict.decision import decide

        return decide(self.results)

    @property
    def optima(self) -> Mapping[str, Optimum]:
        """Where each arm's best rate lies by a quadratic fit, for the arms that have enough rates."""
        return self.decided.optima

    @cached_property
    def confidence(self) -> str:
        """The level of the verdict's intervals, as ``95%``: alpha divided by the looks."""
        return f"{100 * (1 - self.decided.looks.alpha):.4g}%"

    @cached_property
    def outcomes(self) -> Counter[str]:
        """Number of cells by outcome, ``unfinished`` for those that have none yet."""
        return Counter(result.outcome or "unfinished" for result in self.results.cells)

    def cells(self, *phases: str, arm: str | None = None) -> list[CellResult]:
        """Return the cells of the given phases (all when none is named), of one arm or of all."""
        return [
            result
            for result in self.results.cells
            if (not phases or result.cell.phase in phases) and (arm is None or result.cell.strategy == arm)
        ]

    def confirmed(self, arm: str) -> list[CellResult]:
        """Return an arm's confirm cells at the rate at which it is judged: after an extension there may be others."""
        choice = self.decided.choices.get(arm)
        return [result for result in self.cells("confirm", arm=arm) if choice is None or choice.is_rate_of(result)]

    @cached_property
    def winner(self) -> str | None:
        """The arm that wins, if one does."""
        found = self.verdict.get("winner")
        return found if isinstance(found, str) else None

    @cached_property
    def leading(self) -> str | None:
        """The winner, else the arm of lowest mean over the seeds that all arms finished, as the statement has it."""
        return self.winner or self.decided.leading

    @cached_property
    def pairs(self) -> list[Mapping[str, Any]]:
        """The paired differences of the verdict, those of the leading arm first."""
        found = rows(self.verdict.get("pairs"))
        return sorted(found, key=lambda pair: self.leading not in (pair.get("a"), pair.get("b")))

    @cached_property
    def drawn_pairs(self) -> list[Mapping[str, Any]]:
        """The pairs that a picture has room for: all of a few arms, else those of the leading arm."""
        if len(self.pairs) <= MAX_DRAWN_PAIRS:
            return self.pairs
        return [pair for pair in self.pairs if self.leading in (pair.get("a"), pair.get("b"))]

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
        return sum(
            max(0, result.cell.budget_tokens - result.tokens_seen)
            for result in self.results.cells
            if result.outcome == "stopped_early"
        )

    @cached_property
    def train_time_s(self) -> float:
        """Seconds of training, summed over cells."""
        return sum(result.last("train_time_s") or 0.0 for result in self.results.cells)

    @cached_property
    def exam_time_s(self) -> float:
        """Seconds spent on exams, summed over cells."""
        return sum(result.last("exam_time_s") or 0.0 for result in self.results.cells)

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
            # Two clocks meet here (the worker's wall clock and its stopwatch), so neighbours may overlap a little.
            slack = min(0.5, 0.2 * (end - start))
            lane = next((i for i, free in enumerate(free_at) if free <= start + slack), len(free_at))
            begun = max([start, *free_at[lane : lane + 1]])
            free_at[lane : lane + 1] = [end]
            placed.append(Stretch(lane=lane, start_s=begun, end_s=end, cell=result))
        return tuple(placed)

    @cached_property
    def wall_time_s(self) -> float | None:
        """Seconds from the first work to the last, pauses between interruptions included."""
        if not self.stretches:
            return None
        return max(item.end_s for item in self.stretches) - min(item.start_s for item in self.stretches)


def mean_value(results: Sequence[CellResult], key: str) -> float | None:
    """Return the mean over cells of the newest number for ``key``; None when no cell has one."""
    return mean_of(result.last(key) for result in results)


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
