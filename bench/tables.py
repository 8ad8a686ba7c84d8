"""Results as a table of text, printed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def table(title: str, rows: Iterable[dict[str, Any]]) -> None:
    """Print rows of equal keys under their names."""
    rows = list(rows)
    cells = [[f"{value:.4f}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows]
    widths = [max(len(key), *(len(line[i]) for line in cells)) for i, key in enumerate(rows[0])]
    print(f"\n{title}")
    for line in ([*rows[0]], *cells):
        print("  ".join(f"{text:>{width}}" for text, width in zip(line, widths, strict=True)))
