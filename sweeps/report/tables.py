"""The tables of a report: arms, pairs, cells, scale, rates, checks, provenance."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from sweeps import formatting as written
from sweeps.ledger.results import Arm, CellResult, finite
from sweeps.report.blocks import Cell, Table
from sweeps.report.facts import Facts, mapping, mean_of, speed_of
from sweeps.verdict.findings import RULES
from sweeps.verdict.rows import NOT_JUDGED, ArmResult

CELL_NAMES = ("phase", "arm", "outcome")
CELL_NUMBERS = ("lr", "AdamW lr", "seed", "tokens", "validation", "test", "tokens/s", "memory", "time")
CELL_NOTES = ("note", "cell")


def shape_text(arm: Arm) -> str:
    """Return ``32 × 64``, with the number of micro-batches when a step has several."""
    if arm.micro_batch_size is None or arm.seq_len is None:
        return ""
    several = arm.grad_accum_steps not in (None, 1)
    return f"{arm.micro_batch_size} × {arm.seq_len}" + (f" × {arm.grad_accum_steps}" if several else "")


def arm_table(facts: Facts) -> Table:
    """Return the arms, those of lowest mean test loss first; columns that no arm has a value for are left out."""
    ordered = sorted(facts.arms, key=lambda arm: float("inf") if arm.mean is None else arm.mean)
    header = ("arm", "test loss", "interval", "best lr", "shape", "differs in", "seeds", "bits per byte",
              "common context", "tokens/s", "peak memory")  # fmt: skip
    rows = [_arm_row(facts, arm) for arm in ordered]
    kept = [i for i in range(len(header)) if i < 4 or any(row[i].text not in ("", written.ABSENT) for row in rows)]
    return Table(
        header=tuple(header[i] for i in kept),
        rows=tuple(tuple(row[i] for i in kept) for row in rows),
        wide_only=tuple(range(4, len(kept))),
        strong=next((i for i, arm in enumerate(ordered) if arm.name == facts.verdict.leading), None),
    )


def _arm_row(facts: Facts, arm: ArmResult) -> list[Cell]:
    cells = facts.cells("confirm", arm=arm.name)
    speed = arm.tokens_per_s or mean_of(map(speed_of, cells))
    memory = arm.peak_mem_allocated_gib or mean_of(result.last("peak_mem_allocated_gib") for result in cells)
    per_step = arm.arm.tokens_per_step
    edge = "edge" if arm.best_lr_at_edge else ""
    return [
        Cell(text=arm.name, arm=facts.index[arm.name]),
        Cell(text=written.loss(arm.mean)),
        Cell(text=written.interval(arm.ci_low, arm.ci_high)),
        Cell(text=written.rate(arm.best_lr), note="edge" if edge else "", mark=edge),
        Cell(text=shape_text(arm.arm), note=f"{per_step:,} tokens a step" if per_step else ""),
        Cell(text=written.settings(arm.arm.differs_in)),
        Cell(text=str(len(arm.seeds)), note=f"{arm.diverged} diverged" if arm.diverged else ""),
        Cell(text=written.loss(arm.bpb)),
        Cell(text=written.loss(arm.common_context_loss)),
        Cell(text=written.count(speed)),
        Cell(text=written.gib(memory)),
    ]


def pair_table(facts: Facts) -> Table | None:
    """Return the paired differences, the leading arm's first; p-values and chances only where the arms were judged."""
    judged = facts.verdict.is_decided
    rows = []
    for pair in facts.pairs:
        row = [
            f"{pair.a} − {pair.b}",
            written.signed(pair.difference),
            written.interval(pair.ci_low, pair.ci_high, sign=True),
        ]
        if judged:
            row += [written.p_value(pair.p_value), written.p_value(pair.p_adjusted)]
            row += [written.chance(pair.probability_a_better)]
            row += ["not judged" if pair.decision == NOT_JUDGED else pair.decision]
        rows.append(tuple(row))
    header = ("pair", "difference", "interval")
    tests = ("p", "p adjusted", "chance first is better", "decision") if judged else ()
    return Table(header=header + tests, rows=tuple(rows), wide_only=(3, 4, 5)) if rows else None


def cell_table(facts: Facts) -> Table:
    """Return every cell with the numbers to sort by."""
    ordered = sorted(facts.results.cells, key=lambda result: -result.cell.budget_tokens)
    rows = tuple(_cell_row(result) for result in ordered)
    return Table(header=(*CELL_NAMES, *CELL_NUMBERS, *CELL_NOTES), rows=rows, n_names=len(CELL_NAMES))


def _cell_row(result: CellResult) -> tuple[Cell, ...]:
    cell = result.cell
    speed, memory, time_s = speed_of(result), result.last("peak_mem_allocated_gib"), result.last("train_time_s")
    names = (
        cell.phase,
        cell.strategy,
        (result.outcome or "unfinished").replace("_", " "),
    )
    numbers = (
        (written.rate(cell.lr), cell.lr),
        (written.rate(cell.adamw_lr), cell.adamw_lr),
        (str(cell.seed), cell.seed),
        (written.count(result.tokens_seen), result.tokens_seen),
        (written.loss(result.val_loss), result.val_loss),
        (written.loss(result.test_loss), result.test_loss),
        (written.count(speed), speed),
        (written.gib(memory), memory),
        (written.duration(time_s), time_s),
    )
    notes = (result.reason or "", (cell.cell_id or written.ABSENT)[:16])
    return (
        *(Cell(text=name) for name in names),
        *(Cell(text=text, sort=finite(value)) for text, value in numbers),
        *(Cell(text=note) for note in notes),
    )


def kept_checks(facts: Facts) -> Table:
    """Return the checks that were kept, by rule of the method."""
    kept = sorted((check for check in facts.verdict.checks if check.kept), key=lambda check: check.rule)
    rows = tuple((f"{check.rule}. {RULES[check.rule]}", check.sentence, check.value) for check in kept)
    return Table(header=("rule", "check", "measured"), rows=rows, n_names=3)


def rate_table(facts: Facts) -> Table | None:
    """Return each arm's chosen rate beside the quadratic fit's optimum and what a better rate could gain."""
    rows = [
        (
            arm.name,
            written.rate(arm.best_lr),
            written.rate(optimum.lr),
            f"{written.rate(optimum.lr_low)} to {written.rate(optimum.lr_high)}",
            f"up to {written.loss(max(0.0, optimum.gain_bound))}",
        )
        for arm in facts.arms
        if (optimum := facts.verdict.optima.get(arm.name)) is not None
    ]
    header = ("arm", "chosen lr", "fitted optimum", "its interval", "plausible gain")
    return Table(header=header, rows=tuple(rows)) if rows else None


def scale(facts: Facts) -> tuple[tuple[str, str], ...]:
    """Return the size of the arms' models and of their training as (name, value), nothing where no model is known."""
    known = facts.results.model_sizes
    if not known and facts.model is not None:
        from moe.flops import active_parameters, total_parameters

        known = ((total_parameters(facts.model), active_parameters(facts.model)),)
    if not known:
        return ()
    totals, actives = ([size[place] for size in known] for place in (0, 1))
    ratios = [f"{facts.budget_tokens / active:.3g}" for active in (max(actives), min(actives))]
    return (
        ("Parameters", _span(*(written.short_count(pick(totals)) for pick in (min, max)))),
        ("Active for a token", _span(*(written.short_count(pick(actives)) for pick in (min, max)))),
        ("Tokens per active parameter", _span(*ratios)),
    )


def _span(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"


def work_table(facts: Facts) -> Table | None:
    """Return updates, training FLOPs and the size of the model of each arm, None where shapes are not known."""
    rows = []
    for arm in (result.arm for result in facts.arms):
        if not arm.tokens_per_step:
            continue
        per_token = arm.flops_per_token or _flops_per_token(facts, arm)
        updates = written.count(facts.budget_tokens // arm.tokens_per_step)
        flops = written.ABSENT if per_token is None else f"{facts.budget_tokens * per_token:.3g}"
        sizes = [
            written.ABSENT if size is None else written.short_count(size)
            for size in (arm.parameters, arm.active_parameters)
        ]
        rows.append((arm.name, updates, flops, *sizes))
    several = len({row[3:] for row in rows}) > 1
    header = ("arm", "updates a run", "training FLOPs a run", "parameters", "active for a token")
    kept = len(header) if several else 3
    return Table(header=header[:kept], rows=tuple(row[:kept] for row in rows)) if rows else None


def _flops_per_token(facts: Facts, arm: Arm) -> float | None:
    """Training FLOPs of a token in a sweep of an earlier version, whose arms had one model."""
    if facts.model is None or arm.seq_len is None:
        return None
    from moe.flops import flops_per_token

    return flops_per_token(facts.model, arm.seq_len)


def cost(facts: Facts) -> tuple[tuple[str, str], ...]:
    """Return what the sweep cost, as pairs of a name and a value."""
    found = [
        ("Cells", written.count(len(facts.results.cells))),
        ("Training tokens", written.short_count(facts.tokens_trained)),
        ("Training time, all cells", written.duration(facts.seconds("train_time_s"))),
        ("Exam time, all cells", written.duration(facts.seconds("exam_time_s"))),
    ]
    if facts.wall_time_s is not None:
        found.append(("Wall time, first to last work", written.duration(facts.wall_time_s)))
    found += _estimate_against_time(facts)
    if facts.tokens_not_spent:
        saved = facts.tokens_not_spent / (facts.tokens_not_spent + facts.tokens_trained)
        text = f"{written.short_count(facts.tokens_not_spent)} ({written.share(saved)})"
        found.append(("Tokens saved by stopping early", text))
    return tuple(found)


def _estimate_against_time(facts: Facts) -> Iterable[tuple[str, str]]:
    """What a sweep that ran in one session was thought to take at first."""
    sessions = facts.results.sessions
    if len(sessions) == 1 and not sessions[0]["interrupted"] and sessions[0]["first_estimate_s"] is not None:
        estimate_s, took_s = sessions[0]["first_estimate_s"], sessions[0]["wall_s"]
        way = "too long" if estimate_s > took_s else "too short"
        off = written.share(abs(estimate_s / took_s - 1))
        yield "First estimate of the time", f"{written.duration(estimate_s)} ({off} {way})"


def provenance(facts: Facts) -> list[tuple[str, tuple[tuple[str, str], ...]]]:
    """Return named groups of facts about code, corpus, machine and space, each a list of (name, value)."""
    beginning = facts.beginning
    began = written.moment(finite(beginning.get("created_s")))
    own = {"name": facts.results.name, "id": beginning.get("sweep_id"), "began": began}
    groups = [("Sweep", own)]
    for key in ("fingerprints", "git", "versions", "hardware"):
        groups.append(("Code" if key == "git" else key.capitalize(), dict(mapping(beginning.get(key)))))
    return [(title, tuple(flat(values))) for title, values in groups if flat(values)]


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
