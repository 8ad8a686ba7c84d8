"""From a preset, a file or a text to a space; nothing is written."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any

from search_spaces.cells import grid_of
from search_spaces.overrides import apply_overrides
from search_spaces.presets import preset_text
from search_spaces.problems import Problem, SpaceErrors, problem_at
from search_spaces.sections import OptunaSearch, Strategy
from search_spaces.space import Space

# A space is a few kilobytes; a file of this size was named by mistake, and TOML is slow to parse.
MAX_FILE_BYTES = 16 * 2**20


def load_space(*, preset: str | None = None, path: Path | None = None, overrides: Sequence[str] = ()) -> Space:
    """The space of a preset or of a file, exactly one of which is given, with ``--set`` overrides applied.

    Raises:
        SpaceErrors: every problem of the space, or why it could not be read.
    """
    if preset is not None and path is None:
        return parse_space(preset_text(preset), overrides, source=f"preset {preset}")
    if path is not None and preset is None:
        return parse_space(_read(path), overrides, source=str(path))
    given = "neither was given" if preset is None else "both were given"
    problem = Problem(where="space", rule=f"is a preset or a file, and {given}", remedy="name exactly one")
    raise SpaceErrors([problem], source="the command line")


def parse_space(text: str, overrides: Sequence[str] = (), *, source: str = "the space") -> Space:
    """The space that TOML ``text`` describes, with ``--set`` overrides applied.

    Raises:
        SpaceErrors: every problem of the space.
    """
    try:
        table = tomllib.loads(text)
    except RecursionError as error:
        raise _too_deep(source) from error
    except ValueError as error:
        problem = Problem(where=source, rule=f"is not valid TOML: {error}", remedy="correct that line")
        raise SpaceErrors([problem], source=source) from error
    return _changed_space(table, overrides, source)


def with_overrides(space: Space, overrides: Sequence[str]) -> Space:
    """``space`` with ``--set`` overrides applied.

    Raises:
        SpaceErrors: every problem of the outcome.
    """
    return _changed_space(space.resolved(), overrides, "the space")


def template_text() -> str:
    """A commented space to start from, as `sweeps new` writes it; it is valid as it stands."""
    return files("search_spaces").joinpath("template.toml").read_text(encoding="utf-8")


def _changed_space(table: Mapping[str, Any], overrides: Sequence[str], source: str) -> Space:
    problems: list[Problem] = []
    try:
        changed, problems = apply_overrides(table, overrides)
        space = Space.from_resolved(changed)
        problems += unequal_effort(space, space.strategies)
    except SpaceErrors as error:
        problems += error.problems
    except RecursionError as error:
        raise _too_deep(source) from error
    if problems:
        raise SpaceErrors(problems, source=source)
    return space


def unequal_effort(space: Space, arms: Iterable[Strategy]) -> Iterator[Problem]:
    """Of some arms those that try another number of rates than the table makes: one of more has an advantage."""
    usual = len(space.rates.lr) * len(space.rates.adamw_grid or (None,))
    for arm in arms:
        count = 0 if isinstance(space.search, OptunaSearch) or not arm.rates else len(grid_of(space, arm.name))
        if count and count != usual:
            rule = f"makes {count} rates where [rates] makes {usual}, and every arm gets the same tuning effort"
            yield problem_at(f"strategies.{arm.name}.rates", None, rule, f"give it {usual} rates")


def _too_deep(source: str) -> SpaceErrors:
    remedy = "write tables and lists as in the template that `sweeps new` writes"
    return SpaceErrors([Problem(where=source, rule="is nested too deeply", remedy=remedy)], source=source)


def _read(path: Path) -> str:
    try:
        status = path.stat()
        if not S_ISREG(status.st_mode) and not S_ISDIR(status.st_mode):
            rule, remedy = "is not a regular file", "save the space in a file and name that"
        elif status.st_size > MAX_FILE_BYTES:
            rule, remedy = f"is larger than {MAX_FILE_BYTES // 2**20} MiB", "name a space, which is a few kilobytes"
        else:
            return path.read_text(encoding="utf-8-sig")  # some editors put a byte-order mark first
    except FileNotFoundError:
        is_link = path.is_symlink()
        rule = f"is a link to {path.readlink()}, which does not exist" if is_link else "does not exist"
        remedy = "check the path, or write a space with `sweeps new`"
    except UnicodeDecodeError:
        rule, remedy = "is not UTF-8 text", "save it as UTF-8"
    except OSError as error:
        rule, remedy = f"cannot be read ({error.strerror})", "name a readable TOML file"
    except ValueError as error:
        rule, remedy = f"cannot be read ({error})", "name a readable TOML file"
    raise SpaceErrors([Problem(where=str(path), rule=rule, remedy=remedy)], source="the command line")
