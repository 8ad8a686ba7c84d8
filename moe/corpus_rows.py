"""Rows of a table with a text column, as documents. Files and the hub share it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from moe.corpus import SPLIT_WORDS, CorpusConfig, Document, SplitName
from moe.errors import CorpusError

AUTO_SPLIT_COLUMN = "split"
# A column by one of these names makes a document easier to find than its row number alone.
_NAMING_COLUMNS = ("id", "name", "title", "url")
_LONGEST_SHOWN_NAME = 80


def quiet_builders() -> None:
    """Keep the builders of ``datasets`` from logging what they raise as well: a bad file gets one message."""
    logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)


class RowReader:
    """Turns rows into documents by the columns that ``config`` names.

    One reader reads one corpus: whether ``split_column="auto"`` found a split column is decided by the first row and
    holds for all files.
    """

    def __init__(self, config: CorpusConfig) -> None:
        self._config = config
        self._split_column: str | None = None
        self._decided = False

    def documents(self, rows: Iterable[Mapping[str, Any]], *, place: str) -> Iterator[Document]:
        """The documents of ``rows``, which ``place`` names in messages; rows without text are left out.

        Raises:
            CorpusError: a column is missing, or a split column holds a word that names no split.
        """
        for number, row in enumerate(rows):
            where = f"{place} row {number}"
            if not self._decided:
                self._split_column = self._choose_split_column(row)
                self._decided = True
            text = _column(row, self._config.text_column, where, setting="text_column")
            if text is None:
                continue
            if not isinstance(text, str):
                raise CorpusError(
                    f"{where}: column {self._config.text_column!r} holds {type(text).__name__}, not text; "
                    "name another with `--set corpus.text_column=...`"
                )
            yield Document(
                name=_name(row, where), text=text, split=self._split(row, where), group=self._group(row, where)
            )

    def _choose_split_column(self, row: Mapping[str, Any]) -> str | None:
        column = self._config.split_column
        if column in (None, "none"):
            return None
        if column != "auto":
            return column
        value = row.get(AUTO_SPLIT_COLUMN)
        return AUTO_SPLIT_COLUMN if isinstance(value, str) and value.strip().lower() in SPLIT_WORDS else None

    def _group(self, row: Mapping[str, Any], where: str) -> str | None:
        """The row's group; rows without a value are each on their own."""
        if self._config.group_column is None:
            return None
        value = _column(row, self._config.group_column, where, setting="group_column")
        return None if value is None else str(value)

    def _split(self, row: Mapping[str, Any], where: str) -> SplitName | None:
        if self._split_column is None:
            return None
        value = _column(row, self._split_column, where, setting="split_column")
        split = SPLIT_WORDS.get(str(value).strip().lower())
        if split is None:
            raise CorpusError(
                f"{where}: column {self._split_column!r} holds {value!r}, which names no split (train, validation, "
                "test); fix it, or split by document with `--set corpus.split_column=none`"
            )
        return split


def _column(row: Mapping[str, Any], column: str, where: str, *, setting: str) -> Any:
    if column not in row:
        raise CorpusError(
            f"{where} has no column {column!r}, only {', '.join(sorted(row))}; "
            f"name one of them with `--set corpus.{setting}=...`"
        )
    return row[column]


def _name(row: Mapping[str, Any], where: str) -> str:
    shown = next((str(row[column]) for column in _NAMING_COLUMNS if row.get(column)), None)
    return where if shown is None else f"{where} ({shown[:_LONGEST_SHOWN_NAME]})"
