"""Replays full learning curves under a rule of early stopping: simulated workers, real rules.

A policy is asked for the next stretch of a cell and told when it ended, as the engine does with the plan; its workers
take as long as the arms do. What it spends and which rates it would choose is a ``Replay``.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal, Protocol

import numpy as np

from bench.curves import Case, Curve, by_case
from search_spaces import Cell
from sweeps.ledger.sweep_folder import PlannedCell
from sweeps.plan.queue import Plan, Progress, Segment, StoppingRule

ARM_PACE = {"large_batch": 20.0, "balanced": 24.0, "long_seq": 30.0}  # seconds per cell of laptop on one core
Stretch = tuple[int, int]
"""The index of a curve, and how far it is to be trained, in tokens."""
Waiting = Literal["wait", "finished"]


@dataclass(frozen=True, kw_only=True)
class Launch:
    """An order in which cells are planned, how many workers there are, and how long each cell takes."""

    name: str
    order: tuple[int, ...]
    workers: int
    pace: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Tokens spent, and for each arm and seed the chosen rate; ``starved`` are those of which no cell finished.

    A starved case is given the rate that got furthest. ``idle`` is the share of workers' time without work.
    """

    tokens: int
    chosen: Mapping[Case, Curve]
    finished: tuple[Curve, ...]
    starved: tuple[Case, ...]
    idle: float


class Policy(Protocol):
    """Which cell is trained next, and how far."""

    def next(self) -> Stretch | Waiting:
        """The next stretch for a free worker."""
        ...

    def ended(self, index: int, tokens: int) -> None:
        """The stretch of a curve up to ``tokens`` is over."""
        ...


class ArmFair:
    """Our own rule, by the plan that sweeps use; without rungs it is no stopping at all."""

    def __init__(self, curves: Sequence[Curve], order: Sequence[int], rule: StoppingRule) -> None:
        self._curves = curves
        self._seen: dict[int, dict[int, float]] = {index: {} for index in order}
        planned = [_planned(index, curves[index], may_stop=bool(rule.rungs_tokens)) for index in order]
        self._plan = Plan(rule, planned)

    def next(self) -> Stretch | Waiting:
        """As the plan says."""
        segment = self._plan.next()
        if not isinstance(segment, Segment):
            return segment
        self._plan.started(segment.planned.cell_id)
        return int(segment.planned.cell_id), segment.until_tokens

    def ended(self, index: int, tokens: int) -> None:
        """Tell the plan what a driver would read in the cell's folder, and write the drops that follow."""
        curve = self._curves[index]
        diverged = curve.diverged_at is not None and curve.diverged_at <= tokens
        self._seen[index] |= {} if diverged else {tokens: curve.losses[tokens]}
        completed = "completed" if tokens == max(curve.losses) else None
        self._tell(index, curve.diverged_at if diverged else tokens, "diverged" if diverged else completed)
        for dropped in self._plan.dropped():
            self._tell(int(dropped.planned.cell_id), dropped.rung_tokens, "stopped_early")

    def _tell(self, index: int, tokens: int | None, outcome: str | None) -> None:
        progress = Progress(tokens_seen=tokens or 0, exam_losses=self._seen[index], outcome=outcome)
        self._plan.ended(str(index), progress)


class Stopping:
    """Plain ASHA as Ray has it: a cell stops where it is worse than the best 1/eta of those that came before it.

    The decisions are those of ``ray.tune.schedulers.AsyncHyperBandScheduler``'s own bracket class. A cell that
    diverges ends there, which Ray's scheduler would not see to by itself.
    """

    def __init__(self, curves: Sequence[Curve], order: Sequence[int], *, grace: int, eta: float, per_arm: bool) -> None:
        from ray.tune.schedulers.async_hyperband import _Bracket

        self._curves = curves
        self._todo = [(index, _points(curves[index])[0]) for index in reversed(order)]
        self._running = 0
        budget = max(curves[0].losses)
        arms = {curve.strategy if per_arm else "all" for curve in curves}
        self._brackets: dict[str, Any] = {arm: _Bracket(grace, budget, eta, 0) for arm in sorted(arms)}

    def next(self) -> Stretch | Waiting:
        """The cell that has just gone on, or else the next of the order."""
        if not self._todo:
            return "wait" if self._running else "finished"
        self._running += 1
        return self._todo.pop()

    def ended(self, index: int, tokens: int) -> None:
        """Ask the bracket whether the cell goes on."""
        self._running -= 1
        curve = self._curves[index]
        later = [point for point in _points(curve) if point > tokens]
        if not later or not math.isfinite(curve.losses[tokens]):
            return
        bracket = self._brackets.get(curve.strategy) or self._brackets["all"]
        if bracket.on_result(SimpleNamespace(trial_id=str(index)), tokens, -curve.losses[tokens]) == "CONTINUE":
            self._todo.append((index, later[0]))


class Promotion:
    """ASHA as the paper has it: a cell is promoted when it is in the best 1/eta of those that have come so far."""

    def __init__(self, curves: Sequence[Curve], order: Sequence[int], *, rungs: Sequence[int], eta: int) -> None:
        self._curves, self._eta = curves, eta
        self._todo = list(reversed(order))
        self._climb = [*rungs, max(curves[0].losses)]
        self._at: dict[int, list[int]] = {tokens: [] for tokens in self._climb}
        self._promoted: dict[int, set[int]] = {tokens: set() for tokens in self._climb}
        self._running = 0

    def next(self) -> Stretch | Waiting:
        """A promotion from the highest rung that has one, or else a new cell at the bottom."""
        for rung, above in reversed(list(zip(self._climb, self._climb[1:], strict=False))):
            ranked = sorted(self._at[rung], key=lambda index: self._curves[index].losses[rung])
            for index in ranked[: len(ranked) // self._eta]:
                if index not in self._promoted[rung]:
                    self._promoted[rung].add(index)
                    return self._go(index, above)
        if self._todo:
            return self._go(self._todo.pop(), self._climb[0])
        return "wait" if self._running else "finished"

    def ended(self, index: int, tokens: int) -> None:
        """The cell stands at a rung, unless it diverged."""
        self._running -= 1
        if math.isfinite(self._curves[index].losses[tokens]):
            self._at[tokens].append(index)

    def _go(self, index: int, tokens: int) -> Stretch:
        self._running += 1
        return index, tokens


class Halving:
    """Synchronous successive halving of all cells at once, whatever their arm: a rung waits for everybody."""

    def __init__(self, curves: Sequence[Curve], order: Sequence[int], rungs: Sequence[tuple[int, float]]) -> None:
        self._curves = curves
        self._climb = [*rungs, (max(curves[0].losses), 0.0)]
        self._todo, self._arrived, self._running = list(reversed(order)), list[int](), 0

    def next(self) -> Stretch | Waiting:
        """The next cell of the round; the next round once all are there."""
        if not self._todo and not self._running:
            tokens, share = self._climb.pop(0)
            self._arrived.sort(key=lambda index: self._curves[index].losses[tokens])
            self._todo = self._arrived[: round(len(self._curves) * share)][::-1]
            self._arrived = []
        if self._todo:
            self._running += 1
            return self._todo.pop(), self._climb[0][0]
        return "wait" if self._running else "finished"

    def ended(self, index: int, tokens: int) -> None:
        """The cell waits for the round to end, unless it diverged."""
        self._running -= 1
        if math.isfinite(self._curves[index].losses[tokens]):
            self._arrived.append(index)


def replay(policy: Policy, curves: Sequence[Curve], launch: Launch) -> Replay:
    """Run a policy to its end with the launch's workers."""
    clock_s, busy_s, free = 0.0, 0.0, launch.workers
    at = [0] * len(curves)
    running: list[tuple[float, int, int]] = []
    budget = max(curves[0].losses)
    while True:
        while free and isinstance(stretch := policy.next(), tuple):
            index, until = stretch
            reached = min(until, curves[index].diverged_at or until)
            takes_s = launch.pace[index] * (reached - at[index]) / budget
            heapq.heappush(running, (clock_s + takes_s, index, until))
            at[index], free, busy_s = reached, free - 1, busy_s + takes_s
        if not running:
            break
        clock_s, index, until = heapq.heappop(running)
        free += 1
        policy.ended(index, until)
    return outcome(curves, at, idle=1 - busy_s / (clock_s * launch.workers))


def outcome(curves: Sequence[Curve], at: Sequence[int], *, idle: float) -> Replay:
    """What follows from how far each cell was trained, in tokens; ties go to the lower rate, as in the selection."""
    budget = max(curves[0].losses)
    reached = {id(curve): tokens for curve, tokens in zip(curves, at, strict=True)}
    chosen, starved = {}, []
    finished = [curve for curve in curves if reached[id(curve)] == budget and math.isfinite(curve.final)]
    for case, rivals in by_case(curves).items():
        done = [curve for curve in rivals if curve in finished]
        sound = [curve for curve in rivals if math.isfinite(curve.losses.get(reached[id(curve)], math.nan))] or rivals
        if not done:
            starved.append(case)
        chosen[case] = min(
            done or sound, key=lambda curve: (-reached[id(curve)], curve.losses[reached[id(curve)]], curve.lr)
        )
    return Replay(tokens=sum(at), chosen=chosen, finished=tuple(finished), starved=tuple(starved), idle=idle)


def launches(curves: Sequence[Curve], rng: np.random.Generator, *, random: int = 50) -> Iterator[Launch]:
    """Worst final loss first, best first, and random orders and speeds; each with one and with two workers."""
    best_first = sorted(range(len(curves)), key=lambda index: curves[index].final)
    pace = np.array([ARM_PACE.get(curve.strategy, 24.0) for curve in curves])
    named = [("worst first", best_first[::-1], pace), ("best first", best_first, pace)]
    for number in range(random):
        order = [int(index) for index in rng.permutation(len(curves))]
        named.append((f"random {number}", order, pace * rng.lognormal(0, 0.2, len(curves))))
    for name, order, paces in named:
        for workers in (1, 2):
            yield Launch(name=name, order=tuple(order), workers=workers, pace=tuple(float(each) for each in paces))


def _points(curve: Curve) -> list[int]:
    return sorted(curve.losses)


def _planned(index: int, curve: Curve, *, may_stop: bool) -> PlannedCell:
    cell = Cell(
        cell_id=str(index),
        phase="explore",
        strategy=curve.strategy,
        lr=curve.lr,
        adamw_lr=None,
        arrangement="shuffled",
        seed=curve.seed,
        budget_tokens=max(curve.losses),
    )
    return PlannedCell(cell=cell, reason="grid", may_stop_early=may_stop)
