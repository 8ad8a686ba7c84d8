"""Objects of the ledger: JSON that is there or not, whole or damaged, and folders of them that only ever grow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sweeps.errors import DamagedError
from sweeps.ledger.storage import Storage

SCHEMA = 1


def if_there(storage: Storage, name: str) -> dict[str, Any] | None:
    """An object of the ledger, None where it was not written yet."""
    try:
        found: dict[str, Any] = storage.read_json(name)
    except FileNotFoundError:
        return None
    return found


def numbered(storage: Storage, folder: str) -> list[dict[str, Any]]:
    """All objects of a folder that only ever grows, oldest first."""
    return [storage.read_json(f"{folder}/{name}") for name in storage.names(folder)]


def add_numbered(storage: Storage, folder: str, entry: Mapping[str, Any]) -> None:
    """Write the next object of such a folder: ``0001.json``, ``0002.json`` and on."""
    storage.write_json(f"{folder}/{len(storage.names(folder)) + 1:04d}.json", entry)


def read_table(storage: Storage, name: str) -> dict[str, Any]:
    """A JSON object of the ledger; raises DamagedError where it is another kind of value."""
    table = storage.read_json(name)
    if not isinstance(table, dict):
        raise DamagedError(f"{storage.uri}/{name} is damaged: it is not a JSON object; restore it from a copy")
    return table


def whole(storage: Storage, name: str, table: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """``table`` itself; raises DamagedError where it lacks a key that every object of this name has."""
    missing = [key for key in keys if key not in table]
    if missing:
        lacks = " and no ".join(missing)
        raise DamagedError(f"{storage.uri}/{name} is damaged: it has no {lacks}; restore it from a copy")
    return table
