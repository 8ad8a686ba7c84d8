"""Arms that fill the same memory: from the largest micro-batch per arm to shapes with equal tokens per step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from math import gcd, lcm

from search_spaces.caveats import FEW_UPDATES
from search_spaces.problems import SpaceErrors, divisors, problem_at
from search_spaces.space import Space


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    tokens_per_step: int
    micro_batches: Mapping[str, int]
    least_filled: float


def fitted_space(space: Space, largest_micro_batches: Mapping[str, int]) -> Space:
    """``space`` with shapes that fill the memory as evenly as whole steps allow, and ``fitted`` set.

    ``largest_micro_batches`` says for each arm how many windows fit. All arms get the same tokens per step, one
    that divides budgets and rungs. Of those steps the one is taken at which the arm that fills its memory least
    fills it most; among equals the smallest, which leaves the most updates.

    Raises:
        SpaceErrors: an arm has room for no window, or no common step divides the budget and the rungs.
    """
    assert space.needs_fitting, "only a space with fit_memory_gib that is not yet fitted can be fitted"
    too_long = [arm for arm in space.strategies if largest_micro_batches[arm.name] < 1]
    if too_long:
        rule = f"leaves no room for one window in fit_memory_gib={space.fit_memory_gib}"
        remedy = "choose a shorter seq_len, a smaller model or more memory"
        raise SpaceErrors([problem_at(f"strategies.{arm.name}.seq_len", arm.seq_len, rule, remedy) for arm in too_long])
    candidates = list(_candidates(space, largest_micro_batches))
    best = max(candidates, key=lambda found: (found.least_filled, -found.tokens_per_step))
    table = space.resolved()
    for arm in table["strategies"]:
        arm["micro_batch_size"] = best.micro_batches[arm["name"]]
        arm["grad_accum_steps"] = best.tokens_per_step // (arm["micro_batch_size"] * arm["seq_len"])
    return Space.from_resolved({**table, "fitted": True})


def _candidates(space: Space, largest: Mapping[str, int]) -> Iterator[_Candidate]:
    lengths = lcm(*(arm.seq_len for arm in space.strategies))
    points = [(budget, *space.rungs_at(budget)) for budget in space.budgets_tokens]
    whole = gcd(*chain.from_iterable(points))
    assert whole % lengths == 0, "the rules of a space make budget and rungs multiples of every length"
    steps = [lengths * factor for factor in divisors(whole // lengths)]
    affordable = [step for step in steps if space.budgets_tokens[0] // step >= FEW_UPDATES] or steps[:1]
    for step in affordable:
        micro_batches = {
            arm.name: max(size for size in divisors(step // arm.seq_len) if size <= largest[arm.name])
            for arm in space.strategies
        }
        filled = min(micro_batches[arm.name] / largest[arm.name] for arm in space.strategies)
        yield _Candidate(tokens_per_step=step, micro_batches=micro_batches, least_filled=filled)
