"""One arm as ``verdict.json`` shows it: the seeds that are judged, with what they cost."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from sweeps.ledger.results import Arm, CellResult, finite
from sweeps.verdict.best_rate import Choice
from sweeps.verdict.confirmed import Confirmed, Looks, test_loss
from sweeps.verdict.rows import ArmResult
from sweeps.verdict.statistics import mean_interval


def strategy_row(arm: Arm, chosen: Mapping[str, Choice], confirmed: Confirmed, looks: Looks) -> ArmResult:
    """One arm with the seeds that are judged; seeds decided on before, or without a loss, are named in the caveats."""
    cells = confirmed.cells[arm.name]
    judged = [cells[seed] for seed in confirmed.judged_seeds(arm.name, looks.seen_seeds)]
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
        excluded=arm.name in confirmed.excluded,
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
