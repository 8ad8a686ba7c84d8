"""One split as a flat, memory-mapped file of token ids, with where its documents begin."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


@dataclass(frozen=True, kw_only=True)
class TokenFile:
    """All tokens of one split; every document is followed by the separator.

    ``tokens`` is a read-only view of the file (uint16 where the vocabulary allows it, else uint32), so that a window
    costs microseconds and all processes share one copy in memory. ``document_starts`` and ``document_bytes`` are
    int64, one entry per document. Pickled, it is only a path: another process maps the file again.
    """

    folder: Path
    split: str
    tokens: Tokens
    document_starts: npt.NDArray[np.int64]
    document_bytes: npt.NDArray[np.int64]
    document_names: Sequence[str]
    document_groups: Mapping[str, str] = field(default_factory=dict)
    """Groups (author, site) of documents by name: of the test split, where the corpus names a group column."""

    @classmethod
    def open(cls, folder: Path, split: str, *, dtype: str) -> TokenFile:
        """Maps the files of ``split`` that a build wrote into ``folder``."""
        path = folder / f"{split}.tokens"
        groups = folder / f"{split}.document_groups.json"
        # An empty file cannot be mapped.
        tokens = np.asarray(np.memmap(path, dtype=dtype, mode="r")) if path.stat().st_size else np.empty(0, dtype)
        return cls(
            folder=folder,
            split=split,
            tokens=tokens,
            document_starts=np.load(folder / f"{split}.document_starts.npy"),
            document_bytes=np.load(folder / f"{split}.document_bytes.npy"),
            document_names=tuple(json.loads((folder / f"{split}.document_names.json").read_bytes())),
            document_groups=json.loads(groups.read_bytes()) if groups.exists() else {},
        )

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return _reopen, (self.folder, self.split, self.tokens.dtype.name)

    @property
    def n_tokens(self) -> int:
        """Tokens of the split, separators included."""
        return int(self.tokens.size)

    @property
    def n_documents(self) -> int:
        """Documents of the split."""
        return int(self.document_starts.size)

    @property
    def bytes_total(self) -> int:
        """Bytes of the split's text in UTF-8."""
        return int(self.document_bytes.sum())

    @property
    def document_lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each document, its separator included."""
        return np.diff(self.document_starts, append=self.n_tokens)

    def documents_of(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The index of the document that holds each of ``positions`` (any shape)."""
        return np.searchsorted(self.document_starts, positions, side="right") - 1


def _reopen(folder: Path, split: str, dtype: str) -> TokenFile:
    return TokenFile.open(folder, split, dtype=dtype)


def file_digest(path: Path) -> str:
    """Content hash of a file: blake2b, 16 bytes, hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
