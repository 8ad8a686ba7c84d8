"""What a sweep with several budgets shows on its way: how each smaller one ended, as soon as its cells have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from sweeps import formatting as written
from sweeps.ledger.results import SweepResults
from sweeps.verdict.judgement import judge


@dataclass(frozen=True)
class Milestones:
    """Says of each budget below the largest, once a session, what its cells show."""

    _said: set[int] = field(default_factory=set)

    def reached(self, results: SweepResults) -> Iterator[str]:
        """Yield a line for every budget that has ended since the last call; provisional until the largest is done."""
        for budget in results.budgets_tokens[:-1]:
            seen = results.at(budget)
            judged = [result for arm in results.arm_names for result in seen.of("confirm", arm)]
            if budget in self._said or not judged or any(result.outcome is None for result in seen.seen):
                continue
            self._said.add(budget)
            found = judge(seen)
            if found.best is None or found.evidence is None:
                continue
            means = dict(zip(found.confirmed.arms, map(float, found.evidence.means_A), strict=True))
            lowest = means.pop(found.best)
            rivals = [f"{written.loss(mean - lowest)} below {arm}" for arm, mean in means.items()]
            yield (
                f"at {budget:,} tokens {found.best} has the lowest mean test loss, {written.listed(rivals)} "
                f"(provisional: the verdict is about {max(results.budgets_tokens):,} tokens)"
            )
