"""Arms that fill the same memory: from the largest micro-batch per arm to shapes with equal tokens per step."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from math import gcd, lcm

from search_spaces.caveats import FEW_UPDATES
from search_spaces.problems import SpaceErrors, divisors, problem_at
from search_spaces.sections import Strategy
from search_spaces.space import Space


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    tokens_per_step: int
    micro_batches: Mapping[str, int]
    least_filled: float


def fitted_space(space: Space, largest_micro_batches: Mapping[str, int]) -> Space:
    """``space`` with shapes that fill a memory as evenly as whole steps allow.

    ``largest_micro_batches`` says for each arm how many windows fit. All arms get the same tokens per step, one
    that divides budgets and rungs. Of those steps the one is taken at which the arm that fills its memory least
    fills it most; among equals the smallest, which leaves the most updates.

    Raises:
        SpaceErrors: an arm has room for no window, or no common step divides the budget and the rungs.
    """
    too_long = [arm for arm in space.strategies if largest_micro_batches[arm.name] < 1]
    if too_long:
        rule = "is too long: not one window of it fits into the memory"
        remedy = "choose a shorter seq_len, a smaller model or more memory"
        raise SpaceErrors([problem_at(f"strategies.{arm.name}.seq_len", arm.seq_len, rule, remedy) for arm in too_long])
    candidates = list(_candidates(space, largest_micro_batches))
    best = max(candidates, key=lambda found: (found.least_filled, -found.tokens_per_step))
    table = space.resolved()
    for arm in table["strategies"]:
        arm["micro_batch_size"] = best.micro_batches[arm["name"]]
        arm["grad_accum_steps"] = best.tokens_per_step // (arm["micro_batch_size"] * arm["seq_len"])
    return Space.from_resolved(table)


def with_shapes(text: str, space: Space) -> str:
    """The TOML text of a space with the shapes of ``space`` in its ``[[strategies]]``; all else stays, comments too."""
    head, *tables = text.split("[[strategies]]\n")
    assert len(tables) == len(space.strategies), "a space's own text has a table for each of its arms"
    shaped = [_with_shape(table, arm) for table, arm in zip(tables, space.strategies, strict=True)]
    return "[[strategies]]\n".join([head, *shaped])


def _with_shape(table: str, arm: Strategy) -> str:
    """The lines of one arm's table, and of what follows it, with the shape of ``arm``."""
    rest = re.sub(r"^grad_accum_steps *=.*\n", "", table, count=1, flags=re.MULTILINE)
    shape = f"micro_batch_size = {arm.micro_batch_size}\ngrad_accum_steps = {arm.grad_accum_steps}\n"
    return re.sub(r"^micro_batch_size *=.*\n", shape, rest, count=1, flags=re.MULTILINE)


def _candidates(space: Space, largest: Mapping[str, int]) -> Iterator[_Candidate]:
    lengths = lcm(*(arm.seq_len for arm in space.strategies))
    points = [(budget, *space.rungs_at(budget)) for budget in space.budgets_tokens]
    whole = gcd(*chain.from_iterable(points))
    assert whole % lengths == 0, "budgets and rungs are multiples of every arm's steps, and these of every length"
    steps = [lengths * factor for factor in divisors(whole // lengths)]
    affordable = [step for step in steps if space.budgets_tokens[0] // step >= FEW_UPDATES] or steps[:1]
    for step in affordable:
        micro_batches = {
            arm.name: max(size for size in divisors(step // arm.seq_len) if size <= largest[arm.name])
            for arm in space.strategies
        }
        filled = min(micro_batches[arm.name] / largest[arm.name] for arm in space.strategies)
        yield _Candidate(tokens_per_step=step, micro_batches=micro_batches, least_filled=filled)
