"""Commands as they are shown: lines that run where the user stands, in this folder, installation and cluster."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

COMMANDS_THAT_TRAIN = ("run", "resume", "extend")
COMMANDS_WITHOUT_RUNS = ("gpu-check", "new", "plan")
"""They have no option ``--runs-dir``."""
SHOWN_AS = "SWEEPS_SHOWN_AS"
"""Set for a job on a cluster: what its submitter types for ``sweeps``, since the job's own program is not there."""

_RUNS_DIR: ContextVar[str | None] = ContextVar("runs folder", default=None)


def shown_command(*words: str) -> str:
    """Return ``sweeps WORDS`` as a line that runs in the user's shell and folder, each word quoted where needed."""
    return shown_line(shlex.join(["sweeps", *words]))


def shown_line(line: str) -> str:
    """Return a command line as a verdict holds it (``sweeps resume NAME``), as it runs where the user stands.

    It names this installation, the cluster of ``RAY_ADDRESS`` where the command trains, and the runs folder where that
    is another one than ``runs`` in the working folder. A line that was completed before stays as it is.
    """
    return " && ".join(_shown(part) for part in line.split(" && "))


def shown_on(address: str) -> str:
    """Return what a user types for ``sweeps`` to run a command as a job of the cluster at ``address``."""
    return f"RAY_ADDRESS={shlex.quote(address)} {shlex.join(_program())}"


def with_shown_commands(text: str) -> str:
    """Return ``text`` with ``shown_line`` applied to every command that stands between backticks."""
    return re.sub(r"(?<=`)[^`]+(?=`)", lambda found: shown_line(found.group()), text)


def _shown(line: str) -> str:
    found = re.match(r"(?P<environment>(?:[A-Z_]+=\S+ )*)sweeps (?P<command>[a-z][a-z-]*)(?P<rest>.*)", line, re.DOTALL)
    if found is None:
        return line
    environment, command, rest = found["environment"], found["command"], found["rest"]
    submitter, address = os.environ.get(SHOWN_AS), os.environ.get("RAY_ADDRESS")
    program = submitter or shlex.join(_program())
    if submitter:
        environment = ""
    elif address and command in COMMANDS_THAT_TRAIN and "RAY_ADDRESS=" not in environment:
        environment += f"RAY_ADDRESS={shlex.quote(address)} "
    runs = None if command in COMMANDS_WITHOUT_RUNS or "--runs-dir" in rest else _other_runs_dir()
    option = "" if runs is None else f" --runs-dir {shlex.quote(runs)}"
    return f"{environment}{program} {command}{rest}{option}"


@contextmanager
def commands_for(runs_dir: str) -> Iterator[None]:
    """Show commands for this runs folder until the block ends, whatever options and environment name."""
    before = _RUNS_DIR.set(runs_dir)
    try:
        yield
    finally:
        _RUNS_DIR.reset(before)


def _other_runs_dir() -> str | None:
    """The runs folder in use, else that of options or environment; None where it is ``runs`` right here."""
    of_environment = os.environ.get("SWEEPS_RUNS_DIR") or None
    named = of_environment
    for word, following in zip(sys.argv, [*sys.argv[1:], ""], strict=True):
        if word == "--runs-dir":
            named = following
        elif word.startswith("--runs-dir="):
            named = word.partition("=")[2]
    named = _RUNS_DIR.get() or named
    if not named or "://" in named:
        return named
    path = Path(named).expanduser().absolute()
    is_default = of_environment is None and path == Path("runs").absolute()
    return None if is_default else _from_here(path)


def _program() -> list[str]:
    """``sweeps`` where PATH leads to this installation, else its script's path, else this Python with ``-m``."""
    if shown_script("sweeps") == "sweeps" and shutil.which("sweeps") is None:
        return [_from_here(Path(sys.executable)), "-m", "sweeps"]
    return [shown_script("sweeps")]


def shown_script(name: str) -> str:
    """Return a script of this installation as a shell finds it: by its name where PATH leads to it, else its path."""
    script, on_path = Path(sys.executable).with_name(name), shutil.which(name)
    if not script.exists() or (on_path is not None and Path(on_path).samefile(script)):
        return name
    return _from_here(script)


def _from_here(path: Path) -> str:
    """The path relative to the working folder where it lies below, else as it is."""
    try:
        return str(path.relative_to(Path.cwd()))
    except (ValueError, FileNotFoundError):  # elsewhere, or the working folder was deleted
        return str(path)
