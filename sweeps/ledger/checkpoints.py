"""Checkpoints of one cell in its ledger folder.

A checkpoint is a folder of files written by the trainer. It is complete when its manifest (size and hash of every
file), which is written last, is there and agrees. The last two are kept, so that a damaged one has a predecessor.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pydantic import BaseModel, Field, ValidationError

from sweeps.errors import DamagedError
from sweeps.ledger.storage import Storage

_PREFIX: Final = "checkpoint-"
_MANIFEST: Final = "manifest.json"
_DAMAGED: Final = "damaged.json"
KEPT: Final = 2


class _File(BaseModel):
    """Size and hash of one file of a checkpoint."""

    size_bytes: int = Field(alias="bytes")
    blake2b: str


class _Manifest(BaseModel):
    """What makes a checkpoint complete."""

    files: dict[str, _File]


class Checkpoints:
    """The checkpoints in one cell's folder, addressed by tokens seen."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def save(self, tokens: int, write: Callable[[Path], None]) -> None:
        """Let ``write`` fill a folder and store it as the checkpoint at ``tokens``.

        Older ones than the last two go, and so do those that were cut short; one that was set aside stays.
        """
        name = _folder(tokens)
        with tempfile.TemporaryDirectory(prefix="moe-sweeps-") as folder:
            write(Path(folder))
            files = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
        self.delete(tokens)  # one that was cut short or set aside at this very point
        for file_name, data in files.items():
            self._storage.write_bytes(f"{name}/{file_name}", data)
        manifest = {
            file_name: {"bytes": len(data), "blake2b": hashlib.blake2b(data).hexdigest()}
            for file_name, data in files.items()
        }
        self._storage.write_json(f"{name}/{_MANIFEST}", {"schema": 1, "tokens_seen": tokens, "files": manifest})
        cut_short = [other for other in self._all() if not self._storage.exists(f"{_folder(other)}/{_MANIFEST}")]
        for old in [*self.complete()[:-KEPT], *cut_short]:
            self.delete(old)

    def complete(self) -> list[int]:
        """Tokens of every checkpoint whose manifest is there and which was not set aside, ascending."""
        return [tokens for tokens in self._all() if self._is_complete(tokens)]

    def newest_complete(self) -> int | None:
        """Tokens of the newest complete checkpoint, or None."""
        for tokens in reversed(self._all()):
            if self._is_complete(tokens):
                return tokens
        return None

    def load(self, tokens: int, read: Callable[[Path], None]) -> None:
        """Give ``read`` a folder with the checkpoint's files; raises DamagedError where it is damaged."""
        name = _folder(tokens)
        files = self._files_of(name)
        with tempfile.TemporaryDirectory(prefix="moe-sweeps-") as folder:
            for file_name, expected in files.items():
                try:
                    data = self._storage.read_bytes(f"{name}/{file_name}")
                except FileNotFoundError:
                    raise DamagedError(f"{self._storage.uri}/{name}/{file_name} is missing") from None
                if len(data) != expected.size_bytes or hashlib.blake2b(data).hexdigest() != expected.blake2b:
                    raise DamagedError(
                        f"{self._storage.uri}/{name}/{file_name} is damaged: {len(data)} bytes that do not match the "
                        f"manifest ({expected.size_bytes} bytes)"
                    )
                (Path(folder) / Path(file_name).name).write_bytes(data)
            read(Path(folder))

    def set_aside(self, tokens: int, reason: str) -> None:
        """Mark a damaged checkpoint, so that the one before it serves."""
        self._storage.write_json(f"{_folder(tokens)}/{_DAMAGED}", {"reason": reason})

    def delete(self, tokens: int) -> None:
        """Delete a checkpoint; the manifest goes first, so that a half-deleted one is not complete."""
        name = _folder(tokens)
        self._storage.delete(f"{name}/{_MANIFEST}")
        self._storage.delete(name)

    def delete_all(self) -> None:
        """Delete every checkpoint of the cell."""
        for tokens in self._all():
            self.delete(tokens)

    def _files_of(self, name: str) -> dict[str, _File]:
        """The files that a checkpoint's manifest lists; raises DamagedError where it is not a manifest."""
        where = f"{self._storage.uri}/{name}/{_MANIFEST}"
        try:
            return _Manifest.model_validate(self._storage.read_json(f"{name}/{_MANIFEST}")).files
        except ValidationError as error:
            problem = error.errors()[0]
            key = ".".join(map(str, problem["loc"])) or "the manifest"
            raise DamagedError(f"{where} is damaged: {key}: {problem['msg']}") from error

    def _all(self) -> list[int]:
        names = [name for name in self._storage.names() if name.startswith(_PREFIX)]
        return sorted(int(name.removeprefix(_PREFIX)) for name in names)

    def _is_complete(self, tokens: int) -> bool:
        name = _folder(tokens)
        return self._storage.exists(f"{name}/{_MANIFEST}") and not self._storage.exists(f"{name}/{_DAMAGED}")


def _folder(tokens: int) -> str:
    return f"{_PREFIX}{tokens:015d}"
