"""Checkpoints of one cell in its ledger folder, and which of them count.

A checkpoint is a folder ``checkpoint-TOKENS-HOLDER`` whose manifest is written last. The manifest lists the files that
make the checkpoint up and the segments of records up to it, each with size and hash: it is one commit of the cell, and
nothing that it does not list counts. ``HOLDER`` is the token of the lease under which it was written. A later holder's
manifests count before an earlier one's, and of one holder's the furthest one.

A holder begins by adopting: it writes a manifest of its own over the files of the newest checkpoint that it could
load. What an earlier holder, paused and awake again, writes after that counts for nothing.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sweeps.errors import DamagedError, StorageError
from sweeps.ledger.models import Manifest, StoredFile, validated
from sweeps.ledger.storage import Storage

KEPT: Final = 2  # the last two checkpoints, so that a damaged one has a predecessor

_MANIFEST: Final = "manifest.json"
_NAME: Final = re.compile(r"checkpoint-(\d{15})(?:-(\d{6,})-([0-9a-f]+))?")
_WRITER_FAILED: Final = ("inline_container.cc", "PytorchStreamWriter")  # in torch.save's RuntimeError for a full disk


@dataclass(frozen=True, kw_only=True, order=True)
class CheckpointName:
    """The name of a checkpoint's folder; names sort by what counts. Version 0.1 wrote no holder."""

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


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A complete checkpoint: its name and what its manifest says."""

    name: CheckpointName
    manifest: Manifest

    @property
    def tokens(self) -> int:
        """Tokens seen at this point."""
        return self.name.tokens

    @property
    def files_folder(self) -> str:
        """The folder that holds its files: its own, or that of the checkpoint that it adopted."""
        return self.manifest.folder or str(self.name)


class Checkpoints:
    """The checkpoints in one cell's folder."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def names(self) -> list[CheckpointName]:
        """Every checkpoint that was begun, those that count most first."""
        found = map(CheckpointName.parse, self._storage.names())
        return sorted((name for name in found if name is not None), reverse=True)

    def durable(self) -> Checkpoint | None:
        """The checkpoint that counts, as far as its manifest says; None before the first holder adopted one."""
        names = self.names()
        while True:
            for name in names:
                checkpoint = self.find(name)
                if checkpoint is not None:
                    return checkpoint
            listed, names = names, self.names()
            if names == listed:  # otherwise a new holder deleted what was listed, once something else counted
                return None

    def newest_complete(self) -> int | None:
        """Tokens of the checkpoint that counts, or None where there is no state to go on from."""
        durable = self.durable()
        return durable.tokens if durable is not None and durable.manifest.files else None

    def complete(self) -> list[int]:
        """Tokens of all checkpoints with files, each once, ascending."""
        found = [checkpoint for name in self.names() if (checkpoint := self.find(name)) is not None]
        return sorted({checkpoint.tokens for checkpoint in found if checkpoint.manifest.files})

    def find(self, name: CheckpointName) -> Checkpoint | None:
        """The checkpoint of this name, None where its manifest is missing or damaged."""
        try:
            return self.read(name)
        except (FileNotFoundError, DamagedError):
            return None

    def read(self, name: CheckpointName) -> Checkpoint:
        """The checkpoint of this name.

        Raises FileNotFoundError without a manifest, DamagedError where it is not what was written.
        """
        where = f"{name}/{_MANIFEST}"
        manifest = validated(self._storage, where, self._storage.read_json(where), Manifest)
        return Checkpoint(name=name, manifest=manifest)

    def load_newest(self, read: Callable[[Path], None]) -> None:
        """Give ``read`` a folder with the files of the checkpoint that counts; raises DamagedError without a whole one.

        Raises FileNotFoundError where there is none.
        """
        durable = self.durable()
        if durable is None or not durable.manifest.files:
            raise FileNotFoundError(f"{self._storage.uri} holds no checkpoint")
        self.load(durable, read)

    def load(self, checkpoint: Checkpoint, read: Callable[[Path], None]) -> None:
        """Give ``read`` a folder with the checkpoint's files; raises DamagedError where one is missing or damaged."""
        with tempfile.TemporaryDirectory(prefix="moe-sweeps-") as folder:
            for name, expected in checkpoint.manifest.files.items():
                where = f"{checkpoint.files_folder}/{name}"
                (Path(folder) / name).write_bytes(read_listed(self._storage, where, expected))
            read(Path(folder))

    def write_files(self, name: CheckpointName, write: Callable[[Path], None]) -> dict[str, dict[str, Any]]:
        """Let ``write`` fill a folder, store its files, and return them as a manifest lists them.

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
        return {file_name: stored_file(data) for file_name, data in files.items()}

    def write_manifest(
        self, name: CheckpointName, *, folder: str, files: dict[str, Any], segments: Sequence[dict[str, Any]]
    ) -> Checkpoint:
        """Make a checkpoint complete: from now on its segments count."""
        manifest = {
            "schema": 1,
            "tokens_seen": name.tokens,
            "folder": folder,
            "files": files,
            "segments": list(segments),
        }
        self._storage.write_json(f"{name}/{_MANIFEST}", manifest)
        return Checkpoint(name=name, manifest=Manifest.model_validate(manifest))

    def delete(self, name: str) -> None:
        """Delete a checkpoint; the manifest goes first, so that a half-deleted one is not complete."""
        self._storage.delete(f"{name}/{_MANIFEST}")
        self._storage.delete(name)

    def delete_all(self) -> None:
        """Delete every checkpoint of the cell; those that count least go first, so that no other one comes to count."""
        for name in reversed(self.names()):
            self.delete(str(name))


def stored_file(data: bytes) -> dict[str, Any]:
    """Size and hash of an object, as a manifest lists them."""
    return {"bytes": len(data), "blake2b": hashlib.blake2b(data).hexdigest()}


def read_listed(storage: Storage, name: str, listed: StoredFile) -> bytes:
    """An object that a manifest or an outcome lists; raises DamagedError where it is missing or other bytes."""
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
