"""The same arms at other points of the budget, in equal time and in equal updates: shown, labelled, seldom judged."""

# S seeds, A arms

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np

from sweeps.ledger.results import CellResult, SweepResults, finite
from sweeps.verdict.confirmed import Confirmed, test_loss
from sweeps.verdict.leads import estimate
from sweeps.verdict.rows import BudgetViews, PairDifference, RungView, TimeView, TokensToTarget, TokensView, UpdatesView
from sweeps.verdict.speeds import measured_speeds
from sweeps.verdict.statistics import Floats, winner


def by_rung(results: SweepResults, confirmed: Confirmed, seeds: tuple[int, ...], alpha: float) -> tuple[RungView, ...]:
    """Return the paired differences of validation loss wherever all arms were evaluated, labelled by the schedule.

    A loss on the plateau is ``undecayed``, one in the decay ``decaying``: neither supports a claim (rule 3 of the
    method). ``decayed`` is the full budget.
    """
    curves = {(arm, seed): _val_losses(confirmed.cells[arm][seed]) for arm in confirmed.arms for seed in seeds}
    if not curves:
        return ()
    entries: list[RungView] = []
    for tokens in sorted(set.intersection(*(set(curve) for curve in curves.values()))):
        table = np.asarray([[curves[arm, seed][tokens] for arm in confirmed.arms] for seed in seeds])
        entries.append(
            RungView(
                tokens=tokens,
                metric="val_loss",
                label=schedule_label(results, tokens),
                means=_means(confirmed.arms, table),
                pairs=_pairs(confirmed.arms, table, alpha),
            )
        )
    return tuple(entries)


def schedule_label(results: SweepResults, tokens: float) -> str:
    """Return whether a loss at so many tokens is ``undecayed``, ``decaying`` or ``decayed``."""
    budget = results.budget_tokens
    if tokens >= budget:
        return "decayed"
    decay_from = budget * (1 - float(results.rule("schedule", "decay_share", 0.2)))
    return "undecayed" if tokens <= decay_from else "decaying"


def by_budget(
    results: SweepResults, confirmed: Confirmed, seeds: tuple[int, ...], alpha: float, *, is_judged: bool
) -> BudgetViews:
    """Return the arms at equal tokens, in equal time and at equal updates; None for a view that was not measured.

    No view names a winner where the verdict may not (``is_judged``).
    """
    own = confirmed.losses(seeds)
    tokens = None
    if own is not None:
        tokens = TokensView(
            budget_tokens=results.budget_tokens,
            to_target=tokens_to_target(results, confirmed, seeds),
            **_view(confirmed.arms, own, alpha, is_judged=is_judged),
        )
    return BudgetViews(
        tokens=tokens,
        time=_equal_time(results, confirmed, alpha, is_judged=is_judged),
        updates=_equal_updates(results, confirmed, seeds, alpha),
    )


def tokens_to_target(
    results: SweepResults, confirmed: Confirmed, seeds: tuple[int, ...]
) -> tuple[TokensToTarget, ...] | None:
    """Return per rival the share of its tokens at which the leading arm reaches the rival's loss, else None.

    Decayed runs only: the leader's time cells, whose schedules ended at a smaller budget, give a second point of its
    curve, and loss is taken as linear in the logarithm of tokens between the two. Below the smaller budget the share
    is an upper bound.
    """
    own = confirmed.losses(seeds)
    if own is None:
        return None
    means = dict(zip(confirmed.arms, own.mean(axis=0), strict=True))
    leader = min(means, key=lambda arm: means[arm])
    shorter = [r for r in _timed(results, confirmed, leader) if r.cell.budget_tokens < results.budget_tokens]
    losses = [loss for r in shorter if (loss := test_loss(r)) is not None]
    if not losses:
        return None
    small, full = shorter[0].cell.budget_tokens, results.budget_tokens
    loss_small = sum(losses) / len(losses)
    entries = []
    for rival in confirmed.arms:
        if rival == leader:
            continue
        bounded = means[rival] >= loss_small
        slope = (loss_small - means[leader]) / math.log(full / small)
        reached = small if bounded or slope <= 0 else full * math.exp(-(means[rival] - means[leader]) / slope)
        entries.append(TokensToTarget(a=leader, b=rival, share=float(reached / full), is_upper_bound=bool(bounded)))
    return tuple(entries)


def _equal_time(results: SweepResults, confirmed: Confirmed, alpha: float, *, is_judged: bool) -> TimeView | None:
    """The time view: the fastest arm has no time cells, its full budget is its own.

    None where more arms have none: one that an extension added is in no budget that was measured. It is comparable when
    the arms' speeds, of which the budgets were made, were measured under one load.
    """
    planned = [arm for arm in confirmed.arms if results.of("time", arm)]
    timed = {arm: {r.cell.seed: r for r in _timed(results, confirmed, arm)} for arm in planned}
    if not timed or not all(timed.values()) or len(timed) < len(confirmed.arms) - 1:
        return None
    cells: Mapping[str, Mapping[int, CellResult]] = {**confirmed.cells, **timed}
    shared = [s for s in confirmed.planned_seeds if all(test_loss(cells[arm].get(s)) is not None for arm in cells)]
    budgets = {arm: next(iter(found.values())).cell.budget_tokens for arm, found in cells.items() if found}
    measured = measured_speeds({arm: _measured_first(results, arm) for arm in confirmed.arms})
    comparable = measured is not None and measured.concurrent_trials is not None
    table = np.asarray([[test_loss(cells[arm][seed]) for arm in confirmed.arms] for seed in shared], dtype=np.float64)
    view = _view(confirmed.arms, table, alpha, is_judged=is_judged and comparable)
    return TimeView(budgets_tokens=budgets, seeds=tuple(shared), comparable=comparable, **view)


def _measured_first(results: SweepResults, arm: str) -> list[CellResult]:
    """The confirm cells of which the budgets of the time view were made: those that ended before its cells began."""
    starts = [finite(r.records[0].get("timestamp_s")) for r in results.cells if r.cell.phase == "time" and r.records]
    began_s = min((start for start in starts if start is not None), default=math.inf)
    return [r for r in results.of("confirm", arm) if (r.last("timestamp_s") or 0.0) <= began_s]


def _timed(results: SweepResults, confirmed: Confirmed, arm: str) -> list[CellResult]:
    """An arm's time cells at the rate at which it is judged: after an extension that may be another one."""
    return [result for result in results.of("time", arm) if confirmed.at_judged_rate(result)]


def _equal_updates(
    results: SweepResults, confirmed: Confirmed, seeds: tuple[int, ...], alpha: float
) -> UpdatesView | None:
    """Validation losses after equally many optimizer steps: None where arms have equal tokens per step anyway.

    Losses are read off each seed's curve, linear in the logarithm of tokens between exams; but for the arm of
    fewest updates they are undecayed, so no arm is named.
    """
    per_step = {arm.name: arm.tokens_per_step for arm in results.arms}
    known = [value for value in per_step.values() if value]
    if len(known) < len(per_step) or len(set(known)) < 2 or not seeds:
        return None
    updates = results.budget_tokens // max(known)
    rows = []
    for seed in seeds:
        row = [_at_tokens(confirmed.cells[arm][seed], updates * (per_step[arm] or 0)) for arm in confirmed.arms]
        if any(value is None for value in row):
            return None
        rows.append(row)
    table = np.asarray(rows, dtype=np.float64)
    labels = {arm: schedule_label(results, updates * (per_step[arm] or 0)) for arm in confirmed.arms}
    view = _view(confirmed.arms, table, alpha, is_judged=False)
    return UpdatesView(updates=updates, metric="val_loss", labels=labels, **view)


def _view(arms: tuple[str, ...], table: Floats, alpha: float, *, is_judged: bool) -> dict[str, Any]:
    """The fields that every view has; no winner unless the view is judged, nothing at all without a seed."""
    if not len(table):
        return {"means": {}, "lowest": None, "winner": None, "pairs": ()}
    best = int(winner(table, alpha)) if is_judged and len(table) >= 3 and len(arms) > 1 else -1
    return {
        "means": _means(arms, table),
        "lowest": arms[int(table.mean(axis=0).argmin())],
        "winner": arms[best] if best >= 0 else None,
        "pairs": _pairs(arms, table, alpha),
    }


def _means(arms: tuple[str, ...], table: Floats) -> dict[str, float]:
    return {arm: float(mean) for arm, mean in zip(arms, table.mean(axis=0), strict=True)}


def _pairs(arms: tuple[str, ...], table: Floats, alpha: float) -> tuple[PairDifference, ...]:
    entries: list[PairDifference] = []
    for a, b in combinations(range(len(arms)), 2):
        found = estimate(table[:, a] - table[:, b], alpha)
        entries.append(
            PairDifference(a=arms[a], b=arms[b], difference=found.mean, ci_low=found.low, ci_high=found.high)
        )
    return tuple(entries)


def _val_losses(result: CellResult) -> dict[int, float]:
    curve = {
        int(record["tokens_seen"]): loss
        for record in result.records
        if (loss := finite(record.get("val_loss"))) is not None
    }
    if result.reached_budget and (loss := finite(result.val_loss)) is not None:
        curve[result.tokens_seen] = loss
    return curve


def _at_tokens(result: CellResult, tokens: int) -> float | None:
    curve = sorted(_val_losses(result).items())
    if not curve or not curve[0][0] <= tokens <= curve[-1][0]:
        return None
    seen, losses = zip(*curve, strict=True)
    return float(np.interp(math.log(tokens), np.log(seen), losses))
