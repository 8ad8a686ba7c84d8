"""What a report is made of: sections of notes, tables and pictures, the same for its HTML and its Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One field of a table. ``note`` stands smaller behind the text; ``arm`` is the index that decides a colour.

    ``mark`` is ``edge`` for a warning, ``far`` for a value outside of what is compared; ``sort`` is its sort key.
    """

    text: str
    note: str = ""
    arm: int | None = None
    mark: str = ""
    sort: float | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of text; the first ``n_names`` columns are names, the others numbers, set to the right.

    A narrow screen leaves out the columns in ``wide_only``; ``strong`` is the row that stands out.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[Cell | str, ...], ...]
    n_names: int = 1
    wide_only: tuple[int, ...] = ()
    strong: int | None = None
    kind: ClassVar[str] = "table"

    @property
    def cells(self) -> list[list[Cell]]:
        """Every field as a cell."""
        return [[field if isinstance(field, Cell) else Cell(text=field) for field in row] for row in self.rows]

    @property
    def texts(self) -> list[list[str]]:
        """Every field as plain text, what is not compared in parentheses."""
        return [[plain(cell) for cell in row] for row in self.cells]


def plain(cell: Cell) -> str:
    """Return a field as plain text."""
    text = " ".join(word for word in (cell.text, cell.note) if word)
    return f"({text})" if cell.mark == "far" else text


@dataclass(frozen=True, kw_only=True)
class Heading:
    """A title within a section."""

    text: str
    kind: ClassVar[str] = "heading"


@dataclass(frozen=True, kw_only=True)
class Note:
    """A paragraph on how to read what follows."""

    text: str
    kind: ClassVar[str] = "note"


@dataclass(frozen=True, kw_only=True)
class Bullets:
    """Sentences, one below the other; ``weighty`` ones carry a bar at their side."""

    items: tuple[str, ...]
    weighty: bool = False
    kind: ClassVar[str] = "bullets"


@dataclass(frozen=True, kw_only=True)
class Values:
    """Names with a value each."""

    items: tuple[tuple[str, str], ...]
    kind: ClassVar[str] = "values"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """The place of a picture, empty where the sweep has no data for it."""

    name: str
    titled: bool = True
    kind: ClassVar[str] = "figure"


@dataclass(frozen=True, kw_only=True)
class Commands:
    """Lines for a shell, each with its purpose."""

    lines: tuple[tuple[str, str], ...]
    kind: ClassVar[str] = "commands"


@dataclass(frozen=True, kw_only=True)
class Code:
    """A file in full."""

    text: str
    kind: ClassVar[str] = "code"


@dataclass(frozen=True, kw_only=True)
class AllCells:
    """The table of every cell, which HTML sorts and filters; Markdown shortens it."""

    table: Table
    summary: str
    kind: ClassVar[str] = "cells"


@dataclass(frozen=True, kw_only=True)
class Folded:
    """Blocks that open on request."""

    summary: str
    blocks: tuple[Table | Heading | Code, ...]
    kind: ClassVar[str] = "folded"


Block = Heading | Note | Bullets | Table | Values | Figure | Commands | Code | AllCells | Folded


@dataclass(frozen=True, kw_only=True)
class Section:
    """A titled run of blocks; ``id`` is its anchor."""

    id: str
    title: str
    blocks: tuple[Block, ...]


def section(id_: str, title: str, *blocks: Block | Sequence[Block] | None) -> Section:
    """Return a section without the blocks that are None."""
    flat: list[Block] = []
    for block in blocks:
        flat += [] if block is None else [block] if isinstance(block, Block) else block
    return Section(id=id_, title=title, blocks=tuple(flat))
