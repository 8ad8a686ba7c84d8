"""Your own files as a corpus: a text file is one document, a table has one document per row.

Tables (jsonl, json, parquet; jsonl and json also compressed) are streamed through ``datasets``, one file after the
other in order of name, so that a document can be named by file and row. Any other file is a text if its bytes are
UTF-8 without NUL. Others are left out, unless they are all that a path or pattern names.
"""

from __future__ import annotations

import bz2
import glob
import gzip
import hashlib
import json
import lzma
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe.corpus import CorpusConfig, CorpusSource, Document
from moe.corpus_rows import RowReader, quiet_builders
from moe.errors import CorpusAway, CorpusError
from moe.token_file import file_digest

# The builder of `datasets` that reads each kind of table.
BUILDER_OF_SUFFIX = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
OPENERS = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}
FOLDER = "folder"
"""The ``group_column`` that groups files by the folder in which they lie, unless a table has a column of that name."""
_CONVERT = "convert {0} to UTF-8 (`iconv -t utf-8`) or leave {0} out"
_HEAD_BYTES = 2**16  # nearly all that is no text shows it here, whatever its size


@dataclass(frozen=True, kw_only=True)
class _File:
    """A file of the corpus: its ``builder`` where it is a table, None where it is one text."""

    path: Path
    digest: str
    builder: str | None


def files_source(config: CorpusConfig) -> CorpusSource:
    """The corpus of all files that ``config.paths`` name: files, globs, and directories (searched through and through).

    Raises:
        CorpusAway: a path matches nothing, and the folder that it names is not on this machine.
        CorpusError: a path matches nothing, or a file cannot be read or is no text; all are named at once.
    """
    found, left_out = _found(config)
    base = Path(os.path.commonpath([file.path.parent for file in found]))
    files = sorted(((file.path.relative_to(base).as_posix(), file) for file in found), key=lambda named: named[0])
    if config.group_column not in (None, FOLDER) and all(file.builder is None for file in found):
        raise CorpusError(
            f"group_column={config.group_column!r} names a column of tables, and every file found is one text; "
            f'write "{FOLDER}" to group texts by their folder, or leave it out'
        )
    compressed = any(file.path.suffix in (*OPENERS, ".parquet") for file in found)
    texts = [name for name, file in files if file.builder is None and file.path.suffix in BUILDER_OF_SUFFIX]
    return CorpusSource(
        identity={
            "kind": "files",
            # Content and not time or place: another machine's copy of the same files is the same corpus.
            "files": [[name, file.digest] for name, file in files],
            "text_column": config.text_column,
            "split_column": config.split_column,
            "group_column": config.group_column,
            **({"texts": texts} if texts else {}),
        },
        description=f"files ({_described(files)})",
        documents=lambda: _documents(config, files),
        total_bytes=None if compressed else sum(file.path.stat().st_size for file in found),
        left_out=tuple(sorted(os.path.relpath(path, base) for path in left_out)),
    )


def _documents(config: CorpusConfig, files: Iterable[tuple[str, _File]]) -> Iterator[Document]:
    reader = RowReader(config)
    for name, file in files:
        if file.path.stat().st_size == 0:
            continue
        folder = {FOLDER: Path(name).parent.as_posix()} if config.group_column == FOLDER else {}
        if file.builder is None:
            text = file.path.read_text(encoding="utf-8")
            yield Document(name=name, text=text, group=folder.get(FOLDER))
        else:
            yield from _table(reader, name, file, folder)


def _table(reader: RowReader, name: str, file: _File, folder: Mapping[str, str]) -> Iterator[Document]:
    from datasets import load_dataset

    quiet_builders()
    assert file.builder is not None
    try:
        rows = load_dataset(file.builder, data_files=[glob.escape(str(file.path))], split="train", streaming=True)
        yield from reader.documents(({**folder, **row} for row in rows), place=name)
    except CorpusError:
        raise
    except (ValueError, OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise CorpusError(
            f"{file.path} cannot be read as {file.builder}: {_one_line(error)}; repair the file or leave it out"
        ) from error


def _found(config: CorpusConfig) -> tuple[list[_File], list[Path]]:
    """The files of the corpus, and those that are left out; raises CorpusError with every problem."""
    found_by = {pattern: [path.resolve() for path in _paths(Path(pattern).expanduser())] for pattern in config.paths}
    unmatched = [pattern for pattern, paths in found_by.items() if not paths]
    problems = [f"{pattern} matches no file; give a path, a directory or a glob that does" for pattern in unmatched]
    is_away = bool(unmatched) and not any(_folder_of(Path(pattern).expanduser()).is_dir() for pattern in unmatched)
    files: dict[Path, _File] = {}
    faults: dict[Path, str] = {}
    for pattern, path in ((pattern, path) for pattern, paths in found_by.items() for path in paths):
        if path in files or path in faults:
            continue
        try:
            builder = _builder(path, config.text_column, is_named=pattern.endswith(path.suffix))
            digest, fault = (file_digest(path), None) if builder else _read_through(path)
        except OSError as error:
            problems.append(f"{path} cannot be read ({error.strerror or error}); allow it, or leave it out")
            continue
        if fault is None:
            files[path] = _File(path=path, digest=digest, builder=builder)
        else:
            faults[path] = fault
    for pattern, paths in found_by.items():
        if len(paths) == 1 and paths[0] in faults:
            problems.append(f"{paths[0]} is no text ({faults[paths[0]]}); {_CONVERT.format('it')}")
        elif paths and all(path in faults for path in paths):
            rule = f"matches {len(paths):,} files and none is text (UTF-8 without NUL)"
            problems.append(f"{pattern} {rule}; {_CONVERT.format('them')}")
    if problems:
        raise (CorpusAway if is_away and len(problems) == len(unmatched) else CorpusError)("; ".join(problems))
    return list(files.values()), list(faults)


def _paths(pattern: Path) -> Iterator[Path]:
    """Every file that ``pattern`` names, or that lies below a directory that it names; hidden ones as a glob has it."""
    if not pattern.is_file() and not pattern.is_dir():
        matches = [Path(match) for match in glob.glob(str(pattern), recursive=True)]  # noqa: PTH207 - Path has no absolute glob
    else:
        matches = [pattern]
    for match in matches:
        if match.is_file():
            yield match
        for folder, below, names in os.walk(match):
            below[:] = [name for name in below if not name.startswith(".")]
            paths = [Path(folder, name) for name in names if not name.startswith(".")]
            yield from (path for path in paths if path.is_file())


def _folder_of(pattern: Path) -> Path:
    """The folder in which ``pattern`` begins to be looked for."""
    return next(folder for folder in pattern.parents if not glob.has_magic(str(folder)))


def _builder(path: Path, text_column: str, *, is_named: bool) -> str | None:
    """What reads a table; None for a text. JSON holds anything: unless its kind was named, its rows must have text."""
    inner = Path(path.stem).suffix if path.suffix in OPENERS else path.suffix
    builder = BUILDER_OF_SUFFIX.get(inner)
    if path.suffix in OPENERS and builder != "json":
        return None
    if inner == ".json" and not is_named and path.stat().st_size and not _has_rows(path, text_column):
        return None
    return builder


def _has_rows(path: Path, text_column: str) -> bool:
    opener: Any = OPENERS.get(path.suffix, open)
    try:
        with opener(path, "rt", encoding="utf-8") as stream:
            first, _ = json.JSONDecoder().raw_decode(stream.read().lstrip())
    except (ValueError, EOFError, RecursionError, lzma.LZMAError, zlib.error, gzip.BadGzipFile):
        return False
    row = first[0] if isinstance(first, list) and first else first
    return isinstance(row, dict) and text_column in row


def _read_through(path: Path) -> tuple[str, str | None]:
    """Content hash of a file, and what shows that it is no text (None for a text)."""
    with path.open("rb") as stream:
        content = stream.read(_HEAD_BYTES)
        if b"\0" not in content:
            content += stream.read()
    nul = content.find(b"\0")
    if nul >= 0:
        return "", f"byte {nul} is NUL"
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return "", f"byte {error.start} is not UTF-8"
    return hashlib.blake2b(content, digest_size=16).hexdigest(), None


def _described(files: list[tuple[str, _File]]) -> str:
    first = files[0][0]
    return first if len(files) == 1 else f"{first} and {len(files) - 1} more"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
