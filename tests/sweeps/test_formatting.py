"""Commands as they are shown: a line that runs where the user stands."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sweeps.formatting import shown_command, with_shown_commands


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
