"""The report as Markdown, to be read in a terminal or a pull request."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from sweeps import formatting as written
from sweeps.report import text as words
from sweeps.report.facts import Facts
from sweeps.report.fairness import fairness_ledger
from sweeps.report.tables import arm_rows, length_table, pair_rows, provenance, scale
from sweeps.report.why import why_groups

MARKS = {"ok": "ok", "warn": "note", "bad": "BROKEN", "unknown": "?"}
MAX_CELLS = 60
"""A longer table belongs into the HTML report; the Markdown one then lists the cells that did not complete."""


def markdown(facts: Facts, plots: Sequence[str] = ()) -> str:
    """Return the report as Markdown; ``plots`` names the pictures that lie beside it in ``plots/``."""
    sections = (_head, _arms, _caveats, _why, _rules, _work, _cells, _origin)
    blocks = ["\n".join(block) for section in sections if (block := list(section(facts)))]
    if plots:
        pictures = [f"![{name}](plots/{name}.png)" for name in plots]
        blocks.insert(2, "\n".join(pictures[:1]))
        blocks.append("\n".join(["## Pictures", "", *pictures[1:]]))
    return "\n\n".join(blocks) + "\n"


def escaped(text: str) -> str:
    """Return text that Markdown shows as it is, in a table too, and that a terminal shows with few backslashes."""
    text = re.sub(r"([\\*|\[\]])", r"\\\1", " ".join(text.split()))
    # Within a word an underscore marks nothing; an angle bracket opens a tag only before a letter, slash or bang.
    return re.sub(r"(?<!\w)_|_(?!\w)|<(?=[A-Za-z/!?])", r"\\\g<0>", text)


def table_lines(header: Sequence[str], body: Sequence[Sequence[str]], *, numeric_from: int = 1) -> Iterator[str]:
    """Yield a table whose columns line up in a terminal as well."""
    lines = [list(header), *([escaped(value) for value in row] for row in body)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]

    def padded(line: Sequence[str]) -> str:
        fields = (
            value.ljust(width) if i < numeric_from else value.rjust(width)
            for i, (value, width) in enumerate(zip(line, widths, strict=True))
        )
        return f"| {' | '.join(fields)} |"

    rule = ("-" * width if i < numeric_from else "-" * (width - 1) + ":" for i, width in enumerate(widths))
    yield padded(lines[0])
    yield f"| {' | '.join(rule)} |"
    yield from map(padded, lines[1:])


def _head(facts: Facts) -> Iterator[str]:
    yield f"# {escaped(words.statement(facts))}"
    yield ""
    name = words.OUTCOME_NAMES.get(words.outcome(facts), words.outcome(facts))
    yield f"**{name}** · sweep `{facts.results.name}` · {written.count(facts.budget_tokens)} tokens a run"
    yield ""
    yield words.OUTCOME_MEANINGS.get(words.outcome(facts), "")
    if sentences := words.how_sure(facts):
        yield ""
        if reservation := words.reservation(facts):
            yield f"{reservation}\n"
        yield from (f"- {escaped(sentence)}" for sentence in sentences)


def _arms(facts: Facts) -> Iterator[str]:
    yield "## The arms"
    yield ""
    yield words.arms_note(facts)
    yield ""
    yield from table_lines(
        ("arm", "shape", "best lr", "test loss", "interval", "seeds", "common context", "tokens/s", "peak memory"),
        [
            (
                row.arm.name,
                row.arm.shape_text,
                row.rate + (" EDGE" if row.at_edge else ""),
                row.mean,
                row.interval,
                row.seeds,
                row.common,
                row.speed,
                row.memory,
            )
            for row in arm_rows(facts)
        ],
        numeric_from=2,
    )
    pairs = pair_rows(facts)
    if pairs:
        yield ""
        yield "First arm's loss minus the second's, paired by seed:"
        yield ""
        body = [(p.name, p.difference, p.interval, p.p, p.p_adjusted, p.chance, p.decision) for p in pairs]
        yield from table_lines(
            ("pair", "difference", "interval", "p", "p adjusted", "chance first better", "decision"), body
        )


def _caveats(facts: Facts) -> Iterator[str]:
    found = words.caveats(facts)
    if found:
        yield "## Caveats"
        yield ""
        yield from (f"- {escaped(caveat)}" for caveat in found)


def _why(facts: Facts) -> Iterator[str]:
    groups, lengths = why_groups(facts), length_table(facts)
    if not groups and lengths is None:
        return
    yield "## Why, and how far it carries"
    for group in groups:
        yield f"\n### {group.title}\n"
        if group.note:
            yield f"{group.note}\n"
        yield from (f"- {escaped(sentence)}" for sentence in group.sentences)
        if group.sentences and group.table:
            yield ""
        if group.table:
            yield from table_lines(group.table.header, group.table.rows, numeric_from=group.table.n_names)
    if lengths is not None:
        yield "\n### Loss by evaluation length\n"
        yield "A value in parentheses lies beyond the trained length: extrapolation, never judged.\n"
        header = ("arm", *(written.count(length) for length in lengths.lengths))
        body = [(arm.name, *(f"({text})" if far else text for text, far in values)) for arm, values in lengths.values]
        yield from table_lines(header, body)


def _rules(facts: Facts) -> Iterator[str]:
    yield "## Was it fair?"
    yield ""
    for entry in fairness_ledger(facts):
        measured = "; ".join(check.text for check in entry.checks) or "nothing recorded"
        yield f"{entry.rule}. **{MARKS[entry.level]}** {entry.title}: {escaped(measured)}"


def _work(facts: Facts) -> Iterator[str]:
    yield "## Scale and cost"
    yield ""
    yield from (f"- {name}: {value}" for name, value in (*scale(facts), *words.cost(facts)))
    outcomes = ", ".join(f"{count:,} {outcome.replace('_', ' ')}" for outcome, count in facts.outcomes.most_common())
    if outcomes:
        yield f"- Outcomes: {outcomes}"


def _cells(facts: Facts) -> Iterator[str]:
    cells = list(facts.results.cells)
    if not cells:
        return
    yield "## Every cell" if len(cells) <= MAX_CELLS else "## Cells that did not complete"
    yield ""
    if len(cells) > MAX_CELLS:
        unusual = [result for result in cells if result.outcome not in ("completed", "stopped_early")]
        yield f"All {len(cells):,} cells are in report.html. {len(unusual):,} did not end as planned, the first:"
        yield ""
        cells = unusual[:MAX_CELLS]
    yield from table_lines(
        ("phase", "arm", "lr", "seed", "outcome", "tokens", "validation", "test"),
        [
            (
                result.cell.phase,
                result.cell.strategy,
                written.rate(result.cell.lr),
                str(result.cell.seed),
                (result.outcome or "unfinished").replace("_", " "),
                written.count(result.tokens_seen),
                written.loss(result.val_loss),
                written.loss(result.test_loss),
            )
            for result in cells
        ],
        numeric_from=2,
    )


def _origin(facts: Facts) -> Iterator[str]:
    yield "## Where the numbers come from"
    yield ""
    for title, values in provenance(facts):
        yield f"- {title}: " + escaped(", ".join(f"{name} {value}" for name, value in values))
    yield ""
    yield "## Reproduce and extend"
    yield ""
    yield "```"
    found = words.commands(facts)
    width = max((len(command.line) for command in found), default=0)
    yield from (f"{command.line.ljust(width)}   # {command.purpose}" for command in found)
    yield "```"
