"""The space: strategies x learning rates x seeds, with model, corpus, budget and rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from search_spaces.caveats import caveats
from search_spaces.problems import Problem, SpaceErrors
from search_spaces.rules import broken_rules
from search_spaces.sections import (
    Corpus,
    EarlyStopping,
    Exam,
    GridSearch,
    Model,
    Optimizer,
    OptunaSearch,
    Rates,
    Resources,
    Schedule,
    Seeds,
    Strategy,
    Tokenizer,
    VerdictRules,
)
from search_spaces.validation import field_problems, valid_values
from search_spaces.values import Count, Positive, Section, Switch, Text


class Space(Section):
    """What one sweep asks. Build it with ``load_space``, ``parse_space`` or ``Space.from_resolved``.

    ``budget_tokens`` is every cell's budget in target tokens; ``rungs_tokens`` are the points on the way at which
    early stopping decides. With ``fit_memory_gib`` the planner chooses micro-batches that fill that memory; until
    it has (``fitted``), the strategies' micro-batches mean nothing and cells have no ids.
    """

    description: Text = ""
    budget_tokens: Count
    rungs_tokens: tuple[Count, ...] = ()
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    controls: Switch = False
    time_view: Switch = False
    keep: Literal["best", "all"] = "best"
    fit_memory_gib: Positive | None = None
    fitted: Switch = False
    early_stopping: EarlyStopping = EarlyStopping(kind="none")
    search: Annotated[GridSearch | OptunaSearch, Field(discriminator="kind")] = GridSearch()
    strategies: tuple[Strategy, ...]
    rates: Rates
    seeds: Seeds = Seeds()
    model: Model
    optimizer: Optimizer = Optimizer()
    corpus: Corpus
    tokenizer: Tokenizer
    schedule: Schedule = Schedule()
    exam: Exam = Exam()
    resources: Resources = Resources()
    verdict: VerdictRules = VerdictRules()

    @classmethod
    def expand(cls, raw: Any) -> Any:
        """Shorthand of ``search`` written out, and the bounds of an optuna search taken from the grid it replaces."""
        if not isinstance(raw, Mapping):
            return raw
        table = dict(raw)
        if isinstance(table.get("search"), str):
            table["search"] = {"kind": table["search"]}
        search = table.get("search")
        if isinstance(search, Mapping):
            is_optuna = search.get("kind") == "optuna"
            table["search"] = {"kind": "grid", **(_bounds_from_grid(table) if is_optuna else {}), **search}
        if table.get("fit_memory_gib") is not None and table.get("fitted") is not True:
            table["strategies"] = _with_placeholders(table.get("strategies"))
        return table

    @model_validator(mode="after")
    def _keeps_the_rules(self) -> Self:
        problems = broken_rules(valid_values(type(self), self.model_dump()))
        if problems:
            raise SpaceErrors(problems)
        return self

    @classmethod
    def from_resolved(cls, resolved: Mapping[str, Any], *, source: str = "") -> Space:
        """The space that ``resolved`` (or any table of the TOML layout) describes.

        Raises:
            SpaceErrors: every problem of it, under the name ``source``.
        """
        expanded = cls.expand(resolved)
        problems = field_problems(cls, expanded) + broken_rules(valid_values(cls, expanded))
        if problems:
            raise SpaceErrors(in_file_order(problems), source=source)
        return cls.model_validate(expanded)

    def resolved(self) -> dict[str, Any]:
        """Every value, defaults and all, as a JSON-able dict that ``from_resolved`` reads back."""
        return self.model_dump(mode="json")

    @property
    def block_len(self) -> int:
        """S: the longest arm's ``seq_len``, in tokens."""
        return max(strategy.seq_len for strategy in self.strategies)

    @property
    def common_len(self) -> int:
        """The shortest arm's ``seq_len``, in tokens: the context that all arms have."""
        return min(strategy.seq_len for strategy in self.strategies)

    @property
    def needs_fitting(self) -> bool:
        """Whether the planner still has to choose micro-batches for ``fit_memory_gib``."""
        return self.fit_memory_gib is not None and not self.fitted

    def strategy(self, name: str) -> Strategy:
        """The strategy called ``name``; ``KeyError`` when there is none."""
        for strategy in self.strategies:
            if strategy.name == name:
                return strategy
        raise KeyError(name)

    def warnings(self) -> list[str]:
        """What is allowed and weakens the answer, one sentence each."""
        return caveats(self)


def in_file_order(problems: list[Problem]) -> list[Problem]:
    """Problems in the order of the keys of a space, those of unknown keys last, each once."""
    keys = list(Space.model_fields)

    def position(problem: Problem) -> int:
        key = problem.where.partition(".")[0].partition("[")[0]
        return keys.index(key) if key in keys else len(keys)

    return sorted(dict.fromkeys(problems), key=position)


def _bounds_from_grid(table: Mapping[str, Any]) -> dict[str, float]:
    rates = table.get("rates")
    grid = rates.get("lr") if isinstance(rates, Mapping) else None
    if not isinstance(grid, list | tuple) or not grid or not all(type(rate) in (int, float) for rate in grid):
        return {}
    return {"lr_low": min(grid), "lr_high": max(grid)}


def _with_placeholders(strategies: object) -> object:
    if not isinstance(strategies, list | tuple):
        return strategies
    unknown = {"micro_batch_size": 1, "grad_accum_steps": 1}
    return [{**unknown, **arm} if isinstance(arm, Mapping) else arm for arm in strategies]
