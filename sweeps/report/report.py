"""The report of a sweep: one HTML file that needs nothing else, a Markdown file, the space, the pictures as files."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps import formatting as written
from sweeps.ledger.destinations import write_file
from sweeps.ledger.results import finite
from sweeps.report.facts import Facts
from sweeps.report.markdown import markdown
from sweeps.report.opening import FIRST_PICTURES, opening
from sweeps.report.sections import SPACE_FILE, sections
from sweeps.report.space_toml import as_toml

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

    from sweeps.ledger.results import SweepResults
    from sweeps.report.plots.files import Picture
    from sweeps.verdict.verdict import Verdict


@dataclass(frozen=True, kw_only=True)
class ReportFiles:
    """Where a report was written."""

    html: Path
    markdown: Path
    plots: tuple[Path, ...]


def write_report(
    results: SweepResults, verdict: Verdict, folder: Path, price_per_hour: float | None = None
) -> ReportFiles:
    """Write ``report.html``, ``report.md``, ``space.toml`` and ``plots/*`` into ``folder`` and return their paths.

    Whatever a sweep does not have (no confirm cells yet, no view at common context, no scores) is left out of the
    report. Every file is written whole or not at all.
    """
    from sweeps.report.plots.files import draw_all

    facts = Facts(results, verdict, price_per_hour)
    pictures = draw_all(facts)
    if facts.space:
        write_file(folder / SPACE_FILE, as_toml(facts.space).encode())
    plots = tuple(path for picture in pictures for path in write_picture(picture, folder))
    files = ReportFiles(html=folder / "report.html", markdown=folder / "report.md", plots=plots)
    write_file(files.markdown, markdown(facts, [picture.name for picture in pictures]).encode())
    write_file(files.html, render(facts, pictures).encode())
    return files


def render(facts: Facts, pictures: list[Picture]) -> str:
    """Return the report as one HTML document that asks for nothing outside itself."""
    drawn = {picture.name: picture for picture in pictures}
    first = drawn.pop(next((name for name in FIRST_PICTURES if name in drawn), ""), None)
    return render_page(
        "report.html.j2",
        name=facts.results.name,
        kicker=_kicker(facts),
        outcome=facts.verdict.outcome,
        top=opening(facts),
        first=first,
        sections=sections(facts, drawn.keys()),
        pictures=drawn,
        budget=written.count(facts.budget_tokens),
    )


def render_page(template: str, **context: Any) -> str:
    """Return a page of ``sweeps/report/templates`` with the report's style and script in it; all text is escaped."""
    from markupsafe import Markup

    from sweeps.report.plots.style import ARM_DARK, ARM_LIGHT

    environment = _environment()
    assert environment.loader is not None
    script = environment.loader.get_source(environment, "report.js")[0].strip()
    return environment.get_template(template).render(
        # The page allows this one script and no other, whatever a name in the data says.
        script=Markup(script),  # noqa: S704 - our own file
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        arm_light=ARM_LIGHT,
        arm_dark=ARM_DARK,
        **context,
    )


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("sweeps.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["code"] = _with_code
    return environment


def _with_code(text: str) -> Markup:
    """Return text as HTML, what stands between backticks as code."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704 - escaped before


def _kicker(facts: Facts) -> list[str]:
    """Return the small print above the headline: on what corpus, at which budget, when."""
    corpus = facts.results.rule("corpus", "kind", "")
    created_s = finite(facts.beginning.get("created_s"))
    parts = [
        str(facts.space.get("description") or ""),
        f"{corpus} corpus" if corpus else "",
        f"{written.short_count(facts.budget_tokens)} tokens a run" if facts.budget_tokens else "",
        written.plural(len(facts.results.cells), "cell"),
        "" if created_s is None else written.moment(created_s),
    ]
    return [part for part in parts if part]


def write_picture(picture: Picture, folder: Path) -> tuple[Path, Path]:
    """Write a picture as ``plots/NAME.png`` and ``plots/NAME.svg``."""
    paths = (folder / "plots" / f"{picture.name}.png", folder / "plots" / f"{picture.name}.svg")
    write_file(paths[0], picture.png)
    write_file(paths[1], picture.svg.encode())
    return paths
