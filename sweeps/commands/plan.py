"""What would run, before anything is spent: cells, tokens, memory, GPU fractions, hours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from search_spaces import Cell, Space, corpus_warnings, planned_cells
from sweeps.cluster.connection import cluster_address, is_job_address, joined_ray
from sweeps.errors import BadInputError, WorldError
from sweeps.packing.duration import estimate, expected_tokens
from sweeps.packing.shares import fit_arms, predicted_peaks, resource_plan

if TYPE_CHECKING:
    from rich.console import Group

    from sweeps.cluster.machines import ClusterFacts
    from sweeps.training_data import Material

TYPICAL_SEED_SD: Final = 0.011
"""Nats between seeds at a good rate, as a study at laptop scale found (0.009 to 0.012)."""

FALLBACK_VOCAB_SIZE: Final = 49_152  # of the SmolLM tokenizer, the published study's
LONG_HOURS: Final = 2.0

_BEHIND_A_JOB_SERVER: Final = (
    "RAY_ADDRESS={address} is a job server, whose nodes cannot be looked at from here: this is the plan for this "
    "machine; type it on the head node with RAY_ADDRESS=auto for the cluster's"
)
_NO_HOURS_FOR_A_CLUSTER: Final = (
    "no hours are told for a cluster: how fast its nodes are is known once trials have reported (`sweeps status`)"
)


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
    n_cells: int
    tokens_expected: int


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
    hours_source: str | None
    cost: float | None
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


def make_plan(space: Space, *, assume_gpu_gib: float | None = None, price_per_hour: float | None = None) -> SweepPlan:
    """Plan a space on the machine or cluster at hand, or on GPUs of ``assume_gpu_gib``.

    ``price_per_hour`` is the machine's. The cluster is the one that ``RAY_ADDRESS`` names; a job server's nodes cannot
    be looked at from outside, which is said. What needs the corpus (cell ids, memory with its vocabulary, the audit) is
    left out with a warning where the corpus cannot be had.

    Raises:
        SpaceErrors: the corpus can be had and does not fit.
        BadInputError: no cluster answers at ``RAY_ADDRESS``.
    """
    address = cluster_address()
    if not address:
        return _plan(space, None, assume_gpu_gib, price_per_hour)
    if is_job_address(address):
        return _plan(space, None, assume_gpu_gib, price_per_hour, (_BEHIND_A_JOB_SERVER.format(address=address),))
    from sweeps.cluster.machines import cluster_facts
    from sweeps.cluster.node_probe import ask_gpu_memories

    try:
        with joined_ray(address):
            facts = cluster_facts(ask_gpu_memories())
            return _plan(space, facts, assume_gpu_gib, price_per_hour, (_NO_HOURS_FOR_A_CLUSTER,))
    except WorldError as error:
        raise BadInputError(str(error)) from error


def _plan(
    space: Space,
    facts: ClusterFacts | None,
    assume_gpu_gib: float | None,
    price_per_hour: float | None,
    notes: tuple[str, ...] = (),
) -> SweepPlan:
    """The plan on the machines of ``facts``; None is this machine, the only one for which hours are told."""
    warnings = [*space.warnings(), *notes]
    material, audit = _from_corpus(space, warnings)
    identity = None if material is None else material.identity
    vocab_size = (space.tokenizer.vocab_size or FALLBACK_VOCAB_SIZE) if material is None else material.tokens.vocab_size
    space, said = fit_arms(space, vocab_size=vocab_size, precision="bf16" if assume_gpu_gib else None)
    warnings += said
    peaks = predicted_peaks(space, vocab_size=vocab_size, precision="bf16" if assume_gpu_gib else None)
    resources = resource_plan(space, peaks, facts=facts, assume_gpu_gib=assume_gpu_gib)
    warnings += [*resources.warnings, *resources.problems]
    expected = expected_tokens(space)
    cells = planned_cells(space, identity)
    is_here = facts is None and assume_gpu_gib is None
    duration = estimate(space, material, vocab_size, resources) if is_here else None
    if duration is not None and duration.hours > LONG_HOURS:
        warnings.append(
            f"this machine would need about {duration.hours:,.0f} hours for it; a GPU, or --preset laptop, is faster"
        )
    return SweepPlan(
        cells=cells,
        arms=tuple(
            ArmPlan(
                name=arm.name,
                micro_batch_size=arm.micro_batch_size,
                seq_len=arm.seq_len,
                grad_accum_steps=arm.grad_accum_steps,
                tokens_per_step=arm.tokens_per_step,
                predicted_peak_gib=round(peaks[arm.name], 3),
                gpu_fraction=resources.gpu_fraction[arm.name],
                n_cells=sum(cell.strategy == arm.name for cell in cells),
                tokens_expected=expected[arm.name],
            )
            for arm in space.strategies
        ),
        budget_tokens=space.budget_tokens,
        tokens_full_grid=space.budget_tokens * len(cells),
        tokens_expected=sum(expected.values()),
        workers=resources.workers,
        hours=None if duration is None else duration.hours,
        hours_source=None if duration is None else duration.source,
        cost=None if duration is None or price_per_hour is None else duration.hours * price_per_hour,
        smallest_detectable_difference=_smallest_difference(space),
        audit=audit,
        warnings=tuple(dict.fromkeys(warnings)),
    )


def render(plan: SweepPlan) -> Group:
    """The plan for a terminal."""
    from rich.console import Group
    from rich.text import Text

    from sweeps.formatting import terminal_table

    on_gpus = any(arm.gpu_fraction is not None for arm in plan.arms)
    numbers = ("tokens/step", "steps", "cells", "tokens", "peak GiB", *(("GPU",) if on_gpus else ()))
    table = terminal_table("Arms", texts=("arm", "shape"), numbers=numbers)
    for arm in plan.arms:
        table.add_row(
            arm.name,
            f"{arm.micro_batch_size}x{arm.seq_len}x{arm.grad_accum_steps}",
            f"{arm.tokens_per_step:,}",
            f"{plan.budget_tokens // arm.tokens_per_step:,}",
            str(arm.n_cells),
            f"{arm.tokens_expected / 1e6:.3g} M",
            "" if arm.predicted_peak_gib is None else f"{arm.predicted_peak_gib:.3g}",
            *(("none" if arm.gpu_fraction is None else f"{arm.gpu_fraction:.3g}",) if on_gpus else ()),
        )
    phases = {phase: sum(cell.phase == phase for cell in plan.cells) for phase in ("explore", "confirm", "control")}
    lines = [
        ", ".join(f"{count} {phase} cells" for phase, count in phases.items() if count)
        + f" of {plan.budget_tokens:,} tokens; {plan.workers} at once",
        f"{plan.tokens_full_grid:,} tokens without early stopping, about {plan.tokens_expected:,} with it",
    ]
    if plan.hours is not None:
        cost = "" if plan.cost is None else f", at a cost of {plan.cost:,.2f}"
        lines.append(f"about {_spoken_hours(plan.hours)} on this machine ({plan.hours_source}){cost}")
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


def _from_corpus(space: Space, warnings: list[str]) -> tuple[Material | None, dict[str, Any] | None]:
    from moe.errors import CorpusError
    from sweeps.running.begin import audit_table
    from sweeps.training_data import corpus_facts, material_for

    try:
        material = material_for(space)
    except CorpusError as error:
        warnings.append(f"planned without the corpus (no cell ids, no audit): {error}")
        return None, None
    warnings += corpus_warnings(space, corpus_facts(material.tokens))
    return material, audit_table(space, material)


def _smallest_difference(space: Space) -> float | None:
    from sweeps.verdict.statistics import smallest_detectable

    if space.seeds.confirm < 2:
        return None
    return float(smallest_detectable(TYPICAL_SEED_SD * 2**0.5, space.seeds.confirm, space.verdict.alpha))


def _seeds(plan: SweepPlan) -> int:
    confirm: Sequence[int] = [cell.seed for cell in plan.cells if cell.phase == "confirm"]
    return len(set(confirm))


def _spoken_hours(hours: float) -> str:
    return f"{hours * 60:.0f} minutes" if hours < LONG_HOURS else f"{hours:,.1f} hours"
