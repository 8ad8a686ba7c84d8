"""How pictures look: colours for light and dark, markers, axes, and the way from a matplotlib figure to inline SVG.

A figure is drawn in the light colours. Each of them is used for one role only, so that the inline SVG can replace it by
a CSS variable of the page, and the page decides between light and dark.
"""

from __future__ import annotations

import io
import itertools
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TEXT, MUTED, GRID, PAPER, BAND = "#1d2329", "#5c6670", "#dfe4e9", "#fefefe", "#edf0f4"
ARM_LIGHT = ("#0f6ab4", "#c4570b", "#0b8060", "#8f3a9c", "#7d6a00", "#b8293f", "#4a5f7a", "#7a4a2b")
ARM_DARK = ("#6cb2f0", "#f39a4b", "#45c79d", "#d08be0", "#d0b83c", "#f27f8e", "#a3b7d1", "#c99a78")
MOST_LONG_NAMES = 4
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
CSS_VARIABLES = {
    TEXT: "var(--text)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    PAPER: "var(--paper)",
    BAND: "var(--band)",
    **{colour: f"var(--arm-{i})" for i, colour in enumerate(ARM_LIGHT)},
}
SVG_NAMESPACE, LINK_NAMESPACE = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"

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


def arm_legend(axes: Axes) -> None:
    """Name the arms above ``axes``, several beside each other."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        if len(labels) > MOST_LONG_NAMES:
            labels = [label(name, 16) for name in labels]
        columns = max(1, min(len(labels), 62 // (5 + max(map(len, labels)))))
        legend = axes.legend(
            handles, labels, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.3,
            handlelength=1.2, columnspacing=1.2, labelspacing=0.3, fontsize=8,
        )  # fmt: skip
        legend.set_zorder(5)


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


def svg_text(figure: Figure, *, salt: str) -> str:
    """Return a figure as an SVG document in the light colours; ``salt`` makes its ids differ from other figures'."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def png_bytes(figure: Figure, *, dpi: int = 130) -> bytes:
    """Return a figure as a PNG in the light colours."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def inline_svg(document: str, *, tips: Tips, title: str) -> str:
    """Return an SVG document as an element for an HTML page.

    Colours become the page's CSS variables, and marks get their tips as ``data-tip``. Names of groups, which nothing
    refers to and every figure repeats, are left out.
    """
    root = ET.fromstring(document)  # noqa: S314 - written by matplotlib a moment ago
    for metadata in root.findall(f"{{{SVG_NAMESPACE}}}metadata"):
        root.remove(metadata)
    for element in root.iter():
        element.tag = element.tag.removeprefix(f"{{{SVG_NAMESPACE}}}")
    for group in list(root.iter("g")):
        name = group.attrib.pop("id", "")
        if name.startswith("tip-"):
            _add_tips(group, tips[int(name.removeprefix("tip-"))])
    for element in root.iter():
        style = element.attrib.get("style", "")
        for colour, variable in CSS_VARIABLES.items():
            style = style.replace(colour, variable)
        link = element.attrib.pop(f"{{{LINK_NAMESPACE}}}href", None)
        element.attrib |= ({"style": style} if style else {}) | ({"href": link} if link else {})
    kept = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": title, "xmlns": SVG_NAMESPACE}
    root.attrib.clear()
    root.attrib.update(kept)
    return ET.tostring(root, encoding="unicode")


def _add_tips(group: ET.Element, texts: Sequence[str]) -> None:
    """Give a series its tips: one for all of it, or one for each of its marks, which are in its order."""
    marks = [group] if len(texts) == 1 else list(group.iter("use"))
    for mark, text in zip(marks, texts, strict=False):
        mark.set("data-tip", text)


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


def log_ticks(
    axes: Axes, values: Sequence[float], *, limit: int = 6, text: Callable[[float], str] = "{:.4g}".format
) -> None:
    """Make the x axis logarithmic with a tick at ``values`` (thinned to ``limit``) and nowhere else."""
    from matplotlib.ticker import NullLocator

    ticks = sorted(set(values))
    if len(ticks) > limit:
        ticks = [ticks[round(i * (len(ticks) - 1) / (limit - 1))] for i in range(limit)]
    axes.set_xscale("log")
    axes.set_xticks(ticks, [text(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
