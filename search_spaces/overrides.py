"""``--set a.b=value``: changes to a space's table before it is validated."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from search_spaces.problems import Problem, did_you_mean
from search_spaces.sections import Corpus, EarlyStopping, Tokenizer
from search_spaces.values import Section

# Of these keys a space has one: setting one leaves the others out.
_RIVALS = ({"rates.adamw_ratio", "rates.adamw_fixed", "rates.adamw_grid"},)
_SHORTHANDS: dict[str, type[Section]] = {"corpus": Corpus, "tokenizer": Tokenizer, "early_stopping": EarlyStopping}


def apply_overrides(table: Mapping[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], list[Problem]]:
    """A copy of ``table`` with each ``key=value`` applied in order, and the overrides that could not be."""
    changed = deepcopy(dict(table))
    problems: list[Problem] = []
    for override in overrides:
        problem = _apply(changed, override)
        if problem is not None:
            problems.append(problem)
    return changed, problems


def _apply(table: dict[str, Any], override: str) -> Problem | None:
    key, equals, text = override.partition("=")
    path = [part.strip() for part in key.split(".")]
    if not equals or not all(path):
        return Problem(
            where="--set", value=override, rule="must be key=value", remedy="write it like --set seeds.confirm=3"
        )
    try:
        value = override_value(text.strip())
    except ValueError as error:
        return Problem(
            where=f"--set {key}", value=text, rule=f"is not a TOML value ({error})", remedy="quote it as TOML"
        )
    for rivals in _RIVALS:
        if key.strip() in rivals:
            for rival in rivals:
                section, _, name = rival.partition(".")
                if isinstance(table.get(section), dict):
                    table[section].pop(name, None)
    if path[0] == "strategies" and len(path) > 3:
        path = [path[0], ".".join(path[1:-1]), path[-1]]  # names of arms may have dots in them
    return _set(table, path, value)


def override_value(text: str) -> Any:
    """``text`` as a TOML value; bare words such as ``embedded`` or ``files:novels/*.txt`` are strings.

    Raises:
        ValueError: ``text`` begins like a quoted or bracketed TOML value and is not one.
    """
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError as error:
        if text[:1] in ("[", "{", '"', "'"):
            raise ValueError(str(error)) from error
        return text
    return parsed["value"] if parsed.keys() == {"value"} else text


def _set(table: dict[str, Any], path: list[str], value: Any) -> Problem | None:
    here: Any = table
    for depth, part in enumerate(path[:-1]):
        step = _step_into(here, part, path[:depth])
        if isinstance(step, Problem):
            return step
        here = step
    last = path[-1]
    if isinstance(here, list):
        return Problem(
            where="--set " + ".".join(path),
            rule="names a whole arm",
            remedy=f"set one of its keys, like {'.'.join(path)}.micro_batch_size=16",
        )
    here[last] = value
    return None


def _step_into(here: Any, part: str, done: list[str]) -> Any:
    if isinstance(here, list):
        return _arm(here, part, done)
    if not done and part in _SHORTHANDS and isinstance(here.get(part), str):
        here[part] = _SHORTHANDS[part].expand(here[part])
    if not done and part == "search" and isinstance(here.get(part), str):
        here[part] = {"kind": here[part]}
    inner = here.setdefault(part, {})
    if not isinstance(inner, dict | list):
        where = ".".join([*done, part])
        return Problem(where=f"--set {where}", rule="is a value and has no keys", remedy=f"set {where} itself")
    return inner


def _arm(arms: list[Any], part: str, done: list[str]) -> Any:
    named = {arm["name"]: arm for arm in arms if isinstance(arm, dict) and isinstance(arm.get("name"), str)}
    if part in named:
        return named[part]
    if part.isdigit() and int(part) < len(arms) and isinstance(arms[int(part)], dict):
        return arms[int(part)]
    where = ".".join([*done, part])
    remedy = did_you_mean(part, named) or f"there are {', '.join(named) or 'none'}"
    return Problem(where=f"--set {where}", rule="names none of the strategies", remedy=remedy)
