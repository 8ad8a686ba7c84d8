"""Output of commands beyond a plain line: a console for tables, one JSON document, a question."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console


def console() -> Console:
    """The terminal, or whatever standard output is piped into."""
    from rich.console import Console

    return Console()


def print_json(value: Any) -> None:
    """Print ``value`` as the one JSON document of standard output."""
    print(json.dumps(value, indent=1, allow_nan=False))


def confirmed(question: str) -> bool:
    """Ask the user; raises BadInputError where nobody answers."""
    from sweeps.errors import BadInputError

    try:
        return typer.confirm(question)
    except typer.Abort:
        print(file=sys.stderr)
        raise BadInputError("nobody answered, so nothing was done; --yes answers beforehand") from None


def require_usable_environment() -> None:
    """Make output printable in any locale; raises BadInputError for folders of the environment that do not exist."""
    from sweeps.errors import BadInputError

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        Path.cwd()
    except FileNotFoundError:
        raise BadInputError("the working folder was deleted; change to one that exists") from None
    temporary = os.environ.get("TMPDIR")
    if temporary and not Path(temporary).is_dir():
        raise BadInputError(f"TMPDIR={temporary} is not a folder; create it, or unset TMPDIR")


def close_output() -> None:
    """Write what is left of standard output; raises BadInputError where it takes no more, as on a full disk."""
    from sweeps.errors import BadInputError

    try:
        sys.stdout.flush()
    except OSError as error:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - what is left would fail again at exit
        raise BadInputError(f"standard output cannot be written ({error.strerror}); free some space") from error
