"""The space: strategies x learning rates x seeds, with model, corpus, budget and rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ModelWrapValidatorHandler, ValidationError, model_validator

from search_spaces.caveats import caveats
from search_spaces.fields import Count, Positive, Section, Switch, Text
from search_spaces.problems import Problem, SpaceErrors, first_problems
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
from search_spaces.shorthand import written_out
from search_spaces.validation import field_problems, sound_values


class Space(Section):
    """What one sweep asks. Build it with ``load_space``, ``parse_space`` or ``Space.from_resolved``.

    ``budget_tokens`` is every cell's budget in target tokens; ``rungs_tokens`` are the points on the way at which
    early stopping decides. With ``fit_memory_gib`` the planner chooses micro-batches that fill that memory; until
    it has (``fitted``), the strategies' micro-batches mean nothing and cells have no ids.
    """

    description: Text = ""
    budget_tokens: Count = Field(le=10**12)  # eleven days of a GPU at a million tokens per second
    rungs_tokens: Annotated[tuple[Count, ...], Field(max_length=100)] = ()
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    controls: Switch = False
    time_view: Switch = False
    keep: Literal["best", "all"] = "best"
    fit_memory_gib: Positive | None = None
    fitted: Switch = False
    early_stopping: EarlyStopping = EarlyStopping(kind="none")
    search: Annotated[GridSearch | OptunaSearch, Field(discriminator="kind")] = GridSearch()
    strategies: Annotated[tuple[Strategy, ...], Field(max_length=32)]  # they are compared pair by pair
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

    @model_validator(mode="wrap")
    @classmethod
    def _every_problem_at_once(cls, raw: Any, validate: ModelWrapValidatorHandler[Space]) -> Space:
        """Check every value, then the rules between those that are sound."""
        table = written_out(raw) if isinstance(raw, Mapping) else raw
        try:
            space = validate(table)
        except ValidationError as error:
            problems, n_more = field_problems(cls, table, error)
            problems += broken_rules(sound_values(cls, table, error))
            raise SpaceErrors(_in_file_order(problems, n_more)) from error
        problems = broken_rules(sound_values(cls, space.model_dump()))
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


def _in_file_order(problems: list[Problem], n_more: int = 0) -> list[Problem]:
    """Problems in the order of the keys of a space, those of unknown keys last, and how many there are besides."""
    keys = list(Space.model_fields)

    def position(problem: Problem) -> int:
        key = problem.where.partition(".")[0].partition("[")[0]
        return keys.index(key) if key in keys else len(keys)

    return first_problems(sorted(problems, key=position), n_more)
