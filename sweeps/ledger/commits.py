"""Which of a cell's records and checkpoints count: a chain of commits, each created exclusively.

``commits/NNNN.json`` names a checkpoint and lists the segments of records up to it. The one with the highest number is
the one that counts; anything it does not list does not. When two holders create the same number, one succeeds and the
other learns that it was superseded. A holder therefore starts by committing the state that it resumes from: after that
no earlier holder, paused and awake again, can commit, and no commit made before is missed.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from sweeps.errors import DamagedError
from sweeps.ledger.entries import SCHEMA, create_numbered, numbers
from sweeps.ledger.models import Commit, validated
from sweeps.ledger.storage import Storage

_FOLDER: Final = "commits"


class Commits:
    """The commits in one cell's folder."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def numbers(self) -> list[int]:
        """Numbers of the commits, ascending; raises StorageError for any other file."""
        return numbers(self._storage, _FOLDER)

    def newest(self) -> Commit | None:
        """The newest undamaged commit, or None."""
        seen: list[int] | None = None
        while (found := self.numbers()) != seen:  # what was listed may be deleted once something newer counts
            seen = found
            for number in reversed(found):
                with suppress(FileNotFoundError, DamagedError):
                    return self.read(number)
        return None

    def read(self, number: int) -> Commit:
        """A commit; raises FileNotFoundError if it does not exist, DamagedError if it is damaged."""
        name = f"{_FOLDER}/{number:04d}.json"
        return validated(self._storage, name, self._storage.read_json(name), Commit)

    def create(self, number: int, commit: Commit) -> bool:
        """Add a commit; returns whether the number was free."""
        return create_numbered(self._storage, _FOLDER, number, {"schema": SCHEMA, **commit.model_dump(by_alias=True)})

    def delete(self, *, before: int | None = None) -> None:
        """Delete all commits, or those below a number, the oldest first: the newest keeps counting until the end."""
        for number in self.numbers():
            if before is None or number < before:
                self._storage.delete(f"{_FOLDER}/{number:04d}.json")
