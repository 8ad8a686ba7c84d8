"""Running whole sweeps as a user would, and comparing what they leave behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from sweeps.ledger.lease import CELL_LEASE, claims
from sweeps.ledger.storage import Storage
from sweeps.ledger.sweep_folder import Ledger

PATIENCE_S = 1200.0
"""After this long a test gives up waiting. It only ends what hangs: no test judges how fast something is."""

TINY_SPACE = """
description = "two arms that train in two seconds"
budget_tokens = {budget}
rungs_tokens = [{rung}]
early_stopping = {{ kind = "asha", keep = [1] }}
corpus = "files:{corpus}"
tokenizer = "bytes"

[[strategies]]
name = "short"
micro_batch_size = 4
seq_len = 16

[[strategies]]
name = "long"
micro_batch_size = 1
seq_len = 64

[rates]
lr = [0.01, 0.02]
adamw_ratio = 0.3
max_widenings = 0

[seeds]
explore = 1
confirm = 3

[model]
d_model = 16
n_layers = 1
n_heads = 2
d_expert = 16
n_experts = 2
top_k = 1

[exam]
rows_validation = 4
rows_test = 6
"""
"""Two arms that train in two seconds, with ``budget``, ``rung`` and ``corpus`` left open."""

AT_ONCE = ("--set", "budget_tokens=4096", "--set", "rungs_tokens=[2048]", "--set", "seeds.confirm=1")
"""Options that make the tiny sweep a matter of its start-up, where a test does not compare it to another one."""

_OF_MAKE = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES"}
_OF_THE_CALLER = _OF_MAKE | {"PRESET", "SPACE", "NAME", "HOURS", "ARGS", "ONLY"}
"""What ``make test ARGS=...`` leaves to its children, and a make among them would take for its own."""


def command(*words: str) -> list[str]:
    """The words that run ``sweeps`` with this Python."""
    return [sys.executable, "-m", "sweeps", *words]


def clean_environment(**variables: str) -> dict[str, str]:
    """This process's environment without what decides where sweeps, Ray and MLflow live, and with ``variables``."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("RAY_", "MLFLOW_", "SWEEPS_")) and name not in _OF_THE_CALLER
    }
    return {**kept, **variables}


class Sweeps:
    """Runs the command line in a process of its own, on the runs of one folder; ``space.toml`` is the tiny sweep."""

    def __init__(self, folder: Path, corpus: Path, cache: Path) -> None:
        self.folder = folder
        self.runs = folder / "runs"
        self.started: list[subprocess.Popen[str]] = []
        self.environment = clean_environment(
            SWEEPS_RUNS_DIR=str(self.runs), SWEEPS_CACHE_DIR=str(cache), OMP_NUM_THREADS="1", COLUMNS="200"
        )
        (folder / "space.toml").write_text(TINY_SPACE.format(budget=16384, rung=8192, corpus=corpus))

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start ``sweeps WORDS`` and return at once."""
        process = subprocess.Popen(
            command(*words),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment,
            cwd=self.folder,
        )
        self.started.append(process)
        return process

    def __call__(self, *words: str, code: int = 0) -> str:
        """Run ``sweeps WORDS`` to its end, expect its exit code, return what it printed."""
        said, _ = (process := self.start(*words)).communicate()
        assert process.returncode == code, f"exit code {process.returncode}, not {code}:\n{said}"
        return said

    def copy(self, other: Sweeps) -> None:
        """Take over the sweeps of another folder, and their MLflow store, as if they had been run here."""
        shutil.copytree(other.runs, self.runs)
        if not (self.runs / "mlflow.db").exists():
            return  # a sweep that was killed early left none yet
        with sqlite3.connect(self.runs / "mlflow.db") as database:  # MLflow keeps absolute paths
            for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
                moved = f"UPDATE {table} SET {column} = replace({column}, ?, ?)"
                database.execute(moved, (str(other.runs), str(self.runs)))
        database.close()

    def end(self) -> None:
        """End what a test started and left."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
                process.communicate()

    def outcomes(self, name: str) -> dict[str, dict[str, Any]]:
        """Every outcome of a sweep by cell id."""
        return outcomes(str(self.runs), name)

    def end_of(self, name: str) -> End:
        """What two runs of one sweep must agree on."""
        return how_it_ends(str(self.runs), name)

    def verdict(self, name: str) -> dict[str, Any]:
        """What ``verdict.json`` holds."""
        found: dict[str, Any] = Storage(str(self.runs)).child(name).read_json("verdict.json")
        return found


Losses = dict[str, tuple[str, int, Any, Any]]
End = tuple[Losses, dict[tuple[str, int], tuple[Any, ...]]]


def how_it_ends(runs_uri: str, name: str) -> End:
    """Outcomes and curves: what must be the same to the last bit, whatever disturbed a sweep."""
    return losses(runs_uri, name), curves(runs_uri, name)


def durable_tokens(sweep: Path) -> dict[str, int]:
    """Tokens of the newest complete checkpoint of each cell."""
    found: dict[str, int] = {}
    for manifest in sweep.glob("cells/*/checkpoint-*/manifest.json"):
        cell, tokens = manifest.parts[-3], int(manifest.parent.name.split("-")[1])
        if tokens:
            found[cell] = max(found.get(cell, 0), tokens)
    return found


def unfinished_checkpoints(sweep: Path) -> list[Path]:
    """The newest complete checkpoint of each cell without an outcome."""
    return [
        checkpoint
        for cell, tokens in durable_tokens(sweep).items()
        for checkpoint in (sweep / "cells" / cell).glob(f"checkpoint-{tokens:015d}-*")
        if not (sweep / "cells" / cell / "outcome.json").exists()
    ]


def outcomes(runs_uri: str, name: str) -> dict[str, dict[str, Any]]:
    """Every outcome of a sweep by cell id."""
    ledger = Ledger(Storage(runs_uri), name)
    found = {planned.cell_id: ledger.cell_folder(planned.cell_id).outcome() for planned in ledger.planned_cells()}
    return {cell_id: outcome for cell_id, outcome in found.items() if outcome is not None}


def losses(runs_uri: str, name: str) -> Losses:
    """How far every ended cell got and its losses, by its id: equal to the last bit, whatever disturbed a sweep."""
    return {
        cell_id: (found["outcome"], found["tokens_seen"], found["val_loss"], found["test_loss"])
        for cell_id, found in outcomes(runs_uri, name).items()
    }


def curves(runs_uri: str, name: str) -> dict[tuple[str, int], tuple[Any, ...]]:
    """Every loss of every record, by cell and tokens: equal to the last bit however often a sweep was disturbed."""
    ledger = Ledger(Storage(runs_uri), name)
    return {
        (planned.cell_id, int(record["tokens_seen"])): tuple(
            record.get(key) for key in ("train_loss", "val_loss", "val_common_loss", "test_loss")
        )
        for planned in ledger.planned_cells()
        for record in ledger.cell_folder(planned.cell_id).records()
    }


def decided(runs_uri: str, name: str) -> dict[str, Any]:
    """What a verdict says, without how fast and in how much memory it came about."""
    verdict = Storage(runs_uri).child(name).read_json("verdict.json")
    measured = ("tokens_per_s", "peak_mem_allocated_gib")
    arms = [{key: arm[key] for key in arm if key not in measured} for arm in verdict["strategies"]]
    kept = ("outcome", "winner", "statement", "margin", "pairs", "seeds_needed", "by_rung", "controls", "context")
    kept += ("by_budget_tokens", "trend")
    return {"strategies": arms, **{key: verdict[key] for key in kept}}


def holders(runs_uri: str, name: str) -> dict[int, str]:
    """Which process works on which cell now: pid to cell id."""
    ledger = Ledger(Storage(runs_uri), name)
    found = {}
    for cell_id in ledger.storage.names("cells"):
        lease = holder_of(ledger.storage.child(f"cells/{cell_id}"), CELL_LEASE)
        if lease is not None:
            found[int(lease["pid"])] = cell_id
    return found


def holder_of(folder: Storage, lease: str) -> dict[str, Any] | None:
    """The claim of a lease that was not given back; None where nobody holds it."""
    try:
        newest = claims(folder, lease)[-1:]
        found: list[dict[str, Any]] = [folder.read_json(f"{lease}/{number:06d}.json") for number in newest]
    except FileNotFoundError:
        return None  # superseded at this moment
    return found[0] if found and not found[0]["released"] else None


def wait_for(
    condition: Callable[[], bool],
    what: str = "what the test waits for",
    process: subprocess.Popen[str] | None = None,
) -> None:
    """Return once the condition holds; fail when it does not in time, or when the process ended before."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        ended = process is not None and process.poll() is not None
        if ended or time.monotonic() > deadline_s:
            said = process.stdout.read() if ended and process is not None and process.stdout is not None else ""
            raise AssertionError(f"{what} did not come about{' before the process ended' if ended else ''}: {said}")
        time.sleep(0.05)


def kill_when(condition: Callable[[], bool], what: str, process: subprocess.Popen[str]) -> None:
    """Kill a sweep with all its processes, as when its machine loses power, at a moment at which the condition holds.

    They stand still while it is looked at once more, so that what is left is what the condition saw.
    """

    def family() -> list[psutil.Process]:
        driver = psutil.Process(process.pid)
        return [driver, *driver.children(recursive=True)]

    def send(number: int) -> None:
        for member in family():
            with contextlib.suppress(psutil.NoSuchProcess):
                member.send_signal(number)

    def holds() -> bool:
        if not condition():
            return False
        send(signal.SIGSTOP)
        if not condition():
            send(signal.SIGCONT)
            return False
        return True

    wait_for(holds, what, process)
    send(signal.SIGKILL)
    process.communicate()


def end_with_children(process: subprocess.Popen[str], number: int = signal.SIGKILL) -> None:
    """Send a signal to a process that this test started; its Ray goes down with it."""
    process.send_signal(number)
    process.communicate()
