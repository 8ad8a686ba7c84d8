"""``sweeps records``: every record of a sweep as a table that ``sweeps verdict --records`` judges alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sweeps import formatting as written
from sweeps.errors import BadInputError
from sweeps.ledger.destinations import require_new_file, write_file, writing
from sweeps.ledger.results import SweepResults
from sweeps.shown_commands import shown_command
from sweeps.verdict.decision import decide
from sweeps.verdict.records import decide_file
from sweeps.verdict.records_table import RecordsError, csv_bytes, parquet_bytes, rows_of
from sweeps.verdict.verdict import Verdict

FORMS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {".csv": csv_bytes, ".parquet": parquet_bytes}
USUAL_ALPHA = 0.05
NOT_IN_FILE = (
    "Not in the file: corpus, model, machine and code, and how often the sweep was looked at; caveats that rest on "
    "these are missing from a verdict on it."
)


def require_table(out: Path) -> None:
    """Raises BadInputError for an ending that is no known form, and for a place where no new file can be written."""
    if out.suffix.lower() not in FORMS:
        raise BadInputError(f"--out {out} must end in {' or '.join(FORMS)}; choose one of them")
    require_new_file(out, "--out")
    if not out.parent.is_dir():
        raise BadInputError(f"the folder {out.parent} does not exist; create it, or choose another --out")


def write_records(results: SweepResults, out: Path) -> list[str]:
    """Write every record that counts; return lines for the user: what was written, and what judging it gives.

    Raises BadInputError for a sweep without records, and where the disk is full.
    """
    reports = sum(len(result.records) for result in results.cells)
    if not reports:
        raise BadInputError(
            f"sweep {results.name} has no record that counts yet; `sweeps resume {results.name}` trains its cells"
        )
    with writing(out):
        write_file(out, FORMS[out.suffix.lower()](rows_of(results)))
    cells = written.plural(len(results.cells), "cell")
    return [f"{out}: {written.plural(reports, 'report')} of {cells}", *_judged(results, out)]


def _judged(results: SweepResults, out: Path) -> Iterator[str]:
    """How to judge the file by the sweep's rules, and whether that gives what the sweep itself gives."""
    own = decide(results)
    alpha, margin = own.looks.alpha, own.margin.value if own.margin else None
    options = [
        *(["--alpha", repr(alpha)] if alpha != USUAL_ALPHA else []),
        *(["--margin", repr(margin)] if margin else []),
    ]
    try:
        found = decide_file(out, alpha=alpha, margin=margin)
    except RecordsError as error:
        yield f"No verdict can be made from it: {error.problems[0]}"
        return
    yield f"Judge it: {shown_command('verdict', '--records', str(out), *options)}"
    if _numbers(found) == _numbers(own):
        yield f"It gives what the sweep's own verdict gives, with the same means and intervals: {found.headline}"
    else:
        causes = written.listed(list(_causes(results, own)))
        yield (
            f"It gives {found.outcome} ({found.headline}), where the sweep's own verdict is {own.outcome} "
            f"({own.headline}){f': {causes}' if causes else ''}"
        )
    yield NOT_IN_FILE


def _numbers(verdict: Verdict) -> tuple[object, ...]:
    return verdict.outcome, verdict.winner, verdict.strategies, verdict.pairs


def _causes(results: SweepResults, own: Verdict) -> Iterator[str]:
    """What the sweep's verdict rests on that rows of cells cannot hold."""
    if own.looks.seen_seeds:
        seeds = written.listed([str(seed) for seed in own.looks.seen_seeds])
        yield f"it was decided on seeds {seeds} before, and leaves them out"
    if results.rule("search", "kind", "grid") != "grid":
        yield "the bounds of its search are not in the file, where the last rate tried counts as an edge"
    if any(result.outcome is None for result in results.cells):
        yield "it is not finished, and cells that are not planned yet are not in the file"
