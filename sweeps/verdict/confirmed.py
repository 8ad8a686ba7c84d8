"""The cells that the verdict rests on: every arm's confirm seeds at its chosen rate, and which look at them this is."""

# S seeds, A arms

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from sweeps.ledger.results import CellResult, SweepResults, finite, seeds_of
from sweeps.verdict.best_rate import Choice, same_rate
from sweeps.verdict.exclusions import Exclusion, exclusion_of
from sweeps.verdict.statistics import Floats

DECIDED = ("wins", "tie", "undecided")
"""Outcomes that spent a look: a verdict that was withheld or exploratory could not have won."""
FEWEST_SEEDS = 3
FEWEST_UNPAIRED_RUNS = 5
"""Welch's test with 3 runs against 30 of unequal noise claims 7.5% false wins at 5%; from 5 runs on it holds."""
Pairing = Literal["seeds", "runs", "both"]
"""Losses are compared paired by seed, as unpaired runs, or by both tests, of which the larger p-value decides."""
Judged = tuple[str, int, float]
"""An arm, a confirm seed and its test loss: what a decision rested on."""


@dataclass(frozen=True, kw_only=True)
class Looks:
    """How often a decision was taken, this one included, and at which level this one is taken.

    Planned looks share alpha equally. An unplanned one is judged on seeds that no decision has seen, the k-th at
    alpha / planned / 2^k: however many follow, all together lead to a false win at rate 2 alpha at most.
    """

    planned: int
    used: int
    alpha: float
    seen_seeds: tuple[int, ...] = ()

    @property
    def unplanned(self) -> int:
        """How many looks beyond the planned ones."""
        return max(0, self.used - self.planned)


@dataclass(frozen=True, kw_only=True)
class Confirmed:
    """Confirm cells at the chosen rates. ``elsewhere`` are confirm cells of a rate that is not the chosen one.

    ``arms`` are those that can win or tie, ``excluded`` the others by name; ``cells`` and ``rates`` hold both.
    ``explored_seeds`` chose the rates: a confirm cell on one of them is not fresh, and is not judged.
    """

    arms: tuple[str, ...]
    cells: Mapping[str, Mapping[int, CellResult]]
    elsewhere: tuple[CellResult, ...]
    rates: Mapping[str, tuple[float | None, float | None]]
    explored_seeds: frozenset[int] = frozenset()
    excluded: Mapping[str, Exclusion] = field(default_factory=dict)
    pairing: Pairing = "seeds"

    @property
    def fewest(self) -> int:
        """How many fresh seeds or runs every arm needs for a verdict."""
        return FEWEST_SEEDS if self.pairing == "seeds" else FEWEST_UNPAIRED_RUNS

    @cached_property
    def planned_seeds(self) -> tuple[int, ...]:
        """Every seed that any judged arm's confirm cells have, ascending."""
        return seeds_of(result for arm in self.arms for result in self.cells[arm].values())

    def at_judged_rate(self, result: CellResult) -> bool:
        """Whether a cell of any phase was trained at the rate at which its arm is judged."""
        cell = result.cell
        return same_rate((cell.lr, cell.adamw_lr), self.rates.get(cell.strategy, (None, None)))

    def fresh(self, arm: str) -> tuple[int, ...]:
        """Return an arm's planned seeds that chose no rate, whatever became of them."""
        return tuple(sorted(set(self.cells[arm]) - self.explored_seeds))

    @cached_property
    def complete_seeds(self) -> tuple[int, ...]:
        """Fresh seeds with a test loss at full budget in every arm: the paired ones."""
        return tuple(
            seed
            for seed in self.planned_seeds
            if seed not in self.explored_seeds
            and all(test_loss(self.cells[arm].get(seed)) is not None for arm in self.arms)
        )

    def judged_seeds(self, arm: str, seen: Collection[int]) -> tuple[int, ...]:
        """Return an arm's fresh seeds with a test loss that no decision has seen."""
        return tuple(s for s in self.fresh(arm) if s not in seen and test_loss(self.cells[arm][s]) is not None)

    def missing(self) -> list[tuple[str, int, str]]:
        """Return (arm, seed, what became of it) of every confirm cell without a test loss, planned or not."""
        return [
            (arm, seed, (result.outcome or "unfinished") if result else "missing")
            for arm in self.arms
            for seed in self.planned_seeds
            if test_loss(result := self.cells[arm].get(seed)) is None and (result or self.pairing == "seeds")
        ]

    def judged_without(self, seen: frozenset[int]) -> frozenset[Judged]:
        """Return the losses that a decision rests on when some seeds are left out."""
        seeds = [seed for seed in self.complete_seeds if seed not in seen]
        return frozenset(
            (arm, seed, loss)
            for arm in self.arms
            for seed in seeds
            if (loss := test_loss(self.cells[arm][seed])) is not None
        )

    def cells_on(self, seeds: tuple[int, ...]) -> dict[str, list[CellResult]]:
        """Return the cells of the judged arms on some seeds, all of which every arm has."""
        return {arm: [self.cells[arm][seed] for seed in seeds] for arm in self.arms}

    def losses(self, seeds: tuple[int, ...], view: str = "test_loss") -> Floats | None:
        """Return one view's losses [S, A] in nats per token, or None when any is unknown."""
        table = [[self.cells[arm][seed].score(view) for arm in self.arms] for seed in seeds]
        if not seeds or any(value is None for row in table for value in row):
            return None
        return np.asarray(table, dtype=np.float64)


def test_loss(result: CellResult | None) -> float | None:
    """Return a confirm cell's test loss if its schedule ended, else None."""
    return finite(result.test_loss) if result is not None and result.reached_budget else None


def gather(results: SweepResults, chosen: Mapping[str, Choice]) -> Confirmed:
    """Lay out the confirm cells at the chosen rates; an arm without explore cells is taken at the rate that it ran."""
    cells: dict[str, dict[int, CellResult]] = {}
    rates: dict[str, tuple[float | None, float | None]] = {}
    elsewhere: list[CellResult] = []
    for arm in results.arm_names:
        found = results.of("confirm", arm)
        choice = chosen.get(arm)
        if choice is None and found:
            first = found[0].cell
            same = [r for r in found if (r.cell.lr, r.cell.adamw_lr) == (first.lr, first.adamw_lr)]
            rates[arm] = (first.lr, first.adamw_lr)
        else:
            same = [r for r in found if choice and choice.is_rate_of(r)]
            rates[arm] = (choice.lr, choice.adamw_lr) if choice else (None, None)
        cells[arm] = {result.cell.seed: result for result in same}
        kept = {id(result) for result in same}
        elsewhere += [result for result in found if id(result) not in kept]
    explored = frozenset(result.cell.seed for result in results.cells if result.cell.phase == "explore")
    excluded = {
        arm: exclusion
        for arm in results.arm_names
        if (exclusion := exclusion_of(results, arm, cells[arm], rates[arm][0], chosen.get(arm))) is not None
    }
    return Confirmed(
        arms=tuple(arm for arm in results.arm_names if arm not in excluded),
        cells=cells,
        elsewhere=tuple(elsewhere),
        rates=rates,
        explored_seeds=explored,
        excluded=excluded,
        pairing=_pairing(results, [set(found) - explored for arm, found in cells.items() if arm not in excluded]),
    )


def _pairing(results: SweepResults, seeds_of_arms: list[set[int]]) -> Pairing:
    """A sweep's own cells are paired by seed; records from elsewhere are as far as they share seeds."""
    declared = results.rule("verdict", "pairing", "planned")
    known = [seeds for seeds in seeds_of_arms if seeds]
    if declared == "planned" or not known:
        return "seeds"
    shared = set.intersection(*known)
    if declared == "by_seed" and all(seeds == shared for seeds in known):
        return "seeds"
    return "both" if len(shared) > 1 else "runs"


def count_looks(results: SweepResults, confirmed: Confirmed, alpha: float, planned: int) -> Looks:
    """Return which look this is, from the verdicts written before.

    A look is a decided verdict (wins, tie or undecided) on losses that differ from those of every earlier one: other
    seeds, other rates or other arms. Deciding again from the same losses is the same look.
    """
    earlier: list[frozenset[Judged]] = []
    for verdict in results.earlier_verdicts:
        if verdict.get("outcome") in DECIDED and (judged := _judged(verdict)) not in earlier:
            earlier.append(judged)
    for used in range(1, len(earlier) + 2):
        before = earlier[: used - 1]
        unplanned = max(0, used - planned)
        seen = frozenset(seed for look in before for _, seed, _ in look) if unplanned else frozenset()
        if used > len(earlier) or earlier[used - 1] == confirmed.judged_without(seen):
            break
    return Looks(planned=planned, used=used, alpha=alpha / planned / 2**unplanned, seen_seeds=tuple(sorted(seen)))


def _judged(verdict: Mapping[str, Any]) -> frozenset[Judged]:
    return frozenset(
        (str(row["name"]), int(seed), float(loss))
        for row in verdict.get("strategies") or ()
        if not row.get("excluded")
        for seed, loss in zip(row["seeds"], row["losses"], strict=True)
    )
