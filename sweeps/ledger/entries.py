"""Reading and writing objects of the ledger: whole and valid, or named as damaged; and folders that only ever grow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sweeps.errors import StorageError
from sweeps.ledger.models import ObjectModel, validated
from sweeps.ledger.storage import Storage

SCHEMA: Final = 1


def read_entry(storage: Storage, name: str, model: type[ObjectModel]) -> dict[str, Any]:
    """An object as a dict that fits ``model``.

    Raises FileNotFoundError where it was not written yet, DamagedError where it is not what was written.
    """
    value = storage.read_json(name)
    validated(storage, name, value, model)
    entry: dict[str, Any] = value
    return entry


def find_entry(storage: Storage, name: str, model: type[ObjectModel]) -> dict[str, Any] | None:
    """The same, or None where the object was not written yet."""
    try:
        return read_entry(storage, name, model)
    except FileNotFoundError:
        return None


def numbered(storage: Storage, folder: str, model: type[ObjectModel]) -> list[dict[str, Any]]:
    """All objects of a folder that only ever grows, oldest first."""
    return [read_entry(storage, f"{folder}/{number:04d}.json", model) for number in numbers(storage, folder)]


def add_numbered(storage: Storage, folder: str, entry: Mapping[str, Any]) -> None:
    """Write the next object of such a folder: ``0001.json``, ``0002.json`` and on; none is ever written over."""
    number = next_number(storage, folder)
    while not create_numbered(storage, folder, number, entry):
        number += 1


def create_numbered(storage: Storage, folder: str, number: int, entry: Mapping[str, Any]) -> bool:
    """Write the object of this number; returns whether it was free."""
    try:
        storage.create_json(f"{folder}/{number:04d}.json", entry)
    except FileExistsError:
        return False
    return True


def next_number(storage: Storage, folder: str) -> int:
    """One more than the highest number in the folder."""
    return max(numbers(storage, folder), default=0) + 1


def numbers(storage: Storage, folder: str) -> list[int]:
    """Numbers of the objects in such a folder, ascending; raises StorageError for a file that is none of them."""
    found = []
    for name in storage.names(folder):
        stem = name.removesuffix(".json")
        if not (stem.isascii() and stem.isdigit() and name == f"{int(stem):04d}.json"):
            raise StorageError(f"{storage.uri}/{folder}/{name} is not a file of this program; move it out of the sweep")
        found.append(int(stem))
    return sorted(found)
