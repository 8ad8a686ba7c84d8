"""Bad inputs and bad worlds: what a user is told, and the exit code, for everything that can be wrong outside.

Every row runs the command line in this process (a few in one of their own) and asserts the essential words of its
message: the value, the rule, the remedy. Nothing here starts Ray or trains.
"""

from __future__ import annotations

import io
import os
import shlex
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sweeps import training_data as material
from sweeps.cli import main
from sweeps.ledger.storage import Storage
from sweeps.ledger.sweep_folder import Ledger
from tests.integration.bad_inputs import BAD_INPUTS, PROBLEMS_SEEN_IN_THE_FILE, Row
from tests.integration.bad_worlds import BAD_WORLDS
from tests.integration.sweeping import Sweeps
from tests.integration.wrong_files import begin_and_damage, write_wrong_files

TABLE = {**BAD_INPUTS, **BAD_WORLDS}

Ask = Callable[..., tuple[int, str]]


@pytest.fixture(scope="session")
def begun(tmp_path_factory: pytest.TempPathFactory, corpus: Path, token_cache: Path) -> Path:
    """A folder with a sweep that was begun and not run, and with sweeps that were damaged since."""
    folder = tmp_path_factory.mktemp("begun")
    begin_and_damage(folder, corpus, token_cache)
    return folder


@pytest.fixture
def world(tmp_path: Path, begun: Path, token_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of this test alone, full of files that are wrong in one way each."""
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    write_wrong_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "SWEEPS_RUNS_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SWEEPS_CACHE_DIR", str(token_cache))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")  # `sweeps` is on it
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    return tmp_path


@pytest.fixture
def ask(world: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Ask:
    """Run ``sweeps WORDS`` in this process; returns the exit code and all that was said, on one line."""

    def run(words: str, *, answer: str = "", **environment: str) -> tuple[int, str]:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["sweeps", *shlex.split(words)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        material._tokens.cache_clear()
        material._training_data.cache_clear()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, " ".join((said.out + said.err).replace("│", " ").split())

    return run


@pytest.mark.parametrize("row", TABLE.values(), ids=[name.replace(" ", "-") for name in TABLE])
def test_a_bad_input_gets_its_exit_code_and_one_message_with_the_remedy(row: Row, ask: Ask) -> None:
    code, said = ask(row.words, **row.environment)
    assert [words for words in row.says if words not in said] == [], said
    assert code == row.code
    assert "Traceback" not in said


def test_the_table_has_at_least_forty_rows_and_every_exit_code_of_a_refusal() -> None:
    assert len(TABLE) >= 40
    assert {row.code for row in TABLE.values()} == {0, 2, 4, 130}


def test_a_refusal_leaves_nothing_behind(ask: Ask, world: Path) -> None:
    before = sorted(path.relative_to(world) for path in world.rglob("*"))
    for wrong in (
        "everything.toml",
        "space.toml --set exam.rows_test=9000",
        "space.toml --set corpus=files:copies.jsonl",
    ):
        assert ask(f"run --space {wrong} --name a")[0] == 2
    assert sorted(path.relative_to(world) for path in world.rglob("*")) == before


def test_everything_that_can_be_seen_in_the_file_is_said_in_one_message(ask: Ask) -> None:
    code, said = ask("run --space everything.toml")
    assert [words for words in PROBLEMS_SEEN_IN_THE_FILE if words not in said] == [], said
    assert said.count("problems in everything.toml:") == 1
    assert code == 2
    assert "Traceback" not in said


def test_a_port_that_is_taken_is_named_before_anything_starts(ask: Ask) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, said = ask(f"ui --port {port}")
    assert f"port {port} of 127.0.0.1 is taken; give another --port, or none for a free one" in said
    assert code == 2


def test_rm_that_is_answered_no_deletes_nothing(ask: Ask, world: Path) -> None:
    code, said = ask("rm first", answer="n\n")
    assert "Nothing was deleted." in said
    assert code == 0
    assert (world / "runs" / "first" / "sweep.json").exists()


def test_a_finished_sweep_with_failed_cells_ends_with_3_and_says_how_to_try_again(ask: Ask, world: Path) -> None:
    ledger = Ledger(Storage("runs"), "first")
    for planned in ledger.planned_cells():
        ledger.cell_folder(planned.cell_id).write_outcome(planned.cell, "failed", reason="the disk smelled of smoke")
    assert ask("verdict first")[0] == 0
    code, said = ask("resume first")
    assert said.count("failed: the disk smelled of smoke") == 4
    assert "Run them again with: sweeps resume first --retry-failed" in said
    assert code == 3


def test_a_message_is_all_that_a_process_of_its_own_says_on_standard_error(sweeps: Sweeps) -> None:
    said = sweeps("plan", "--preset", "laptpo", "--json", code=2)
    assert said.splitlines() == [
        "sweeps: 1 problem in the command line:",
        "  preset=\"laptpo\" is not a preset; did you mean 'laptop'? Presets: "
        "smoke, laptop, routing, schedule, matched, tutorial, published",
    ]


def test_a_data_set_that_is_not_in_the_cache_is_refused_at_once_when_offline(sweeps: Sweeps) -> None:
    sweeps.environment["HF_HUB_OFFLINE"] = "1"  # the hub's client reads it once, when it is imported
    said = sweeps("run", "--space", "space.toml", "--set", "corpus=hub:nobody/nothing", code=2)
    assert "dataset nobody/nothing is not in the local cache and HF_HUB_OFFLINE forbids to fetch it; unset it" in said
    assert "--set corpus=embedded" in said
    assert "Traceback" not in said
