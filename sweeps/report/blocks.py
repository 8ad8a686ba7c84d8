"""What a report is made of: sections of notes, tables and pictures, the same for its HTML and its Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


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


class Block:
    """A part of a section; the templates tell blocks apart by ``kind``, the name of the class in small letters."""

    @property
    def kind(self) -> str:
        """``heading`` of a ``Heading``."""
        return type(self).__name__.lower()


@dataclass(frozen=True, kw_only=True)
class Table(Block):
    """A table of text; the first ``n_names`` columns are names, the others numbers, set to the right.

    A narrow screen leaves out the columns in ``wide_only``; ``strong`` is the row that stands out.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[Cell | str, ...], ...]
    n_names: int = 1
    wide_only: tuple[int, ...] = ()
    strong: int | None = None

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
class Heading(Block):
    """A title within a section."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Note(Block):
    """A paragraph on how to read what follows."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Bullets(Block):
    """Sentences, one below the other; ``weighty`` ones carry a bar at their side."""

    items: tuple[str, ...]
    weighty: bool = False


@dataclass(frozen=True, kw_only=True)
class Values(Block):
    """Names with a value each."""

    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Figure(Block):
    """The place of a picture, empty where the sweep has no data for it."""

    name: str
    titled: bool = True


@dataclass(frozen=True, kw_only=True)
class Commands(Block):
    """Lines for a shell, each with its purpose."""

    lines: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Code(Block):
    """A file in full."""

    text: str


@dataclass(frozen=True, kw_only=True)
class AllCells(Block):
    """The table of every cell, which HTML sorts and filters; Markdown shortens it."""

    table: Table
    summary: str


@dataclass(frozen=True, kw_only=True)
class Folded(Block):
    """Blocks that open on request."""

    summary: str
    blocks: tuple[Table | Heading | Code, ...]


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
