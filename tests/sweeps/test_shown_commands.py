"""Commands as they are shown: a line that runs where the user stands."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sweeps.shown_commands import commands_for, shown_command, shown_line, shown_on, with_shown_commands


def typed(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["sweeps", *words])


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ``.venv/bin/python`` and ``.venv/bin/sweeps``, as the working folder; nothing on PATH."""
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "sweeps"):
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "elsewhere"))
    for name in ("SWEEPS_RUNS_DIR", "SWEEPS_SHOWN_AS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    typed(monkeypatch, "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_command_names_the_script_of_the_checkout_where_sweeps_is_not_on_path(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shown_command("resume", "second") == ".venv/bin/sweeps resume second"
    (checkout / "elsewhere").mkdir()
    monkeypatch.chdir(checkout / "elsewhere")
    assert shown_command("resume", "second") == f"{checkout}/.venv/bin/sweeps resume second"


def test_a_command_is_short_where_this_installation_is_on_path(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(checkout / ".venv" / "bin"))
    assert shown_command("resume", "second") == "sweeps resume second"


def test_another_installation_on_path_is_not_named(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = checkout / "elsewhere"
    other.mkdir()
    (other / "sweeps").write_text("#!/bin/sh\n")
    (other / "sweeps").chmod(0o755)
    assert shown_command("status") == ".venv/bin/sweeps status"


def test_a_command_runs_the_module_where_there_is_no_script(checkout: Path) -> None:
    (checkout / ".venv" / "bin" / "sweeps").unlink()
    assert shown_command("status") == ".venv/bin/python -m sweeps status"


def test_words_are_quoted_for_the_shell(checkout: Path) -> None:
    assert shown_command("run", "--set", "a=[1, 2]") == ".venv/bin/sweeps run --set 'a=[1, 2]'"


def test_commands_within_a_text_are_completed_and_other_words_are_left(checkout: Path) -> None:
    text = "sweeps end; `sweeps resume first && sweeps extend first --seeds 3` settles it, `sweeps` alone does not"
    assert with_shown_commands(text) == (
        "sweeps end; `.venv/bin/sweeps resume first && .venv/bin/sweeps extend first --seeds 3` settles it, "
        "`sweeps` alone does not"
    )


@pytest.mark.parametrize("words", [("run", "--runs-dir", "my runs"), ("run", "--runs-dir=my runs")])
def test_another_runs_folder_than_the_usual_one_is_named_by_every_command_that_has_the_option(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    typed(monkeypatch, *words)
    assert shown_command("resume", "second") == ".venv/bin/sweeps resume second --runs-dir 'my runs'"
    assert shown_line("sweeps resume a && sweeps extend a --lr 1") == (
        ".venv/bin/sweeps resume a --runs-dir 'my runs' && .venv/bin/sweeps extend a --lr 1 --runs-dir 'my runs'"
    )
    assert shown_command("plan", "--space", "a.toml") == ".venv/bin/sweeps plan --space a.toml", "it has no such option"
    assert shown_command("resume", "a", "--runs-dir", "b") == ".venv/bin/sweeps resume a --runs-dir b"


def test_the_usual_runs_folder_is_not_named_however_it_was_typed(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("runs", "./runs", str(checkout / "runs")):
        typed(monkeypatch, "run", "--runs-dir", folder)
        assert shown_command("resume", "second") == ".venv/bin/sweeps resume second"


def test_a_runs_folder_of_the_environment_is_named_too_for_it_may_hold_for_one_line_only(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWEEPS_RUNS_DIR", "s3://bucket/runs")
    assert shown_command("status") == ".venv/bin/sweeps status --runs-dir s3://bucket/runs"
    typed(monkeypatch, "run", "--runs-dir", "runs")
    assert shown_command("status") == ".venv/bin/sweeps status --runs-dir runs"


def test_a_command_that_trains_names_the_cluster_on_which_the_sweep_ran(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert shown_command("resume", "second") == "RAY_ADDRESS=auto .venv/bin/sweeps resume second"
    assert shown_command("report", "second") == ".venv/bin/sweeps report second"


def test_a_job_prints_what_its_submitter_types(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = shown_on("http://head:8265")
    assert here == "RAY_ADDRESS=http://head:8265 .venv/bin/sweeps"
    monkeypatch.setenv("SWEEPS_SHOWN_AS", here)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # Ray's own, inside a job
    typed(monkeypatch, "run", "--runs-dir", "s3://b/runs")
    assert shown_command("resume", "a") == f"{here} resume a --runs-dir s3://b/runs"


@pytest.mark.parametrize("program", ["sweeps", "RAY_ADDRESS=auto sweeps", None])
def test_a_line_that_was_completed_stays_as_it_is(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, program: str | None
) -> None:
    if program is not None:
        monkeypatch.setenv("PATH", str(checkout / ".venv" / "bin"))
        monkeypatch.setenv(
            "SWEEPS_SHOWN_AS" if " " in program else "RAY_ADDRESS", program if " " in program else "auto"
        )
    typed(monkeypatch, "run", "--runs-dir", "other")
    line = shown_command("resume", "a")
    assert shown_line(line) == line


def test_a_runs_folder_that_a_program_names_goes_before_that_of_options(
    monkeypatch: pytest.MonkeyPatch, checkout: Path
) -> None:
    typed(monkeypatch, "--runs-dir", "of something else")
    with commands_for("elsewhere"):
        assert shown_command("resume", "first") == ".venv/bin/sweeps resume first --runs-dir elsewhere"
    with commands_for(str(checkout / "runs")):
        assert shown_command("resume", "first") == ".venv/bin/sweeps resume first"
    assert shown_command("resume", "first").endswith("--runs-dir 'of something else'")
