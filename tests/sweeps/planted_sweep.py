"""Sweeps with planted losses for the tests of the verdict: every number is chosen, none was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from search_spaces import Cell
from sweeps.ledger.results import CellResult, SweepResults

BUDGET = 1_000
SHAPES = {"large_batch": (32, 64), "balanced": (8, 256), "long_seq": (2, 1024)}
CURVES: dict[str, dict[float, float]] = {
    "large_batch": {0.005: 4.9, 0.01: 4.5, 0.02: 4.4, 0.04: 4.9},
    "balanced": {0.005: 5.1, 0.01: 4.7, 0.02: 4.6, 0.04: 5.1},
    "long_seq": {0.005: 5.3, 0.01: 4.9, 0.02: 4.8, 0.04: 5.3},
}
"""Explore losses by rate: a bowl with its best at 0.02, the arms 0.2 apart."""
CLEAR_WIN = {
    "large_batch": (4.400, 4.410, 4.390, 4.405, 4.395),
    "balanced": (4.602, 4.608, 4.594, 4.603, 4.593),
    "long_seq": (4.801, 4.812, 4.788, 4.806, 4.793),
}


def cell(
    strategy: str,
    lr: float,
    seed: int,
    phase: str = "explore",
    *,
    outcome: str | None = "completed",
    loss: float | None = None,
    arrangement: str = "shuffled",
    budget: int = BUDGET,
    **facts: Any,
) -> CellResult:
    """One cell; ``loss`` is its validation loss, and its test loss too where the phase has one."""
    ended = outcome == "completed"
    return CellResult(
        cell=Cell(
            cell_id=f"{phase}-{strategy}-{arrangement}-{lr:g}-{seed}" + (f"-{budget}" if budget != BUDGET else ""),
            phase=phase,  # type: ignore[arg-type]
            strategy=strategy,
            lr=lr,
            adamw_lr=0.3 * lr,
            arrangement=arrangement,  # type: ignore[arg-type]
            seed=seed,
            budget_tokens=budget,
        ),
        outcome=outcome,
        tokens_seen=facts.pop("tokens_seen", budget if ended else 250),
        val_loss=facts.pop("val_loss", loss),
        test_loss=facts.pop("test_loss", loss if ended and phase != "explore" else None),
        **facts,
    )


def explore(curves: Mapping[str, Mapping[float, float]] | None = None, seed: int = 1) -> list[CellResult]:
    """Finished explore cells of every arm at every rate."""
    return [cell(arm, lr, seed, loss=loss) for arm, curve in (curves or CURVES).items() for lr, loss in curve.items()]


def confirm(losses: Mapping[str, Sequence[float]] | None = None, lr: float = 0.02, **facts: Any) -> list[CellResult]:
    """Finished confirm cells of every arm on seeds 101 and up."""
    return [
        cell(arm, lr, 101 + place, "confirm", loss=loss, **facts)
        for arm, values in (losses or CLEAR_WIN).items()
        for place, loss in enumerate(values)
    ]


def control(losses: Sequence[float], curve: Mapping[float, float], lr: float = 0.02) -> list[CellResult]:
    """Finished cells of the large batch's control: its search, and confirm cells at ``lr``."""
    name = "large_batch_grouped"
    search = [cell(name, rate, 1, loss=loss, arrangement="grouped") for rate, loss in curve.items()]
    judged = [cell(name, lr, 101 + i, "confirm", loss=loss, arrangement="grouped") for i, loss in enumerate(losses)]
    return [*search, *judged]


def ladder(leads: Mapping[int, Mapping[str, Sequence[float]]], **space: Any) -> SweepResults:
    """A sweep with confirm losses by budget and arm; at each budget explore finds them at its best rate, 0.02."""
    cells = [
        cell(arm, lr, 1, loss=loss - CURVES[arm][0.02] + sum(losses) / len(losses), budget=budget)
        for budget, by_arm in leads.items()
        for arm, losses in by_arm.items()
        for lr, loss in CURVES[arm].items()
    ]
    cells += [found for budget, losses in leads.items() for found in confirm(losses, budget=budget)]
    return sweep(cells, budget_tokens=max(leads), budgets_tokens=sorted(leads), **space)


def sweep(cells: Sequence[CellResult], *, verdicts: Sequence[Mapping[str, Any]] = (), **space: Any) -> SweepResults:
    """A sweep of three arms with equal tokens per step; ``space`` overrides sections of the space."""
    resolved: dict[str, Any] = {
        "budget_tokens": BUDGET,
        "rungs_tokens": [250, 500],
        "rates": {"lr": [0.005, 0.01, 0.02, 0.04], "adamw_ratio": 0.3},
        "seeds": {"explore": 1, "confirm": 5},
        "search": {"kind": "grid"},
        "schedule": {"warmup_share": 0.05, "decay_share": 0.2},
        "corpus": {"kind": "embedded"},
        "verdict": {"alpha": 0.05, "margin": 0.03, "looks": 1},
        **space,
    }
    strategies = [
        {"name": name, "micro_batch_size": rows, "seq_len": length, "grad_accum_steps": 1, "tokens_per_step": 2_048}
        for name, (rows, length) in SHAPES.items()
    ]
    if any(found.cell.strategy == "large_batch_grouped" for found in cells):
        of_control = {"name": "large_batch_grouped", "windows": "grouped", "role": "control"}
        strategies.append({**strategies[0], **of_control})
    return SweepResults(
        name="planted",
        beginning={"schema": 1, "sweep": "planted", "space": resolved, "strategies": strategies},
        cells=tuple(cells),
        earlier_verdicts=tuple(verdicts),
        folder="file:///planted",
    )
