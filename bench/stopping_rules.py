"""The rules of early stopping that are replayed: ours, the known ones, and candidates, over rungs and keep counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import combinations

from bench import scoring
from bench.curves import Curve
from bench.replay import ArmFair, Halving, Launch, Promotion, Replay, Stopping, replay
from search_spaces import EarlyStopping, load_space
from sweeps.plan.queue import StoppingRule

RUNGS = (Fraction(1, 8), Fraction(1, 4), Fraction(1, 2), Fraction(3, 4))

Run = Callable[[Sequence[Curve], Launch], Replay]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A rule with its rungs and what it keeps. One that is not ``ordered`` depends on losses alone by construction."""

    kind: str
    rungs: tuple[Fraction, ...]
    keep: tuple[float, ...]
    run: Run
    constant: str = ""
    ordered: bool = True

    @property
    def name(self) -> str:
        """The kind with its constant."""
        return f"{self.kind} {self.constant}".strip()

    @property
    def is_laptops(self) -> bool:
        """Whether rungs and counts are those of the preset ``laptop``."""
        return (self.rungs, self.keep) == _laptops_schedule()


@cache
def _laptops_schedule() -> tuple[tuple[Fraction, ...], tuple[float, ...]]:
    space = load_space(preset="laptop")
    n_rates = len(space.rates.lr)
    return (
        tuple(Fraction(tokens, space.budget_tokens) for tokens in space.rungs_tokens),
        space.early_stopping.keep_counts(n_rates),
    )


def schedules(n_rates: int) -> Iterator[tuple[tuple[Fraction, ...], tuple[int, ...]]]:
    """One or two rungs with every strictly decreasing pair of counts."""
    for n_rungs in (1, 2):
        for rungs in combinations(RUNGS, n_rungs):
            for counts in combinations(range(n_rates - 1, 0, -1), n_rungs):
                yield rungs, counts


def rules(budget: int, n_rates: int) -> Iterator[Rule]:
    """Every rule that is tried."""
    yield Rule(kind="none", rungs=(), keep=(), run=_arm_fair((), (), budget))
    for rungs, counts in schedules(n_rates):
        at = _tokens(rungs, budget)
        yield Rule(kind="arm-fair ASHA (ours)", rungs=rungs, keep=counts, run=_arm_fair(at, counts, budget))
        pooled = _halving(at, counts, n_rates)
        yield Rule(kind="successive halving, arms pooled", rungs=rungs, keep=counts, run=pooled)
        for (kind, constant), score in scoring.SCORES.items():
            run = _scored(score, tuple(zip(at, counts, strict=True)))
            yield Rule(kind=kind, constant=constant, rungs=rungs, keep=counts, run=run, ordered=False)
    for rungs in dict.fromkeys(rungs for rungs, _ in schedules(n_rates)):
        for gap in scoring.GAPS_NATS:
            run = _gap(gap, _tokens(rungs, budget))
            yield Rule(kind="within a gap of the best", constant=f"{gap:g} nats", rungs=rungs, keep=(), run=run,
                       ordered=False)  # fmt: skip
    yield from _plain_asha(budget)


def _plain_asha(budget: int) -> Iterator[Rule]:
    """Grace period and eta as in Ray (whose defaults are an eta of 4 and all trials in one bracket)."""
    for eta in (2, 4):
        for grace in RUNGS[:3]:
            rungs = tuple(grace * eta**power for power in range(4) if grace * eta**power < 1)
            at, keep = _tokens(rungs, budget), (1 / eta,) * len(rungs)
            for per_arm in (False, True):
                kind = f"stopping ASHA (Ray), {'an arm each' if per_arm else 'arms pooled'}"
                yield Rule(kind=kind, rungs=rungs, keep=keep, run=_stopping(at[0], eta, per_arm))
            yield Rule(kind="promotion ASHA (paper), arms pooled", rungs=rungs, keep=keep, run=_promotion(at, eta))


def _tokens(rungs: Sequence[Fraction], budget: int) -> tuple[int, ...]:
    return tuple(int(rung * budget) for rung in rungs)


def _arm_fair(at: Sequence[int], counts: tuple[int, ...], budget: int) -> Run:
    keep = EarlyStopping(kind="asha", keep=counts) if counts else EarlyStopping(kind="none")
    rule = StoppingRule(rungs_tokens={budget: tuple(at)}, keep=keep)
    return lambda curves, launch: replay(ArmFair(curves, launch.order, rule), curves, launch)


def _halving(at: Sequence[int], counts: Sequence[int], n_rates: int) -> Run:
    rungs = [(tokens, count / n_rates) for tokens, count in zip(at, counts, strict=True)]
    return lambda curves, launch: replay(Halving(curves, launch.order, rungs), curves, launch)


def _stopping(grace: int, eta: int, per_arm: bool) -> Run:
    return lambda curves, launch: replay(
        Stopping(curves, launch.order, grace=grace, eta=eta, per_arm=per_arm), curves, launch
    )


def _promotion(at: Sequence[int], eta: int) -> Run:
    return lambda curves, launch: replay(Promotion(curves, launch.order, rungs=at, eta=eta), curves, launch)


def _scored(score: scoring.Score, rungs: Sequence[tuple[int, int]]) -> Run:
    return lambda curves, _: scoring.by_score(curves, score, rungs)


def _gap(gap_nats: float, at: Sequence[int]) -> Run:
    return lambda curves, _: scoring.by_gap(curves, gap_nats, at)
