"""Checkpoints of one cell in its ledger folder.

A checkpoint is a folder ``checkpoint-TOKENS-HOLDER`` whose manifest is written last; it lists the files that make the
checkpoint up, each with size and hash. ``HOLDER`` is the token of the lease under which it was written. Which of them
counts, a commit says (``sweeps.ledger.commits``).
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from sweeps.errors import DamagedError, StorageError
from sweeps.ledger.entries import SCHEMA
from sweeps.ledger.models import Manifest, StoredFile, validated
from sweeps.ledger.storage import Storage

Read = TypeVar("Read")
"""What is made of a checkpoint's files."""

KEPT: Final = 2  # the last two checkpoints, so that a damaged one has a predecessor

_MANIFEST: Final = "manifest.json"
_NAME: Final = re.compile(r"checkpoint-(\d{15})(?:-(\d{6,})-([0-9a-f]+))?")
_WRITER_FAILED: Final = ("inline_container.cc", "PytorchStreamWriter")  # in torch.save's RuntimeError for a full disk


@dataclass(frozen=True, kw_only=True, order=True)
class CheckpointName:
    """The name of a checkpoint's folder; names sort by holder and tokens. Version 0.1 wrote no holder."""

    number: int
    tokens: int
    secret: str

    @classmethod
    def parse(cls, name: str) -> CheckpointName | None:
        """The name, or None where it is another folder's."""
        found = _NAME.fullmatch(name)
        return found and cls(number=int(found[2] or 0), tokens=int(found[1]), secret=found[3] or "")

    @classmethod
    def of(cls, tokens: int, holder: str) -> CheckpointName:
        """The name of the checkpoint at ``tokens`` under a lease's token."""
        number, _, secret = holder.partition("-")
        return cls(number=int(number), tokens=tokens, secret=secret)

    def __str__(self) -> str:
        holder = f"-{self.number:06d}-{self.secret}" if self.secret else ""
        return f"checkpoint-{self.tokens:015d}{holder}"


class Checkpoints:
    """The checkpoints in one cell's folder."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def names(self) -> list[CheckpointName]:
        """Every checkpoint that was started, by holder and tokens."""
        found = map(CheckpointName.parse, self._storage.names())
        return sorted(name for name in found if name is not None)

    def complete(self) -> list[CheckpointName]:
        """Those with a manifest that is what was written, by holder and tokens."""
        return [name for name in self.names() if self.is_complete(str(name))]

    def is_complete(self, name: str) -> bool:
        """Whether the checkpoint has a manifest, and one that is what was written."""
        try:
            self.manifest(name)
        except (FileNotFoundError, DamagedError):
            return False
        return True

    def manifest(self, name: str) -> Manifest:
        """What makes the checkpoint up.

        Raises FileNotFoundError without a manifest, DamagedError where it is not what was written.
        """
        where = f"{name}/{_MANIFEST}"
        return validated(self._storage, where, self._storage.read_json(where), Manifest)

    def load(self, name: str, read: Callable[[Path], Read]) -> Read:
        """Return what ``read`` makes of a folder with the files; raises DamagedError if one is missing or damaged."""
        try:
            manifest = self.manifest(name)
        except FileNotFoundError:
            raise DamagedError(f"{self._storage.uri}/{name}/{_MANIFEST} is missing") from None
        with tempfile.TemporaryDirectory(prefix="moe-sweeps-") as folder:
            for file_name, expected in manifest.files.items():
                (Path(folder) / file_name).write_bytes(read_listed(self._storage, f"{name}/{file_name}", expected))
            return read(Path(folder))

    def write(self, name: CheckpointName, write: Callable[[Path], None]) -> None:
        """Let ``write`` fill a folder, and store its files and last the manifest that makes the checkpoint complete.

        Raises StorageError where the disk of the temporary folder is full.
        """
        with tempfile.TemporaryDirectory(prefix="moe-sweeps-") as folder:
            try:
                write(Path(folder))
            except RuntimeError as error:
                if not any(word in str(error) for word in _WRITER_FAILED):
                    raise
                raise StorageError(f"cannot write {folder}: is its disk full? {error}") from error
            files = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
        for file_name, data in files.items():
            self._storage.write_bytes(f"{name}/{file_name}", data)
        listed = {file_name: stored_file(data) for file_name, data in files.items()}
        self._storage.write_json(f"{name}/{_MANIFEST}", {"schema": SCHEMA, "tokens_seen": name.tokens, "files": listed})

    def delete(self, name: CheckpointName) -> None:
        """Delete a checkpoint; the manifest goes first, so that a half-deleted one is not complete."""
        self._storage.delete(f"{name}/{_MANIFEST}")
        self._storage.delete(str(name))


def stored_file(data: bytes) -> dict[str, Any]:
    """Size and hash of an object, as a manifest lists them."""
    return {"bytes": len(data), "blake2b": hashlib.blake2b(data).hexdigest()}


def read_listed(storage: Storage, name: str, listed: StoredFile) -> bytes:
    """An object that is listed by size and hash; raises DamagedError where it is missing or other bytes."""
    try:
        data = storage.read_bytes(name)
    except FileNotFoundError:
        raise DamagedError(f"{storage.uri}/{name} is missing") from None
    if stored_file(data) != {"bytes": listed.size_bytes, "blake2b": listed.blake2b}:
        raise DamagedError(
            f"{storage.uri}/{name} is damaged: {len(data)} bytes that do not match the {listed.size_bytes} bytes that "
            "were written; restore it from a copy"
        )
    return data
