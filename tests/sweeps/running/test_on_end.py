"""The command that is told how a session ended: what it is told, and that it never changes how the session ended."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from sweeps.commands.arguments import words_to_keep
from sweeps.errors import BadInputError, WorldError
from sweeps.ledger.storage import Storage
from sweeps.ledger.sweep_folder import Ledger
from sweeps.running.on_end import word_at_end

BEGINNING = {"space": {}, "fingerprints": {}, "strategies": [], "created_s": 0.0, "sweep_id": "1"}
VERDICT = {"outcome": "tie", "winner": None, "statement": "a tie", "strategies": []}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(Storage(str(tmp_path / "runs")), "first")
    ledger.begin(BEGINNING)
    return ledger


@pytest.fixture
def told(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """End a session by an error, or without one, and return what the command was told."""

    def end(ledger: Ledger | None, error: BaseException | None = None) -> dict[str, Any]:
        file = tmp_path / "told.json"
        goes_on = nullcontext() if error is None else pytest.raises(type(error))
        with goes_on, word_at_end(f"cat > '{file}'", lambda _: None) as word:
            word.ledger = ledger
            if error is not None:
                raise error
        found: dict[str, Any] = json.loads(file.read_text())
        return found

    return end


def test_a_verdict(ledger: Ledger, told: Callable[..., dict[str, Any]]) -> None:
    ledger.write_verdict({"schema": 1, "sweep": "first", **VERDICT})
    assert told(ledger) == {
        "schema": 1,
        "event": "verdict",
        "message": "first: a tie",
        "sweep": "first",
        "folder": ledger.storage.uri,
        "outcome": "tie",
        "winner": None,
        "statement": "a tie",
        "report": f"{ledger.storage.uri}/report.html",
        "resume": None,
        "failed_cells": 0,
    }


@pytest.mark.parametrize("error", [WorldError("the disk is full"), KeyboardInterrupt()])
def test_an_interruption_names_the_command_that_resumes(
    error: BaseException, ledger: Ledger, told: Callable[..., dict[str, Any]]
) -> None:
    ledger.write_verdict({"schema": 1, "sweep": "first", **VERDICT})  # of before an extension: not what just happened
    found = told(ledger, error)
    assert (found["event"], found["outcome"], found["report"]) == ("interrupted", None, None)
    assert found["resume"].endswith("resume first")
    assert found["message"]


def test_a_failure_before_there_is_a_sweep(tmp_path: Path, told: Callable[..., dict[str, Any]]) -> None:
    nothing = Ledger(Storage(str(tmp_path / "runs")), "nothing")
    for ledger in (None, nothing):
        found = told(ledger, BadInputError("budget_tokens is wrong"))
        assert (found["event"], found["message"], found["sweep"]) == ("failed", "budget_tokens is wrong", None)


def test_a_command_that_fails_or_hangs_is_said_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    with word_at_end("exit 3", said.append):
        pass
    monkeypatch.setattr("sweeps.running.on_end.LONGEST_S", 0.2)
    with pytest.raises(WorldError), word_at_end("sleep 20", said.append):
        raise WorldError("away")
    assert "exit code 3" in said[0]
    assert "was ended" in said[1]


def test_the_command_is_not_kept_in_a_sweep() -> None:
    kept = "run --preset smoke --on-end-of x"
    assert list(words_to_keep(kept.split())) == kept.split()
    for words in (["run", "--on-end", "curl secret", "--quiet"], ["run", "--on-end=curl secret", "--quiet"]):
        assert list(words_to_keep(words)) == ["run", "--quiet"]
