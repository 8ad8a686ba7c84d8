"""The verdict of a table that anyone can write."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from sweeps.verdict.records import decide_file, decide_records
from sweeps.verdict.records_table import REQUIRED, RecordsError
from tests.sweeps.planted_sweep import CLEAR_WIN, CURVES

HEADER = ",".join(REQUIRED)
# The hand-written study's twelve numbers after 100 steps: 104 x 256 and 26 x 1024 saw 2,662,400 tokens, 6 x 4096 fewer.
PUBLISHED = {
    ("large_batch", 2_662_400): (4.940, 4.721, 4.625, 4.633),
    ("balanced", 2_662_400): (5.096, 4.969, 4.896, 4.882),
    ("long_seq", 2_457_600): (5.181, 5.170, 5.148, 5.138),
}


def planted_rows() -> list[str]:
    rows = [f"{arm},{lr},1,explore,completed,1000,{loss}," for arm, c in CURVES.items() for lr, loss in c.items()]
    confirm = [
        f"{arm},0.02,{101 + i},confirm,completed,1000,{loss},{loss}"
        for arm, losses in CLEAR_WIN.items()
        for i, loss in enumerate(losses)
    ]
    return [*rows, *confirm]


def write(folder: Path, rows: Sequence[str], header: str = HEADER) -> Path:
    path = folder / "records.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def problems(folder: Path, rows: Sequence[str], header: str = HEADER) -> tuple[str, ...]:
    with pytest.raises(RecordsError) as caught:
        decide_file(write(folder, rows, header))
    return caught.value.problems


def test_a_table_gives_the_verdict_that_the_sweep_would_have_had(tmp_path: Path) -> None:
    verdict = decide_file(write(tmp_path, planted_rows()), margin=0.03).as_dict()
    assert (verdict["sweep"], verdict["outcome"], verdict["winner"]) == ("records", "wins", "large_batch")
    assert verdict["budget_tokens"] == 1_000
    assert verdict["strategies"][0]["micro_batch_size"] is None
    assert verdict["strategies"][0]["losses"] == list(CLEAR_WIN["large_batch"])


@pytest.mark.parametrize("phase", ["explore", "confirm"])
def test_the_published_studys_twelve_numbers_are_exploratory_and_the_statement_says_why(
    tmp_path: Path, phase: str
) -> None:
    rows = [
        f"{arm},{lr},0,{phase},completed,{tokens},{loss},{loss if phase == 'confirm' else ''}"
        for (arm, tokens), losses in PUBLISHED.items()
        for lr, loss in zip((0.01, 0.02, 0.03, 0.04), losses, strict=True)
    ]
    verdict = decide_file(write(tmp_path, rows))
    assert (verdict.outcome, verdict.winner) == ("exploratory", None)
    assert "(3 needed" in verdict.statement
    assert "long_seq 2,457,600 (7.7% fewer)" in verdict.statement
    if phase == "explore":
        assert "no confirm seeds" in verdict.statement
        # 0.257 and 0.513 behind, where the last steps of their grids gained 0.014 and 0.010: more rates change nothing
        assert (
            "The best rate of balanced (0.04) is the highest tried, but it is 0.2570 nats behind" in verdict.statement
        )
        assert "The best rate of long_seq (0.04) is the highest tried" in verdict.statement
        assert verdict.as_dict()["strategies"][0]["best_lr"] == 0.03
    assert "sweeps extend" not in verdict.statement  # there is no sweep to extend


def test_every_problem_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    rows = [
        "balanced,fast,1,explore,completed,1000,4.5,",
        "balanced,0.01,one,explore,completed,1000,4.5,",
        "balanced,0.01,2,training,completed,1000,4.5,",
        "balanced,0.01,3,explore,finished,1000,4.5,",
        "balanced,0.01,4,explore,completed,many,low,4.5",
        "balanced,-0.01,5,explore,completed,1000,nan,",
        ",0.01,6,explore,completed,1000,4.5,",
        "balanced,0.01,,explore,completed,1000,4.5,",
        "balanced,0.01,7,explore",
    ]
    found = problems(tmp_path, rows)
    for part in (
        "line 2: lr='fast' must be a positive number",
        "line 3: seed='one' must be a whole number of at least 0",
        "line 4: phase='training' must be one of explore, confirm, time, flops, control",
        "line 5: outcome='finished' must be one of completed, stopped_early",
        "line 6: tokens_seen='many' must be a whole number of at least 0",
        "line 6: val_loss='low' must be a number, or empty where there is none",
        "line 7: lr='-0.01' must be a positive number",
        "line 7: val_loss=nan is not finite",
        "line 8: strategy is empty",
        "line 9: seed is empty",
        "line 10: has not 8 values",
        "one arm only (balanced)",
    ):
        assert any(part in problem for problem in found), part


def test_wrong_columns_are_named_both_ways(tmp_path: Path) -> None:
    found = problems(tmp_path, ["a,0.01,1,explore"], header="strategy,lr,seed,loss")
    assert "missing columns 'phase', 'outcome', 'tokens_seen', 'val_loss' and 'test_loss'" in found[0]
    assert "unknown column 'loss'" in found[1]


def test_duplicates_are_named_by_their_lines(tmp_path: Path) -> None:
    rows = planted_rows()
    (problem,) = problems(tmp_path, [*rows, rows[0], rows[0]])
    assert f"lines 2, {len(rows) + 2} and {len(rows) + 3}: large_batch at lr 0.005, seed 1, phase explore" in problem


def test_an_empty_number_is_null_and_columns_may_stand_in_any_order(tmp_path: Path) -> None:
    order = sorted(REQUIRED)
    rows = [dict(zip(REQUIRED, row.split(","), strict=True)) for row in planted_rows()]
    rows.append(dict.fromkeys(REQUIRED, "") | {"strategy": "balanced", "seed": "9", "phase": "explore"})
    path = tmp_path / "records.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, order)
        writer.writeheader()
        writer.writerows(rows)
    verdict = decide_file(path)
    assert verdict.outcome == "withheld"
    assert "1 of 28 cells have no outcome yet" in verdict.statement


def test_a_diverged_cell_may_have_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    verdict = decide_file(write(tmp_path, [*planted_rows(), "balanced,0.08,1,explore,diverged,300,inf,"]))
    assert verdict.outcome == "wins"
    assert "1 explore cell of balanced diverged" in verdict.caveats


def test_explore_and_confirm_at_different_budgets_are_withheld(tmp_path: Path) -> None:
    rows = [row.replace(",1000,", ",500,") if "explore" in row else row for row in planted_rows()]
    verdict = decide_file(write(tmp_path, rows))
    assert verdict.outcome == "withheld"
    assert "did not see equal tokens" in verdict.statement


@pytest.mark.parametrize("silent", ["confirm", "e"])
def test_finished_cells_that_do_not_say_how_many_tokens_they_saw_are_withheld(tmp_path: Path, silent: str) -> None:
    rows = [row.replace(",1000,", ",,") if silent in row else row for row in planted_rows()]
    verdict = decide_file(write(tmp_path, rows))
    assert verdict.outcome == "withheld"
    assert f"{15 if silent == 'confirm' else 27} finished cells without tokens_seen" in verdict.statement


def test_a_loss_of_zero_is_a_number(tmp_path: Path) -> None:
    rows = [row.replace("4.4,4.4", "0,0").replace("1000,4.4,", "1000,0,") for row in planted_rows()]
    verdict = decide_file(write(tmp_path, rows)).as_dict()
    assert verdict["strategies"][0]["losses"][0] == 0.0
    json.dumps(verdict, allow_nan=False)


def test_controls_say_nothing_where_no_length_is_known(tmp_path: Path) -> None:
    grouped = [
        f"{arm},0.02,{101 + i},control,completed,1000,4.5,4.7" for arm in ("large_batch", "long_seq") for i in range(5)
    ]
    verdict = decide_file(write(tmp_path, [*planted_rows(), *grouped]))
    assert verdict.controls is None
    assert not any("diversity" in caveat for caveat in verdict.caveats)


def test_rows_do_not_say_what_load_they_ran_under_so_equal_time_names_no_arm(tmp_path: Path) -> None:
    timed = [
        f"{arm},0.02,{101 + i},time,completed,600,4.9,4.9" for arm in ("large_batch", "long_seq") for i in range(5)
    ]
    verdict = decide_file(write(tmp_path, [*planted_rows(), *timed]))
    assert any("not known to have been timed under equal load" in caveat for caveat in verdict.caveats)


def test_a_file_that_is_missing_empty_or_not_text_is_a_problem_and_no_traceback(tmp_path: Path) -> None:
    with pytest.raises(RecordsError, match="cannot be read"):
        decide_file(tmp_path / "nowhere.csv")
    binary = tmp_path / "records.bin"
    binary.write_bytes(b"\xff\xfe\x00strategy")
    with pytest.raises(RecordsError, match="not a CSV file in UTF-8"):
        decide_file(binary)
    assert "has no rows" in problems(tmp_path, [])[0]
    empty = tmp_path / "empty.csv"
    empty.touch()
    with pytest.raises(RecordsError, match="missing columns"):
        decide_file(empty)


def test_long_lists_of_problems_are_cut_with_their_number() -> None:
    row = {**dict.fromkeys(REQUIRED, "x"), "phase": "explore"}
    with pytest.raises(RecordsError) as caught:
        decide_records([dict(row) for _ in range(50)])
    assert len(caught.value.problems) > 200
    assert len(str(caught.value).splitlines()) == 22
    assert str(caught.value).endswith("more")


def test_rules_of_the_verdict_are_checked_too() -> None:
    rows = [dict(zip(REQUIRED, row.split(","), strict=True)) for row in planted_rows()]
    with pytest.raises(RecordsError, match=r"alpha=1\.5 must lie between 0 and 0\.5"):
        decide_records(rows, alpha=1.5)
    with pytest.raises(RecordsError, match="margin=-1 must be a positive number"):
        decide_records(rows, margin=-1)
    assert decide_records(rows, alpha=0.01).alpha == 0.01
