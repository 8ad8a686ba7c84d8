"""``verdict --records FILE``: the same verdict from a table that anyone can write, in one row per cell or per report.

Eight columns are required (strategy, lr, seed, phase, outcome, tokens_seen, val_loss, test_loss), in any order; the
others that ``sweeps records`` writes are read where they are there. An empty number is null, an empty outcome is a cell
without one, or a report before the cell's end. Losses are nats per token.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from search_spaces import SHAPE, Cell
from search_spaces.shorthand import control_name
from sweeps import formatting as written
from sweeps.ledger.results import FINAL_OUTCOMES, CellResult, SweepResults
from sweeps.verdict.decision import decide
from sweeps.verdict.records_table import (
    COLUMNS,
    DOCUMENT_VIEWS,
    MEASURED,
    REQUIRED,
    Kind,
    RecordsError,
    Row,
    column_problems,
    key_of,
    read_rows,
)
from sweeps.verdict.verdict import Verdict

CHOICES: Final = {
    "phase": ("explore", "confirm", "time", "flops", "control"),
    "role": ("contender", "control"),
    "arrangement": ("shuffled", "grouped"),
    "exam_unit": ("document", "group"),
}
RULES: Final[dict[Kind, tuple[Callable[[str], bool], str]]] = {
    "text": (str.isprintable, "holds control characters; write it in one line of plain text"),
    "whole": (lambda text: _whole(text) is not None, "must be a whole number of at least 0"),
    "count": (lambda text: bool(_whole(text)), "must be a whole number of at least 1"),
    "rate": (lambda text: (_finite(text) or 0.0) > 0, "must be a positive number"),
    "share": (lambda text: (n := _finite(text)) is not None and 0 <= n <= 1, "must be a number from 0 to 1"),
    "number": (lambda text: _number(text) is not None, "must be a number, or empty where there is none"),
    "losses": (
        lambda text: _losses(text) is not None,
        'must be a JSON object such as {"a.py": [1803.5, 512]}, by document the sum of its losses and its targets',
    ),
}
"""By kind of column: whether a value is one, and what it must be."""
SCHEDULE: Final = ("warmup_share", "decay_share")
LONGEST_SHOWN = 60
FIRST_LINE = 2
"""Rows are numbered as the lines of a CSV file, whose first is the header."""


def decide_records(
    rows: Iterable[Row],
    *,
    name: str = "records",
    alpha: float = 0.05,
    margin: float | None = None,
    unpaired: bool = False,
) -> Verdict:
    """Return the verdict of rows as ``read_rows`` gives them; raises RecordsError with every problem at once.

    ``unpaired`` says that equal seeds of two arms have nothing in common.
    """
    return decide(results_of(list(rows), name=name, alpha=alpha, margin=margin, unpaired=unpaired))


def decide_file(path: Path, *, alpha: float = 0.05, margin: float | None = None, unpaired: bool = False) -> Verdict:
    """Return the verdict of a CSV or Parquet file; raises RecordsError with every problem at once."""
    return decide_records(read_rows(path), name=path.stem, alpha=alpha, margin=margin, unpaired=unpaired)


def results_of(
    rows: Sequence[Row],
    *,
    name: str = "records",
    alpha: float = 0.05,
    margin: float | None = None,
    unpaired: bool = False,
) -> SweepResults:
    """Return rows as the results of a sweep of which nothing else is known; raises RecordsError."""
    columns = [str(column) for column in (rows[0] if rows else COLUMNS) if column is not None]
    problems = [*column_problems(columns)]
    lines = {FIRST_LINE + place: row for place, row in enumerate(rows)}
    cells = _lines_of_cells(lines)
    if not problems:
        problems = [*_row_problems(lines), *_repeats(lines, cells), *_arm_problems(rows)]
    if not 0 < alpha < 0.5:
        problems.append(f"alpha={alpha} must lie between 0 and 0.5; choose 0.05")
    if margin is not None and not 0 < margin < math.inf:
        problems.append(f"margin={margin} must be a positive number of nats per token")
    if problems:
        raise RecordsError(name, problems)
    lines = _with_control_arms(lines)
    rows = list(lines.values())
    budget = max((_budget(row) for row in rows if _text(row["phase"]) not in ("time", "flops")), default=0)
    found = tuple(_cell([lines[line] for line in own], budget) for own in cells.values())
    pairing = "unpaired" if unpaired else "by_seed"
    rules = {"alpha": alpha, "looks": 1, "pairing": pairing, **({} if margin is None else {"margin": margin})}
    budgets = _shared_budgets(rows) or [budget]
    space = {"budget_tokens": budget, "budgets_tokens": budgets, "verdict": rules, "schedule": _schedule(rows)}
    beginning = {"space": space, "strategies": _shapes(rows), "exam": {"document_groups": _groups(rows, found)}}
    findings = (*_unknown_tokens(found), *(_unequal_tokens(found) if len(budgets) == 1 else ()))
    return SweepResults(name=name, beginning=beginning, cells=found, findings=findings)


def _with_control_arms(lines: Mapping[int, Row]) -> dict[int, Row]:
    """The rows, with controls as arms of their own: tables of earlier versions have them as a phase of another arm."""
    explained = {_text(row["strategy"]) for row in lines.values() if _text(row["phase"]) == "control"}
    return {
        line: _of_control_arm(row) if _text(row["strategy"]) in explained and _arrangement(row) == "grouped" else row
        for line, row in lines.items()
    }


def _of_control_arm(row: Row) -> Row:
    phase = "confirm" if _text(row["phase"]) == "control" else _text(row["phase"])
    name = control_name(_text(row["strategy"]))
    return {**row, "strategy": name, "phase": phase, "role": "control", "arrangement": "grouped"}


def _lines_of_cells(lines: Mapping[int, Row]) -> dict[tuple[Any, ...], list[int]]:
    """The lines of each cell, in the order of tokens."""
    found: dict[tuple[Any, ...], list[int]] = {}
    for line in sorted(lines, key=lambda line: _whole(lines[line].get("tokens_seen")) or 0):
        row = lines[line]
        point = (_text(row.get("strategy")), _number(row.get("lr")), _number(row.get("adamw_lr")))
        key = (
            *point,
            _whole(row.get("seed")),
            _text(row.get("phase")),
            _arrangement(row),
            _text(row.get("budget_tokens")),
        )
        if not _is_short(row):
            found.setdefault(key, []).append(line)
    return dict(sorted(found.items(), key=lambda item: min(item[1])))


def _is_short(row: Row) -> bool:
    """Whether a row has too many values or too few, as ``csv.DictReader`` marks it."""
    return None in row or None in row.values() or any(column not in row for column in REQUIRED)


def _row_problems(lines: Mapping[int, Row]) -> Iterator[str]:
    if not lines:
        yield "has no rows; write one row per cell"
    shapes: dict[tuple[str, str], str] = {}
    for line, row in lines.items():
        if _is_short(row):
            yield f"line {line}: has not {len(row) - (None in row)} values; quote a value that holds a comma"
            continue
        for text in _problems_of(row):
            yield f"line {line}: {text}"
        for column in SHAPE:
            arm, value = _text(row["strategy"]), _text(row.get(column))
            known = shapes.setdefault((arm, column), value)
            if known != value:
                yield f"line {line}: {column}={value!r} is {known!r} in another row of {arm}; an arm has one shape"


def _problems_of(row: Row) -> Iterator[str]:
    if not _text(row["strategy"]):
        yield "strategy is empty; name the arm"
    for column, choices in CHOICES.items():
        value = _text(row.get(column))
        if value not in choices and (value or column == "phase"):
            yield f"{column}={value!r} must be one of {', '.join(choices)}"
    outcome = _text(row["outcome"])
    if outcome and outcome not in FINAL_OUTCOMES:
        yield f"outcome={outcome!r} must be one of {', '.join(FINAL_OUTCOMES)}, or empty for a cell that has none yet"
    if not _text(row["seed"]):
        yield "seed is empty; number the runs of an arm"
    for column, kind in COLUMNS.items():
        text = _text(row.get(column))
        is_sound, rule = RULES[kind]
        if text and not is_sound(text):
            yield f"{column}={text if len(text) <= LONGEST_SHOWN else f'{text[:LONGEST_SHOWN]}...'!r} {rule}"
    for column in ("val_loss", "test_loss"):
        loss = _number(row[column])
        if loss is not None and not math.isfinite(loss) and outcome != "diverged":
            yield f"{column}={_text(row[column])} is not finite, which only a cell with outcome diverged may have"


def _repeats(lines: Mapping[int, Row], cells: Mapping[tuple[Any, ...], Sequence[int]]) -> Iterator[str]:
    """Rows of one cell differ in their tokens, and the last one alone may have an outcome."""
    for (strategy, lr, _, seed, phase, *_), own in cells.items():
        cell = f"{strategy} at lr {'none' if lr is None else f'{lr:g}'}, seed {seed}, phase {phase}"
        ends = [line for line in own if _text(lines[line]["outcome"])]
        by_tokens: dict[int, list[int]] = {}
        for line in own:
            by_tokens.setdefault(_whole(lines[line]["tokens_seen"]) or 0, []).append(line)
        for found in [ends] if len(ends) > 1 else by_tokens.values():
            if len(found) > 1:
                where = written.listed([str(line) for line in sorted(found)])
                yield f"lines {where}: {cell} appears {len(found)} times; keep one"
        if len(ends) == 1 and own[-1] != ends[0]:
            yield f"lines {ends[0]} and {own[-1]}: {cell} has an outcome before its last report; move it to the last"


def _arm_problems(rows: Sequence[Row]) -> Iterator[str]:
    arms = {_text(row.get("strategy")) for row in rows if _text(row.get("role")) != "control"} - {""}
    if len(arms) == 1:
        yield f"one arm only ({arms.pop()}); a verdict compares two or more"


def _shapes(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Every arm with its shape, which is null where the table does not say, its role and its windows."""
    first = {_text(row["strategy"]): row for row in reversed(rows)}
    arms = dict.fromkeys(_text(row["strategy"]) for row in rows)
    return [
        {
            "name": arm,
            **{column: _whole(first[arm].get(column)) for column in SHAPE},
            "role": _text(first[arm].get("role")) or "contender",
            "windows": _arrangement(first[arm]),
        }
        for arm in arms
    ]


def _schedule(rows: Sequence[Row]) -> dict[str, float]:
    known = {column: _finite(row.get(column)) for row in rows for column in SCHEDULE if _text(row.get(column))}
    return {column: share for column, share in known.items() if share is not None}


def _groups(rows: Sequence[Row], cells: Sequence[CellResult]) -> dict[str, str]:
    """Losses that are by group already: every group is its own."""
    if not any(_text(row.get("exam_unit")) == "group" for row in rows):
        return {}
    views = [(result.scores or {}).get(view) or {} for result in cells for view in DOCUMENT_VIEWS]
    return {name: name for view in views for name in view}


def _budget(row: Row) -> int:
    return _whole(row.get("budget_tokens")) or _whole(row["tokens_seen"]) or 0


def _shared_budgets(rows: Sequence[Row]) -> list[int]:
    """The budgets of a ladder, ascending: ``budget_tokens`` names several, and every arm has been judged at each."""
    judged: dict[int, set[str]] = {}
    rows = [row for row in rows if _text(row.get("role")) != "control"]
    for row in rows:
        declared = _whole(row.get("budget_tokens"))
        if declared and _text(row["phase"]) in ("explore", "confirm"):
            arms = judged.setdefault(declared, set())
            arms |= {_text(row["strategy"])} if _text(row["phase"]) == "confirm" else set()
    every = {_text(row["strategy"]) for row in rows}
    return sorted(judged) if len(judged) > 1 and all(arms == every for arms in judged.values()) else []


def _arrangement(row: Row) -> str:
    return _text(row.get("arrangement")) or ("grouped" if _text(row.get("phase")) == "control" else "shuffled")


def _cell(rows: Sequence[Row], budget: int) -> CellResult:
    """One cell from its rows in the order of tokens."""
    last = rows[-1]
    outcome = _text(last["outcome"]) or None
    # A completed cell reached whatever its budget was; that budgets differ is a finding of its own.
    own_budget = _whole(last.get("budget_tokens")) or (_budget(last) if outcome == "completed" else budget)
    cell = Cell(
        cell_id=_text(last.get("cell_id")) or None,
        phase=_text(last["phase"]),  # type: ignore[arg-type]  # checked against CHOICES, as the arrangement is
        strategy=_text(last["strategy"]),
        lr=_number(last["lr"]),
        adamw_lr=_number(last.get("adamw_lr")),
        arrangement=_arrangement(last),  # type: ignore[arg-type]
        seed=_whole(last["seed"]) or 0,
        budget_tokens=own_budget,
    )
    return CellResult(
        cell=cell,
        outcome=outcome,
        tokens_seen=_whole(last["tokens_seen"]) or 0,
        val_loss=_finite(last["val_loss"]),
        test_loss=_finite(last["test_loss"]),
        scores=_scores(last),
        records=tuple(record for row in rows if len(record := _record(row)) > 1),
    )


def _record(row: Row) -> dict[str, Any]:
    """A row as a record of a cell; nothing but its tokens where it has no measurement."""
    measured = {column: row.get(column) for column in ("val_loss", *MEASURED) if _text(row.get(column))}
    values = {key_of(column): _text(v) if COLUMNS[column] == "text" else _finite(v) for column, v in measured.items()}
    return {"tokens_seen": _whole(row["tokens_seen"]) or 0, **values}


def _scores(row: Row) -> dict[str, Any] | None:
    numbers = {"bpb": _finite(row.get("test_bpb")), "common_context_loss": _finite(row.get("common_context_loss"))}
    views = {view: _losses(_text(row.get(view))) for view in DOCUMENT_VIEWS}
    return {key: value for key, value in {**numbers, **views}.items() if value is not None} or None


def _losses(text: str) -> dict[str, tuple[float, float]] | None:
    """Summed loss in nats and number of targets by document; None where the text is something else."""
    try:
        table = {str(name): (float(loss), float(tokens)) for name, (loss, tokens) in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    sound = all(math.isfinite(loss) and 0 <= tokens < math.inf for loss, tokens in table.values())
    return table if sound else None


def _unknown_tokens(cells: Sequence[CellResult]) -> Iterator[str]:
    """A completed cell whose tokens are null may have seen any number of them."""
    silent = sum(r.outcome == "completed" and not r.tokens_seen for r in cells)
    if silent:
        yield f"{written.plural(silent, 'finished cell')} without tokens_seen: that all saw equal tokens is not shown"


def _unequal_tokens(cells: Sequence[CellResult]) -> Iterator[str]:
    """Rule 2 of the method: a loss counts for one budget, and all arms must have the same."""
    done = [r for r in cells if r.outcome == "completed" and r.tokens_seen and r.cell.phase in ("explore", "confirm")]
    most = max((result.tokens_seen for result in done), default=0)
    short = {(r.cell.strategy, r.tokens_seen) for r in done if r.tokens_seen < most}
    if short:
        parts = [f"{arm} {tokens:,} ({written.share(1 - tokens / most)} fewer)" for arm, tokens in sorted(short)]
        yield f"finished cells did not see equal tokens: {written.listed(parts)} than the {most:,} of others"


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()


def _number(value: object) -> float | None:
    try:
        return float(_text(value))
    except ValueError:
        return None


def _finite(value: object) -> float | None:
    number = _number(value)
    return number if number is not None and math.isfinite(number) else None


def _whole(value: object) -> int | None:
    number = _finite(value)
    return int(number) if number is not None and number >= 0 and number == int(number) else None
