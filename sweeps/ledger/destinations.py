"""Where a command may write, checked before it computes what it would write."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sweeps.errors import BadInputError


def require_new_file(path: Path, option: str) -> None:
    """Raises BadInputError where anything exists at ``path`` already, or no file can be made there."""
    require_possible(path, option)
    if path.exists():
        raise BadInputError(f"{path} exists already and is not overwritten; choose another {option}")
    require_file(path, option)


def require_file(path: Path, option: str) -> None:
    """Raises BadInputError unless a file can be written at ``path``; folders on the way may be missing."""
    require_possible(path, option)
    if path.is_dir():
        raise BadInputError(f"{path} is a folder; choose a file for {option}")
    require_folder(path.absolute().parent, option)


def require_empty_folder(path: Path, option: str) -> None:
    """Raises BadInputError unless ``path`` is an empty folder, or one can be made there."""
    require_folder(path, option)
    if path.exists() and any(path.iterdir()):
        raise BadInputError(f"{path} exists already and is not empty; choose another {option}")


def require_folder(path: Path, option: str) -> None:
    """Raises BadInputError unless files can be written in the folder ``path``, which need not exist yet."""
    require_possible(path, option)
    nearest = path.absolute()
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir():
        raise BadInputError(f"{nearest} is a file, so nothing can be written in it; choose another {option}")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise BadInputError(f"{nearest} cannot be written by this user; choose another {option}")


def require_possible(path: Path | str, option: str) -> None:
    """Raises BadInputError for a path that no file system takes."""
    try:
        Path(path).stat()
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:  # a name that is too long, a NUL
        if isinstance(error, NotADirectoryError | PermissionError):
            return  # reported by whoever uses the path
        reason = error.strerror if isinstance(error, OSError) else error
        shown = repr(str(path))
        shown = shown if len(shown) <= 80 else f"{shown[:60]} ... ({len(str(path)):,} characters)"
        raise BadInputError(f"{shown} cannot be a path ({reason}); choose another {option}") from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises BadInputError where the block cannot write ``path``, as on a full disk."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError) and "No space left" not in str(error):  # safetensors has errors of its own
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadInputError(f"{path} cannot be written ({reason}); free some space or choose another place") from error


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        # mkstemp makes files that only their owner reads; what is written here is made to be passed on.
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
