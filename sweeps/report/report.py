"""The report of a sweep: one HTML file that needs nothing else, a Markdown file, and the pictures as files."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps import formatting as written
from sweeps.ledger.results import finite
from sweeps.report import text as words
from sweeps.report.facts import Facts, mapping
from sweeps.report.fairness import fairness_ledger, worst_levels
from sweeps.report.markdown import markdown
from sweeps.report.space_toml import as_toml
from sweeps.report.tables import (
    CELL_COLUMNS,
    arm_rows,
    cell_rows,
    length_table,
    pair_rows,
    provenance,
    scale,
    work_table,
)
from sweeps.report.why import optimum_table, why_groups

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

    from sweeps.ledger.results import SweepResults
    from sweeps.report.plots.files import Picture

LEVEL_NAMES = {"ok": "✓ kept", "warn": "! with a note", "bad": "✕ broken", "unknown": "? not measured"}
LEVEL_MARKS = {"ok": "✓", "warn": "!", "bad": "✕", "unknown": "?"}


@dataclass(frozen=True, kw_only=True)
class ReportFiles:
    """Where a report was written."""

    html: Path
    markdown: Path
    plots: tuple[Path, ...]


def write_report(results: SweepResults, verdict: Mapping[str, Any], folder: Path) -> ReportFiles:
    """Write ``report.html``, ``report.md`` and ``plots/*.png``, ``plots/*.svg`` into ``folder`` and say where.

    ``verdict`` is the content of ``verdict.json``. Whatever a sweep does not have (no confirm cells yet, no view at
    common context, no scores) is left out of the report. Every file is written whole or not at all.
    """
    from sweeps.report.plots.files import draw_all

    facts = Facts(results, verdict)
    pictures = draw_all(facts)
    plots = []
    for picture in pictures:
        for suffix, content in (("png", picture.png), ("svg", picture.svg.encode())):
            plots.append(folder / "plots" / f"{picture.name}.{suffix}")
            write_file(plots[-1], content)
    files = ReportFiles(html=folder / "report.html", markdown=folder / "report.md", plots=tuple(plots))
    write_file(files.markdown, markdown(facts, [picture.name for picture in pictures]).encode())
    write_file(files.html, render(facts, pictures).encode())
    return files


def render(facts: Facts, pictures: list[Picture]) -> str:
    """Return the report as one HTML document that asks for nothing outside itself."""
    why = why_groups(facts)
    lengths = length_table(facts)
    drawn = {picture.name: picture for picture in pictures}
    rules = fairness_ledger(facts)
    return render_page(
        "report.html.j2",
        name=facts.results.name,
        kicker=_kicker(facts),
        headline=words.headline(facts),
        capital=not any(words.headline(facts)[2].startswith(arm.name) for arm in facts.arms),
        reservation=words.reservation(facts),
        outcome=words.outcome(facts),
        outcome_name=words.OUTCOME_NAMES.get(words.outcome(facts), words.outcome(facts)),
        outcome_meaning=words.OUTCOME_MEANINGS.get(words.outcome(facts), ""),
        sure=words.how_sure(facts),
        arms=arm_rows(facts),
        arms_note=words.arms_note(facts),
        pairs=pair_rows(facts),
        caveats=words.caveats(facts),
        why=why,
        has_why=bool(why or lengths or {"positions", "rungs"} & drawn.keys()),
        lengths=lengths,
        scale=scale(facts),
        work=work_table(facts),
        optima=optimum_table(facts),
        has_training=bool({"curves", "progress", "throughput", "experts"} & drawn.keys()),
        pictures=drawn,
        rules=rules,
        levels=worst_levels(rules),
        level_names=LEVEL_NAMES,
        level_marks=LEVEL_MARKS,
        cost=words.cost(facts),
        outcomes=facts.outcomes.most_common(),
        cell_columns=CELL_COLUMNS,
        cells=cell_rows(facts),
        provenance=provenance(facts),
        space=as_toml(facts.space) if facts.space else "",
        commands=words.commands(facts),
        metric=str(facts.verdict.get("metric") or "test_loss").replace("_", " "),
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
        n_colours=len(ARM_LIGHT),
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
    """Return the small print above the statement: when, on what corpus, at which budget."""
    begun = facts.beginning
    corpus = mapping(facts.space.get("corpus")).get("kind") or facts.space.get("corpus")
    parts = [
        str(facts.space.get("description") or ""),
        f"{corpus} corpus" if isinstance(corpus, str) else "",
        f"{written.short_count(facts.budget_tokens)} tokens a run" if facts.budget_tokens else "",
        written.plural(len(facts.results.cells), "cell"),
        written.moment(created) if (created := finite(begun.get("created_s"))) is not None else "",
    ]
    return [part for part in parts if part]


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        # mkstemp makes files that only their owner reads; a report is made to be passed on.
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
