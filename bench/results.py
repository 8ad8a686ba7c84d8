"""How a part of the bench keeps its figures: whole or not at all, so that a run cut short leaves the last ones."""

from __future__ import annotations

import json
from pathlib import Path


def write_json(path: Path, found: object) -> None:
    """Put ``found`` at ``path`` as JSON."""
    write_text(path, json.dumps(found, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Put ``text`` at ``path``, through a temporary name beside it."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(text)
    unfinished.replace(path)
