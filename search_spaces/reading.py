"""From a preset, a file or a text to a space; nothing is written."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from search_spaces.overrides import apply_overrides
from search_spaces.presets import preset_text
from search_spaces.problems import Problem, SpaceErrors
from search_spaces.space import Space, in_file_order


def load_space(*, preset: str | None = None, path: Path | None = None, overrides: Sequence[str] = ()) -> Space:
    """The space of a preset or of a file, exactly one of which is given, with ``--set`` overrides applied.

    Raises:
        SpaceErrors: every problem of the space, or why it could not be read.
    """
    if (preset is None) == (path is None):
        given = "both were given" if preset is not None else "neither was given"
        problem = Problem(where="space", rule=f"is a preset or a file, and {given}", remedy="name exactly one")
        raise SpaceErrors([problem], source="the command line")
    if preset is not None:
        return parse_space(preset_text(preset), overrides, source=f"preset {preset}")
    assert path is not None
    return parse_space(_read(path), overrides, source=str(path))


def parse_space(text: str, overrides: Sequence[str] = (), *, source: str = "") -> Space:
    """The space that TOML ``text`` describes, with ``--set`` overrides applied.

    Raises:
        SpaceErrors: every problem of the space.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        problem = Problem(where=source or "the space", rule=f"is not valid TOML: {error}", remedy="correct that line")
        raise SpaceErrors([problem], source=source) from error
    changed, problems = apply_overrides(table, overrides)
    try:
        space = Space.from_resolved(changed, source=source)
    except SpaceErrors as error:
        raise SpaceErrors([*problems, *error.problems], source=source) from error
    if problems:
        raise SpaceErrors(in_file_order(problems), source=source)
    return space


def with_overrides(space: Space, overrides: Sequence[str]) -> Space:
    """``space`` with ``--set`` overrides applied.

    Raises:
        SpaceErrors: every problem of the outcome.
    """
    changed, problems = apply_overrides(space.resolved(), overrides)
    try:
        outcome = Space.from_resolved(changed)
    except SpaceErrors as error:
        raise SpaceErrors([*problems, *error.problems]) from error
    if problems:
        raise SpaceErrors(problems)
    return outcome


def template_text() -> str:
    """A commented space to start from, as `sweeps new` writes it; it is valid as it stands."""
    return files("search_spaces").joinpath("template.toml").read_text(encoding="utf-8")


def _read(path: Path) -> str:
    def unreadable(rule: str, remedy: str) -> SpaceErrors:
        return SpaceErrors([Problem(where=str(path), rule=rule, remedy=remedy)], source="the command line")

    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise unreadable("does not exist", "check the path, or write a space with `sweeps new`") from error
    except UnicodeDecodeError as error:
        raise unreadable("is not UTF-8 text", "save it as UTF-8") from error
    except OSError as error:
        raise unreadable(f"cannot be read ({error.strerror})", "name a readable TOML file") from error
