"""How pictures look: colours for light and dark, markers, axes, and the way from a matplotlib figure to inline SVG.

A figure is drawn once, in the light colours. Each of them is used for one role only, so that the inline SVG can
replace it by a CSS variable of the page, and the page decides between light and dark.
"""

from __future__ import annotations

import html
import io
import itertools
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TEXT, MUTED, GRID, PAPER, BAND = "#1d2329", "#5c6670", "#dfe4e9", "#fefefe", "#edf0f4"
ARM_LIGHT = ("#0f6ab4", "#c4570b", "#0b8060", "#8f3a9c", "#7d6a00", "#b8293f", "#4a5f7a", "#7a4a2b")
ARM_DARK = ("#6cb2f0", "#f39a4b", "#45c79d", "#d08be0", "#d0b83c", "#f27f8e", "#a3b7d1", "#c99a78")
MOST_IN_A_CORNER = 5
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
CSS_VARIABLES = {
    TEXT: "var(--text)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    PAPER: "var(--paper)",
    BAND: "var(--band)",
    **{colour: f"var(--arm-{i})" for i, colour in enumerate(ARM_LIGHT)},
}
WIDE_IN, NARROW_IN = 10.4, 4.1
"""Figure widths in inches: 9-point type comes out as 12 px in a column of 1,000 px, and as 11 px on a phone."""

RC: Any = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.0,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": TEXT,
    "text.parse_math": False,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.frameon": False,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "svg.fonttype": "none",
    "svg.hashsalt": "sweeps",
    "lines.linewidth": 1.5,
}


@contextmanager
def drawing() -> Iterator[None]:
    """Draw and save figures in the report's style, leaving matplotlib's own settings as they were."""
    import matplotlib as mpl

    with mpl.rc_context(RC), warnings.catch_warnings():
        # A strategy may be named in any script; a glyph that the PNG's font lacks is no reason to lose the report.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        yield


def arm_colour(index: int) -> str:
    """Return the light colour of the arm with this index."""
    return ARM_LIGHT[index % len(ARM_LIGHT)]


def arm_marker(index: int) -> str:
    """Return the marker of the arm with this index; a ninth arm repeats the first colour with another marker."""
    return MARKERS[(index + index // len(MARKERS)) % len(MARKERS)]


def label(text: str, limit: int = 28) -> str:
    """Return a name short enough for an axis; matplotlib would hide a legend entry that starts with ``_``."""
    head = limit // 2
    # Names that a sweep makes differ at the end more often than in the middle.
    short = text if len(text) <= limit else f"{text[:head]}…{text[head + 1 - limit :]}"
    return f" {short}" if short.startswith("_") else short


def arm_legend(axes: Axes, number: int, *, narrow: bool) -> None:
    """Name the arms in a corner of ``axes``, or beside all panels (below on a phone) where they are many."""
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return
    if number <= MOST_IN_A_CORNER:
        axes.legend(loc="upper right")
        return
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.legend(handles, labels, loc="outside lower left" if narrow else "outside right upper")


class Tips:
    """Texts that appear when a mark of a figure is pointed at."""

    def __init__(self) -> None:
        self._texts: list[list[str]] = []

    def add(self, artist: Artist, texts: Sequence[str]) -> None:
        """Give each mark of ``artist`` its text, in the order of its points; a single text is for all of it."""
        artist.set_gid(f"tip-{len(self._texts)}")
        self._texts.append(list(texts))

    def __getitem__(self, key: int) -> list[str]:
        return self._texts[key]


def svg_text(figure: Figure) -> str:
    """Return a figure as an SVG document in the light colours."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def png_bytes(figure: Figure, *, dpi: int = 130) -> bytes:
    """Return a figure as a PNG in the light colours."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def inline_svg(document: str, *, prefix: str, tips: Tips, title: str, css_class: str) -> str:
    """Return an SVG document as an element for an HTML page.

    Ids are made unique by ``prefix``, colours become the page's CSS variables, the font becomes the page's, and marks
    get their tips as ``data-tip``.
    """
    body = document[document.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = "\n".join(_with_tips(body.splitlines(), tips))
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", body)
    body = body.replace("xlink:href", "href")
    body = re.sub("|".join(CSS_VARIABLES), lambda match: CSS_VARIABLES[match.group()], body)
    body = re.sub(r"(?<=px )'DejaVu Sans'[^;\"]*", "var(--font)", body)
    view_box = re.search(r'viewBox="[^"]*"', body)
    assert view_box is not None, "matplotlib writes a viewBox"
    head = (
        f'<svg class="{css_class}" {view_box.group()} xmlns="http://www.w3.org/2000/svg" role="img" '
        f'aria-label="{html.escape(title, quote=True)}">'
    )
    return head + re.sub(r"^<svg[^>]*>", "", body)


def _with_tips(lines: Sequence[str], tips: Tips) -> Iterator[str]:
    """Yield the lines of an SVG; matplotlib writes one element a line, marks of a series as ``<use>`` in its order."""
    texts: list[str] | None = None
    depth = used = 0
    for line in lines:
        opened = re.search(r'<g id="tip-(\d+)"', line)
        if opened:
            texts, depth, used = tips[int(opened.group(1))], 0, 0
        if texts is None:
            yield line
            continue
        depth += line.count("<g") - line.count("</g>")
        if opened and len(texts) == 1:
            yield line.replace("<g ", f"<g {_tip_attribute(texts[0])} ", 1)
        elif "<use " in line and len(texts) > 1 and used < len(texts):
            yield line.replace("<use ", f"<use {_tip_attribute(texts[used])} ", 1)
            used += 1
        else:
            yield line
        if depth == 0:
            texts = None


def _tip_attribute(text: str) -> str:
    return f'data-tip="{html.escape(text, quote=True)}"'


def token_axis(axes: Axes, landmarks: Sequence[int] = (), label_text: str = "tokens seen") -> None:
    """Label the x axis in tokens, as 131k: at zero and ``landmarks`` (rungs and budget) where they are few."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    from sweeps.formatting import short_count

    ticks = [0, *sorted(set(landmarks))]
    apart = min((b - a for a, b in itertools.pairwise(ticks)), default=0)
    if 3 <= len(ticks) <= 6 and apart >= 0.14 * ticks[-1]:
        axes.set_xticks(ticks)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: "0" if x == 0 else short_count(float(x))))
    axes.set_xlabel(label_text)


def row_name(axes: Axes, row: float, text: str, *, above: float = 0.22) -> None:
    """Write the name of a row of marks at the left above it, on a ground that keeps lines off the letters."""
    axes.text(
        0.0, row + above, text, transform=axes.get_yaxis_transform(), va="bottom", weight="bold",
        bbox={"facecolor": PAPER, "edgecolor": "none", "alpha": 0.75, "pad": 0.6},
    )  # fmt: skip


def log_ticks(axes: Axes, values: Sequence[float], *, limit: int = 6) -> None:
    """Make the x axis logarithmic with a tick at ``values`` (thinned to ``limit``) and nowhere else."""
    from matplotlib.ticker import NullLocator

    ticks = sorted(set(values))
    if len(ticks) > limit:
        ticks = [ticks[round(i * (len(ticks) - 1) / (limit - 1))] for i in range(limit)]
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:.4g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
