"""Your own files as a corpus: a text file is one document, a table has one document per row.

Tables (jsonl, json, parquet; jsonl and json also compressed) are streamed through ``datasets``, one file after the
other in order of name, so that a document can be named by file and row.
"""

from __future__ import annotations

import glob
import lzma
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

from moe.corpus import CorpusConfig, CorpusSource, Document
from moe.corpus_rows import RowReader, quiet_builders
from moe.errors import CorpusError
from moe.token_file import file_digest

TEXT_SUFFIXES = (".txt", ".md")
# The builder of `datasets` that reads each kind of table.
BUILDER_OF_SUFFIX = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
COMPRESSIONS = (".xz", ".gz", ".bz2")
_KNOWN = ".txt, .md, .jsonl, .json, .parquet (.jsonl and .json also with .xz, .gz or .bz2)"


def files_source(config: CorpusConfig) -> CorpusSource:
    """The corpus of all files that ``config.paths`` name: files, globs, and directories (searched through and through).

    Raises:
        CorpusError: a path matches nothing, or a file named outright is of an unknown kind; all are named at once.
    """
    paths = _matched(config.paths)
    base = Path(os.path.commonpath([path.parent for path in paths]))
    named = sorted((path.relative_to(base).as_posix(), path) for path in paths)
    sizes = [path.stat().st_size for _, path in named]
    compressed = any(path.suffix in (*COMPRESSIONS, ".parquet") for _, path in named)
    return CorpusSource(
        identity={
            "kind": "files",
            # Content and not time or place: another machine's copy of the same files is the same corpus.
            "files": [[name, file_digest(path)] for name, path in named],
            "text_column": config.text_column,
            "split_column": config.split_column,
            "group_column": config.group_column,
        },
        description=f"files ({_described(named)})",
        documents=lambda: _documents(config, named),
        total_bytes=None if compressed else sum(sizes),
    )


def _documents(config: CorpusConfig, named: list[tuple[str, Path]]) -> Iterator[Document]:
    reader = RowReader(config)
    for name, path in named:
        if path.stat().st_size == 0:
            continue
        if path.suffix in TEXT_SUFFIXES:
            yield Document(name=name, text=_read_text(path))
        else:
            yield from _table(reader, name, path)


def _table(reader: RowReader, name: str, path: Path) -> Iterator[Document]:
    from datasets import load_dataset

    quiet_builders()
    builder = BUILDER_OF_SUFFIX[_table_suffix(path)]
    try:
        rows = load_dataset(builder, data_files=[glob.escape(str(path))], split="train", streaming=True)
        yield from reader.documents(rows, place=name)
    except CorpusError:
        raise
    except (ValueError, OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise CorpusError(
            f"{path} cannot be read as {builder}: {_one_line(error)}; repair the file or leave it out"
        ) from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{path} is not UTF-8 at byte {error.start}; convert it (`iconv -t utf-8`) or leave it out"
        ) from error


def _matched(patterns: tuple[str, ...]) -> list[Path]:
    found: dict[Path, None] = {}
    problems: list[str] = []
    for pattern in patterns:
        matches = _matches(Path(pattern).expanduser())
        known = [path for path in matches if _is_known(path)]
        if not matches:
            problems.append(f"{pattern} matches no file; give a path, a directory or a glob that does")
        elif not known:
            problems.append(f"{pattern} is of no known kind; known are {_KNOWN}")
        found.update(dict.fromkeys(path.resolve() for path in known))
    if problems:
        raise CorpusError("; ".join(problems))
    return list(found)


def _matches(pattern: Path) -> list[Path]:
    if pattern.is_file():
        return [pattern]
    if pattern.is_dir():
        return [path for path in pattern.rglob("*") if path.is_file() and _is_known(path)]
    matches = [Path(match) for match in glob.glob(str(pattern), recursive=True)]  # noqa: PTH207 - Path has no absolute glob
    return [path for match in matches for path in ([match] if match.is_file() else _matches(match))]


def _is_known(path: Path) -> bool:
    return path.suffix in TEXT_SUFFIXES or _table_suffix(path) in BUILDER_OF_SUFFIX


def _table_suffix(path: Path) -> str:
    if path.suffix in COMPRESSIONS:
        inner = Path(path.stem).suffix
        return inner if BUILDER_OF_SUFFIX.get(inner) == "json" else ""
    return path.suffix


def _described(named: list[tuple[str, Path]]) -> str:
    first = named[0][0]
    return first if len(named) == 1 else f"{first} and {len(named) - 1} more"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
