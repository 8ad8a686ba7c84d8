"""The same arms at other points of the budget, in equal time and in equal updates: shown, labelled, seldom judged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sweeps.ledger.results import CellResult, SweepResults, finite
from sweeps.verdict.confirmed import FEWEST_SEEDS, Confirmed, test_loss
from sweeps.verdict.evidence import Evidence, winner
from sweeps.verdict.leads import evidence_of, pair_differences
from sweeps.verdict.rows import BudgetViews, FlopsView, RungView, TimeView, TokensToTarget, TokensView, UpdatesView
from sweeps.verdict.speeds import Speeds, measured_speeds
from sweeps.verdict.token_costs import costlier_arms, flops_of_tokens
from sweeps.verdict.trend_rows import TokenShare, Trend


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
                means=_means(confirmed.arms, Evidence(losses_SA=table)),
                pairs=pair_differences(confirmed.arms, Evidence(losses_SA=table), alpha),
            )
        )
    return tuple(entries)


def schedule_label(results: SweepResults, tokens: float, *arms: str) -> str:
    """Return whether losses at so many tokens are ``undecayed``, ``decaying`` (of any arm) or ``decayed``."""
    budget = results.budget_tokens
    if tokens >= budget:
        return "decayed"
    shares = [float(results.rule_of(arm, "schedule", "decay_share", 0.2)) for arm in arms or results.arm_names]
    return "undecayed" if tokens <= budget * (1 - max(shares)) else "decaying"


def by_budget(
    results: SweepResults,
    confirmed: Confirmed,
    seeds: tuple[int, ...],
    alpha: float,
    trend: Trend,
    *,
    is_judged: bool,
) -> BudgetViews:
    """Return the arms at equal tokens, FLOPs, time and updates; None for a view that was not measured.

    No view names a winner where the verdict may not (``is_judged``).
    """
    own = confirmed.losses(seeds)
    tokens = None
    if own is not None:
        evidence = evidence_of(results, confirmed.cells_on(seeds), own)
        tokens = TokensView(
            budget_tokens=results.budget_tokens,
            to_target=_to_target(trend, confirmed, results.budget_tokens, confirmed.arms[int(evidence.best)]),
            **_view(confirmed.arms, evidence, alpha, is_judged=is_judged),
        )
    return BudgetViews(
        tokens=tokens,
        flops=_equal_flops(results, confirmed, alpha, is_judged=is_judged),
        time=_equal_time(results, confirmed, alpha, is_judged=is_judged),
        updates=_equal_updates(results, confirmed, seeds, alpha),
    )


def _to_target(
    trend: Trend, confirmed: Confirmed, budget_tokens: int, lowest: str
) -> tuple[TokensToTarget, ...] | None:
    """Per rival what the leading arm needs to reach the rival's loss, from decayed cells only."""
    found = [pair.leads[-1].tokens for rival in confirmed.arms if (pair := trend.of(lowest, rival)) is not None]
    if not found:
        return None
    speeds = measured_speeds({arm: confirmed.cells[arm].values() for arm in confirmed.arms})
    return tuple(_target_row(budget_tokens, shares, speeds) for shares in found)


def _target_row(budget_tokens: int, shares: TokenShare, speeds: Speeds | None) -> TokensToTarget:
    slower = device_hours = None
    if speeds is not None and speeds.concurrent_trials is not None:
        slower = speeds.tokens_per_s[shares.rival] / speeds.tokens_per_s[shares.leader]
        device_hours = budget_tokens / speeds.tokens_per_s[shares.rival] / speeds.concurrent_trials / 3600
    times = [
        None if slower is None or each is None else slower * each for each in (shares.share, shares.low, shares.high)
    ]
    return TokensToTarget(
        a=shares.leader,
        b=shares.rival,
        share=shares.share,
        ci_low=shares.low,
        ci_high=shares.high,
        is_upper_bound=shares.is_upper_bound,
        time_share=times[0],
        time_ci_low=times[1],
        time_ci_high=times[2],
        device_hours=device_hours,
    )


def _equal_flops(results: SweepResults, confirmed: Confirmed, alpha: float, *, is_judged: bool) -> FlopsView | None:
    """The view at equal FLOPs: an arm whose tokens cost as little as any's has its full budget there.

    None where a costlier arm has no cells there: one that an extension added is in no budget that was made.
    """
    costs = costlier_arms(flops_of_tokens(results))
    found = _own_budgets(results, confirmed, "flops", [arm for arm in confirmed.arms if arm in costs])
    return None if found is None else FlopsView(**found.fields, **_view(*found.seen, alpha, is_judged=is_judged))


def _equal_time(results: SweepResults, confirmed: Confirmed, alpha: float, *, is_judged: bool) -> TimeView | None:
    """The view at equal time: the fastest arm has no cells of its own there, its full budget is its own.

    None where more arms have none: one that an extension added is in no budget that was measured. It is comparable when
    the arms' speeds, of which the budgets were made, were measured under one load.
    """
    slower = [arm for arm in confirmed.arms if results.of("time", arm)]
    found = _own_budgets(results, confirmed, "time", slower) if len(slower) >= len(confirmed.arms) - 1 else None
    if found is None:
        return None
    measured = measured_speeds({arm: _measured_first(results, arm) for arm in confirmed.arms})
    comparable = measured is not None and measured.concurrent_trials is not None
    view = _view(*found.seen, alpha, is_judged=is_judged and comparable)
    return TimeView(comparable=comparable, **found.fields, **view)


@dataclass(frozen=True, kw_only=True)
class _OwnBudgets:
    """The cells of a view in which arms have budgets of their own: fields of the view, and what is seen of the arms."""

    fields: Mapping[str, Any]
    seen: tuple[tuple[str, ...], Evidence | None]


def _own_budgets(results: SweepResults, confirmed: Confirmed, phase: str, planned: Sequence[str]) -> _OwnBudgets | None:
    """Cells of the planned arms at the rates at which they are judged, beside the others' confirm cells."""
    own = {
        arm: {r.cell.seed: r for r in results.of(phase, arm) if confirmed.at_judged_rate(r)}  # extend may change it
        for arm in planned
    }
    if not own or not all(own.values()):
        return None
    cells: dict[str, Mapping[int, CellResult]] = {arm: own.get(arm, confirmed.cells[arm]) for arm in confirmed.arms}
    shared = [s for s in confirmed.planned_seeds if all(test_loss(cells[arm].get(s)) is not None for arm in cells)]
    budgets = {arm: next(iter(found.values())).cell.budget_tokens for arm, found in cells.items() if found}
    table = np.asarray([[test_loss(cells[arm][seed]) for arm in confirmed.arms] for seed in shared], dtype=np.float64)
    on_seeds = {arm: [cells[arm][seed] for seed in shared] for arm in confirmed.arms}
    evidence = evidence_of(results, on_seeds, table) if shared else None
    return _OwnBudgets(
        fields={"budgets_tokens": budgets, "seeds": tuple(shared)},
        seen=(confirmed.arms, evidence),
    )


def _measured_first(results: SweepResults, arm: str) -> list[CellResult]:
    """The confirm cells of which the budgets of the time view were made: those that ended before its cells began."""
    starts = [finite(r.records[0].get("timestamp_s")) for r in results.cells if r.cell.phase == "time" and r.records]
    began_s = min((start for start in starts if start is not None), default=math.inf)
    return [r for r in results.of("confirm", arm) if (r.last("timestamp_s") or 0.0) <= began_s]


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
    labels = {arm: schedule_label(results, updates * (per_step[arm] or 0), arm) for arm in confirmed.arms}
    view = _view(confirmed.arms, Evidence(losses_SA=table), alpha, is_judged=False)
    return UpdatesView(updates=updates, metric="val_loss", labels=labels, **view)


def _view(arms: tuple[str, ...], evidence: Evidence | None, alpha: float, *, is_judged: bool) -> dict[str, Any]:
    """The fields that every view has; no winner unless the view is judged, nothing at all without a seed."""
    if evidence is None:
        return {"means": {}, "lowest": None, "winner": None, "pairs": ()}
    assert evidence.losses_SA is not None, "views at other budgets are paired by seed"
    enough = is_judged and len(evidence.losses_SA) >= FEWEST_SEEDS and len(arms) > 1
    best = int(winner(evidence, alpha)) if enough else -1
    return {
        "means": _means(arms, evidence),
        "lowest": arms[int(evidence.best)],
        "winner": arms[best] if best >= 0 else None,
        "pairs": pair_differences(arms, evidence, alpha),
    }


def _means(arms: tuple[str, ...], evidence: Evidence) -> dict[str, float]:
    return dict(zip(arms, map(float, evidence.means_A), strict=True))


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
