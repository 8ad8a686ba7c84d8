"""``verdict --records FILE``: the same verdict from a table that anyone can write, one row per cell.

Columns: strategy, lr, seed, phase, outcome, tokens_seen, val_loss, test_loss, in any order. An empty number is null,
an empty outcome is a cell without one. Losses are nats per token.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from search_spaces import Cell
from sweeps import formatting as written
from sweeps.ledger.results import FINAL_OUTCOMES, CellResult, SweepResults
from sweeps.verdict.decision import Verdict, decide

COLUMNS = ("strategy", "lr", "seed", "phase", "outcome", "tokens_seen", "val_loss", "test_loss")
PHASES = ("explore", "confirm", "control", "time")
MOST_SHOWN = 20


class RecordsError(ValueError):
    """A table that cannot be judged. ``problems`` are all that were found, each naming value, rule and remedy."""

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        shown = [f"  {problem}" for problem in self.problems[:MOST_SHOWN]]
        if len(self.problems) > MOST_SHOWN:
            shown.append(f"  and {len(self.problems) - MOST_SHOWN:,} more")
        head = f"{source}: {written.plural(len(self.problems), 'problem')}"
        super().__init__("\n".join([head, *shown]))


def decide_records(
    rows: Iterable[Mapping[str | None, Any]],
    *,
    name: str = "records",
    alpha: float = 0.05,
    margin: float | None = None,
    unpaired: bool = False,
) -> Verdict:
    """Return the verdict of rows as ``csv.DictReader`` gives them; raises RecordsError with every problem at once.

    ``unpaired`` says that equal seeds of two arms have nothing in common.
    """
    return decide(results_of(list(rows), name=name, alpha=alpha, margin=margin, unpaired=unpaired))


def decide_file(path: Path, *, alpha: float = 0.05, margin: float | None = None, unpaired: bool = False) -> Verdict:
    """Return the verdict of a CSV file; raises RecordsError with every problem at once."""
    return decide_records(read_rows(path), name=path.stem, alpha=alpha, margin=margin, unpaired=unpaired)


def read_rows(path: Path) -> list[dict[str | None, Any]]:
    """Return the rows of a CSV file by column, text as it stands; raises RecordsError where it is no such table."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True, strict=True)
            columns = [name.strip() for name in reader.fieldnames or ()]
            if problems := list(_column_problems(columns)):
                raise RecordsError(str(path), problems)
            reader.fieldnames = columns
            return [dict(row) for row in reader]
    except OSError as error:
        raise RecordsError(str(path), [f"cannot be read: {error.strerror}; check the path"]) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise RecordsError(str(path), [f"is not a CSV file in UTF-8: {error}"]) from None


def results_of(
    rows: Sequence[Mapping[str | None, Any]],
    *,
    name: str = "records",
    alpha: float = 0.05,
    margin: float | None = None,
    unpaired: bool = False,
) -> SweepResults:
    """Return rows as the results of a sweep whose shape, corpus and model are unknown; raises RecordsError."""
    problems = [*_column_problems(_columns_of(rows))]
    if not problems:
        problems = [*_row_problems(rows), *_duplicates(rows), *_arm_problems(rows)]
    if not 0 < alpha < 0.5:
        problems.append(f"alpha={alpha} must lie between 0 and 0.5; choose 0.05")
    if margin is not None and not 0 < margin < math.inf:
        problems.append(f"margin={margin} must be a positive number of nats per token")
    if problems:
        raise RecordsError(name, problems)
    budget = max((_whole(row["tokens_seen"]) or 0 for row in rows if _text(row["phase"]) != "time"), default=0)
    cells = tuple(_cell(row, budget) for row in rows)
    pairing = "unpaired" if unpaired else "by_seed"
    rules = {"alpha": alpha, "looks": 1, "pairing": pairing, **({} if margin is None else {"margin": margin})}
    beginning = {"space": {"budget_tokens": budget, "verdict": rules}}
    findings = (*_unknown_tokens(cells), *_unequal_tokens(cells))
    return SweepResults(name=name, beginning=beginning, cells=cells, findings=findings)


def _columns_of(rows: Sequence[Mapping[str | None, Any]]) -> list[str]:
    """The columns that every row has; a row that is longer than the header says so itself."""
    first = rows[0] if rows else dict.fromkeys(COLUMNS)
    return [str(column) for column in first if column is not None]


def _column_problems(columns: Sequence[str]) -> Iterator[str]:
    missing = [column for column in COLUMNS if column not in columns]
    unknown = [column for column in columns if column not in COLUMNS]
    twice = [column for column, number in Counter(columns).items() if number > 1]
    wanted = f"the columns are {','.join(COLUMNS)}"
    if missing:
        yield f"missing {_named('column', missing)}; {wanted}"
    if unknown:
        yield f"unknown {_named('column', unknown)}; {wanted}"
    if twice:
        yield f"{_named('column', twice)} appears twice in the header; {wanted}"


def _row_problems(rows: Sequence[Mapping[str | None, Any]]) -> Iterator[str]:
    if not rows:
        yield "has no rows; write one row per cell"
    for line, row in enumerate(rows, start=2):
        for text in _problems_of(row):
            yield f"line {line}: {text}"


def _problems_of(row: Mapping[str | None, Any]) -> Iterator[str]:
    if None in row or any(row.get(column) is None for column in COLUMNS):
        yield f"has not {len(COLUMNS)} values; quote a value that holds a comma"
        return
    if not _text(row["strategy"]):
        yield "strategy is empty; name the arm"
    phase, outcome = _text(row["phase"]), _text(row["outcome"])
    if phase not in PHASES:
        yield f"phase={phase!r} must be one of {', '.join(PHASES)}"
    if outcome and outcome not in FINAL_OUTCOMES:
        yield f"outcome={outcome!r} must be one of {', '.join(FINAL_OUTCOMES)}, or empty for a cell that has none yet"
    if not _text(row["seed"]):
        yield "seed is empty; number the runs of an arm"
    for column in ("seed", "tokens_seen"):
        if _text(row[column]) and _whole(row[column]) is None:
            yield f"{column}={_text(row[column])!r} must be a whole number of at least 0"
    if _text(row["lr"]) and not 0 < (_number(row["lr"]) or 0.0) < math.inf:
        yield f"lr={_text(row['lr'])!r} must be a positive number"
    for column in ("val_loss", "test_loss"):
        value = _number(row[column])
        if _text(row[column]) and value is None:
            yield f"{column}={_text(row[column])!r} must be a number, or empty where there is none"
        elif value is not None and not math.isfinite(value) and outcome != "diverged":
            yield f"{column}={_text(row[column])} is not finite, which only a cell with outcome diverged may have"


def _duplicates(rows: Sequence[Mapping[str | None, Any]]) -> Iterator[str]:
    lines: dict[tuple[Any, ...], list[int]] = {}
    for line, row in enumerate(rows, start=2):
        if any(row.get(column) is None for column in COLUMNS):
            continue
        key = (_text(row["strategy"]), _number(row["lr"]), _whole(row["seed"]), _text(row["phase"]))
        lines.setdefault(key, []).append(line)
    for (strategy, lr, seed, phase), found in lines.items():
        if len(found) > 1:
            where = written.listed([str(line) for line in found])
            rate = "none" if lr is None else f"{lr:g}"
            cell = f"{strategy} at lr {rate}, seed {seed}, phase {phase}"
            yield f"lines {where}: {cell} appears {len(found)} times; keep one"


def _arm_problems(rows: Sequence[Mapping[str | None, Any]]) -> Iterator[str]:
    arms = {_text(row.get("strategy")) for row in rows} - {""}
    if len(arms) == 1:
        yield f"one arm only ({arms.pop()}); a verdict compares two or more"


def _cell(row: Mapping[str | None, Any], budget: int) -> CellResult:
    tokens, phase = _whole(row["tokens_seen"]), _text(row["phase"])
    outcome = _text(row["outcome"]) or None
    # A completed cell reached whatever its budget was; that budgets differ is a finding of its own.
    own_budget = (tokens or 0) if outcome == "completed" else budget
    cell = Cell(
        cell_id=None,
        phase=phase,  # type: ignore[arg-type]  # checked against PHASES
        strategy=_text(row["strategy"]),
        lr=_number(row["lr"]),
        adamw_lr=None,
        arrangement="grouped" if phase == "control" else "shuffled",
        seed=_whole(row["seed"]) or 0,
        budget_tokens=own_budget,
    )
    return CellResult(
        cell=cell,
        outcome=outcome,
        tokens_seen=tokens or 0,
        val_loss=_finite(row["val_loss"]),
        test_loss=_finite(row["test_loss"]),
    )


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


def _named(noun: str, names: Sequence[str]) -> str:
    return f"{noun}{'s' if len(names) > 1 else ''} {written.listed([repr(name) for name in names])}"
