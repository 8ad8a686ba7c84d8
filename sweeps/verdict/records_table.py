"""Records as a table, one row a report: its columns, its rows from a sweep's results, and its files.

The last row of a cell holds the outcome and the scores of the test exam; of its earlier rows the outcome is empty. A
cell that ended beyond its newest report, or that has none, ends with a row without measurements. An empty value is
null. Losses are nats per token; docs/metrics.md has every unit.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from sweeps import formatting as written
from sweeps.ledger.results import Arm, CellResult, SweepResults
from sweeps.verdict.evidence import by_document
from sweeps.verdict.leads import groups_of_documents

Kind = Literal["text", "whole", "count", "rate", "share", "number", "losses"]
"""What a column holds: a whole number of at least 0 or (``count``) 1, a number that is positive (``rate``) or from 0 to
1 (``share``) or any, or a JSON object of losses by document."""
Row = Mapping[str | None, Any]

REQUIRED: Final = ("strategy", "lr", "seed", "phase", "outcome", "tokens_seen", "val_loss", "test_loss")
_OF_CELL: Final[dict[str, Kind]] = {
    "cell_id": "text",
    "adamw_lr": "rate",
    "arrangement": "text",
    "budget_tokens": "count",
    "micro_batch_size": "count",
    "seq_len": "count",
    "grad_accum_steps": "count",
    "role": "text",
    "warmup_share": "share",
    "decay_share": "share",
}
MEASURED: Final[dict[str, Kind]] = {
    "step": "whole",
    "lr_now": "number",
    "adamw_lr_now": "number",
    "train_loss": "number",
    "val_bpb": "number",
    "val_common_loss": "number",
    "lb_loss": "number",
    "z_loss": "number",
    "router_entropy": "number",
    "expert_load_max_over_mean": "number",
    "grad_norm": "number",
    "tokens_per_s": "number",
    "mfu_pct": "number",
    "peak_mem_allocated_gib": "number",
    "loss_scale": "number",
    "skipped_steps": "whole",
    "micro_batch_splits": "whole",
    "train_time_s": "number",
    "counting_time_s": "number",
    "exam_time_s": "number",
    "precision": "text",
    "timestamp_s": "number",
    "concurrent_trials": "whole",
    "gpu_fraction": "number",
    "threads": "whole",
}
"""Columns of a report beside ``tokens_seen`` and the losses; ``key_of`` gives the record's key."""
DOCUMENT_VIEWS: Final = ("loss_by_document", "common_loss_by_document")
_OF_EXAM: Final[dict[str, Kind]] = {
    "test_bpb": "number",
    "common_context_loss": "number",
    "exam_unit": "text",
    **dict.fromkeys(DOCUMENT_VIEWS, "losses"),
}
COLUMNS: Final[dict[str, Kind]] = {
    "strategy": "text",
    "lr": "rate",
    "seed": "whole",
    "phase": "text",
    "outcome": "text",
    "tokens_seen": "whole",
    "val_loss": "number",
    "test_loss": "number",
    **_OF_CELL,
    **MEASURED,
    **_OF_EXAM,
}
"""In the order in which they are written; the first eight are required."""
PANDAS_TYPES: Final[dict[str, str]] = {
    column: {"text": "string", "losses": "string", "whole": "Int64", "count": "Int64"}.get(kind, "float64")
    for column, kind in COLUMNS.items()
}
"""The same columns with the type of each in a pandas frame."""
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


def key_of(column: str) -> str:
    """Return the key under which a record holds a column: ``lr_now`` is its ``lr``, for ``lr`` is the cell's rate."""
    return column.removesuffix("_now")


def rows_of(results: SweepResults) -> list[dict[str, Any]]:
    """Return every record that counts as a row with all columns, arms in the order of the space."""
    arms = {arm.name: arm for arm in results.every_arm}
    schedules = {
        arm: {f"{part}_share": results.rule_of(arm, "schedule", f"{part}_share", None) for part in ("warmup", "decay")}
        for arm in arms
    }
    groups = groups_of_documents(results)
    ordered = [result for name in arms for result in results.cells if result.cell.strategy == name]
    rows = (
        {**schedules[result.cell.strategy], **_of_cell(result, arms[result.cell.strategy]), **row}
        for result in ordered
        for row in _rows_of_cell(result, groups)
    )
    return [{column: _typed(row.get(column), kind) for column, kind in COLUMNS.items()} for row in rows]


def _of_cell(result: CellResult, arm: Arm) -> dict[str, Any]:
    values = {**vars(result.cell), **vars(arm)}
    return {column: values.get(column) for column in ("strategy", "lr", "seed", "phase", *_OF_CELL) if column in values}


def _rows_of_cell(result: CellResult, groups: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    reports = [
        {column: record.get(key_of(column)) for column in ("tokens_seen", "val_loss", "test_loss", *MEASURED)}
        for record in result.records
    ]
    if result.outcome is None and reports:
        yield from reports
        return
    last = reports.pop() if reports and reports[-1]["tokens_seen"] == result.tokens_seen else {}
    yield from reports
    known = {"val_loss": result.val_loss, "test_loss": result.test_loss}
    yield {
        **last,
        **{column: loss for column, loss in known.items() if loss is not None},
        "outcome": result.outcome,
        "tokens_seen": result.tokens_seen,
        **_scores(result, groups),
    }


def _scores(result: CellResult, groups: Mapping[str, str]) -> dict[str, Any]:
    """What the test exam scored; by group of documents where the corpus names groups."""
    views = {view: by_document(result.scores, groups, view) for view in DOCUMENT_VIEWS}
    unit = ("group" if groups else "document") if any(views.values()) else None
    known = {view: json.dumps(losses, ensure_ascii=False) for view, losses in views.items() if losses}
    return {
        "test_bpb": result.score("bpb"),
        "common_context_loss": result.score("common_context_loss"),
        "exam_unit": unit,
        **known,
    }


def _typed(value: Any, kind: Kind) -> Any:
    if value is None or kind in ("text", "losses"):
        return value
    return int(value) if kind in ("whole", "count") else float(value)


def csv_bytes(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Return rows with all columns as a CSV file in UTF-8; floats keep every digit."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def parquet_bytes(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Return rows with all columns as a Parquet file, each column of one type."""
    import pyarrow as pa
    from pyarrow import parquet

    types = {"text": pa.string(), "losses": pa.string(), "whole": pa.int64(), "count": pa.int64()}
    schema = pa.schema([(column, types.get(kind, pa.float64())) for column, kind in COLUMNS.items()])
    file = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(list(rows), schema=schema), file)
    return file.getvalue()


def read_rows(path: Path) -> list[dict[str | None, Any]]:
    """Return the rows of a CSV or Parquet file by column; raises RecordsError where it is no such table.

    Nothing is converted: a value of a CSV is text, a null of a Parquet file an empty text.
    """
    try:
        return _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
    except OSError as error:
        raise RecordsError(str(path), [f"cannot be read: {error.strerror or error}; check the path"]) from None


def _read_csv(path: Path) -> list[dict[str | None, Any]]:
    csv.field_size_limit(sys.maxsize)  # losses by document are one value, longer than the module's default
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True, strict=True)
            columns = [name.strip() for name in reader.fieldnames or ()]
            _require_columns(path, columns)
            reader.fieldnames = columns
            return [dict(row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise RecordsError(str(path), [f"is not a CSV file in UTF-8: {error}"]) from None


def _read_parquet(path: Path) -> list[dict[str | None, Any]]:
    import pyarrow as pa
    from pyarrow import parquet

    with path.open("rb") as file:
        try:
            table = parquet.read_table(file)
        except (pa.ArrowException, OSError) as error:  # some damage is an OSError to it
            raise RecordsError(str(path), [f"is not a Parquet file: {error}"]) from None
    _require_columns(path, table.column_names)
    return [{column: "" if value is None else value for column, value in row.items()} for row in table.to_pylist()]


def _require_columns(path: Path, columns: Sequence[str]) -> None:
    if problems := list(column_problems(columns)):
        raise RecordsError(str(path), problems)


def column_problems(columns: Sequence[str]) -> Iterator[str]:
    """What is wrong with the names of a table's columns."""
    missing = [column for column in REQUIRED if column not in columns]
    unknown = [column for column in columns if column not in COLUMNS]
    twice = [column for column, number in Counter(columns).items() if number > 1]
    wanted = f"the columns are {','.join(REQUIRED)}"
    if missing:
        yield f"missing {_named('column', missing)}; {wanted}"
    if unknown:
        yield f"unknown {_named('column', unknown)}; {wanted}, and those that `sweeps records` writes"
    if twice:
        yield f"{_named('column', twice)} appears twice in the header; {wanted}"


def _named(noun: str, names: Sequence[str]) -> str:
    return f"{noun}{'s' if len(names) > 1 else ''} {written.listed([repr(name) for name in names])}"
