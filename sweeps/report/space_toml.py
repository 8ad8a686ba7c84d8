"""A resolved space written as TOML again, so that a report holds what `sweeps run --space` needs for a repetition."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any


def as_toml(space: Mapping[str, Any]) -> str:
    """Return a JSON-like mapping as TOML: plain values first, then tables, then lists of tables; null is left out."""
    return "\n".join(_lines(space, "")).strip() + "\n"


def _lines(table: Mapping[str, Any], path: str) -> Iterator[str]:
    kept = {key: value for key, value in table.items() if value is not None}
    for key, value in kept.items():
        if not isinstance(value, Mapping) and not _is_list_of_tables(value):
            yield f"{_key(key)} = {toml_value(value)}"
    for key, value in kept.items():
        if isinstance(value, Mapping):
            yield f"\n[{path}{_key(key)}]"
            yield from _lines(value, f"{path}{_key(key)}.")
        elif _is_list_of_tables(value):
            for entry in value:
                yield f"\n[[{path}{_key(key)}]]"
                yield from _lines(entry, f"{path}{_key(key)}.")


def _is_list_of_tables(value: object) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(entry, Mapping) for entry in value)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key)


def toml_value(value: Any) -> str:
    """Return one value as TOML on one line; a mapping as an inline table."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_key(key)} = {toml_value(entry)}' for key, entry in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(toml_value(entry) for entry in value)}]"
    # JSON's strings, numbers and booleans are TOML's, but for the delete character, which JSON leaves as it is.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
