"""The verdict: from a sweep's results to one of five outcomes, with its numbers, its sentence and its caveats.

``exploratory`` (too few confirm seeds) outranks ``withheld`` (edge, diverged confirm seeds, unfinished sweep), which
outranks ``wins``, ``tie`` and ``undecided``. Pure functions of what the ledger holds: deciding again gives the same.
"""

# S seeds, A arms

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from sweeps.ledger.results import Arm, CellResult, SweepResults, finite
from sweeps.verdict.blockers import Objection, command_for, objections
from sweeps.verdict.budgets import by_budget, by_rung
from sweeps.verdict.checks import Check, Findings, checks
from sweeps.verdict.confirmed import DECIDED, FEWEST_SEEDS, Confirmed, Looks, count_looks, gather, test_loss
from sweeps.verdict.leads import context_identity, context_used, controls, document_intervals, view_leader
from sweeps.verdict.margin import Margin, margin_of
from sweeps.verdict.optimum import Optimum, locate, outlasts_a_better_rate
from sweeps.verdict.rows import (
    NOT_JUDGED,
    ArmResult,
    BudgetViews,
    ContextSplit,
    ControlSplit,
    PairResult,
    RungView,
    as_json,
)
from sweeps.verdict.selection import Choice, choices
from sweeps.verdict.statement import Case, Lead, compose, headline
from sweeps.verdict.statistics import (
    Floats,
    SeedsNeeded,
    holm,
    mean_interval,
    paired_t,
    probability_better,
    seeds_needed,
    tie_p,
    tied,
    winner,
)

SCHEMA = 1
METRIC = "test_loss"
DRAW_SEED = 20_260_712


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A decided sweep. ``as_dict`` is ``verdict.json``; the rest is for those who draw and explain it.

    ``choices`` and ``optima`` are by arm, ``document_intervals`` by pair; ``leading`` is the winner, or else the arm of
    lowest mean; ``headline`` is the outcome in a few words.
    """

    sweep: str
    outcome: str
    winner: str | None
    headline: str
    statement: str
    alpha: float
    margin: Margin | None
    budget_tokens: int
    strategies: tuple[ArmResult, ...]
    pairs: tuple[PairResult, ...]
    seeds_needed: int | None
    looks: Looks
    context: tuple[ContextSplit, ...] | None
    controls: tuple[ControlSplit, ...] | None
    by_rung: tuple[RungView, ...]
    by_budget: BudgetViews
    checks: tuple[Check, ...]
    objections: tuple[Objection, ...] = ()
    command: str | None = None
    leading: str | None = None
    choices: Mapping[str, Choice] = field(default_factory=dict)
    optima: Mapping[str, Optimum] = field(default_factory=dict)
    document_intervals: Mapping[tuple[str, str], tuple[float, float]] = field(default_factory=dict)
    other_views: Mapping[str, tuple[str, bool]] = field(default_factory=dict)

    @property
    def is_decided(self) -> bool:
        """Whether the arms were judged: neither exploratory nor withheld."""
        return self.outcome in DECIDED

    @property
    def caveats(self) -> tuple[str, ...]:
        """What a reader must know beside the statement: the sentences of the checks that were not kept."""
        return tuple(check.sentence for check in self.checks if not check.kept)

    def as_dict(self) -> dict[str, Any]:
        """The contract's JSON document; numbers that do not exist are None."""
        return {
            "schema": SCHEMA,
            "sweep": self.sweep,
            "outcome": self.outcome,
            "winner": self.winner,
            "statement": self.statement,
            "metric": METRIC,
            "alpha": self.alpha,
            "margin": self.margin.value if self.margin else None,
            "budget_tokens": self.budget_tokens,
            "strategies": as_json(self.strategies),
            "pairs": as_json(self.pairs),
            "seeds_needed": self.seeds_needed,
            "looks": {"planned": self.looks.planned, "used": self.looks.used - (self.outcome not in DECIDED)},
            "context": as_json(self.context),
            "controls": as_json(self.controls),
            "by_rung": as_json(self.by_rung),
            "by_budget": as_json(self.by_budget),
            "caveats": list(self.caveats),
        }


def decide(results: SweepResults) -> Verdict:
    """Return the verdict of a sweep by the rules of docs/method.md; never raises for a sweep that is incomplete."""
    alpha = float(results.rule("verdict", "alpha", 0.05))
    chosen = choices(results)
    confirmed = gather(results, chosen)
    looks = count_looks(results, confirmed, alpha, int(results.rule("verdict", "looks", 1)))
    seeds = tuple(seed for seed in confirmed.complete_seeds if seed not in looks.seen_seeds)
    losses = confirmed.losses(seeds)
    margin = margin_of(results)
    against = objections(results, chosen, confirmed, looks)
    outcome, best = _outcome(against, losses, confirmed.arms, margin, looks)
    optima = _optima(chosen, confirmed)
    documents = document_intervals(confirmed, seeds, looks.alpha)
    pairs = _pairs(confirmed.arms, losses, looks.alpha, outcome, best)
    needed = _needed(outcome, losses, margin, looks)
    views = _other_views(results, confirmed, seeds, looks.alpha, best)
    command = command_for(against, results) or _command(results, needed, looks, len(confirmed.planned_seeds))
    case = Case(
        results=results,
        outcome=outcome,
        best=best,
        leads=_leads(confirmed, losses, looks.alpha, optima, documents),
        n_seeds=len(seeds),
        looks=looks,
        margin=margin,
        objections=against,
        command=command,
        seeds_needed=needed,
        tie_p=_tie_p(losses, margin, looks) if outcome == "tie" else None,
        other_views=views,
    )
    budgets = by_budget(results, confirmed, seeds, looks.alpha, is_judged=outcome in DECIDED)
    rungs = by_rung(results, confirmed, seeds, looks.alpha)
    split = controls(results, confirmed, seeds, looks.alpha)
    context = context_identity(confirmed, seeds, looks.alpha)
    found = Findings(
        results=results,
        outcome=outcome,
        chosen=chosen,
        confirmed=confirmed,
        looks=looks,
        margin=margin,
        n_seeds=len(seeds),
        pairs=pairs,
        context=context,
        context_used=context_used(results, confirmed, seeds, looks.alpha),
        controls=split,
        by_budget=budgets,
        winner=best if outcome == "wins" else None,
        leading=best,
    )
    return Verdict(
        sweep=results.name,
        outcome=outcome,
        winner=found.winner,
        headline=headline(case),
        statement=compose(case),
        alpha=alpha,
        margin=margin,
        budget_tokens=results.budget_tokens,
        strategies=tuple(_strategy_row(arm, chosen, confirmed, looks) for arm in results.arms),
        pairs=pairs,
        seeds_needed=needed.seeds if needed else _fewest(against),
        looks=looks,
        context=context,
        controls=split,
        by_rung=rungs,
        by_budget=budgets,
        checks=checks(found),
        objections=against,
        command=command,
        leading=best,
        choices=chosen,
        optima=optima,
        document_intervals=documents,
        other_views=views,
    )


def _outcome(
    against: tuple[Objection, ...], losses: Floats | None, arms: tuple[str, ...], margin: Margin | None, looks: Looks
) -> tuple[str, str | None]:
    """The outcome and the arm of lowest mean; the winner is that arm, for no other can win."""
    best = None if losses is None else arms[int(losses.mean(axis=0).argmin())]
    if against:
        return against[0].outcome, best
    assert losses is not None, "a sweep without objections has complete seeds"
    if winner(losses, looks.alpha) >= 0:
        return "wins", best
    if margin is not None and bool(tied(losses, margin.value, looks.alpha)):
        return "tie", best
    return "undecided", best


def _tie_p(losses: Floats | None, margin: Margin | None, looks: Looks) -> float:
    assert losses is not None and margin is not None, "a tie has losses and a margin"
    return float(tie_p(losses, margin.value, looks.alpha))


def _pairs(
    arms: tuple[str, ...], losses: Floats | None, alpha: float, outcome: str, best: str | None
) -> tuple[PairResult, ...]:
    """Every pair of arms. A pair of the winner is decided by the win's own test, all others after Holm's adjustment."""
    names = list(combinations(arms, 2))
    if losses is None or len(losses) < 2:
        means = dict(zip(arms, losses[0], strict=True)) if losses is not None else {}
        return tuple(_pair(a, b, difference=float(means[a] - means[b]) if means else None) for a, b in names)
    column = {arm: losses[:, place] for place, arm in enumerate(arms)}
    tests = [paired_t(column[a] - column[b], alpha) for a, b in names]
    adjusted = holm(np.asarray([float(test.p_value) for test in tests]))
    rows = []
    for (a, b), test, p_adjusted in zip(names, tests, adjusted, strict=True):
        is_of_winner = outcome == "wins" and best in (a, b)
        p_value = float(test.p_value) if is_of_winner else float(p_adjusted)
        better = a if test.mean < 0 else b
        decision = f"{better} is better" if p_value <= alpha else "undecided"
        if outcome == "tie" and p_value > alpha and {a, b} == _best_two(arms, losses):
            decision = "tie"
        rows.append(
            _pair(
                a,
                b,
                difference=float(test.mean),
                ci_low=float(test.low),
                ci_high=float(test.high),
                p_value=float(test.p_value),
                p_adjusted=float(p_adjusted),
                probability_a_better=probability_better(column[a] - column[b]),
                decision=decision if outcome in DECIDED else NOT_JUDGED,
            )
        )
    return tuple(rows)


def _pair(a: str, b: str, **values: Any) -> PairResult:
    keys = ("difference", "ci_low", "ci_high", "p_value", "p_adjusted", "probability_a_better")
    return PairResult(**{"a": a, "b": b, **dict.fromkeys(keys), "decision": NOT_JUDGED, **values})


def _best_two(arms: tuple[str, ...], losses: Floats) -> set[str]:
    return {arms[int(place)] for place in losses.mean(axis=0).argsort()[:2]}


def _leads(
    confirmed: Confirmed,
    losses: Floats | None,
    alpha: float,
    optima: Mapping[str, Optimum],
    documents: Mapping[tuple[str, str], tuple[float, float]],
) -> tuple[Lead, ...]:
    """The best arm's leads over all others, the closest rival first."""
    if losses is None:
        return ()
    best = int(losses.mean(axis=0).argmin())
    found: list[Lead] = []
    for place, rival in enumerate(confirmed.arms):
        if place == best:
            continue
        lead_S = losses[:, place] - losses[:, best]
        test = paired_t(lead_S, alpha) if len(lead_S) > 1 else None
        exam = documents.get((confirmed.arms[min(best, place)], confirmed.arms[max(best, place)]))
        optimum = optima.get(rival)
        sure = (
            test is not None
            and optimum is not None
            and outlasts_a_better_rate(optimum, lead_S, alpha, np.random.default_rng(DRAW_SEED))
        )
        found.append(
            Lead(
                rival=rival,
                lead=float(lead_S.mean()),
                low=float(test.low) if test else None,
                high=float(test.high) if test else None,
                p_value=float(test.p_value) if test else None,
                at_chosen_rates=not sure,
                gain_bound=optimum.gain_bound if optimum else None,
                this_exam=exam is not None and exam[0] <= 0 <= exam[1],
            )
        )
    return tuple(sorted(found, key=lambda lead: lead.lead))


def _optima(chosen: Mapping[str, Choice], confirmed: Confirmed) -> dict[str, Optimum]:
    """Each arm's optimum, its noise taken from the spread of the arm's confirm seeds: other seeds than were fitted."""
    found: dict[str, Optimum] = {}
    for arm, choice in chosen.items():
        cells = [result for result in confirmed.cells[arm].values() if result.reached_budget]
        values = [loss for r in cells if (loss := finite(r.val_loss)) is not None]
        values = (
            values if len(values) == len(cells) else [loss for r in cells if (loss := finite(r.test_loss)) is not None]
        )
        if len(values) < 2:
            continue
        noise_sd = float(np.std(values, ddof=1))
        optimum = locate(choice.curve, noise_sd, len(values) - 1, np.random.default_rng(DRAW_SEED))
        if optimum is not None:
            found[arm] = optimum
    return found


def _needed(outcome: str, losses: Floats | None, margin: Margin | None, looks: Looks) -> SeedsNeeded | None:
    if outcome != "undecided" or losses is None:
        return None
    next_alpha = looks.alpha if looks.used < looks.planned else looks.alpha / 2
    return seeds_needed(losses, margin.value if margin else None, next_alpha)


def _fewest(against: tuple[Objection, ...]) -> int | None:
    """The seeds that an exploratory verdict is short of, None where seeds are not what is missing."""
    return FEWEST_SEEDS if against and against[0].outcome == "exploratory" and against[0].extend else None


def _command(results: SweepResults, needed: SeedsNeeded | None, looks: Looks, n_seeds: int) -> str | None:
    """The command that would settle an undecided verdict; a look that was not planned needs its seeds on top."""
    if needed is None or results.folder is None:
        return None
    total = max(needed.seeds, n_seeds + 1) if looks.used < looks.planned else n_seeds + needed.seeds
    return f"sweeps extend {results.name} --seeds {total}"


def _other_views(
    results: SweepResults, confirmed: Confirmed, seeds: tuple[int, ...], alpha: float, best: str | None
) -> dict[str, tuple[str, bool]]:
    """Views of the exam that name another arm than own context does."""
    lengths = [arm.seq_len for arm in results.arms if arm.seq_len]
    name = f"on the common context of {min(lengths)} tokens" if lengths else "on the common context"
    found = view_leader(confirmed, seeds, "common_context_loss", alpha)
    return {name: found} if found is not None and best is not None and found[0] != best else {}


def _strategy_row(arm: Arm, chosen: Mapping[str, Choice], confirmed: Confirmed, looks: Looks) -> ArmResult:
    """One arm with the seeds that are judged; seeds decided on before, or without a loss, are named in the caveats."""
    cells = confirmed.cells[arm.name]
    own = [s for s in confirmed.fresh(arm.name) if s not in looks.seen_seeds and test_loss(cells[s]) is not None]
    judged = [cells[seed] for seed in sorted(own)]
    losses = [loss for result in judged if (loss := test_loss(result)) is not None]
    mean, low, high = mean_interval(np.asarray(losses), looks.alpha) if losses else (math.nan,) * 3
    choice = chosen.get(arm.name)
    return ArmResult(
        arm=arm,
        best_lr=confirmed.rates[arm.name][0],
        best_lr_at_edge=choice.at_edge if choice else None,
        seeds=tuple(result.cell.seed for result in judged),
        losses=tuple(losses),
        mean=finite(mean),
        ci_low=finite(low),
        ci_high=finite(high),
        bpb=_mean([result.score("bpb") for result in judged]),
        common_context_loss=_mean([result.score("common_context_loss") for result in judged]),
        tokens_per_s=_mean([_speed(result) for result in judged]),
        peak_mem_allocated_gib=max(_known([r.last("peak_mem_allocated_gib") for r in judged]), default=None),
        diverged=sum(result.outcome == "diverged" for result in cells.values()),
    )


def _speed(result: CellResult) -> float | None:
    """Tokens per second of training over the whole cell, exams apart."""
    seconds = result.last("train_time_s")
    return result.tokens_seen / seconds if seconds else result.last("tokens_per_s")


def _known(values: list[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: list[float | None]) -> float | None:
    known = _known(values)
    return float(np.mean(known)) if known else None
