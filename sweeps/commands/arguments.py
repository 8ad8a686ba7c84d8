"""Words that several commands take, and what they stand for: a space, a ledger, a sitting."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from search_spaces import Space
    from sweeps.ledger.sweep_folder import Ledger
    from sweeps.running.session import Sitting

RunsDir = Annotated[
    str,
    typer.Option("--runs-dir", envvar="SWEEPS_RUNS_DIR", help="Where sweeps live: a path, s3://... or gs://..."),
]
Preset = Annotated[str | None, typer.Option(help="smoke, laptop, tutorial, published or matched.")]
SpaceFile = Annotated[Path | None, typer.Option("--space", help="A space of your own (start with `sweeps new`).")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change one value of the space, e.g. --set seeds.confirm=3. Repeatable."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say only what went wrong.")]
Exclusive = Annotated[
    bool, typer.Option("--exclusive", help="Run every judged cell alone, so that its speed can be compared.")
]
AllowCodeChange = Annotated[bool, typer.Option(help="Go on although the training code changed.")]
Name = Annotated[str, typer.Argument(help="Name of the sweep.")]
AnyName = Annotated[str | None, typer.Argument(help="Name of the sweep; the newest one without it.")]


def chosen_space(preset: str | None, path: Path | None, overrides: list[str] | None) -> tuple[Space, str]:
    """The space that was asked for and a word to number its sweeps by.

    Without a choice it is the preset ``matched`` where there is a GPU, else ``laptop``.
    """
    from search_spaces import load_space

    if preset is None and path is None:
        from sweeps.cluster.machines import cluster_has_gpu

        preset = "matched" if cluster_has_gpu() else "laptop"
    label = preset if path is None else path.stem
    assert label is not None
    return load_space(preset=preset, path=path, overrides=overrides or ()), label


def sitting_of(runs_dir: str, **wishes: Any) -> Sitting:
    """A sitting on the sweeps of ``runs_dir``; ``wishes`` are its other fields."""
    from sweeps.ledger.storage import Storage
    from sweeps.running.session import Sitting
    from sweeps.tracking.store import tracking_store

    tracking_store(runs_dir)  # one that cannot be is said before anything is spent
    command = shlex.join(["sweeps", *sys.argv[1:]])
    return Sitting(runs_uri=Storage(runs_dir).uri, command=command, **wishes)


def begun_ledger(runs_dir: str, name: str) -> Ledger:
    """The ledger of a sweep; raises BadInputError where it was never begun."""
    from sweeps.ledger.storage import Storage
    from sweeps.ledger.sweep_folder import Ledger

    ledger = Ledger(Storage(runs_dir), name)
    ledger.beginning()
    return ledger


def name_or_newest(runs_dir: str, name: str | None) -> str:
    """``name`` itself, or the newest sweep's; raises BadInputError where there is none."""
    from sweeps.ledger.names import newest_name
    from sweeps.ledger.storage import Storage

    return name if name is not None else newest_name(Storage(runs_dir))
