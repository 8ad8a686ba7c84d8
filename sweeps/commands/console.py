"""How a command answers beyond a plain line: a console for tables, one JSON document, a question."""

from __future__ import annotations

import json
import sys
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


def agreed(question: str) -> bool:
    """Ask; raises BadInputError where nobody answers."""
    from sweeps.errors import BadInputError

    try:
        return typer.confirm(question)
    except typer.Abort:
        print(file=sys.stderr)
        raise BadInputError("nobody answered, so nothing was done; --yes answers beforehand") from None
