"""A sweep's results as plain data: what verdict, report and tracking read, and nothing can change."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from search_spaces import ARM_TABLES, Cell
from search_spaces.shorthand import control_name

FINAL_OUTCOMES = ("completed", "stopped_early", "diverged", "oom", "failed")
RETRIED_OUTCOMES = ("failed", "oom")
"""What ``--retry-failed`` runs again, from the newest checkpoint."""


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """What became of one cell. ``outcome`` is None while it has none; losses are nats per token."""

    cell: Cell
    outcome: str | None = None
    tokens_seen: int = 0
    val_loss: float | None = None
    test_loss: float | None = None
    reason: str | None = None
    scores: Mapping[str, Any] | None = None
    """Every view of the test exam (own context, common context, by position, by document), as the exam wrote it."""
    records: tuple[Mapping[str, Any], ...] = ()

    @property
    def reached_budget(self) -> bool:
        """Whether the cell's schedule ended: only then does its loss count for its budget."""
        return self.outcome == "completed" and self.tokens_seen >= self.cell.budget_tokens

    def score(self, view: str) -> float | None:
        """Return one view's mean loss in nats per token (``common_context_loss``, ``bpb``, ...), None when unknown."""
        if view == "test_loss" and self.test_loss is not None:
            return finite(self.test_loss)
        return finite((self.scores or {}).get(view))

    def last(self, metric: str) -> float | None:
        """Return the newest finite value that the records hold for ``metric``, else None."""
        return next(
            (value for record in reversed(self.records) if (value := finite(record.get(metric))) is not None), None
        )


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A strategy as the verdict shows it. Records from a file do not know the shape: it is None then.

    ``differs_in`` holds the values that the arm has of its own, by dotted key (``{"model.top_k": 1}``). Parameters and
    FLOPs (of training, per token) are None where they are not known.
    """

    name: str
    micro_batch_size: int | None = None
    seq_len: int | None = None
    grad_accum_steps: int | None = None
    tokens_per_step: int | None = None
    role: str = "contender"
    differs_in: Mapping[str, Any] = field(default_factory=dict)
    parameters: int | None = None
    active_parameters: int | None = None
    flops_per_token: float | None = None

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Micro-batch, length and accumulation."""
        return (self.micro_batch_size, self.seq_len, self.grad_accum_steps)


@dataclass(frozen=True, kw_only=True)
class SweepResults:
    """Everything that a sweep's ledger knows, read once.

    ``beginning`` is ``sweep.json``; ``earlier_verdicts`` are ``verdicts/NNNN.json`` in the order of writing: they say
    which seeds have been looked at before; ``fixed_margin`` is the equivalence margin as it was written down before
    the first confirm cell ran (None: it is computed from the explore records again, which gives the same number
    unless explore was extended since); ``sessions`` are the stretches of work that came to their end in order.
    """

    name: str
    beginning: Mapping[str, Any]
    cells: tuple[CellResult, ...]
    earlier_verdicts: tuple[Mapping[str, Any], ...] = ()
    fixed_margin: float | None = None
    folder: str | None = None
    sessions: tuple[Mapping[str, Any], ...] = ()
    findings: tuple[str, ...] = field(default=())
    """Reasons from outside the cells why no verdict can rest on them (a records file with unequal budgets)."""
    seen_at: int | None = None
    """The budget in tokens of which ``of`` gives cells; None stands for the largest."""

    @cached_property
    def space(self) -> Mapping[str, Any]:
        """The resolved space; empty for records from a file."""
        space = self.beginning.get("space")
        return space if isinstance(space, Mapping) else {}

    @cached_property
    def budgets_tokens(self) -> tuple[int, ...]:
        """The budgets at which the arms are compared, smallest first; empty without any cell."""
        declared = self.space.get("budgets_tokens")
        if declared:
            return tuple(map(int, declared))
        one = self.space.get("budget_tokens") or max((r.cell.budget_tokens for r in self.cells), default=0)
        return (int(one),) if one else ()

    @property
    def budget_tokens(self) -> int:
        """The budget of the explore and confirm cells that ``of`` gives."""
        return self.seen_at or max(self.budgets_tokens, default=0)

    def at(self, budget_tokens: int) -> SweepResults:
        """Return the same results, seen at one of their budgets."""
        return replace(self, seen_at=budget_tokens)

    @property
    def is_at_largest(self) -> bool:
        """Whether the results are seen at the budget that the verdict is about."""
        return self.budget_tokens == max(self.budgets_tokens, default=0)

    @cached_property
    def every_arm(self) -> tuple[Arm, ...]:
        """Every strategy that was planned, controls too, in the order of the space, then of first appearance."""
        entries = self.beginning.get("strategies") or self.space.get("strategies") or ()
        known = {str(entry["name"]): _arm(entry) for entry in entries}
        for result in self.cells:
            known.setdefault(result.cell.strategy, Arm(name=result.cell.strategy))
        return tuple(known.values())

    @cached_property
    def arms(self) -> tuple[Arm, ...]:
        """Every arm that is compared, in order."""
        return tuple(arm for arm in self.every_arm if arm.role != "control")

    @cached_property
    def model_sizes(self) -> tuple[tuple[float, float], ...]:
        """Total and active parameters of the arms that are compared, once each; an earlier version knew one for all."""
        sizes = [(arm.parameters, arm.active_parameters) for arm in self.arms]
        common = self.beginning.get("parameters")
        if isinstance(common, Mapping) and any(None in size for size in sizes):
            sizes = [(common.get("total"), common.get("active"))]
        return tuple(dict.fromkeys((float(total), float(active)) for total, active in sizes if total and active))

    @cached_property
    def controls(self) -> Mapping[str, Arm]:
        """By the arm that it explains, the control: the same arm on grouped windows.

        Records from a file know neither shapes nor settings for certain: there the name decides between arms alike.
        """
        found: dict[str, Arm] = {}
        for control in self.every_arm:
            if control.role == "control":
                shuffled = [arm for arm in self.arms if "windows" not in arm.differs_in]
                alike = [arm.name for arm in shuffled if settings_of(arm) == settings_of(control)]
                named = [name for name in alike if control_name(name) == control.name]
                found |= {name: control for name in (named or alike)[:1] if named or len(alike) == 1}
        return found

    @cached_property
    def arm_names(self) -> tuple[str, ...]:
        """Names of the arms in order."""
        return tuple(arm.name for arm in self.arms)

    @cached_property
    def _index(self) -> Mapping[tuple[str, str], tuple[CellResult, ...]]:
        index: dict[tuple[str, str], list[CellResult]] = {}
        for result in self.seen:
            index.setdefault((result.cell.phase, result.cell.strategy), []).append(result)
        return {key: tuple(found) for key, found in index.items()}

    @cached_property
    def seen(self) -> tuple[CellResult, ...]:
        """The cells of the budget at which the results are seen; those with budgets of their own are the largest's."""
        if len(self.budgets_tokens) < 2:
            return self.cells
        at, rest = self.budget_tokens, self.is_at_largest
        return tuple(
            result
            for result in self.cells
            if (rest if result.cell.phase in ("time", "flops") else result.cell.budget_tokens == at)
        )

    def of(self, phase: str, strategy: str) -> tuple[CellResult, ...]:
        """Return the seen cells of one phase and arm, in the order in which they were planned."""
        return self._index.get((phase, strategy), ())

    def rule(self, section: str, key: str, default: Any) -> Any:
        """Return ``space[section][key]``, or ``default`` where the space does not say."""
        part = self.space.get(section)
        value = part.get(key) if isinstance(part, Mapping) else None
        return default if value is None else value

    def rule_of(self, strategy: str, section: str, key: str, default: Any) -> Any:
        """Return the same as one arm has it."""
        own = {arm.name: arm.differs_in for arm in self.every_arm}.get(strategy, {})
        return own.get(f"{section}.{key}", self.rule(section, key, default))


def finite(value: object) -> float | None:
    """Return ``value`` as a float when it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def seeds_of(results: Iterable[CellResult]) -> tuple[int, ...]:
    """Return the distinct seeds of some cells in ascending order."""
    return tuple(sorted({result.cell.seed for result in results}))


def _arm(shape: Mapping[str, Any]) -> Arm:
    batch, length = shape.get("micro_batch_size"), shape.get("seq_len")
    accumulation = shape.get("grad_accum_steps", 1)
    per_step = shape.get("tokens_per_step")
    if per_step is None and batch is not None and length is not None:
        per_step = int(batch) * int(length) * int(accumulation or 1)
    parameters = shape.get("parameters") or {}
    return Arm(
        name=str(shape["name"]),
        micro_batch_size=batch,
        seq_len=length,
        grad_accum_steps=accumulation,
        tokens_per_step=per_step,
        role=shape.get("role", "contender"),
        differs_in=changes_of(shape),
        parameters=parameters.get("total"),
        active_parameters=parameters.get("active"),
        flops_per_token=shape.get("flops_per_token"),
    )


def changes_of(strategy: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that an arm of a resolved space has of its own and that decide its numbers, by dotted key."""
    own = {f"{table}.{key}": value for table in ARM_TABLES for key, value in (strategy.get(table) or {}).items()}
    windows = strategy.get("windows", "shuffled")
    return own if windows == "shuffled" else {**own, "windows": windows}


def settings_of(arm: Arm) -> tuple[tuple[int | None, ...], str]:
    """Return what makes an arm, apart from its windows and its grid of rates."""
    own = {key: value for key, value in arm.differs_in.items() if key not in ("windows", "rates.lr")}
    return arm.shape, str(sorted(own.items()))
