"""The margin below which a difference is not worth a claim: the loss that 5% more tokens would buy.

It is computed from explore records alone, so that it stands before the first confirm cell is trained.
"""

# P points of one cell's curve

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sweeps.ledger.results import CellResult, SweepResults, finite
from sweeps.verdict.selection import choices

MORE_TOKENS = 1.05
DATA_EXPONENT = 0.095
"""Kaplan et al. 2020 (arXiv 2001.08361), equation 1.2: loss falls as tokens to the power -0.095."""
FEWEST_TRAIN_POINTS = 4


@dataclass(frozen=True, kw_only=True)
class Margin:
    """The equivalence margin in nats per token, and where it comes from in words that follow "the margin is"."""

    value: float
    source: str


def margin_of(results: SweepResults) -> Margin | None:
    """Return the margin in force: the space's own number, else the one fixed before confirm, else the default."""
    declared = finite(results.rule("verdict", "margin", None))
    if declared is not None:
        return Margin(value=declared, source="stated in the space")
    found = estimate(results)
    if results.fixed_margin is not None:
        source = found.source if found and math.isclose(found.value, results.fixed_margin, rel_tol=1e-9) else None
        return Margin(
            value=results.fixed_margin, source=source or "as it was written down before the confirm cells ran"
        )
    return found


def default_margin(results: SweepResults) -> float | None:
    """Return the loss that 5% more tokens would buy in nats per token, by ``estimate``."""
    found = estimate(results)
    return found.value if found else None


def estimate(results: SweepResults) -> Margin | None:
    """Return the loss that 5% more tokens would buy, estimated from explore records; None without any loss.

    The slope of loss in the logarithm of tokens, at each arm's chosen rate, is measured on the plateau of the schedule
    twice where the records allow: on validation losses between the last two undecayed exams, and on training losses
    over the plateau's second half. The smaller one is used, for curves flatten and a wide margin makes ties easy; the
    mean over arms and seeds, times ln 1.05, is the margin. Records without curves fall back on the exponent of Kaplan
    et al. 2020 applied to the lowest validation loss.
    """
    chosen = choices(results)
    slopes: list[float] = []
    for arm, choice in chosen.items():
        cells = [r for r in results.of("explore", arm) if r.reached_budget and choice.is_rate_of(r)]
        slopes += [slope for result in cells if (slope := _slope(results, result)) is not None]
    if slopes:
        value = sum(slopes) / len(slopes) * math.log(MORE_TOKENS)
        source = (
            "the loss that 5% more tokens would buy, by the slope of the loss on the plateau of "
            f"{len(slopes)} explore cell{'s' if len(slopes) > 1 else ''}"
        )
        return Margin(value=value, source=source)
    phase, losses = "explore", [choice.val_loss for choice in chosen.values()]
    if not losses:
        judged = [r for r in results.cells if r.reached_budget]
        losses = [
            loss
            for r in judged
            if (loss := finite(r.val_loss)) is not None or (loss := finite(r.test_loss)) is not None
        ]
        phase = "recorded"
    if not losses:
        return None
    value = min(losses) * (1 - MORE_TOKENS**-DATA_EXPONENT)
    source = (
        "the loss that 5% more tokens would buy if loss fell as tokens to the power "
        f"−{DATA_EXPONENT} (Kaplan et al. 2020), from the lowest {phase} loss, for the records hold no curves"
    )
    return Margin(value=value, source=source)


def _slope(results: SweepResults, result: CellResult) -> float | None:
    """Nats per token that one more e-fold of tokens buys on the plateau, or None."""
    budget = result.cell.budget_tokens
    decay_from = budget * (1 - results.rule("schedule", "decay_share", 0.2))
    warm_until = budget * results.rule("schedule", "warmup_share", 0.05)
    plateau = [r for r in result.records if warm_until < float(r.get("tokens_seen") or 0) <= decay_from * (1 + 1e-9)]
    exams = _points(plateau, "val_loss")[-2:]
    trained = [point for point in _points(plateau, "train_loss") if point[0] >= decay_from / 2]
    measured = [_fit(exams)] if len(exams) == 2 else []
    if len(trained) >= FEWEST_TRAIN_POINTS:
        measured.append(_fit(trained))
    return min((slope for slope in measured if slope > 0), default=None)


def _points(records: Sequence[Mapping[str, Any]], metric: str) -> list[tuple[float, float]]:
    found = {}
    for record in records:
        value = finite(record.get(metric))
        if value is not None:
            found[float(record["tokens_seen"])] = value
    return sorted(found.items())


def _fit(points: list[tuple[float, float]]) -> float:
    tokens_P, losses_P = np.asarray(points).T
    return -float(np.polyfit(np.log(tokens_P), losses_P, 1)[0])
