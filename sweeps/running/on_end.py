"""A word at the end of a session: a command of the user's is told as JSON what became of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Literal

from sweeps.errors import EXIT_RESUMABLE
from sweeps.ledger.sweep_folder import Ledger
from sweeps.running.driver import failed_cells
from sweeps.shown_commands import shown_command, with_shown_commands

LONGEST_S: Final = 60.0
Event = Literal["verdict", "interrupted", "failed"]


class Word:
    """What is known of a session that has not ended: the sweep's ledger, once there is one."""

    ledger: Ledger | None = None


@contextmanager
def word_at_end(command: str | None, say: Callable[[str], None]) -> Iterator[Word]:
    """Run ``command`` in a shell when the block has ended, however that was, with ``ending`` on its standard input.

    The command is given a minute. Whether it works changes nothing for the session: a failure is said.
    """
    word = Word()
    if command is None:
        yield word
        return
    try:
        yield word
    except BaseException as error:
        _tell(command, ending(word.ledger, error), say)
        raise
    _tell(command, ending(word.ledger, None), say)


def ending(ledger: Ledger | None, error: BaseException | None) -> dict[str, Any]:
    """How a session ended, as plain data; ``error`` is what ended it before the verdict, if anything did.

    Without a sweep (its space was refused, say) only ``event`` and ``message`` have values.
    """
    exists = ledger is not None and ledger.exists()
    event = _event(error)
    known: dict[str, Any] = dict.fromkeys(("sweep", "folder", "outcome", "winner", "statement", "report", "resume"))
    known |= {"failed_cells": 0}
    message = "" if error is None else with_shown_commands(str(error) or type(error).__name__)
    if ledger is not None and exists:
        known |= {"sweep": ledger.name, "folder": ledger.storage.uri, "failed_cells": len(failed_cells(ledger))}
        if event == "verdict":
            verdict = ledger.verdict() or {}
            known |= {key: verdict.get(key) for key in ("outcome", "winner", "statement")}
            known["report"] = f"{ledger.storage.uri}/report.html"
            message = with_shown_commands(f"{ledger.name}: {verdict.get('statement')}")
        else:
            known["resume"] = shown_command("resume", ledger.name)
    return {"schema": 1, "event": event, "message": message, **known}


def _event(error: BaseException | None) -> Event:
    if error is None:
        return "verdict"
    is_resumable = getattr(error, "exit_code", None) == EXIT_RESUMABLE or isinstance(error, KeyboardInterrupt)
    return "interrupted" if is_resumable else "failed"


def _tell(command: str, told: dict[str, Any], say: Callable[[str], None]) -> None:
    process = subprocess.Popen(  # noqa: S602 - the user's own command line, which is nowhere kept
        command, shell=True, stdin=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        process.communicate(json.dumps(told), timeout=LONGEST_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        say(f"note: the command of --on-end had not ended after {LONGEST_S:.0f} s, and was ended")
        return
    if process.returncode != 0:
        say(f"note: the command of --on-end failed (exit code {process.returncode})")
