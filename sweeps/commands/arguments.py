"""Options and arguments that several commands take, and what they stand for: a space, a ledger, a session."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sweeps.commands.console import console

if TYPE_CHECKING:
    from sweeps.running.begin import SpaceChoice
    from sweeps.running.session import SessionOptions


def _possible_runs_dir(value: str) -> str:
    from sweeps.ledger.destinations import require_possible

    if "://" not in value:
        require_possible(value, "--runs-dir")
    return value


RunsDir = Annotated[
    str,
    typer.Option(
        "--runs-dir",
        envvar="SWEEPS_RUNS_DIR",
        help="Where sweeps are kept: a path, s3://... or gs://...",
        callback=_possible_runs_dir,
    ),
]
Preset = Annotated[str | None, typer.Option(help="smoke, laptop, tutorial, published or matched.")]
SpaceFile = Annotated[Path | None, typer.Option("--space", help="A TOML file with a space (start with `sweeps new`).")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change one value of the space, e.g. --set seeds.confirm=3. Repeatable."
    ),
]
Hours = Annotated[
    float | None,
    typer.Option(help="Choose the largest budget with which the sweep fits in so many hours here, by real steps."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only what went wrong.")]
Exclusive = Annotated[
    bool, typer.Option("--exclusive", help="Run every confirm cell alone, so that its speed can be compared.")
]
OnEnd = Annotated[
    str | None,
    typer.Option(
        envvar="SWEEPS_ON_END",
        metavar="COMMAND",
        help="Run this in a shell at a verdict, an interruption or a failure, with JSON on its standard input.",
    ),
]
AllowCodeChange = Annotated[bool, typer.Option(help="Continue although the training code changed.")]
Name = Annotated[str, typer.Argument(help="Name of the sweep.")]
AnyName = Annotated[str | None, typer.Argument(help="Name of the sweep; the newest one without it.")]


def chosen_space(
    preset: str | None, path: Path | None, overrides: list[str] | None, hours: float | None
) -> SpaceChoice:
    """The space that these options choose."""
    from sweeps.running.begin import SpaceChoice

    return SpaceChoice(preset=preset, path=path, overrides=tuple(overrides or ()), hours=hours)


def session_options(runs_dir: str, **options: Any) -> SessionOptions:
    """A session on the sweeps of ``runs_dir``; ``options`` are the other fields."""
    from sweeps.ledger.storage import Storage
    from sweeps.running.session import SessionOptions

    command = shlex.join(["sweeps", *words_to_keep(sys.argv[1:])])
    return SessionOptions(runs_uri=Storage(runs_dir).uri, console=console(), command=command, **options)


def words_to_keep(words: Sequence[str]) -> Iterator[str]:
    """The words of a command that a sweep keeps: not what runs at its end, which may hold an address with a secret."""
    is_secret = False
    for word in words:
        if not is_secret and word != "--on-end" and not word.startswith("--on-end="):
            yield word
        is_secret = not is_secret and word == "--on-end"


def name_or_newest(runs_dir: str, name: str | None) -> str:
    """``name`` itself, or the newest sweep's; raises BadInputError where there is none."""
    from sweeps.ledger.names import newest_name
    from sweeps.ledger.storage import Storage

    return name if name is not None else newest_name(Storage(runs_dir))
