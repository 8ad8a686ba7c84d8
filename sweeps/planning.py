"""What would run, before anything is spent: cells, tokens, memory, GPU fractions, hours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from search_spaces import Cell, Identity, Space, corpus_warnings, planned_cells
from sweeps.bridge import model_config
from sweeps.cluster.matmul_rate import matmul_flops_per_s
from sweeps.cluster.packing import fit_arms, predicted_peaks, resource_plan
from sweeps.cluster.resources import ResourcePlan
from sweeps.plan.forecast import explore_tokens_per_arm

if TYPE_CHECKING:
    from rich.console import Group

TYPICAL_SEED_SD: Final = 0.011
"""Nats between seeds at a good rate, as a study at laptop scale found (0.009 to 0.012)."""
SHARE_OF_MATMUL: Final = 0.35
"""Of the machine's matmul rate that a training step reaches: what `make bench ONLY=step` finds on CPUs."""


@dataclass(frozen=True, kw_only=True)
class ArmPlan:
    """One arm as planned. ``gpu_fraction`` is None on a CPU, and where the arm does not fit."""

    name: str
    micro_batch_size: int
    seq_len: int
    grad_accum_steps: int
    tokens_per_step: int
    predicted_peak_gib: float | None
    gpu_fraction: float | None


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """The whole plan; ``as_dict`` is the contract of ``sweeps plan --json``."""

    cells: tuple[Cell, ...]
    arms: tuple[ArmPlan, ...]
    budget_tokens: int
    tokens_full_grid: int
    tokens_expected: int
    workers: int
    hours: float | None
    smallest_detectable_difference: float | None
    audit: Mapping[str, Any] | None
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        keys = ("cell_id", "phase", "strategy", "lr", "adamw_lr", "arrangement", "seed")
        return {
            **asdict(self),
            "cells": [{key: getattr(cell, key) for key in keys} for cell in self.cells],
            "arms": [asdict(arm) for arm in self.arms],
            "warnings": list(self.warnings),
        }


def make_plan(space: Space, *, assume_gpu_gib: float | None = None) -> SweepPlan:
    """Plan a space on the machine at hand, or on GPUs of ``assume_gpu_gib``.

    What needs the corpus (cell ids, memory with its vocabulary, the audit) is left out with a warning where the corpus
    cannot be had; raises SpaceErrors where it can be had and does not fit.
    """
    warnings = list(space.warnings())
    identity, vocab_size, audit = _from_corpus(space, warnings)
    space, said = fit_arms(space, vocab_size=vocab_size, precision="bf16" if assume_gpu_gib else None)
    warnings += said
    peaks = predicted_peaks(space, vocab_size=vocab_size, precision="bf16" if assume_gpu_gib else None)
    resources = resource_plan(space, peaks, assume_gpu_gib=assume_gpu_gib)
    warnings += [*resources.warnings, *resources.problems]
    expected = _expected_tokens(space)
    hours = _hours(space, vocab_size, expected, resources, assume_gpu_gib)
    if hours is not None and hours > 2:
        warnings.append(
            f"this machine would need about {hours:,.0f} hours for it; a GPU, or --preset laptop, is faster"
        )
    return SweepPlan(
        cells=planned_cells(space, identity),
        arms=tuple(
            ArmPlan(
                name=arm.name,
                micro_batch_size=arm.micro_batch_size,
                seq_len=arm.seq_len,
                grad_accum_steps=arm.grad_accum_steps,
                tokens_per_step=arm.tokens_per_step,
                predicted_peak_gib=round(peaks[arm.name], 3),
                gpu_fraction=resources.gpu_fraction[arm.name],
            )
            for arm in space.strategies
        ),
        budget_tokens=space.budget_tokens,
        tokens_full_grid=space.budget_tokens * len(planned_cells(space)),
        tokens_expected=expected,
        workers=resources.workers,
        hours=hours,
        smallest_detectable_difference=_smallest_difference(space),
        audit=audit,
        warnings=tuple(dict.fromkeys(warnings)),
    )


def render(plan: SweepPlan) -> Group:
    """The plan for a terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Arms", title_justify="left", title_style="bold")
    for column in ("arm", "shape", "tokens/step", "steps", "peak memory", "GPU"):
        table.add_column(column)
    for arm in plan.arms:
        table.add_row(
            arm.name,
            f"{arm.micro_batch_size} x {arm.seq_len} x {arm.grad_accum_steps}",
            f"{arm.tokens_per_step:,}",
            f"{plan.budget_tokens // arm.tokens_per_step:,}",
            "" if arm.predicted_peak_gib is None else f"{arm.predicted_peak_gib:.2f} GiB",
            "" if arm.gpu_fraction is None else f"{arm.gpu_fraction:.3g}",
        )
    phases = {phase: sum(cell.phase == phase for cell in plan.cells) for phase in ("explore", "confirm", "control")}
    lines = [
        ", ".join(f"{count} {phase} cells" for phase, count in phases.items() if count)
        + f" of {plan.budget_tokens:,} tokens; {plan.workers} at once",
        f"{plan.tokens_full_grid:,} tokens without early stopping, about {plan.tokens_expected:,} with it",
    ]
    if plan.hours is not None:
        lines.append(f"about {_spoken_hours(plan.hours)} on this machine (from its matmul rate)")
    if plan.smallest_detectable_difference is not None:
        lines.append(
            f"smallest difference that {_seeds(plan)} seeds can show: {plan.smallest_detectable_difference:.3f} nats "
            f"(if seeds differ by {TYPICAL_SEED_SD} nats, as at laptop scale)"
        )
    parts = [Text(line) for line in lines]
    if plan.audit is not None:
        parts += _audit_lines(plan.audit)
    return Group(table, *parts, *(Text(f"warning: {warning}", style="yellow") for warning in plan.warnings))


def _audit_lines(audit: Mapping[str, Any]) -> list[Any]:
    from rich.text import Text

    styles = {"ok": "green", "warn": "yellow", "refuse": "red"}
    lines = [Text("Audit of the corpus", style="bold")]
    for finding in audit["findings"]:
        lines.append(Text(f"  {finding['level']:<6} {finding['message']}", style=styles[finding["level"]]))
    return lines


def _from_corpus(space: Space, warnings: list[str]) -> tuple[Identity | None, int, dict[str, Any] | None]:
    from moe.errors import CorpusError
    from sweeps.beginning import audit_table
    from sweeps.material import corpus_facts, material_for

    try:
        material = material_for(space)
    except CorpusError as error:
        warnings.append(f"planned without the corpus (no cell ids, no audit): {error}")
        return None, space.tokenizer.vocab_size or FALLBACK_VOCAB_SIZE, None
    warnings += corpus_warnings(space, corpus_facts(material.tokens))
    return material.identity, material.tokens.vocab_size, audit_table(space, material)


FALLBACK_VOCAB_SIZE: Final = 49_152  # of the SmolLM tokenizer, the published study's


def _expected_tokens(space: Space) -> int:
    """Tokens of explore with early stopping, and of confirm and control."""
    cells = planned_cells(space)
    explored = {(cell.strategy, cell.arrangement, cell.seed) for cell in cells if cell.phase == "explore"}
    per_bracket = sum(cell.phase == "explore" for cell in cells) // len(explored)
    judged = sum(cell.phase != "explore" for cell in cells)
    return len(explored) * explore_tokens_per_arm(space, per_bracket) + judged * space.budget_tokens


def _hours(
    space: Space, vocab_size: int, tokens: int, resources: ResourcePlan, assume_gpu_gib: float | None
) -> float | None:
    """Hours on this machine's processor; None where trials would run on GPUs, whose speed was not measured."""
    if assume_gpu_gib is not None or any(resources.gpu_fraction.values()) or not resources.workers:
        return None
    from moe.flops import flops_per_token

    model = model_config(space, vocab_size=vocab_size)
    per_token = sum(flops_per_token(model, arm.seq_len) for arm in space.strategies) / len(space.strategies)
    rate = matmul_flops_per_s() * SHARE_OF_MATMUL * resources.threads_per_trial * resources.workers
    return tokens * per_token / rate / 3600


def _smallest_difference(space: Space) -> float | None:
    from sweeps.verdict.statistics import smallest_detectable

    if space.seeds.confirm < 2:
        return None
    return float(smallest_detectable(TYPICAL_SEED_SD * 2**0.5, space.seeds.confirm, space.verdict.alpha))


def _seeds(plan: SweepPlan) -> int:
    confirm: Sequence[int] = [cell.seed for cell in plan.cells if cell.phase == "confirm"]
    return len(set(confirm))


def _spoken_hours(hours: float) -> str:
    return f"{hours * 60:.0f} minutes" if hours < 2 else f"{hours:,.1f} hours"
