"""The space: strategies x learning rates x seeds, with model, corpus, budget and rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ModelWrapValidatorHandler, ValidationError, model_validator

from search_spaces import sections
from search_spaces.caveats import caveats
from search_spaces.fields import Count, Section, Switch, Text
from search_spaces.problems import Problem, SpaceErrors, first_problems
from search_spaces.pydantic_errors import field_problems, sound_values
from search_spaces.rules import broken_rules
from search_spaces.shorthand import written_out

MOST_BUDGET_TOKENS = 10**12
"""Eleven days of a GPU at a million tokens per second."""


class Space(Section):
    """What one sweep asks. Build it with ``load_space``, ``parse_space`` or ``Space.from_resolved``.

    ``budgets_tokens`` are the budgets in target tokens at which all arms are trained and judged, smallest first; the
    verdict is about the last, ``budget_tokens``. ``rungs_tokens`` are the points on the way to that one at which early
    stopping decides; smaller budgets have theirs at the same shares.
    """

    description: Text = ""
    budget_tokens: Count = Field(le=MOST_BUDGET_TOKENS)
    budgets_tokens: Annotated[tuple[Count, ...], Field(min_length=1, max_length=8)] = ()
    rungs_tokens: Annotated[tuple[Count, ...], Field(max_length=100)] = ()
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    controls: Switch = Field(default=False, exclude=True)  # shorthand: the arms that it adds are what is kept
    time_view: Switch = False
    flops_view: Switch = False
    keep: Literal["best", "all"] = "best"
    early_stopping: sections.EarlyStopping = sections.EarlyStopping(kind="none")
    search: Annotated[sections.GridSearch | sections.OptunaSearch, Field(discriminator="kind")] = sections.GridSearch()
    strategies: Annotated[tuple[sections.Strategy, ...], Field(max_length=32)]  # they are compared pair by pair
    rates: sections.Rates
    seeds: sections.Seeds = sections.Seeds()
    model: sections.Model
    optimizer: sections.Optimizer = sections.Optimizer()
    corpus: sections.Corpus
    tokenizer: sections.Tokenizer
    schedule: sections.Schedule = sections.Schedule()
    exam: sections.Exam = sections.Exam()
    resources: sections.Resources = sections.Resources()
    verdict: sections.VerdictRules = sections.VerdictRules()

    @model_validator(mode="wrap")
    @classmethod
    def _every_problem_at_once(cls, raw: Any, validate: ModelWrapValidatorHandler[Space]) -> Space:
        """Check every value, then the rules between those that are sound."""
        table = written_out(raw) if isinstance(raw, Mapping) else raw
        try:
            space = validate(table)
        except ValidationError as error:
            problems, n_more = field_problems(cls, table, error)
            if "budgets_tokens" in table:  # from which budget_tokens follows: it is wrong, not missing
                problems = [problem for problem in problems if problem.where != "budget_tokens" or problem.value]
            problems += broken_rules(sound_values(cls, table, error))
            raise SpaceErrors(_in_file_order(problems, n_more)) from error
        problems = broken_rules(sound_values(cls, {**space.model_dump(), "controls": space.controls}))
        if problems:
            raise SpaceErrors(_in_file_order(problems))
        return space

    @classmethod
    def from_resolved(cls, resolved: Mapping[str, Any], *, source: str = "the space") -> Space:
        """The space that ``resolved`` (or any table of the TOML layout) describes.

        Raises:
            SpaceErrors: every problem of it, under the name ``source``.
        """
        try:
            return cls.model_validate(resolved)
        except ValidationError as error:
            raise SpaceErrors(error.errors()[0]["ctx"]["error"].problems, source=source) from error

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

    def rungs_at(self, budget_tokens: int) -> tuple[int, ...]:
        """The rungs of a cell of this budget: at the same shares of each of ``budgets_tokens``.

        A cell with a budget of its own (equal time) is scored at those rungs of the largest budget that it reaches.
        """
        if budget_tokens in self.budgets_tokens:
            return tuple(rung * budget_tokens // self.budget_tokens for rung in self.rungs_tokens)
        return tuple(rung for rung in self.rungs_tokens if rung < budget_tokens)

    def arms_at(self, budget_tokens: int) -> tuple[sections.Strategy, ...]:
        """The arms that have cells at one of ``budgets_tokens``: controls at the largest, all others at each."""
        return tuple(arm for arm in self.strategies if not arm.is_control or budget_tokens == self.budget_tokens)

    def of_arm(self, name: str) -> Space:
        """The same space with one arm's own values in place of the common ones; ``KeyError`` without that arm."""
        arm = self.strategy(name)
        own = {key: dict(getattr(arm, key)) for key in sections.ARM_TABLES if getattr(arm, key)}
        if "rates" in own and any(key in own["rates"] for key in sections.ADAMW_RATES):
            own["rates"] = {**dict.fromkeys(sections.ADAMW_RATES), **own["rates"]}
        sections_of_its_own = {key: getattr(self, key).model_copy(update=values) for key, values in own.items()}
        return self.model_copy(update=sections_of_its_own) if own else self

    def strategy(self, name: str) -> sections.Strategy:
        """The strategy called ``name``; ``KeyError`` when there is none."""
        for strategy in self.strategies:
            if strategy.name == name:
                return strategy
        raise KeyError(name)

    def warnings(self) -> list[str]:
        """What is allowed and weakens the answer, one sentence each."""
        return caveats(self)


def _in_file_order(problems: list[Problem], n_more: int = 0) -> list[Problem]:
    """Problems in the order of the keys of a space, those of unknown keys last, and how many there are besides."""
    keys = list(Space.model_fields)

    def position(problem: Problem) -> int:
        key = problem.where.partition(".")[0].partition("[")[0]
        return keys.index(key) if key in keys else len(keys)

    return first_problems(sorted(problems, key=position), n_more)
