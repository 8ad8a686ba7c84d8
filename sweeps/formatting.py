"""How numbers, spans of time and tables are written; a dash stands for a value that is absent."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

ABSENT = "–"
MINUS = "−"


def _missing(value: float | None) -> bool:
    return value is None or not math.isfinite(value)


def loss(value: float | None) -> str:
    """Return a loss in nats per token with four decimals, about a tenth of the noise between seeds."""
    return ABSENT if value is None or _missing(value) else f"{value:.4f}"


def signed(value: float | None, digits: int = 4) -> str:
    """Return a difference with its sign, as ``+0.0123`` or ``−0.0123``."""
    if value is None or _missing(value):
        return ABSENT
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return ("+" if value > 0 else MINUS) + text


def interval(low: float | None, high: float | None, *, sign: bool = False) -> str:
    """Return ``low to high``, or a dash when either end is absent."""
    if _missing(low) or _missing(high):
        return ABSENT
    return f"{signed(low)} to {signed(high)}" if sign else f"{loss(low)} to {loss(high)}"


def rate(value: float | None) -> str:
    """Return a learning rate without trailing zeros."""
    return ABSENT if value is None or _missing(value) else f"{value:.4g}"


def p_value(value: float | None) -> str:
    """Return a p-value with three decimals, or the bound below which it lies."""
    if value is None or _missing(value):
        return ABSENT
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def share(value: float | None) -> str:
    """Return a share of one in per cent."""
    if value is None or _missing(value):
        return ABSENT
    pct = 100 * value
    if 0 < abs(pct) < 1:
        return f"{pct:.2g}%"
    return f"{pct:.0f}%" if abs(pct) >= 10 else f"{pct:.1f}%"


def chance(value: float | None) -> str:
    """Return a chance in per cent; estimates from a few seeds say no more than that it is below 1% or above 99%."""
    if value is None or _missing(value):
        return ABSENT
    if value < 0.01:
        return "< 1%"
    return "> 99%" if value > 0.99 else f"{100 * value:.0f}%"


def count(value: float | None) -> str:
    """Return a whole number with thousands separated."""
    return ABSENT if value is None or _missing(value) else f"{round(value):,}"


def short_count(value: float | None) -> str:
    """Return a number in thousands, millions or billions with three digits at most, for axes and running text."""
    if value is None or _missing(value):
        return ABSENT
    written = float(f"{value:.3g}")  # first, so that 999,999 is 1M and not 1e+03k
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(written) >= size:
            return f"{written / size:.3g}{unit}"
    return f"{written:.3g}"


def gib(value: float | None) -> str:
    """Return an amount of memory in GiB (2^30 bytes)."""
    if value is None or _missing(value):
        return ABSENT
    return f"{value:.1f} GiB" if value >= 10 else f"{value:.2f} GiB" if value >= 0.1 else f"{value:.4f} GiB"


def duration(seconds: float | None) -> str:
    """Return a span of time in its two largest units."""
    if seconds is None or _missing(seconds):
        return ABSENT
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest_s = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest_s} s" if rest_s else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def rounded_duration(seconds: float) -> str:
    """Return an estimated span of time: in whole minutes from two minutes on."""
    return duration(round(seconds) if seconds < 120 else 60 * round(seconds / 60))


def money(amount: float) -> str:
    """Return an amount of money to the hundredth, a small one to two significant digits."""
    return f"{amount:,.2f}" if abs(amount) >= 0.1 or amount == 0 else f"{amount:.2g}"


def moment(timestamp_s: float | None) -> str:
    """Return a point in time (seconds since 1970) in UTC."""
    if timestamp_s is None or _missing(timestamp_s):
        return ABSENT
    return datetime.fromtimestamp(timestamp_s, UTC).strftime("%Y-%m-%d %H:%M UTC")


def plural(number: int, noun: str) -> str:
    """Return ``1 seed`` or ``3 seeds``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def listed(words: list[str]) -> str:
    """Return ``a``, ``a and b`` or ``a, b and c``."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


def sentence(text: str, *names: str) -> str:
    """Return a clause with a capital and a full stop.

    A clause that starts with one of ``names``, or with a word that is a file's name or a setting, keeps its letter.
    """
    word = text.partition(" ")[0].rstrip(",:;")
    is_name = any(text.startswith(name) for name in names) or not re.fullmatch(r"[^\W\d_]+(['’-][^\W\d_]+)*", word)
    first = text[:1] if is_name else text[:1].upper()
    return first + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def markdown_text(text: str) -> str:
    """Return text that Markdown shows as it is, in a table too, and that a terminal shows with few backslashes."""
    text = re.sub(r"([\\*|\[\]])", r"\\\1", " ".join(text.split()))
    # Within a word an underscore marks nothing; an angle bracket opens a tag only before a letter, slash or bang.
    return re.sub(r"(?<!\w)_|_(?!\w)|<(?=[A-Za-z/!?])", r"\\\g<0>", text)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, n_names: int = 1) -> str:
    """Return a Markdown table whose columns line up in a terminal as well; after ``n_names`` come numbers."""
    lines = [list(header), *([markdown_text(value) for value in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    lines.insert(1, ["-" * width if i < n_names else "-" * (width - 1) + ":" for i, width in enumerate(widths)])

    def padded(line: Sequence[str]) -> str:
        pairs = enumerate(zip(line, widths, strict=True))
        return " | ".join(value.ljust(width) if i < n_names else value.rjust(width) for i, (value, width) in pairs)

    return "\n".join(f"| {padded(line)} |" for line in lines)


def settings(values: Mapping[str, Any]) -> str:
    """What sets an arm apart: ``model.top_k 1, optimizer.kind adamw``."""
    return ", ".join(f"{key} {_setting(value)}" for key, value in values.items())


def _setting(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " / ".join(map(_setting, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def terminal_table(title: str, *, texts: Sequence[str], numbers: Sequence[str] = ()) -> Table:
    """Return an empty table for a terminal, without a frame so that it fits 80 columns: texts, then numbers."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    for column in (*texts, *numbers):
        table.add_column(column, no_wrap=True, justify="right" if column in numbers else "left")
    return table
