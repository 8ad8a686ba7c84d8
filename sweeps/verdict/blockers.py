"""What blocks a verdict: every reason is found, and each states what would settle it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import combinations
from typing import Literal

import numpy as np

from sweeps import formatting as written
from sweeps.ledger.results import SweepResults
from sweeps.verdict.best_rate import Choice, edges, failed_candidates
from sweeps.verdict.confirmed import FEWEST_SEEDS, Confirmed, Looks, test_loss
from sweeps.verdict.grid_edge import Edge
from sweeps.verdict.spikes import SPIKE_SDS, Spike

COPIED_PRECISION_SHARE = 0.01
"""Losses written more coarsely than this share of their spread may coincide; finer ones coincide only as copies."""


@dataclass(frozen=True, kw_only=True)
class Blocker:
    """A reason in words, the outcome that it forces, and the options that would settle it.

    ``resume`` and ``extend`` are options of these commands, None where the command would not help.
    """

    outcome: Literal["exploratory", "withheld"]
    text: str
    resume: str | None = None
    extend: tuple[str, ...] = ()


def blockers(
    results: SweepResults,
    chosen: Mapping[str, Choice],
    confirmed: Confirmed,
    looks: Looks,
    out_of_reach: Collection[Edge] = (),
) -> tuple[Blocker, ...]:
    """Return every reason against a verdict, those that make it exploratory first.

    ``out_of_reach`` are edges of arms that are too far behind for a better rate to matter.
    """
    found = [
        *_too_few_seeds(results, confirmed, looks),
        *_one_arm(results, confirmed),
        *_unfinished(results),
        *_no_choice(results, chosen, confirmed),
        *_failed_rates(chosen, confirmed),
        *_edges(results, chosen, confirmed, out_of_reach),
        *_missing(confirmed),
        *_other_rates(results, chosen, confirmed),
        *_copied(confirmed),
        *(Blocker(outcome="withheld", text=text) for text in results.findings),
    ]
    return tuple(sorted(found, key=lambda blocker: blocker.outcome != "exploratory"))


def spike_blocker(spike: Spike, n_runs: int) -> Blocker:
    """Return why the win of an arm with a spike is withheld."""
    text = (
        f"{spike.arm} would win, but its {spike.phase} seed {spike.seed} ended {spike.sds:.1f} standard deviations "
        f"(pooled over its rivals) above its median, beyond the limit of {SPIKE_SDS:g}: how often such a run occurs "
        f"decides the comparison, and {written.plural(n_runs, 'seed')} cannot show it; inspect that run's curve"
    )
    return Blocker(outcome="withheld", text=text)


def command_for(found: Sequence[Blocker], results: SweepResults) -> str | None:
    """Return what to type to settle what can be settled, None for records from a file.

    Unfinished work comes first, for it may remove the other reasons.
    """
    if results.folder is None:
        return None
    resumes = [blocker.resume for blocker in found if blocker.resume is not None]
    options = list(dict.fromkeys(option for blocker in found for option in blocker.extend))
    commands = []
    if resumes:
        commands.append(" ".join(["sweeps resume", results.name, *sorted({option for option in resumes if option})]))
    if options:
        commands.append(" ".join(["sweeps extend", results.name, *options]))
    return " && ".join(commands) or None


def _too_few_seeds(results: SweepResults, confirmed: Confirmed, looks: Looks) -> Iterator[Blocker]:
    declared = int(results.rule("seeds", "confirm", 0))
    planned = {arm: len(confirmed.fresh(arm)) or declared for arm in confirmed.arms}
    if planned and min(planned.values()) < confirmed.fewest:
        text = _seeds_there(planned, confirmed)
        yield Blocker(outcome="exploratory", text=text, extend=(f"--seeds {confirmed.fewest}",))
        return
    fresh = [seed for seed in confirmed.complete_seeds if seed not in looks.seen_seeds]
    if looks.unplanned and len(fresh) < FEWEST_SEEDS:
        total = len(confirmed.planned_seeds) + FEWEST_SEEDS - len(fresh)
        text = (
            f"all planned looks at the confirm seeds ({looks.planned}) are spent, and an unplanned look needs "
            f"{FEWEST_SEEDS} seeds that no decision has seen, of which there are {len(fresh)}"
        )
        yield Blocker(outcome="exploratory", text=text, extend=(f"--seeds {total}",))


def _seeds_there(planned: Mapping[str, int], confirmed: Confirmed) -> str:
    """How many seeds the arms have and need."""
    noun = "confirm seed" if confirmed.pairing == "seeds" else "unpaired run"
    numbers = set(planned.values())
    if numbers == {0}:
        there = f"no {noun}s at the chosen rates" if confirmed.elsewhere else f"no {noun}s"
    elif len(numbers) == 1:
        return f"{written.plural(min(numbers), noun.removeprefix('confirm '))} per arm ({confirmed.fewest} needed)"
    else:
        there = f"{noun}s: {written.listed([f'{number} of {arm}' for arm, number in planned.items()])}"
    return f"{there} ({confirmed.fewest} needed per arm)"


def _one_arm(results: SweepResults, confirmed: Confirmed) -> Iterator[Blocker]:
    if len(results.arms) < 2:
        yield Blocker(outcome="exploratory", text="there are fewer than two arms to compare")
    elif len(confirmed.arms) < 2:
        left = f"only {confirmed.arms[0]} is" if confirmed.arms else "no arm is"
        rates = {found.lower_lr for found in confirmed.excluded.values()} - {None}
        options = tuple(f"--lr {rate:g}" for rate in sorted(rate for rate in rates if rate is not None))
        text = f"{left} left to judge: {excluded_words(confirmed)}"
        yield Blocker(outcome="withheld", text=text, extend=options)


def excluded_words(confirmed: Confirmed) -> str:
    """Return which arms diverged and where, as a clause."""
    parts = []
    for arm, found in confirmed.excluded.items():
        where = f"on confirm {seeds_in_words(found.seeds)}" if found.seeds else "at every rate that explore tried"
        rate = f" at its chosen rate {written.rate(found.lr)}" if found.seeds else ""
        parts.append(f"{arm} diverged {where}{rate}")
    return written.listed(parts)


def _unfinished(results: SweepResults) -> Iterator[Blocker]:
    waiting = sum(result.outcome is None for result in results.seen)
    if waiting or not results.seen:
        text = f"{waiting:,} of {written.plural(len(results.seen), 'cell')} have no outcome yet"
        yield Blocker(outcome="withheld", text=text if waiting else "no cell is planned yet", resume="")


def _no_choice(results: SweepResults, chosen: Mapping[str, Choice], confirmed: Confirmed) -> Iterator[Blocker]:
    for arm in confirmed.arms:
        explored = results.of("explore", arm)
        if arm not in chosen and explored and all(result.outcome is not None for result in explored):
            outcomes = written.listed(sorted({str(result.outcome) for result in explored}))
            text = f"no explore cell of {arm} has a validation loss at the full budget (outcomes: {outcomes})"
            retry = any(result.outcome in ("failed", "oom") for result in explored)
            yield Blocker(outcome="withheld", text=text, resume="--retry-failed" if retry else None)


def _failed_rates(chosen: Mapping[str, Choice], confirmed: Confirmed) -> Iterator[Blocker]:
    """A failed explore cell is not evidence: another attempt may make its rate the best one."""
    for arm in confirmed.arms:
        for rate in failed_candidates(chosen[arm]) if arm in chosen else ():
            what, where = f"a rate of {arm} next to its chosen one", "in explore"
            if rate.losses:
                what, where = f"the best rate of {arm} by its finished cells", "on another explore seed"
            text = f"{what} ({rate.lr:g}) failed {where}, and a failed cell is not evidence about its rate"
            yield Blocker(outcome="withheld", text=text, resume="--retry-failed")


def _edges(
    results: SweepResults, chosen: Mapping[str, Choice], confirmed: Confirmed, out_of_reach: Collection[Edge]
) -> Iterator[Blocker]:
    found = [
        edge
        for edge in edges(results)
        if edge.strategy in confirmed.arms
        and edge not in out_of_reach
        and not any(not rate.is_evidence for rate in failed_candidates(chosen[edge.strategy]))
    ]
    for rate, side in dict.fromkeys((edge.rate, edge.side) for edge in found):
        group = [edge for edge in found if (edge.rate, edge.side) == (rate, side)]
        noun = "rate" if rate == "lr" else "AdamW rate"
        is_every = len(group) == len(confirmed.arms) > 1
        arms = "every arm" if is_every else written.listed([edge.strategy for edge in group])
        best = dict.fromkeys(f"{edge.best:g}" for edge in group)
        text = f"{arms} {'was' if is_every or len(group) == 1 else 'were'} best at "
        if len(best) == 1:
            text += f"{'its' if is_every or len(group) == 1 else 'their'} {side}est {noun}, {next(iter(best))}"
        else:
            pairs = ", ".join(f"{edge.strategy} {edge.best:g}" for edge in group)
            text += f"{'its' if is_every else 'their'} {side}est {noun} ({pairs})"
        yield Blocker(outcome="withheld", text=text, extend=tuple(dict.fromkeys(edge.option for edge in group)))


def _missing(confirmed: Confirmed) -> Iterator[Blocker]:
    by_fate: dict[tuple[str, str], list[int]] = {}
    at_another_rate = {r.cell.strategy for r in confirmed.elsewhere if not confirmed.cells[r.cell.strategy]}
    for arm, seed, fate in confirmed.missing():
        if fate not in ("diverged", "unfinished") and arm not in at_another_rate:
            by_fate.setdefault((arm, fate), []).append(seed)
    for (arm, fate), seeds in by_fate.items():
        words = {"oom": "ran out of memory on", "failed": "failed on", "missing": "was not trained on"}
        text = f"{arm} {words.get(fate, 'has no test loss at the full budget for')} confirm {seeds_in_words(seeds)}"
        yield Blocker(outcome="withheld", text=text, resume="--retry-failed" if fate in ("oom", "failed") else "")


def _other_rates(results: SweepResults, chosen: Mapping[str, Choice], confirmed: Confirmed) -> Iterator[Blocker]:
    """Confirm cells that are not at the rate that explore chooses now, or were not planned yet."""
    untrained: list[str] = []
    for arm in confirmed.arms:
        several = any(result.cell.strategy == arm for result in confirmed.elsewhere)
        if arm not in chosen and several and not results.of("explore", arm):
            text = f"the confirm seeds of {arm} ran at several rates, and no explore cell says which one to judge"
            yield Blocker(outcome="withheld", text=text)
        if confirmed.cells[arm]:
            continue
        others = sorted({r.cell.lr for r in confirmed.elsewhere if r.cell.strategy == arm and r.cell.lr is not None})
        lr = confirmed.rates[arm][0]
        if others and lr is not None:
            rates = written.listed([f"{rate:g}" for rate in others])
            text = f"the confirm seeds of {arm} ran at {rates}, and explore now chooses {lr:g}"
            yield Blocker(outcome="withheld", text=text, resume="")
        elif lr is not None and int(results.rule("seeds", "confirm", 0)) >= FEWEST_SEEDS:
            untrained.append(arm)
    if untrained:
        text = f"the confirm seeds of {written.listed(untrained)} have not been trained yet"
        yield Blocker(outcome="withheld", text=text, resume="")


def _copied(confirmed: Confirmed) -> Iterator[Blocker]:
    """Arms whose losses are identical on every shared seed, written too finely to coincide."""
    for a, b in combinations(confirmed.arms, 2):
        table = [
            (first, second)
            for seed in confirmed.planned_seeds
            if (first := test_loss(confirmed.cells[a].get(seed))) is not None
            and (second := test_loss(confirmed.cells[b].get(seed))) is not None
        ]
        losses = [first for first, _ in table]
        if len(table) < 2 or any(first != second for first, second in table):
            continue
        decimals = max(-int(Decimal(repr(loss)).as_tuple().exponent) for loss in losses)
        if 10.0**-decimals < COPIED_PRECISION_SHARE * float(np.std(losses, ddof=1)):
            text = (
                f"{a} and {b} have the same test loss on all {len(table)} shared seeds to {decimals} decimals: one "
                "arm's cells are copies of the other's"
            )
            yield Blocker(outcome="withheld", text=text)


def seeds_in_words(seeds: Sequence[int]) -> str:
    """Return ``seed 101`` or ``seeds 101 and 103``."""
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {written.listed([str(seed) for seed in sorted(seeds)])}"
