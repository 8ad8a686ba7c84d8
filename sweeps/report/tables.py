"""The tables of a report as rows of text: arms, pairs, cells, loss by evaluation length, provenance."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sweeps import formatting as written
from sweeps.ledger.results import finite
from sweeps.report.facts import Arm, Facts, mapping, mean_of, mean_value, rows, speed_of
from sweeps.report.why import Table


@dataclass(frozen=True, kw_only=True)
class ArmRow:
    """One arm of the table under the statement."""

    arm: Arm
    rate: str
    at_edge: bool
    mean: str
    interval: str
    seeds: str
    bpb: str
    common: str
    speed: str
    memory: str
    leads: bool


def arm_rows(facts: Facts) -> list[ArmRow]:
    """Return the arms, those of lowest mean test loss first, arms without a mean last."""
    ordered = sorted(facts.arms, key=lambda arm: finite(arm.row.get("mean")) or float("inf"))
    return [_arm_row(facts, arm) for arm in ordered]


def _arm_row(facts: Facts, arm: Arm) -> ArmRow:
    row, confirm = arm.row, facts.cells("confirm", arm=arm.name)
    speed = finite(row.get("tokens_per_s")) or mean_of(map(speed_of, confirm))
    memory = finite(row.get("peak_mem_allocated_gib")) or mean_value(confirm, "peak_mem_allocated_gib")
    diverged = round(finite(row.get("diverged")) or 0)
    losses = [value for value in row.get("losses") or () if finite(value) is not None]
    return ArmRow(
        arm=arm,
        rate=written.rate(finite(row.get("best_lr"))),
        at_edge=bool(row.get("best_lr_at_edge")),
        mean=written.loss(finite(row.get("mean"))),
        interval=written.interval(finite(row.get("ci_low")), finite(row.get("ci_high"))),
        seeds=f"{len(losses)}" + (f" ({diverged} diverged)" if diverged else ""),
        bpb=written.loss(finite(row.get("bpb"))),
        common=written.loss(finite(row.get("common_context_loss"))),
        speed=written.count(speed),
        memory=written.gib(memory),
        leads=arm.name == facts.leading,
    )


@dataclass(frozen=True, kw_only=True)
class PairRow:
    """One paired difference."""

    name: str
    difference: str
    interval: str
    p: str
    p_adjusted: str
    chance: str
    decision: str


def pair_rows(facts: Facts) -> list[PairRow]:
    """Return the paired differences that are known, a minus b, the leading arm's first."""
    return [
        PairRow(
            name=f"{pair.get('a')} − {pair.get('b')}",
            difference=written.signed(finite(pair.get("difference"))),
            interval=written.interval(finite(pair.get("ci_low")), finite(pair.get("ci_high")), sign=True),
            p=written.p_value(finite(pair.get("p_value"))),
            p_adjusted=written.p_value(finite(pair.get("p_adjusted"))),
            chance=written.chance(finite(pair.get("probability_a_better"))),
            decision="not judged"
            if pair.get("decision") == "not_judged"
            else str(pair.get("decision") or written.ABSENT),
        )
        for pair in facts.pairs
        if finite(pair.get("difference")) is not None
    ]


CELL_COLUMNS = (
    ("phase", False), ("arm", False), ("lr", True), ("AdamW lr", True), ("seed", True), ("outcome", False),
    ("tokens", True), ("validation", True), ("test", True), ("tokens/s", True), ("memory", True), ("time", True),
    ("note", False), ("cell", False),
)  # fmt: skip
"""Columns of the table of cells, and whether they sort as numbers."""


def cell_rows(facts: Facts) -> list[tuple[tuple[str, float | None], ...]]:
    """Return every cell as (text, number to sort by) for each of ``CELL_COLUMNS``."""
    table: list[tuple[tuple[str, float | None], ...]] = []
    for result in facts.results.cells:
        cell = result.cell
        speed, memory, time_s = (
            speed_of(result),
            *(result.last(key) for key in ("peak_mem_allocated_gib", "train_time_s")),
        )
        phase = cell.phase if cell.arrangement == "shuffled" else f"{cell.phase}, {cell.arrangement}"
        table.append(
            (
                (phase, None),
                (cell.strategy, None),
                (written.rate(cell.lr), cell.lr),
                (written.rate(cell.adamw_lr), cell.adamw_lr),
                (str(cell.seed), cell.seed),
                ((result.outcome or "unfinished").replace("_", " "), None),
                (written.count(result.tokens_seen), result.tokens_seen),
                (written.loss(result.val_loss), result.val_loss),
                (written.loss(result.test_loss), result.test_loss),
                (written.count(speed), speed),
                (written.gib(memory), memory),
                (written.duration(time_s), time_s),
                (result.reason or "", None),
                ((cell.cell_id or written.ABSENT)[:16], None),
            )
        )
    return table


def scale(facts: Facts) -> list[tuple[str, str]]:
    """Return the size of the model and of its training as (name, value), nothing where the model is not known."""
    model = facts.model
    if model is None:
        return []
    from moe.flops import active_parameters, total_parameters

    active = active_parameters(model)
    found = [
        ("Parameters", written.short_count(total_parameters(model))),
        ("Active for a token", written.short_count(active)),
    ]
    if facts.budget_tokens:
        found.append(("Tokens per active parameter", f"{facts.budget_tokens / active:.3g}"))
    return found


def work_table(facts: Facts) -> Table | None:
    """Return updates and training FLOPs of a run for each arm, None where shapes are not known."""
    budget = facts.budget_tokens
    known = [arm for arm in facts.arms if arm.tokens_per_step]
    if not budget or not known:
        return None
    found = []
    for arm in known:
        length = finite(arm.shape.get("seq_len"))
        flops = None
        if facts.model is not None and length is not None:
            from moe.flops import flops_per_token

            flops = budget * flops_per_token(facts.model, round(length))
        updates = written.count(budget // (arm.tokens_per_step or budget))
        found.append((arm.name, updates, written.ABSENT if flops is None else f"{flops:.3g}"))
    return Table(header=("arm", "updates a run", "training FLOPs a run"), rows=tuple(found))


@dataclass(frozen=True, kw_only=True)
class LengthTable:
    """Mean test loss by arm and evaluation length; a value is (text, whether it lies beyond the trained length)."""

    lengths: tuple[int, ...]
    values: tuple[tuple[Arm, tuple[tuple[str, bool], ...]], ...]


def length_table(facts: Facts) -> LengthTable | None:
    """Return the loss by evaluation length from confirm cells, None where no cell has it."""
    found: dict[str, dict[int, list[tuple[float, bool]]]] = {}
    for result in (result for arm in facts.arms for result in facts.confirmed(arm.name)):
        for entry in rows((result.scores or {}).get("loss_by_length")):
            length, loss = finite(entry.get("eval_len")), finite(entry.get("loss"))
            if length is not None and loss is not None:
                by_length = found.setdefault(result.cell.strategy, {})
                by_length.setdefault(round(length), []).append((loss, bool(entry.get("extrapolation"))))
    lengths = sorted({length for by_length in found.values() for length in by_length})
    if not lengths:
        return None
    values = []
    for arm in facts.arms:
        cells = [found.get(arm.name, {}).get(length, []) for length in lengths]
        values.append(
            (
                arm,
                tuple(
                    (written.loss(float(np.mean([v for v, _ in c]))) if c else written.ABSENT, any(e for _, e in c))
                    for c in cells
                ),
            )
        )
    return LengthTable(lengths=tuple(lengths), values=tuple(values))


def provenance(facts: Facts) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return named groups of facts about code, corpus, machine and space, each a list of (name, value)."""
    begun = facts.beginning
    groups = [
        (
            "Sweep",
            {
                "name": facts.results.name,
                "id": begun.get("sweep_id"),
                "begun": written.moment(finite(begun.get("created_s"))),
            },
        ),
        ("Fingerprints", mapping(begun.get("fingerprints"))),
        ("Code", mapping(begun.get("git"))),
        ("Versions", mapping(begun.get("versions"))),
        ("Hardware", mapping(begun.get("hardware"))),
    ]
    return [(title, flat(values)) for title, values in groups if flat(values)]


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested mappings as (dotted name, value) without what is null."""
    found: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            found += flat(value, f"{prefix}{key}.")
        elif value is not None:
            text = value if isinstance(value, str) else json.dumps(value)
            found.append((f"{prefix}{key}", "none" if value == [] else text))
    return found
