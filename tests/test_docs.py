"""The documents keep up with the code: every key is explained, and every link, file and command is there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from moe.audit import Audit, Finding
from search_spaces import explore_cells, load_space
from sweeps.cli import app
from sweeps.commands.plan import ArmPlan, SweepPlan
from sweeps.commands.status import list_of_sweeps, status_of
from sweeps.ledger.cell_folder import CellFolder, CellWriter
from sweeps.ledger.results import CellResult, SweepResults
from sweeps.ledger.space import identity_of
from sweeps.ledger.storage import Storage
from sweeps.ledger.sweep_folder import Ledger, PlannedCell
from sweeps.plan.phases import first_cells
from sweeps.tracking.projection import METRICS, SUMMARY_METRICS, SweepView, desired_sweep
from sweeps.tracking.runs import ARTIFACTS_TAG, POINTS_TAG
from sweeps.trial.trainable import _Segment
from sweeps.verdict.decision import decide
from sweeps.verdict.records_table import COLUMNS, key_of
from tests.sweeps import made_up_sweep as made_up
from tests.sweeps.ending_trainer import EndingTrainer, whole_job
from tests.sweeps.planted_sweep import BUDGET, CLEAR_WIN, cell, confirm, control, explore, ladder, sweep
from tests.test_walls import FLOORS

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
    path
    for path in (*ROOT.glob("*.md"), *ROOT.glob("[a-z]*/**/*.md"))
    if path.relative_to(ROOT).parts[0] not in ("runs", "build", "dist")
)
NAMES = {
    **dict.fromkeys(CLEAR_WIN, "ARM"),
    "a.py": "DOCUMENT",
    "queued": "STATE",
    "completed": "STATE",
}
"""Keys that are names of something: the page writes what they name."""


def paths_in(value: object, prefix: str = "") -> Iterator[str]:
    """The path of every key in nested plain data: ``pairs``, ``pairs[].a``, ``means.ARM``."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            path = prefix + NAMES.get(key, key)
            yield path
            nested = isinstance(inner, list | tuple)
            yield from paths_in(inner, f"{path}[]." if nested else f"{path}.")
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from paths_in(inner, prefix)


@cache
def explained(section: str) -> tuple[str, ...]:
    """What stands in backticks in the first column of the tables of a section of docs/metrics.md."""
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    body = text.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return tuple(re.findall(r"^\| `([^`]+)` \|", body, flags=re.MULTILINE))


def pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\*", "[^.]*" if "[" in name or "by_" in name else ".*"))


def assert_explains(section: str, found: set[str]) -> None:
    """Each path is explained once or more, and nothing is explained that is not there."""
    patterns = {name: pattern(name) for name in explained(section)}
    missing = sorted(path for path in found if not any(known.fullmatch(path) for known in patterns.values()))
    assert missing == [], f"docs/metrics.md, section {section}, does not explain {missing}"
    stale = sorted(name for name, known in patterns.items() if not any(known.fullmatch(path) for path in found))
    assert stale == [], f"docs/metrics.md, section {section}, explains what no code writes: {stale}"


@pytest.fixture
def completed(tmp_path: Path) -> CellFolder:
    """The folder of a confirm cell that a worker has trained to its end."""
    planned = PlannedCell(cell=made_up.cell(phase="confirm"), reason="confirm", may_stop_early=False)
    ledger = Ledger(Storage(str(tmp_path)), "first")
    folder = ledger.cell_folder(planned.cell_id)
    trainer: Any = EndingTrainer()
    writer = CellWriter(folder, "000001-cafe")
    _Segment(ledger, writer, trainer, whole_job(tmp_path, planned), lambda: 1).train(planned, lambda report: None)
    return folder


def test_every_key_of_a_record_is_explained(completed: CellFolder) -> None:
    assert_explains("Records", set(paths_in(completed.records())))


def test_every_column_of_a_table_of_records_is_explained_and_no_key_is_left_out(
    completed: CellFolder,
) -> None:
    assert_explains("Records as a table", set(COLUMNS))
    assert set(paths_in(completed.records())) <= {key_of(column) for column in COLUMNS}


def test_every_key_of_an_outcome_is_explained(completed: CellFolder) -> None:
    outcome = completed.outcome()
    assert outcome is not None
    assert_explains("Outcomes", {path for path in paths_in(outcome) if not path.startswith("scores.")})


def test_every_score_of_the_exam_is_explained(completed: CellFolder) -> None:
    outcome = completed.outcome()
    assert outcome is not None
    assert_explains("Scores of the exam", set(paths_in(outcome["scores"])))


def sweep_with_everything() -> SweepResults:
    """Arms of unequal steps with curves, common-context scores, a control, and time cells of the leading arm."""
    judged = [
        replace(
            found,
            scores={"common_context_loss": (found.test_loss or 0.0) + 0.01},
            records=tuple(
                {"tokens_seen": tokens, "val_loss": (found.test_loss or 0.0) + 1 / tokens, "concurrent_trials": 1}
                for tokens in (250, 500, BUDGET)
            ),
        )
        for found in confirm()
    ]
    leader = CLEAR_WIN["large_batch"]
    grouped = control([loss + 0.1 for loss in leader], {0.01: 4.7, 0.02: 4.6, 0.04: 4.8})
    at_equal_flops = [
        cell("long_seq", 0.02, 101 + i, "flops", loss=loss + 0.2, budget=700)
        for i, loss in enumerate(CLEAR_WIN["long_seq"])
    ]
    timed: list[CellResult] = [
        cell(arm, 0.02, 101 + i, "time", loss=loss + 0.3, budget=600, records=({"concurrent_trials": 1},))
        for arm in ("large_batch", "long_seq")
        for i, loss in enumerate(CLEAR_WIN[arm])
    ]
    results = sweep([*explore(), *judged, *grouped, *at_equal_flops, *timed])
    shapes = [
        {**shape, "tokens_per_step": tokens, "flops_per_token": flops, "model": {"top_k": 1}}
        for shape, tokens, flops in zip(results.beginning["strategies"], (50, 100, 200, 50), (7, 7, 10, 7), strict=True)
    ]
    return replace(results, beginning={**results.beginning, "strategies": shapes})


def test_every_key_of_a_verdict_is_explained() -> None:
    everything = sweep_with_everything()
    verdict = decide(everything).as_dict()
    spoilt = tuple(
        replace(c, outcome="diverged") if c.cell.cell_id == "confirm-balanced-shuffled-0.02-101" else c
        for c in everything.cells
    )
    again = decide(
        replace(everything, cells=(*spoilt, cell("balanced", 0.03, 1, outcome=None)), earlier_verdicts=(verdict,))
    ).as_dict()
    verdict |= {key: again[key] for key in ("excluded", "last_decided")}
    several = decide(ladder({250: CLEAR_WIN, 500: CLEAR_WIN, BUDGET: CLEAR_WIN})).as_dict()
    verdict |= {key: several[key] for key in ("by_budget_tokens", "trend")}
    verdict["by_budget"]["tokens"] = several["by_budget"]["tokens"]
    parts = [verdict["context"], verdict["controls"], verdict["by_rung"], *verdict["by_budget"].values()]
    assert all(parts), "the planted sweep has every optional part of a verdict"
    assert_explains("Verdicts", set(paths_in(verdict)))


def test_every_key_of_the_status_is_explained(tmp_path: Path) -> None:
    runs = Storage(str(tmp_path))
    ledger = Ledger(runs, "first")
    space = load_space(preset="smoke")
    ledger.add_cells(
        first_cells(space, explore_cells(space, identity_of(made_up.beginning()))), because="the first grid"
    )
    shapes = [{**strategy.model_dump(), "tokens_per_step": 1_024} for strategy in space.strategies]
    ledger.begin({**made_up.beginning(), "space": space.resolved(), "strategies": shapes})
    ledger.write_verdict(made_up.verdict().as_dict())
    status = status_of(ledger)
    assert_explains("Status", set(paths_in(status)))
    assert set(list_of_sweeps(runs)[0]) < set(status)


def test_every_key_of_a_plan_is_explained() -> None:
    parts: dict[str, Any] = {entry.name: () for entry in fields(SweepPlan)}
    arm_parts: dict[str, Any] = {entry.name: 1 for entry in fields(ArmPlan)} | {"differs_in": {"model.top_k": 1}}
    finding_parts: dict[str, Any] = {entry.name: "ok" for entry in fields(Finding)}
    parts |= {"cells": (made_up.cell(),), "arms": (ArmPlan(**arm_parts),)}
    parts["audit"] = Audit(findings=(Finding(**finding_parts),)).as_dict()
    assert_explains("Plans", set(paths_in(SweepPlan(**parts).as_dict())))


def test_every_metric_in_mlflow_is_explained() -> None:
    summary = {f"summary/ARM.{name}" for name in SUMMARY_METRICS.values()}
    assert_explains("MLflow metrics", {*METRICS, "test_loss", *summary})


def test_every_param_and_tag_in_mlflow_is_explained() -> None:
    desired = desired_sweep(SweepView(results=made_up.finished_sweep(), verdict=made_up.verdict()))
    runs = (desired.parent, *desired.cells)
    assert_explains("MLflow params", {param for run in runs for param in run.params})
    # The projector adds these to what it is asked for: the parent's id and note, and its own bookkeeping.
    added = {"mlflow.parentRunId", "mlflow.note.content", POINTS_TAG, ARTIFACTS_TAG}
    assert_explains("MLflow tags", {tag for run in runs for tag in run.tags} | set(desired.experiment_tags) | added)


def prose_of(path: Path) -> str:
    """The text without its blocks of code, in which brackets are no links."""
    return re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors_of(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose_of(path), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_resolve(path: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(path)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.exists() or (anchor and anchor not in anchors_of(file)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_folders_that_a_document_names_are_there(path: Path) -> None:
    named = re.findall(r"`((?:bench|deploy|docs|moe|search_spaces|sweeps|tests)/[\w./-]*)`", prose_of(path))
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_that_a_document_shows_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    blocks = re.sub(r"#.*", "", "\n".join(re.findall(r"^```.*?^```", text, flags=re.MULTILINE | re.DOTALL)))
    code = "\n".join([blocks, *re.findall(r"`[^`\n]+`", prose_of(path))])
    known = {command.name or getattr(command.callback, "__name__", "") for command in app.registered_commands}
    shown = set(re.findall(r"(?:^|[`/ ])sweeps ([a-z][a-z-]*)", code, flags=re.MULTILINE))
    assert shown <= known
    targets = set(re.findall(r"^([a-z][a-z -]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    makes = set(re.findall(r"(?:^|[`& ])make ([a-z][a-z-]*)", code, flags=re.MULTILINE))
    assert makes <= {target for line in targets for target in line.split()}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_a_block_are_found_by_a_shell_in_the_projects_folder(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"^```\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL))
    bare = re.findall(r"^(?:[A-Z_]+=\S+ )*sweeps .*", blocks, flags=re.MULTILINE)
    assert bare == [] or "`. .venv/bin/activate`" in text.partition(bare[0])[0]


def test_the_readme_explains_its_words_before_it_uses_them() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for word in ("arm", "cell", "rung", "exam"):
        explained = text.index(f"\n- *{word}*: ")
        used = re.search(rf"\b{word}s?\b", text)
        assert used is not None
        assert used.start() <= explained + len(f"\n- *{word}*: "), f"{word} is used before it is explained"


def test_every_folder_of_sweeps_has_its_line_in_the_design() -> None:
    rooms = prose_of(ROOT / "docs" / "design.md").partition("\n## The rooms of `sweeps`\n")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `([^`]+)` \|", rooms, flags=re.MULTILINE)
    assert tuple(listed) == FLOORS[1:], "in the order of floors that tests/test_walls.py holds"


def test_every_file_that_the_design_names_is_there() -> None:
    text = prose_of(ROOT / "docs" / "design.md")
    named = set(re.findall(r"`((?:[a-z_]+/)?[a-z_]+\.py)`", text))
    assert [
        name for name in sorted(named) if not (ROOT / name).exists() and not (ROOT / "sweeps" / name).exists()
    ] == []


def test_every_pinned_package_has_its_licence_listed() -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("==")[0] for line in pins if "==" in line}
    text = (ROOT / "docs" / "supply.md").read_text(encoding="utf-8").partition("\n## Licences\n")[2]
    rows = re.findall(r"^\| [^|]+ \| ([^|]+) \|$", text, flags=re.MULTILINE)
    listed = {name for row in rows for name in row.split(", ")} - {"packages"}
    assert listed == pinned
