"""Every command that is printed works where the user stands: it is parsed as typed there, and finds its sweep."""

from __future__ import annotations

import ast
import html
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import typer
from rich.console import Console

from search_spaces import Identity, explore_cells, load_space
from sweeps.cli import app
from sweeps.commands.api import open as open_sweep
from sweeps.commands.doctor import Row
from sweeps.commands.doctor import render as render_doctor
from sweeps.commands.exit_codes import exit_code_of
from sweeps.commands.status import render_list, render_status
from sweeps.errors import BadInputError, WorldError
from sweeps.ledger.results import SweepResults
from sweeps.ledger.storage import Storage
from sweeps.ledger.sweep_folder import Ledger
from sweeps.plan.phases import first_cells
from sweeps.report.report import write_report
from sweeps.report.terminal import show_verdict
from sweeps.running.begin import require_new
from sweeps.running.live_table import SweepWatch
from sweeps.running.signals import Interruption
from sweeps.tracking.note import parent_note
from sweeps.tracking.projection import SweepView
from sweeps.tracking.store import damaged_message, tracking_store
from sweeps.verdict.decision import decide
from tests.sweeps.planted_sweep import CLEAR_WIN, CURVES, cell, confirm, explore, sweep

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = '#!/bin/sh\nPYTHONPATH="{root}" exec "{python}" -m sweeps "$@"\n'
NAME = "planted"

NOISY = {**CLEAR_WIN, "balanced": (4.50, 4.41, 4.59, 4.40, 4.40), "large_batch": (4.40, 4.51, 4.39, 4.41, 4.39)}
TIED = {**CLEAR_WIN, "balanced": (4.402, 4.408, 4.391, 4.404, 4.397)}
FALLING = {arm: {0.01: 4.9, 0.02: 4.8, 0.04: 4.6} for arm in CURVES}
TWO = {arm: losses[:2] for arm, losses in CLEAR_WIN.items()}
DIVERGED = [replace(one, outcome="diverged", test_loss=None) for one in confirm() if one.cell.strategy == "balanced"]

OUTCOMES: dict[str, Callable[[], SweepResults]] = {
    "wins": lambda: sweep(explore() + confirm()),
    "tie": lambda: sweep(explore() + confirm(TIED)),
    "undecided": lambda: sweep(explore() + confirm(NOISY)),
    "exploratory": lambda: sweep(explore() + confirm(TWO), seeds={"explore": 1, "confirm": 2}),
    "withheld": lambda: sweep(explore(FALLING) + confirm(lr=0.04)),
    "unfinished": lambda: sweep([*explore(), cell("balanced", 0.02, 101, "confirm", outcome=None)]),
    "failed": lambda: sweep([*explore(), *confirm(), cell("balanced", 0.02, 106, "confirm", outcome="failed")]),
    "diverged": lambda: sweep([*explore(), *DIVERGED, *(one for one in confirm() if one.cell.strategy != "balanced")]),
    "looked at before": lambda: sweep(
        explore() + confirm(TWO), verdicts=[decide(sweep(explore() + confirm(NOISY))).as_dict()]
    ),
}


@pytest.fixture(params=["runs", "../elsewhere/my runs"])
def runs_dir(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A runs folder, as it was typed in a project's folder in which PATH leads to no ``sweeps``."""
    project = tmp_path / "project"
    programs = project / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "python").write_text("")
    (programs / "sweeps").write_text(SCRIPT.format(root=ROOT, python=sys.executable))
    (programs / "sweeps").chmod(0o755)
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    for name in ("SWEEPS_RUNS_DIR", "SWEEPS_SHOWN_AS", "RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    chosen = str(request.param)
    monkeypatch.setattr(sys, "argv", ["sweeps", "run", *([] if chosen == "runs" else ["--runs-dir", chosen])])
    return chosen


@pytest.fixture
def ledger(runs_dir: str) -> Ledger:
    """A sweep that has begun."""
    space = load_space(preset="smoke")
    made = Ledger(Storage(runs_dir), NAME)
    identity = Identity(corpus_fingerprint="c", tokenizer_fingerprint="t", exam_fingerprint="e")
    made.add_cells(first_cells(space, explore_cells(space, identity)), because="the first grid")
    made.begin(
        {
            "space": space.resolved(),
            "fingerprints": {"code": "c", "corpus": "c", "tokenizer": "t", "exam": "e"},
            "strategies": [{**arm.model_dump(), "predicted_peak_gib": None} for arm in space.strategies],
            "created_s": 0.0,
            "sweep_id": "1",
        }
    )
    return made


def printed(*shown: Any) -> str:
    console = Console(file=io.StringIO(), width=2000)
    for what in shown:
        console.print(what, markup=False)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def commands_in(text: str) -> list[str]:
    """Everything in a text that reads as a command of this program, whether it could be typed or not."""
    names = "|".join(commands())
    started = re.findall(rf"(?:^|(?<=[\s`(>]))((?:[^\s`(>]*/)?sweeps (?:{names})\b[^`\n#;<]*)", text)
    return [" ".join(part.split()) for found in started for part in re.split(" && |   ", found) if "sweeps" in part]


def commands() -> dict[str, typer.core.TyperCommand]:
    return dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def assert_works(line: str, runs_dir: str) -> None:
    """Typed in the working folder, the line runs this program, parses, and names the sweep that is there."""
    program, *words = shlex.split(line.rstrip(" .,"))
    assert program == ".venv/bin/sweeps", f"{line!r} is not found by a shell in the project's folder"
    command = commands()[words[0]]
    if "NAME" in words or "GIB" in words or not words[1:]:  # a mention: what is to be filled in is plain
        words = [word for word in words if word not in ("NAME", "GIB")]
        taken = [option for parameter in command.params for option in parameter.opts]
        assert all(word in taken for word in words[1:] if word.startswith("--"))
        return
    asked = command.make_context(words[0], words[1:]).params
    if "runs_dir" in asked and not asked.get("records"):
        assert Path(asked["runs_dir"]).resolve() == Path(runs_dir).resolve()
        for name in asked["names"] if "names" in asked else [asked["name"]]:
            if name is not None and name != "nothing":
                open_sweep(name, runs_dir=asked["runs_dir"])


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_what_a_sweep_prints_at_its_end_works_there_in_terminal_report_and_mlflow(
    outcome: str, ledger: Ledger, runs_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = replace(OUTCOMES[outcome](), folder=ledger.storage.uri)
    verdict = decide(results)
    monkeypatch.setattr("sweeps.report.plots.files.draw_all", lambda _: [])
    report = write_report(results, verdict, Path(ledger.storage.uri))
    assert (Path(ledger.storage.uri) / "space.toml").exists(), "what the report's last command runs"
    console = Console(file=io.StringIO(), width=2000)
    show_verdict(verdict, console)
    assert isinstance(console.file, io.StringIO)
    note = parent_note(SweepView(results=results, verdict=verdict), "url")
    texts = {
        "terminal": console.file.getvalue(),
        "report": report.markdown.read_text(),
        "page": html.unescape(re.sub("<[^>]+>", "\n", report.html.read_text())),
        "note": note,
    }
    found = {place: commands_in(text) for place, text in texts.items()}
    for place, lines in found.items():
        assert lines or place == "terminal", f"{place} names a command, a decided verdict none"
        for line in lines:
            assert_works(line, runs_dir)


def refused(error: Exception) -> Callable[[], NoReturn]:
    def command() -> NoReturn:
        raise error

    return command


def errors(runs_dir: str, ledger: Ledger) -> Iterator[Exception]:
    """Errors that name a command, each from where it is raised."""
    with pytest.raises(BadInputError) as taken:
        require_new(ledger)
    yield taken.value
    with pytest.raises(BadInputError) as unknown:
        open_sweep("nothing", runs_dir=runs_dir)
    yield unknown.value
    interruption = Interruption(Console())
    interruption.ledger = ledger
    with pytest.raises(WorldError) as interrupted, interruption:
        raise KeyboardInterrupt
    yield interrupted.value
    store = tracking_store(runs_dir)
    yield BadInputError(damaged_message(store, "malformed", f"sweeps sync {NAME}"))


def test_what_an_error_names_works_there(ledger: Ledger, runs_dir: str, capsys: pytest.CaptureFixture[str]) -> None:
    for error in errors(runs_dir, ledger):
        assert exit_code_of(refused(error)) != 0
        said = capsys.readouterr().err
        assert commands_in(said), said
        for line in commands_in(said):
            assert_works(line, runs_dir)


def test_what_status_doctor_and_a_running_sweep_name_works_there(ledger: Ledger, runs_dir: str) -> None:
    watch_console = Console(file=io.StringIO(), width=2000)
    SweepWatch(watch_console, load_space(preset="smoke"), NAME, 1).say(f"behind; `sweeps sync {NAME}` catches up")
    assert isinstance(watch_console.file, io.StringIO)
    doctor = render_doctor([Row(what="MLflow", found="away", remedy="start it (`sweeps sync NAME` catches up)")])
    for text in (
        printed(render_status(ledger)),
        printed(render_list([], runs_dir)),
        printed(render_list([{"sweep": "a", "problem": "read it by `sweeps status`"}], runs_dir)),
        printed(doctor),
        watch_console.file.getvalue(),
    ):
        assert commands_in(text), text
        for line in commands_in(text):
            assert_works(line, runs_dir)


def test_a_printed_command_runs_in_a_shell(ledger: Ledger, runs_dir: str) -> None:
    with pytest.raises(WorldError) as interrupted, Interruption(Console()) as interruption:
        interruption.ledger = ledger
        raise KeyboardInterrupt
    (resume,) = commands_in(str(interrupted.value))
    shown = subprocess.run(
        ["/bin/sh", "-c", resume.replace(" resume ", " status ")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    assert f"{NAME}: validation losses" in shown.stdout


COMPOSED = ("blockers.py", "decision.py", "projector.py", "registry.py", "thread.py", "ui.py")
"""They compose a command that another file writes between backticks."""


def test_every_command_in_a_message_stands_between_backticks_where_it_is_completed() -> None:
    bare, names = [], "|".join(commands())
    for path in sorted([*(ROOT / "sweeps").rglob("*.py"), *(ROOT / "search_spaces").rglob("*.py")]):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        documentation = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
                found = re.search(rf"(?<![`\w./])sweeps ({names})\b", node.value)
                if found and path.name not in COMPOSED:
                    bare.append(f"{path.relative_to(ROOT)}: {node.value}")
    assert not bare, "\n".join(bare)
