"""A sweep's records as a table: what is written is judged as the sweep itself."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sweeps.ledger.results import CellResult, SweepResults
from sweeps.verdict.decision import decide
from sweeps.verdict.records import decide_file, decide_records, results_of
from sweeps.verdict.records_table import COLUMNS, RecordsError, csv_bytes, parquet_bytes, read_rows, rows_of
from sweeps.verdict.verdict import Verdict
from tests.sweeps import made_up_sweep as made_up
from tests.sweeps import report_data
from tests.sweeps.planted_sweep import cell, confirm, explore, sweep

FORMS = {"csv": csv_bytes, "parquet": parquet_bytes}
SHARED = ("outcome", "winner", "strategies", "pairs", "exam", "context", "controls", "by_rung", "by_budget", "margin")
"""Keys of ``verdict.json`` that a table carries all it takes for."""


def written(results: SweepResults, folder: Path, form: str = "csv") -> Path:
    path = folder / f"records.{form}"
    path.write_bytes(FORMS[form](rows_of(results)))
    return path


def judged_again(results: SweepResults, folder: Path, form: str = "csv") -> Verdict:
    own = decide(results)
    margin = own.margin.value if own.margin else None
    return decide_file(written(results, folder, form), alpha=own.looks.alpha, margin=margin)


def grouped(results: SweepResults) -> SweepResults:
    """The same sweep over a corpus that names groups of its 32 documents, four in each."""
    groups = {f"doc{i:02d}": f"author{i // 4}" for i in range(32)}
    exam = {**results.beginning["exam"], "document_groups": groups}
    return replace(results, beginning={**results.beginning, "exam": exam})


def with_short_decay(results: SweepResults) -> SweepResults:
    """The same sweep as if its schedule decayed later, which moves the plateau that the margin is read off."""
    space = {**results.space, "schedule": {"warmup_share": 0.01, "decay_share": 0.04}}
    return replace(results, beginning={**results.beginning, "space": space})


def with_control_and_time(results: SweepResults) -> SweepResults:
    """A sweep with a control that was searched on its own, and cells at equal time."""
    name = "large_batch_grouped"
    search = [cell(name, lr, 1, loss=4.5, arrangement="grouped") for lr in (0.01, 0.02, 0.04)]
    own = [c for c in results.cells if c.cell.phase == "confirm" and c.cell.strategy == "large_batch"]
    control = [_as(c, "confirm", loss=0.1, strategy=name, arrangement="grouped") for c in own]
    timed = [_as(c, "time", loss=0.2, budget_tokens=262_144) for c in own]
    budget = report_data.BUDGET
    full = [replace(c, cell=replace(c.cell, budget_tokens=budget), tokens_seen=budget) for c in search]
    strategies = results.beginning["strategies"]
    arm = {**strategies[0], "name": name, "windows": "grouped", "role": "control"}
    beginning = {**results.beginning, "strategies": [*strategies, arm]}
    return replace(results, beginning=beginning, cells=(*results.cells, *full, *control, *timed))


def _as(result: CellResult, phase: Any, *, loss: float, **changes: Any) -> CellResult:
    tokens = changes.get("budget_tokens", result.tokens_seen)
    test_loss = (result.test_loss or 0.0) + loss
    records = tuple(record for record in result.records if record["tokens_seen"] <= tokens)
    point = replace(result.cell, phase=phase, cell_id=None, **changes)
    return replace(result, cell=point, tokens_seen=tokens, test_loss=test_loss, scores=None, records=records)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("change", [lambda same: same, grouped, with_short_decay, with_control_and_time])
def test_a_table_is_judged_as_the_sweep_to_the_last_bit(
    tmp_path: Path, finished: SweepResults, change: Callable[[SweepResults], SweepResults], form: str
) -> None:
    results = change(finished)
    own, again = decide(results).as_dict(), judged_again(results, tmp_path, form).as_dict()
    assert {key: again[key] for key in SHARED} == {key: own[key] for key in SHARED}
    assert own["outcome"] in ("wins", "tie", "undecided")
    assert own["exam"]["unit"] == ("group" if change is grouped else "document")


def test_without_the_margin_that_was_fixed_it_is_estimated_from_the_same_curves(
    tmp_path: Path, finished: SweepResults
) -> None:
    results = with_short_decay(finished)
    assert decide_file(written(results, tmp_path)).margin == decide(results).margin


def test_the_rows_of_a_table_are_the_cells_and_records_that_it_was_made_of(finished: SweepResults) -> None:
    again = results_of([{key: "" if v is None else v for key, v in row.items()} for row in rows_of(finished)])
    order = {arm: place for place, arm in enumerate(finished.arm_names)}
    for found, own in zip(again.cells, sorted(finished.cells, key=lambda c: order[c.cell.strategy]), strict=True):
        assert found.cell == own.cell
        assert (found.outcome, found.tokens_seen, found.test_loss) == (own.outcome, own.tokens_seen, own.test_loss)
        assert [_known(record) for record in found.records] == [_known(record) for record in own.records]


def _known(record: Any) -> dict[str, Any]:
    return {key: value for key, value in record.items() if value is not None}


def test_one_row_a_report_with_the_rate_of_the_cell_and_the_scheduled_one_apart() -> None:
    rows = rows_of(made_up.results([made_up.finished(made_up.cell(phase="confirm", seed=101))]))
    assert [row["tokens_seen"] for row in rows] == [1_024, 2_048, 3_072, 4_096]
    assert {(row["lr"], row["lr_now"]) for row in rows} == {(0.02, 0.01)}
    assert {(row["adamw_lr"], row["adamw_lr_now"]) for row in rows} == {(0.006, 0.003)}
    assert [row["outcome"] for row in rows] == [None, None, None, "completed"]
    assert [row["test_loss"] for row in rows] == [None, None, None, 5.351]
    assert list(rows[0]) == list(COLUMNS)


def test_a_cell_that_ended_beyond_its_newest_report_or_without_any_has_a_row_of_its_own() -> None:
    diverged = replace(made_up.underway(made_up.cell(), 1), outcome="diverged", tokens_seen=1_500)
    lost = cell("long_seq", 0.01, 1, outcome="oom", tokens_seen=0)
    planned = cell("large_batch", 0.01, 1, outcome=None, tokens_seen=0)
    rows = rows_of(made_up.results([diverged, lost, planned]))
    assert [(row["strategy"], row["tokens_seen"], row["outcome"], row["train_loss"] is None) for row in rows] == [
        ("large_batch", 0, None, True),
        ("long_seq", 0, "oom", True),
        ("balanced", 1_024, None, False),
        ("balanced", 1_500, "diverged", True),
    ]


def test_pandas_reads_both_forms_with_every_digit(tmp_path: Path, finished: SweepResults) -> None:
    as_csv = pd.read_csv(written(finished, tmp_path))
    as_parquet = pd.read_parquet(written(finished, tmp_path, "parquet"))
    assert list(as_csv.columns) == list(as_parquet.columns) == list(COLUMNS)
    losses = [result.test_loss for result in finished.cells if result.test_loss is not None]
    for table in (as_csv, as_parquet):
        assert len(table) >= sum(len(result.records) for result in finished.cells)
        assert sorted(table["test_loss"].dropna()) == sorted(losses)
    assert as_parquet["tokens_seen"].dtype == "int64"


def test_what_pandas_wrote_is_read_too(tmp_path: Path, finished: SweepResults) -> None:
    table = pd.read_parquet(written(finished, tmp_path, "parquet"))
    again = tmp_path / "again.parquet"
    table.to_parquet(again)
    assert decide_file(again).outcome == decide_file(written(finished, tmp_path)).outcome


def test_losses_by_document_may_be_longer_than_a_field_of_the_csv_module(tmp_path: Path) -> None:
    documents = {f"a rather long name of document {i}": (430.5 + i, 100) for i in range(4_000)}
    cells = [replace(found, scores={"loss_by_document": documents}) for found in confirm()]
    verdict = decide_file(written(sweep([*explore(), *cells]), tmp_path))
    assert verdict.exam.documents == 4_000


def rows_with(results: SweepResults, **changes: str) -> list[dict[str | None, Any]]:
    """The rows of a CSV, the first of them changed."""
    rows: list[dict[str | None, Any]] = list(csv.DictReader(io.StringIO(csv_bytes(rows_of(results)).decode())))
    return [{**rows[0], **changes}, *rows[1:]]


@pytest.mark.parametrize(
    ("column", "value", "rule"),
    [
        ("strategy", "a\x1b[31m", r"line 2: strategy='a\x1b[31m' holds control characters; write it in one line of"),
        ("seq_len", "0", "line 2: seq_len='0' must be a whole number of at least 1"),
        ("seq_len", "32", "line 3: seq_len='64' is '32' in another row of large_batch; an arm has one shape"),
        ("decay_share", "2", "line 2: decay_share='2' must be a number from 0 to 1"),
        ("arrangement", "mixed", "line 2: arrangement='mixed' must be one of shuffled, grouped"),
        ("exam_unit", "page", "line 2: exam_unit='page' must be one of document, group"),
        ("train_loss", "low", "line 2: train_loss='low' must be a number, or empty where there is none"),
        ("loss_by_document", "{", "line 2: loss_by_document='{' must be a JSON object such as"),
        ("loss_by_document", '{"a": 1}', "by document the sum of its losses and its targets"),
        ("loss_by_document", '{"a": [NaN, 1]}', "by document the sum of its losses and its targets"),
        ("loss_by_document", '{"a": [1, 2], ' + 99 * "x", 'line 2: loss_by_document=\'{"a": [1, 2], xxx'),
        ("tokens_seen", "43691", "lines 2 and 3: large_batch at lr 0.005, seed 1, phase explore appears 2 times"),
        ("outcome", "completed", "lines 2 and 7: large_batch at lr 0.005, seed 1, phase explore appears 2 times"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_line_and_rule(
    finished: SweepResults, column: str, value: str, rule: str
) -> None:
    with pytest.raises(RecordsError) as caught:
        decide_records(rows_with(finished, **{column: value}))
    assert any(rule in problem for problem in caught.value.problems), caught.value.problems


def test_an_outcome_before_the_last_report_is_refused(finished: SweepResults) -> None:
    rows = rows_with(finished)
    ends = [place for place, row in enumerate(rows) if row["outcome"]]
    rows[ends[0] - 1]["outcome"], rows[ends[0]]["outcome"] = rows[ends[0]]["outcome"], ""
    with pytest.raises(RecordsError, match="has an outcome before its last report; move it to the last"):
        decide_records(rows)


def test_a_damaged_parquet_file_is_a_problem_and_no_traceback(tmp_path: Path, finished: SweepResults) -> None:
    path = written(finished, tmp_path, "parquet")
    data = path.read_bytes()
    for damaged in (b"", b"PAR1", data[: len(data) // 2], data[:-200] + b"\0" * 192 + data[-8:]):
        path.write_bytes(damaged)
        with pytest.raises(RecordsError, match="is not a Parquet file"):
            read_rows(path)
    with pytest.raises(RecordsError, match="cannot be read: No such file"):
        read_rows(tmp_path / "nowhere.parquet")
    with pytest.raises(RecordsError, match="unknown columns 'a' and 'b'"):
        pd.DataFrame({"a": [1], "b": [2]}).to_parquet(path)
        read_rows(path)


def test_a_table_holds_json_for_documents_and_no_formula(finished: SweepResults) -> None:
    for row in rows_of(finished):
        assert all(not str(value).startswith(("=", "+", "@", "\t")) for value in row.values())
        if row["loss_by_document"] is not None:
            assert len(json.loads(row["loss_by_document"])) == 32
