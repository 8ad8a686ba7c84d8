"""Why no verdict can rest on a sweep (yet): every reason is found, and each says what would settle it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from sweeps import formatting as written
from sweeps.ledger.results import SweepResults
from sweeps.verdict.confirmed import FEWEST_SEEDS, Confirmed, Looks
from sweeps.verdict.selection import Choice, edges


@dataclass(frozen=True, kw_only=True)
class Objection:
    """A reason in words, what it makes of the verdict, and the options that would settle it.

    ``resume`` and ``extend`` are options of these commands, None where the command would not help.
    """

    outcome: Literal["exploratory", "withheld"]
    text: str
    resume: str | None = None
    extend: tuple[str, ...] = ()


def objections(
    results: SweepResults, chosen: Mapping[str, Choice], confirmed: Confirmed, looks: Looks
) -> tuple[Objection, ...]:
    """Return every reason against a verdict, those that make it exploratory first."""
    found = [
        *_too_few_seeds(results, confirmed, looks),
        *_one_arm(results),
        *_unfinished(results),
        *_no_choice(results, chosen),
        *_edges(results),
        *_diverged(confirmed),
        *_missing(confirmed),
        *_other_rates(results, chosen, confirmed),
        *(Objection(outcome="withheld", text=text) for text in results.findings),
    ]
    return tuple(sorted(found, key=lambda objection: objection.outcome != "exploratory"))


def command_for(found: tuple[Objection, ...], results: SweepResults) -> str | None:
    """Return what to type to settle what can be settled, None for records from a file.

    Unfinished work comes first, for it may remove the other reasons.
    """
    if results.folder is None:
        return None
    resumes = [objection.resume for objection in found if objection.resume is not None]
    options = list(dict.fromkeys(option for objection in found for option in objection.extend))
    commands = []
    if resumes:
        commands.append(" ".join(["sweeps resume", results.name, *sorted({option for option in resumes if option})]))
    if options:
        commands.append(" ".join(["sweeps extend", results.name, *options]))
    return " && ".join(commands) or None


def _too_few_seeds(results: SweepResults, confirmed: Confirmed, looks: Looks) -> Iterator[Objection]:
    declared = int(results.rule("seeds", "confirm", 0))
    planned = {arm: len(confirmed.fresh(arm)) or declared for arm in confirmed.arms}
    fewest = min(planned.values(), default=0)
    if fewest < FEWEST_SEEDS:
        counts = ", ".join(f"{arm} {number}" for arm, number in planned.items())
        none = "no confirm seeds at the chosen rates" if confirmed.elsewhere else "no confirm seeds"
        have = f"too few confirm seeds ({counts})" if any(planned.values()) else none
        text = f"{have}, where a verdict needs {FEWEST_SEEDS} in every arm"
        yield Objection(outcome="exploratory", text=text, extend=(f"--seeds {FEWEST_SEEDS}",))
        return
    fresh = [seed for seed in confirmed.complete_seeds if seed not in looks.seen_seeds]
    if looks.unplanned and len(fresh) < FEWEST_SEEDS:
        total = len(confirmed.planned_seeds) + FEWEST_SEEDS - len(fresh)
        text = (
            f"the planned number of looks at the confirm seeds ({looks.planned}) is used up, and an unplanned one "
            f"needs {FEWEST_SEEDS} seeds that no decision has seen ({len(fresh)} there)"
        )
        yield Objection(outcome="exploratory", text=text, extend=(f"--seeds {total}",))


def _one_arm(results: SweepResults) -> Iterator[Objection]:
    if len(results.arms) < 2:
        yield Objection(outcome="exploratory", text="fewer than two arms, so nothing is compared")


def _unfinished(results: SweepResults) -> Iterator[Objection]:
    waiting = sum(result.outcome is None for result in results.cells)
    if waiting or not results.cells:
        text = f"{waiting:,} of {written.plural(len(results.cells), 'cell')} have no outcome yet"
        yield Objection(outcome="withheld", text=text if waiting else "no cell is planned yet", resume="")


def _no_choice(results: SweepResults, chosen: Mapping[str, Choice]) -> Iterator[Objection]:
    for arm in results.arm_names:
        explored = results.of("explore", arm)
        if arm not in chosen and explored and all(result.outcome is not None for result in explored):
            outcomes = written.listed(sorted({str(result.outcome) for result in explored}))
            text = f"no explore cell of {arm} has a validation loss at the full budget (outcomes: {outcomes})"
            retry = any(result.outcome in ("failed", "oom") for result in explored)
            yield Objection(outcome="withheld", text=text, resume="--retry-failed" if retry else None)


def _edges(results: SweepResults) -> Iterator[Objection]:
    found = [edge for edge in edges(results) if edge.arrangement == "shuffled"]
    for rate, side in dict.fromkeys((edge.rate, edge.side) for edge in found):
        group = [edge for edge in found if (edge.rate, edge.side) == (rate, side)]
        noun = "rate" if rate == "lr" else "AdamW rate"
        arms = written.listed([f"{edge.strategy} ({edge.best:g}, next {edge.next_rate:g})" for edge in group])
        best, end = (f"the best {noun} of", "is") if len(group) == 1 else (f"the best {noun}s of", "are")
        text = f"{best} {arms} {end} the {side}est tried"
        yield Objection(outcome="withheld", text=text, extend=tuple(dict.fromkeys(edge.option for edge in group)))


def _diverged(confirmed: Confirmed) -> Iterator[Objection]:
    for arm in confirmed.arms:
        seeds = [seed for seed, result in confirmed.cells[arm].items() if result.outcome == "diverged"]
        if seeds:
            lr = confirmed.rates[arm][0]
            text = (
                f"{arm} diverged on {_seeds(seeds)} at its chosen rate {written.rate(lr)}, "
                "and an arm with a diverged confirm seed can neither win nor tie"
            )
            yield Objection(outcome="withheld", text=text)


def _missing(confirmed: Confirmed) -> Iterator[Objection]:
    by_fate: dict[tuple[str, str], list[int]] = {}
    at_another_rate = {r.cell.strategy for r in confirmed.elsewhere if not confirmed.cells[r.cell.strategy]}
    for arm, seed, fate in confirmed.missing():
        if fate not in ("diverged", "unfinished") and arm not in at_another_rate:
            by_fate.setdefault((arm, fate), []).append(seed)
    for (arm, fate), seeds in by_fate.items():
        words = {"oom": "ran out of memory on", "failed": "failed on", "missing": "was not trained on"}
        text = f"{arm} {words.get(fate, 'has no test loss at the full budget for')} confirm {_seeds(seeds)}"
        yield Objection(outcome="withheld", text=text, resume="--retry-failed" if fate in ("oom", "failed") else "")


def _other_rates(results: SweepResults, chosen: Mapping[str, Choice], confirmed: Confirmed) -> Iterator[Objection]:
    """Confirm cells that are not at the rate that explore chooses now, or were not planned yet."""
    untrained: list[str] = []
    for arm in confirmed.arms:
        several = any(result.cell.strategy == arm for result in confirmed.elsewhere)
        if arm not in chosen and several and not results.of("explore", arm):
            text = f"the confirm seeds of {arm} ran at several rates, and no explore cell says which one to judge"
            yield Objection(outcome="withheld", text=text)
        if confirmed.cells[arm]:
            continue
        others = sorted({r.cell.lr for r in confirmed.elsewhere if r.cell.strategy == arm and r.cell.lr is not None})
        lr = confirmed.rates[arm][0]
        if others and lr is not None:
            rates = written.listed([f"{rate:g}" for rate in others])
            text = f"the confirm seeds of {arm} ran at {rates}, and explore now chooses {lr:g}"
            yield Objection(outcome="withheld", text=text, resume="")
        elif lr is not None and int(results.rule("seeds", "confirm", 0)) >= FEWEST_SEEDS:
            untrained.append(arm)
    if untrained:
        text = f"the confirm seeds of {written.listed(untrained)} were not trained yet"
        yield Objection(outcome="withheld", text=text, resume="")


def _seeds(seeds: list[int]) -> str:
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {written.listed([str(seed) for seed in sorted(seeds)])}"
