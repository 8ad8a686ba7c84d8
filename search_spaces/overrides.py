"""``--set a.b=value``: changes to a space's table before it is validated."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from search_spaces.problems import Problem, did_you_mean, shortened
from search_spaces.sections import ADAMW_RATES
from search_spaces.shorthand import SHORTHANDS

# A table has one key of each of these groups: setting one removes the others.
_ALTERNATIVES = (ADAMW_RATES, ("budget_tokens", "budgets_tokens"))


def apply_overrides(table: Mapping[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], list[Problem]]:
    """A copy of ``table`` with each ``key=value`` applied in order, and the overrides that could not be."""
    changed = deepcopy(dict(table))
    problems = [problem for override in overrides if (problem := _apply(changed, override)) is not None]
    return changed, problems


def _apply(table: dict[str, Any], override: str) -> Problem | None:
    key, equals, text = override.partition("=")
    path = [part.strip() for part in key.split(".")]
    if not equals or not all(path):
        remedy = "write it like --set seeds.confirm=3"
        return Problem(where="--set", value=shortened(override), rule="must be key=value", remedy=remedy)
    try:
        value = override_value(text.strip())
    except ValueError as error:
        rule = f"is not a TOML value ({error})"
        return Problem(where=f"--set {key}", value=shortened(text), rule=rule, remedy="quote it as TOML")
    return _set(table, _with_whole_name(table, path), value)


def _with_whole_name(table: Mapping[str, Any], path: list[str]) -> list[str]:
    """``path`` with the name of an arm in one piece: names may have dots in them."""
    arms = table.get("strategies")
    if path[0] != "strategies" or not isinstance(arms, list):
        return path
    names = {arm.get("name") for arm in arms if isinstance(arm, dict)}
    for end in range(len(path) - 1, 2, -1):
        if (name := ".".join(path[1:end])) in names:
            return [path[0], name, *path[end:]]
    return path


def override_value(text: str) -> Any:
    """``text`` as a TOML value; bare words such as ``embedded`` or ``files:novels/*.txt`` are strings.

    Raises:
        ValueError: ``text`` starts like a quoted or bracketed TOML value and is not one.
    """
    try:
        parsed = tomllib.loads(f"value = {text}")
    except ValueError:
        if text[:1] in ("[", "{", '"', "'"):
            raise
        return text
    return parsed["value"] if parsed.keys() == {"value"} else text


def _set(table: dict[str, Any], path: list[str], value: Any) -> Problem | None:
    here: Any = table
    for depth, part in enumerate(path[:-1]):
        here = _step_into(here, part, path[:depth])
        if isinstance(here, Problem):
            return here
    if isinstance(here, list):
        where = ".".join(path)
        remedy = f"set one of its keys, like {where}.micro_batch_size=16"
        return Problem(where=f"--set {where}", rule="names a whole arm", remedy=remedy)
    for alternatives in _ALTERNATIVES:
        if path[-1] in alternatives:
            for alternative in alternatives:
                here.pop(alternative, None)
    here[path[-1]] = value
    return None


def _step_into(here: Any, part: str, done: list[str]) -> Any:
    """What ``here`` holds under ``part``, or the problem with going there."""
    if isinstance(here, list):
        return _arm(here, part, done)
    if not done and part in SHORTHANDS and isinstance(here.get(part), str):
        here[part] = SHORTHANDS[part](here[part])
    inner = here.setdefault(part, {})
    if isinstance(inner, dict | list):
        return inner
    where = ".".join([*done, part])
    return Problem(where=f"--set {where}", rule="is a value and has no keys", remedy=f"set {where} itself")


def _arm(arms: list[Any], part: str, done: list[str]) -> Any:
    tables = {str(index): arm for index, arm in enumerate(arms) if isinstance(arm, dict)}
    named = {arm["name"]: arm for arm in tables.values() if isinstance(arm.get("name"), str)}
    if part in named or part in tables:
        return named.get(part) or tables[part]
    remedy = did_you_mean(part, named) or f"there are {', '.join(named) or 'none'}"
    return Problem(where=f"--set {'.'.join([*done, part])}", rule="names none of the strategies", remedy=remedy)
