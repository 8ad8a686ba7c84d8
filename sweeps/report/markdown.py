"""The report as Markdown, to be read in a terminal or a pull request."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from sweeps import formatting as written
from sweeps.formatting import markdown_table, markdown_text
from sweeps.report.blocks import AllCells, Block, Bullets, Code, Commands, Figure, Folded, Heading, Note, Table, Values
from sweeps.report.facts import Facts
from sweeps.report.opening import FIRST_PICTURES, opening
from sweeps.report.sections import sections

MAX_CELLS = 60
"""A longer table belongs in the HTML report; the Markdown one then lists the cells that did not complete."""
WITHOUT_TROUBLE = ("completed", "stopped early")


def markdown(facts: Facts, plots: Collection[str] = ()) -> str:
    """Return the report as Markdown; ``plots`` names the pictures that lie beside it in ``plots/``."""
    first = next((name for name in FIRST_PICTURES if name in plots), "")
    parts = [*_head(facts), *([_picture(first)] if first else [])]
    for section in sections(facts, [name for name in plots if name != first]):
        parts += [f"## {section.title}", *blocks_text(section.blocks)]
    return "\n\n".join(parts) + "\n"


def blocks_text(blocks: Iterable[Block]) -> list[str]:
    """Return the paragraphs of some blocks."""
    return [text for block in blocks for text in _block(block)]


def _head(facts: Facts) -> Iterator[str]:
    top = opening(facts)
    yield f"# {markdown_text(top.headline)}"
    yield f"**{top.badge}** · sweep `{facts.results.name}` · {written.count(facts.budget_tokens)} tokens a run"
    if top.before:
        yield markdown_text(top.before)
    if top.leads:
        yield _bullets(top.leads)
    yield top.meaning
    if top.reasons:
        yield f"Why there is no verdict yet:\n\n{_bullets(top.reasons)}"
    if top.command:
        yield f"```\n{top.command}\n```"
    yield f"> {markdown_text(top.statement)}"


def _picture(name: str) -> str:
    return f"![{name}](plots/{name}.png)"


def _bullets(items: Collection[str]) -> str:
    return "\n".join(f"- {markdown_text(item)}" for item in items)


def _block(block: Block) -> Iterator[str]:
    match block:
        case Heading():
            yield f"### {markdown_text(block.text)}"
        case Note():
            yield block.text
        case Bullets():
            yield _bullets(block.items)
        case Table():
            yield markdown_table(block.header, block.texts, n_names=block.n_names)
        case Values():
            yield "\n".join(f"- {name}: {markdown_text(value)}" for name, value in block.items)
        case Figure():
            yield _picture(block.name)
        case Folded():
            yield f"{block.summary}:"
            yield from blocks_text(block.blocks)
        case Commands():
            width = max(len(line) for line, _ in block.lines)
            lines = "\n".join(f"{line.ljust(width)}   # {purpose}" for line, purpose in block.lines)
            yield f"```\n{lines}\n```"
        case Code():
            yield f"```\n{block.text.strip()}\n```"
        case AllCells():
            yield from _cells(block.table, block.summary)


def _cells(table: Table, summary: str) -> Iterator[str]:
    yield f"{written.plural(len(table.rows), 'cell')}: {summary}"
    rows, kept = table.texts, [table.header.index(name) for name in ("phase", "arm", "lr", "seed", "outcome", "tokens")]
    kept += [table.header.index(name) for name in ("validation", "test")]
    if len(rows) > MAX_CELLS:
        rows = [row for row in rows if row[table.header.index("outcome")] not in WITHOUT_TROUBLE]
        yield f"All are in report.html. {len(rows):,} did not end as planned, the first:"
    body = [[row[i] for i in kept] for row in rows[:MAX_CELLS]]
    if body:
        yield markdown_table([table.header[i] for i in kept], body, n_names=2)
