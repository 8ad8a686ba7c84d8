"""Names of sweeps and ids of cells: both become folders, so both are checked wherever they are read."""

from __future__ import annotations

import re
from typing import Final

from sweeps.errors import BadInputError

NAME_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""What a sweep can be called. A cell's id, sixteen hexadecimal digits, is one too."""


def is_folder_name(text: object) -> bool:
    """Whether ``text`` names a folder directly inside another one, on every storage."""
    return isinstance(text, str) and NAME_PATTERN.fullmatch(text) is not None


def require_name(name: str) -> None:
    """Raises BadInputError unless ``name`` can be the name of a sweep."""
    if not is_folder_name(name):
        raise BadInputError(
            f"name={name!r} must be 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit; "
            "for example: --name first"
        )
