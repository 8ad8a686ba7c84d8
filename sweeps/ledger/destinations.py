"""Where a command may write, looked at before it computes what it would write."""

from __future__ import annotations

import os
from pathlib import Path

from sweeps.errors import BadInputError


def require_new_file(path: Path, option: str) -> None:
    """Raises BadInputError where anything is at ``path`` already, or no file can be made there."""
    if path.exists():
        raise BadInputError(f"{path} is already there and is not overwritten; choose another {option}")
    require_file(path, option)


def require_file(path: Path, option: str) -> None:
    """Raises BadInputError unless a file can be written at ``path``; folders on the way may be missing."""
    if path.is_dir():
        raise BadInputError(f"{path} is a folder; choose a file for {option}")
    require_folder(path.absolute().parent, option)


def require_empty_folder(path: Path, option: str) -> None:
    """Raises BadInputError unless ``path`` is an empty folder, or one can be made there."""
    require_folder(path, option)
    if path.exists() and any(path.iterdir()):
        raise BadInputError(f"{path} is already there and not empty; choose another {option}")


def require_folder(path: Path, option: str) -> None:
    """Raises BadInputError unless files can be written in the folder ``path``, which need not be there yet."""
    nearest = path.absolute()
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir():
        raise BadInputError(f"{nearest} is a file, so nothing can be written in it; choose another {option}")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise BadInputError(f"{nearest} cannot be written by this user; choose another {option}")
