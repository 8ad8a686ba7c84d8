"""``sweeps plan``: what would run, before anything is spent: cells, tokens, memory, GPU fractions, hours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from search_spaces import Cell, Space, corpus_warnings, planned_cells
from sweeps.cluster.connection import cluster_address, is_job_address
from sweeps.cluster.machines import Machines, machines_at_hand
from sweeps.errors import BadInputError, WorldError
from sweeps.formatting import listed, plural, rounded_duration
from sweeps.ledger.results import changes_of
from sweeps.packing.duration import Speed, expected_seconds, expected_tokens, find_speed, flops_view_tokens
from sweeps.packing.hours import within_hours
from sweeps.packing.memory import FALLBACK_VOCAB_SIZE, predicted_peaks
from sweeps.packing.shares import MAX_TRIALS_PER_GPU, Packing, pack, require_runnable
from sweeps.running.begin import SpaceChoice, audit_table
from sweeps.shown_commands import with_shown_commands
from sweeps.training_config import model_config
from sweeps.trial.precision import in_resolved_precision

if TYPE_CHECKING:
    from rich.console import Group

    from sweeps.training_data import TrainingData

TYPICAL_SEED_SD: Final = 0.011
"""Nats between seeds at a good rate, as a study at laptop scale found (0.009 to 0.012)."""

LONG_HOURS: Final = 2.0


@dataclass(frozen=True, kw_only=True)
class ArmPlan:
    """One arm as planned. ``gpu_fraction`` is None on a CPU, and where the arm does not fit."""

    name: str
    micro_batch_size: int
    seq_len: int
    grad_accum_steps: int
    tokens_per_step: int
    updates: int
    predicted_peak_gib: float | None
    gpu_fraction: float | None
    n_cells: int
    tokens_expected: int
    role: str
    differs_in: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """The whole plan; ``as_dict`` is the contract of ``sweeps plan --json``.

    ``description`` is the space's. ``epochs`` is how often a cell's budget goes through the train split (None where the
    corpus cannot be read); an active parameter is one that a token meets. ``workers`` is how many trials the machines
    take at once, ``most_at_once`` how many the cells can keep running, and ``most_gpus`` the GPUs that those need (None
    on CPUs): more would stay idle. ``budget_reason`` says why ``--hours`` chose this budget.
    """

    description: str
    cells: tuple[Cell, ...]
    arms: tuple[ArmPlan, ...]
    budget_tokens: int
    budgets_tokens: tuple[int, ...]
    epochs: float | None
    tokens_per_active_parameter: float
    tokens_full_grid: int
    tokens_expected: int
    workers: int
    most_at_once: int
    most_gpus: int | None
    hours: float | None
    hours_source: str | None
    budget_reason: str | None
    cost: float | None
    smallest_detectable_difference: float | None
    audit: Mapping[str, Any] | None
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        keys = ("cell_id", "phase", "strategy", "lr", "adamw_lr", "arrangement", "seed", "budget_tokens")
        return {
            **asdict(self),
            "cells": [{key: getattr(cell, key) for key in keys} for cell in self.cells],
            "arms": [asdict(arm) for arm in self.arms],
            "warnings": list(self.warnings),
        }


def plan_here(
    choice: SpaceChoice,
    *,
    assume_gpu_gib: float | None = None,
    price_per_hour: float | None = None,
) -> SweepPlan:
    """``make_plan`` on the machines that are there. A cluster that is away is bad input: nothing can be resumed."""
    try:
        with machines_at_hand() as machines:
            space, _ = choice.load(machines)
            return make_plan(
                space, machines, hours=choice.hours, assume_gpu_gib=assume_gpu_gib, price_per_hour=price_per_hour
            )
    except WorldError as error:
        raise BadInputError(str(error)) from error


def make_plan(
    space: Space,
    machines: Machines,
    *,
    hours: float | None = None,
    assume_gpu_gib: float | None = None,
    price_per_hour: float | None = None,
) -> SweepPlan:
    """Plan a space on these machines, or on GPUs of ``assume_gpu_gib``; ``price_per_hour`` is the machine's.

    With ``hours`` it is planned at the largest budget that fits in them.
    For assumed GPUs a corpus that cannot be read here, and an arm that does not fit, are warnings: what needs the
    corpus (cell ids, memory with its vocabulary, the audit) is left out.

    Raises:
        SpaceErrors: the space does not fit its corpus.
        BadInputError: the corpus cannot be read, or a trial could never run on these machines.
    """
    from moe.flops import active_parameters

    _require_finite(assume_gpu_gib, "--assume-gpu-gib")
    _require_finite(price_per_hour, "--price-per-hour")
    warnings = list(space.warnings())
    machines = machines.declaring(space.resources.declared_gpus)
    if assume_gpu_gib is not None:
        machines = machines.assuming(assume_gpu_gib, cpus=MAX_TRIALS_PER_GPU * space.resources.threads_per_trial)
    space = in_resolved_precision(space, machines)
    data = _from_corpus(space, warnings, may_lack=assume_gpu_gib is not None)
    identity = None if data is None else data.identity
    vocab_size = (space.tokenizer.vocab_size or FALLBACK_VOCAB_SIZE) if data is None else data.tokens.vocab_size
    peaks = predicted_peaks(space, machines.device, vocab_size=vocab_size)
    packing = pack(space, peaks, machines)
    if assume_gpu_gib is None:
        require_runnable(packing)
    warnings += [*packing.warnings, *packing.problems]
    speed = _speed(space, data, packing, machines, warnings, is_here=assume_gpu_gib is None)
    fitted = None if hours is None else within_hours(hours, space, data, speed)
    space = space if fitted is None else fitted.space
    audit = None if data is None else audit_table(space, data)
    cells = planned_cells(space, identity)
    found = None if speed is None or data is None else expected_seconds(space, data, speed) / 3600
    if found is not None and found > LONG_HOURS and not machines.gpus:
        warnings.append(
            f"this machine would need about {found:,.0f} hours for it; a GPU, or --preset laptop, is faster"
        )
    expected = expected_tokens(space, vocab_size=vocab_size)
    viewed = flops_view_tokens(space, vocab_size=vocab_size)
    models = [model_config(space, arm.name, vocab_size=vocab_size) for arm in space.strategies]
    return SweepPlan(
        description=space.description,
        cells=cells,
        arms=tuple(
            ArmPlan(
                name=arm.name,
                micro_batch_size=arm.micro_batch_size,
                seq_len=arm.seq_len,
                grad_accum_steps=arm.grad_accum_steps,
                tokens_per_step=arm.tokens_per_step,
                updates=space.budget_tokens // arm.tokens_per_step,
                predicted_peak_gib=round(peaks[arm.name], 3),
                gpu_fraction=packing.gpu_fraction[arm.name],
                n_cells=sum(cell.strategy == arm.name for cell in cells),
                tokens_expected=expected[arm.name],
                role=arm.role,
                differs_in=changes_of(arm.model_dump(mode="json")),
            )
            for arm in space.strategies
        ),
        budget_tokens=space.budget_tokens,
        budgets_tokens=space.budgets_tokens,
        epochs=None if audit is None else float(_finding_of_epochs(audit)["value"]),
        tokens_per_active_parameter=space.budget_tokens / max(map(active_parameters, models)),
        tokens_full_grid=sum(cell.budget_tokens for cell in cells) + sum(viewed.values()),
        tokens_expected=sum(expected.values()),
        workers=packing.workers,
        most_at_once=packing.most_at_once(cells),
        most_gpus=packing.most_gpus(cells),
        hours=found,
        hours_source=None if speed is None else speed.source,
        budget_reason=None if fitted is None else fitted.why,
        cost=None if found is None or price_per_hour is None else found * price_per_hour,
        smallest_detectable_difference=_smallest_difference(space),
        audit=audit,
        warnings=tuple(dict.fromkeys(warnings)),
    )


def _speed(
    space: Space,
    data: TrainingData | None,
    packing: Packing,
    machines: Machines,
    warnings: list[str],
    *,
    is_here: bool,
) -> Speed | None:
    """How fast the arms train here; None, with the reason among the warnings, where it cannot be known."""
    address = cluster_address()
    if address is not None and is_job_address(address):
        warnings.append(
            f"RAY_ADDRESS={address} is a job server, whose nodes cannot be seen from here: this is the plan for this "
            "machine; run it on the head node with RAY_ADDRESS=auto for the cluster's"
        )
    if not is_here:
        warnings.append(
            "hours and cost are unknown for a GPU that is not here: its speed has to be measured. Run `sweeps plan` on "
            "such a machine, or begin the sweep there: `sweeps status` shows the time left once trials have reported"
        )
        return None
    assert data is not None, "a plan for this machine has its corpus"
    found = find_speed(space, data, packing, machines)
    if found is None:
        where = "this GPU (`sweeps doctor`)" if machines.address is None else "this cluster"
        warnings.append(f"hours and cost are unknown: no training step could be timed on {where}")
    return found


def _require_finite(value: float | None, option: str) -> None:
    if value is not None and not math.isfinite(value):
        raise BadInputError(f"{option}={value} must be a finite number; for example {option} 24")


def render(plan: SweepPlan) -> Group:
    """The plan for a terminal."""
    from rich.console import Group
    from rich.text import Text

    from sweeps.formatting import settings, terminal_table

    on_gpus = any(arm.gpu_fraction is not None for arm in plan.arms)
    numbers = ("tokens/step", "updates", "cells", "tokens", "peak GiB", *(("GPU",) if on_gpus else ()))
    table = terminal_table("Arms", texts=("arm", "shape"), numbers=numbers)
    for arm in plan.arms:
        table.add_row(
            arm.name,
            f"{arm.micro_batch_size}x{arm.seq_len}x{arm.grad_accum_steps}",
            f"{arm.tokens_per_step:,}",
            f"{arm.updates:,}",
            str(arm.n_cells),
            f"{arm.tokens_expected / 1e6:.3g} M",
            "" if arm.predicted_peak_gib is None else f"{arm.predicted_peak_gib:.3g}",
            *(("none" if arm.gpu_fraction is None else f"{arm.gpu_fraction:.3g}",) if on_gpus else ()),
        )
    phases = {phase: sum(cell.phase == phase for cell in plan.cells) for phase in ("explore", "confirm")}
    budgets = listed([f"{budget:,}" for budget in plan.budgets_tokens])
    each = "each cell" if len(plan.budgets_tokens) == 1 else "each of the largest cells"
    lines = [
        *(f"{arm.name} differs in {settings(arm.differs_in)}" for arm in plan.arms if arm.differs_in),
        ", ".join(f"{count} {phase} cells" for phase, count in phases.items() if count)
        + f" of {budgets} tokens; {_at_once(plan)}",
        f"{each}: {_epochs_of(plan)}{plan.tokens_per_active_parameter:.3g} tokens per active parameter",
        f"{plan.tokens_full_grid:,} tokens without early stopping, about {plan.tokens_expected:,} with it",
    ]
    if plan.budget_reason is not None:
        lines.append(plan.budget_reason)
    if plan.hours is not None:
        cost = "" if plan.cost is None else f", at a cost of {plan.cost:,.2f}"
        lines.append(f"about {rounded_duration(3600 * plan.hours)} here ({plan.hours_source}){cost}")
    if plan.smallest_detectable_difference is not None:
        lines.append(
            f"smallest difference that {_seeds(plan)} seeds can show: {plan.smallest_detectable_difference:.3f} nats "
            f"(if seeds differ by {TYPICAL_SEED_SD} nats, as at laptop scale)"
        )
    parts = [Text(line) for line in lines]
    if plan.audit is not None:
        parts += _audit_lines(plan.audit)
    return Group(
        *([Text(plan.description)] if plan.description else []),
        table,
        *parts,
        *(Text(f"warning: {with_shown_commands(warning)}", style="yellow") for warning in plan.warnings),
    )


def _audit_lines(audit: Mapping[str, Any]) -> list[Any]:
    from rich.text import Text

    styles = {"ok": "green", "warn": "yellow", "refuse": "red"}
    lines = [Text("Audit of the corpus", style="bold")]
    for finding in audit["findings"]:
        lines.append(Text(f"  {finding['level']:<6} {finding['message']}", style=styles[finding["level"]]))
    return lines


def _from_corpus(space: Space, warnings: list[str], *, may_lack: bool) -> TrainingData | None:
    """Training data; None, with a warning, for a corpus that cannot be read here and ``may_lack``."""
    from moe.errors import CorpusAway, CorpusError
    from sweeps.training_data import corpus_facts, load_training_data

    try:
        data = load_training_data(space)
    except CorpusError as error:
        if not isinstance(error, CorpusAway):
            raise BadInputError(str(error)) from error
        if not may_lack:
            raise BadInputError(
                f"{error} (`sweeps plan --assume-gpu-gib GIB` plans for another machine without the corpus)"
            ) from error
        warnings.append(f"planned without the corpus (no cell ids, no audit): {error}")
        return None
    warnings += data.tokens.notes
    warnings += corpus_warnings(space, corpus_facts(data.tokens))
    return data


def _smallest_difference(space: Space) -> float | None:
    from sweeps.verdict.statistics import smallest_detectable

    if space.seeds.confirm < 2:
        return None
    return float(smallest_detectable(TYPICAL_SEED_SD * 2**0.5, space.seeds.confirm, space.verdict.alpha))


def _finding_of_epochs(audit: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(finding for finding in audit["findings"] if finding["rule"] == "epochs")
    return found


def _epochs_of(plan: SweepPlan) -> str:
    """Epochs of a cell, the most that the space allows, and how many tokens those are."""
    if plan.audit is None or plan.epochs is None:
        return ""
    most_epochs = _finding_of_epochs(plan.audit)["threshold"]
    most_tokens = plan.budget_tokens * most_epochs / plan.epochs
    return f"{plan.epochs:.2g} epochs of at most {most_epochs:g} ({most_tokens / 1e6:.3g} M tokens), "


def _seeds(plan: SweepPlan) -> int:
    confirm: Sequence[int] = [cell.seed for cell in plan.cells if cell.phase == "confirm"]
    return len(set(confirm))


def _at_once(plan: SweepPlan) -> str:
    """How many trials run at once, and how many GPUs that takes."""
    if plan.most_gpus is None:
        return f"{min(plan.workers, plan.most_at_once)} at once"
    if plan.workers < plan.most_at_once:
        return f"{plan.workers} at once; up to {plural(plan.most_gpus, 'such GPU')} would shorten the sweep"
    enough = "1 GPU is" if plan.most_gpus == 1 else f"{plan.most_gpus} GPUs are"
    return f"{plan.most_at_once} at once, for which {enough} enough; more would stay idle"
