"""What is allowed although it weakens the answer: each caveat is one sentence for the plan and the report."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from search_spaces.sections import GridSearch

if TYPE_CHECKING:
    from search_spaces.space import Space

# Fewer seeds than this and a verdict is exploratory.
MIN_CONFIRM_SEEDS = 3
# Rank correlation with the final order was 0.11 at 1/8 of the budget and 0.29 at 1/4 on the laptop study.
EARLIEST_SOUND_RUNG = 0.25
# A schedule of fewer updates than this is mostly warm-up and decay.
FEW_UPDATES = 50


def caveats(space: Space) -> list[str]:
    """The caveats of ``space`` that its file alone shows, one sentence each."""
    return [*_of_steps(space), *_of_routing(space), *_of_seeds(space), *_of_rates(space), *_of_rungs(space)]


def _of_steps(space: Space) -> Iterator[str]:
    steps = {strategy.name: strategy.tokens_per_step for strategy in space.strategies}
    if len(set(steps.values())) > 1:
        listed = ", ".join(f"{name} {tokens}" for name, tokens in steps.items())
        yield f"arms differ in tokens per step ({listed}), so at equal tokens they differ in updates too"
    for budget in space.budgets_tokens:
        for name, tokens in steps.items():
            updates = budget // tokens
            if updates < FEW_UPDATES:
                yield f"{name} makes only {updates} updates in {budget} tokens"


def _of_routing(space: Space) -> Iterator[str]:
    for arm in space.strategies:
        model = space.of_arm(arm.name).model
        if model.top_k == 1 and model.n_experts > 1:
            yield (
                f"{arm.name} sends a token to one expert, whose renormalised weight is always 1: its router learns "
                "from the balancing loss alone"
            )


def _of_seeds(space: Space) -> Iterator[str]:
    if space.seeds.confirm < MIN_CONFIRM_SEEDS:
        yield f"seeds.confirm={space.seeds.confirm} is below {MIN_CONFIRM_SEEDS}, so the verdict will be exploratory"


def _of_rates(space: Space) -> Iterator[str]:
    few = min(len(space.of_arm(arm.name).rates.lr) for arm in space.strategies)
    if isinstance(space.search, GridSearch) and few < 3 and space.rates.max_widenings == 0:
        yield (
            f"every rate of rates.lr ({few} given) is at the edge of its grid and "
            "rates.max_widenings=0, so no arm's best rate can be shown to be one"
        )


def _of_rungs(space: Space) -> Iterator[str]:
    if space.early_stopping.kind == "none":
        return
    for rung in space.rungs_tokens:
        if rung < EARLIEST_SOUND_RUNG * space.budget_tokens:
            share = rung / space.budget_tokens
            yield f"the rung at {rung} tokens is {share:.0%} of the budget, too early for losses to rank rates"
