"""The sections of a report below its first screen, in the order in which they are read."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from sweeps import formatting as written
from sweeps.report.blocks import (
    AllCells,
    Block,
    Bullets,
    Code,
    Commands,
    Figure,
    Folded,
    Heading,
    Note,
    Section,
    Table,
    Values,
    section,
)
from sweeps.report.budgets import budget_blocks
from sweeps.report.facts import Facts
from sweeps.report.opening import how_sure
from sweeps.report.space_toml import as_toml
from sweeps.report.tables import (
    arm_table,
    cell_table,
    cost,
    kept_checks,
    pair_table,
    provenance,
    rate_table,
    scale,
    work_table,
)
from sweeps.report.why import why_blocks
from sweeps.shown_commands import shown_command, shown_line, with_shown_commands

SPACE_FILE = "space.toml"


def sections(facts: Facts, drawn: Collection[str]) -> list[Section]:
    """Return every section that has something to show, without the figures that are not in ``drawn``."""
    found = []
    for make in (_arms, _budgets, _checks, _why, _tuning, _training, _work, _cells, _origin, _commands):
        made = make(facts)
        blocks = tuple(block for block in made.blocks if not isinstance(block, Figure) or block.name in drawn)
        found += [replace(made, blocks=blocks)] if blocks else []
    return found


def _arms(facts: Facts) -> Section:
    judged = [arm for arm in facts.arms if arm.mean is not None]
    if not facts.arms:
        return section("arms", "The arms", Note(text="No arm has been planned yet."))
    note = "No confirm cell has been scored yet, so there is nothing to compare."
    if judged:
        seeds = sorted({len(arm.seeds) for arm in judged})
        span = written.plural(seeds[0], "seed") if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
        note = (
            f"Mean test loss in nats per token over {span} an arm, each at its own best rate and in its own context, "
            f"with {facts.confidence} intervals over seeds."
        )
    sure, pairs = how_sure(facts), pair_table(facts)
    blocks: list[Block] = [Note(text=note), Figure(name="confirm"), arm_table(facts)]
    blocks += [Bullets(items=sure)] if sure else []
    if pairs is not None:
        text = (
            "The first arm's loss minus the second's, paired by seed: below zero, the first is better. "
            f"{facts.confidence} intervals over {facts.over}."
        )
        if facts.verdict.is_decided and len(pairs.rows) > 1:
            text += " Adjusted p-values (Holm) are for statements about all pairs together."
        blocks += [Heading(text="Every pair" if len(pairs.rows) > 1 else "The pair"), Note(text=text), pairs]
    return section("arms", "The arms", blocks)


def _budgets(facts: Facts) -> Section:
    blocks = budget_blocks(facts)
    return section("budgets", "How leads change with the budget", blocks)


def _checks(facts: Facts) -> Section:
    names = [arm.name for arm in facts.arms]
    broken = [check for check in facts.verdict.checks if not check.kept]
    sentences = tuple(with_shown_commands(written.sentence(check.sentence, *names)) for check in broken)
    kept = kept_checks(facts)
    checks = written.plural(len(kept.rows), "check")
    return section(
        "checks",
        "What limits the answer",
        Bullets(items=sentences, weighty=True) if sentences else None,
        Folded(summary=f"{checks} of the method's rules that this sweep keeps", blocks=(kept,)) if kept.rows else None,
    )


def _why(facts: Facts) -> Section:
    blocks = why_blocks(facts)
    return section("why", "Why, and how far it carries", blocks, Figure(name="positions"), Figure(name="rungs"))


def _tuning(facts: Facts) -> Section:
    if not facts.cells("explore"):
        return section("tuning", "Was every arm tuned equally well?")
    return section(
        "tuning",
        "Was every arm tuned equally well?",
        Note(text="Explore cells choose each arm's rate by validation loss; the verdict never reads them."),
        Figure(name="rates"),
        rate_table(facts),
    )


def _training(facts: Facts) -> Section:
    size = scale(facts)
    return section(
        "training",
        "How the models trained",
        Values(items=size) if size else None,
        work_table(facts),
        [Figure(name=name) for name in ("curves", "progress", "throughput", "experts")],
    )


def _work(facts: Facts) -> Section:
    figures = [Figure(name="stops"), Figure(name="timeline")]
    return section("work", "What ran, what was stopped, what it cost", Values(items=cost(facts)), figures)


def _cells(facts: Facts) -> Section:
    outcomes = facts.outcomes.most_common()
    summary = " · ".join(f"{number:,} {outcome.replace('_', ' ')}" for outcome, number in outcomes)
    return section("every-cell", "Every cell", AllCells(table=cell_table(facts), summary=summary))


def _origin(facts: Facts) -> Section:
    blocks: list[Table | Heading | Code] = []
    for title, values in provenance(facts):
        blocks += [Heading(text=title), Table(header=("", ""), rows=values, n_names=2)]
    names = "Fingerprints of corpus and code, versions, hardware"
    space = Folded(summary="The space in full, as space.toml", blocks=(Code(text=as_toml(facts.space)),))
    return section(
        "provenance",
        "Where the numbers come from",
        Folded(summary=names, blocks=tuple(blocks)),
        space if facts.space else None,
    )


def _commands(facts: Facts) -> Section:
    return section("commands", "Reproduce and extend", Commands(lines=tuple(commands(facts))))


def commands(facts: Facts) -> list[tuple[str, str]]:
    """Return the commands that reproduce this sweep, and those that would settle what it leaves open."""
    name, settling = facts.results.name, facts.verdict.command
    found = []
    if settling:
        found.append((shown_line(settling), "supply what the verdict is missing"))
    elif facts.outcomes["unfinished"]:
        found.append((shown_command("resume", name), "run the cells that have no outcome yet"))
    else:
        seeds = len({result.cell.seed for result in facts.cells("confirm")}) + 3
        found.append((shown_command("extend", name, "--seeds", str(seeds)), "judge again on fresh seeds"))
    found.append((shown_command("verdict", name), "decide again from the ledger"))
    if any(result.outcome == "completed" for result in facts.cells("confirm")):
        export = shown_command("export", name, "--out", "model")
        exam = shown_command("exam", name, "--out", "exam.npz")
        found.append((export, "write the best model for stock transformers"))
        found.append((exam, "write the exam, to score any other model on it"))
    if facts.space:
        again = shown_command("run", "--space", space_path(facts))
        found.append((again, "run the same sweep again under a fresh name, from the resolved space's own copy"))
    return found


def space_path(facts: Facts) -> str:
    """Return where the copy of the space lies: below the working folder where it can be, else as an absolute path."""
    folder = (facts.results.folder or "").removeprefix("file://")
    if not folder or "://" in folder:
        return SPACE_FILE  # in a bucket, or of no ledger: the copy beside the report
    path = Path(folder) / SPACE_FILE
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
