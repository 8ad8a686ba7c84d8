"""The rules of budgets, rungs and early stopping: every arm must hit each point exactly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import gcd, lcm

from search_spaces.problems import Problem, as_toml, nearest_multiples, problem_at
from search_spaces.sections import keep_counts

Problems = Iterator[Problem]
LEAST_UPDATES = 3


def budget_is_whole(budget_tokens: int, multiple: tuple[int, str]) -> Problems:
    """Every arm must hit the budget exactly."""
    yield from _whole("budget_tokens", budget_tokens, multiple)


def budgets_increase(budgets_tokens: Sequence[int]) -> Problems:
    """The verdict is about the last, and smaller ones are run first."""
    if any(later <= earlier for earlier, later in pairwise(budgets_tokens)):
        remedy = f"write {as_toml(sorted(set(budgets_tokens)))}"
        yield problem_at("budgets_tokens", budgets_tokens, "must increase strictly", remedy)


def budget_is_the_largest(budget_tokens: int, budgets_tokens: Sequence[int]) -> Problems:
    """One number and a ladder say the same, or one of them is wrong."""
    if budgets_tokens and budget_tokens != max(budgets_tokens):
        rule = f"is not the largest of budgets_tokens ({max(budgets_tokens)})"
        yield problem_at("budget_tokens", budget_tokens, rule, "leave one of the two out")


def smaller_budgets_are_whole(
    budgets_tokens: Sequence[int], budget_tokens: int, rungs_tokens: Sequence[int], multiple: tuple[int, str]
) -> Problems:
    """Every arm must hit each smaller budget exactly, and its rungs, which lie at the shares of the largest one's."""
    number, _of_what = multiple
    sound_rungs = [rung for rung in rungs_tokens if rung < budget_tokens and rung % number == 0]
    units = [budget_tokens * number // gcd(budget_tokens * number, rung) for rung in sound_rungs]
    with_rungs = lcm(number, *units)
    for index, tokens in enumerate(budgets_tokens):
        where = f"budgets_tokens[{index}]"
        if tokens == budget_tokens:
            continue
        if tokens % number:
            yield from _whole(where, tokens, multiple)
        elif tokens % with_rungs:
            shares = ", ".join(f"{rung / budget_tokens:.4g}" for rung in sound_rungs)
            rule = f"must be a multiple of {with_rungs}, so that rungs at its shares ({shares}) are whole steps too"
            yield problem_at(where, tokens, rule, f"choose {nearest_multiples(tokens, with_rungs)}, or other rungs")


def smaller_budgets_outlast_warmup(
    budgets_tokens: Sequence[int], budget_tokens: int, steps_tokens: Sequence[int]
) -> Problems:
    """A schedule of fewer than three updates has no room for warm-up, plateau and decay."""
    longest = max(steps_tokens, default=0)
    for index, tokens in enumerate(budgets_tokens):
        if tokens != budget_tokens and tokens < LEAST_UPDATES * longest:
            rule = f"is over before its warm-up and decay have an update each (an arm has {longest} tokens per step)"
            remedy = f"choose {LEAST_UPDATES * longest} or more, or leave it out"
            yield problem_at(f"budgets_tokens[{index}]", tokens, rule, remedy)


def rungs_are_whole(rungs_tokens: Sequence[int], multiple: tuple[int, str]) -> Problems:
    """Every arm must hit every rung exactly."""
    for index, rung in enumerate(rungs_tokens):
        yield from _whole(f"rungs_tokens[{index}]", rung, multiple)


def _whole(where: str, tokens: int, multiple: tuple[int, str]) -> Problems:
    number, of_what = multiple
    if tokens % number:
        rule = f"must be a multiple of {number}, the least common multiple of {of_what}"
        yield problem_at(where, tokens, rule, f"choose {nearest_multiples(tokens, number)}")


def rungs_below_budget(rungs_tokens: Sequence[int], budget_tokens: int) -> Problems:
    """A rung is a point on the way."""
    for index, rung in enumerate(rungs_tokens):
        if rung >= budget_tokens:
            rule = f"must lie below the budget ({budget_tokens} tokens)"
            yield problem_at(
                f"rungs_tokens[{index}]", rung, rule, f"choose a rung below {budget_tokens} or leave it out"
            )


def rungs_increase(rungs_tokens: Sequence[int]) -> Problems:
    """Rungs are reached in order."""
    if any(later <= earlier for earlier, later in pairwise(rungs_tokens)):
        remedy = f"write {as_toml(sorted(set(rungs_tokens)))}"
        yield problem_at("rungs_tokens", rungs_tokens, "must increase strictly", remedy)


def keep_fits_rungs(kind: str, keep: Sequence[int | float], rungs_tokens: Sequence[int]) -> Problems:
    """One entry of ``keep`` per rung, and none without early stopping."""
    if kind == "none" and keep:
        rule = 'has no meaning with early_stopping.kind="none"'
        yield problem_at("early_stopping.keep", keep, rule, 'leave keep out or set kind = "asha"')
    if kind == "asha" and not rungs_tokens:
        rule = "must name at least one rung for early stopping to decide at"
        yield problem_at("rungs_tokens", rungs_tokens, rule, 'add rungs or set early_stopping = "none"')
    elif kind == "asha" and len(keep) != len(rungs_tokens):
        rule = f"must have one entry per rung ({len(rungs_tokens)} in rungs_tokens)"
        yield problem_at("early_stopping.keep", keep, rule, f"write {len(rungs_tokens)} counts or fractions")


def keep_never_grows(keep: Sequence[int | float], n_rates: int) -> Problems:
    """A later rung cannot keep more than an earlier one let through."""
    counts = keep_counts(keep, n_rates)
    if any(later > earlier for earlier, later in pairwise(counts)):
        rule = f"must not increase (of {n_rates} it keeps {as_toml(counts)})"
        yield problem_at("early_stopping.keep", keep, rule, "keep at a later rung at most as many as at the one before")
