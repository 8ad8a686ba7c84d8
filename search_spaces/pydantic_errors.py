"""From pydantic's errors to problems in our words, and to the values that are sound although others are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from search_spaces.fields import ONE_LINE, ChangesTo, Section
from search_spaces.problems import MAX_PROBLEMS, Problem, SpaceErrors, as_toml, did_you_mean, shortened
from search_spaces.sections import ARM_TABLES, GridSearch, OptunaSearch, Strategy

Location = tuple[str | int, ...]
Detail = Mapping[str, Any]
_SEARCHES: Mapping[object, type[Section]] = {"grid": GridSearch, "optuna": OptunaSearch}
# What other tools call a key of ours.
_SYNONYMS = {
    "learning_rate": "rates.lr",
    "learning_rates": "rates.lr",
    "batch_size": "micro_batch_size",
    "sequence_length": "seq_len",
    "gradient_accumulation_steps": "grad_accum_steps",
    "vocabulary_size": "tokenizer.vocab_size",
}

_RETIRED = {"fit_memory_gib": "leave it out; `sweeps new FILE --fit GIB` writes arms that fill a memory"}
# What a section has no key for because there is no choice.
_FIXED = {
    "optimizer": "the optimizers are fixed: Muon or AdamW (kind) for the hidden matrices, AdamW for all else",
    "model": "the architecture is fixed: Qwen3-MoE's",
    "schedule": "its form is fixed: linear warm-up, plateau, linear decay",
}

_SHARED_BY_ALL_ARMS = {
    *("corpus", "tokenizer", "exam", "seeds", "verdict", "search", "early_stopping", "precision", "resources"),
    *("budget_tokens", "budgets_tokens", "rungs_tokens", "max_widenings"),
}
"""What a comparison rests on: no arm has its own."""


def checked_strategy(table: Mapping[str, Any], *, source: str) -> Strategy:
    """The strategy that ``table`` describes.

    Raises:
        SpaceErrors: every problem of it, under the name ``source``.
    """
    try:
        return Strategy.model_validate(table)
    except ValidationError as error:
        raise SpaceErrors(field_problems(Strategy, table, error)[0], source=source) from error


def field_problems(section: type[Section], table: object, error: ValidationError) -> tuple[list[Problem], int]:
    """Every value of ``table`` that is wrong by itself, every missing and last every unknown key; how many more."""
    details = sorted(error.errors(include_url=False), key=lambda detail: detail["type"] == "extra_forbidden")
    return [_problem(section, table, detail) for detail in details[:MAX_PROBLEMS]], len(details[MAX_PROBLEMS:])


def sound_values(space: type[Section], table: object, error: ValidationError | None = None) -> dict[str, Any]:
    """The values of a space's ``table`` to which ``error`` does not object, by dotted path, with the defaults.

    ``strategies`` is a list of tables with the sound values of each arm, and with its place under ``where``.
    """
    wrong = {_location(detail) for detail in error.errors(include_url=False)} if error is not None else set()
    holders = {place[:length] for place in wrong for length in range(len(place))}
    return dict(_sound(space, table, wrong, holders))


def _sound(
    section: type[Section], table: object, wrong: Set[Location], holders: Set[Location], prefix: Location = ()
) -> Iterator[tuple[str, Any]]:
    """``holders`` are the places inside of which something is ``wrong``."""
    if not isinstance(table, Mapping):
        return
    for key, field in section.model_fields.items():
        place = (*prefix, key)
        if place in wrong or (key not in table and field.is_required()):
            continue
        value = table[key] if key in table else field.get_default(call_default_factory=True)
        value = value.model_dump() if isinstance(value, BaseModel) else value
        if place == ("strategies",):
            wheres = _arm_places(value)
            arms = [dict(_sound(Strategy, arm, wrong, holders, (*place, index))) for index, arm in enumerate(value)]
            yield key, [{**arm, "where": where} for arm, where in zip(arms, wheres, strict=True)]
        elif (inner := _section_of(field.annotation, value)) is not None:
            yield from ((f"{key}.{path}", found) for path, found in _sound(inner, value, wrong, holders, place))
        elif _changes(field) is not None and isinstance(value, Mapping):
            yield key, {own: value[own] for own in value if not {(*place, own)} & (wrong | holders)}
        elif place not in holders:
            yield key, value


def _changes(field: FieldInfo) -> ChangesTo | None:
    """What a field's table may change, where it holds changes to a section."""
    return next((item for item in field.metadata if isinstance(item, ChangesTo)), None)


def _section_of(annotation: Any, value: object) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    is_search = GridSearch in get_args(annotation) and isinstance(value, Mapping)
    return _SEARCHES[value["kind"]] if is_search else None  # type: ignore[index]


def _arm_places(strategies: Any) -> list[str]:
    """``strategies.NAME`` where the name is unique, else ``strategies.INDEX``; ``--set`` understands both."""
    names = [arm.get("name") if isinstance(arm, Mapping) else None for arm in strategies]
    counts = Counter(name for name in names if isinstance(name, str) and name)
    return [
        f"strategies.{shortened(name) if isinstance(name, str) and counts[name] == 1 else index}"
        for index, name in enumerate(names)
    ]


def _location(detail: Detail) -> Location:
    location: Location = detail["loc"]
    if location[:1] == ("search",) and location[1:2] and location[1] in _SEARCHES:
        return (location[0], *location[2:])  # pydantic puts the kind of search into the path
    return location


def _where(location: Location, table: object) -> str:
    """A location inside a space as ``--set`` would write it: ``model.top_k``, ``strategies.balanced.seq_len``."""
    text = ""
    for position, part in enumerate(location):
        if isinstance(part, str):
            text += f".{shortened(part)}" if text else shortened(part)
        elif position == 1 and location[0] == "strategies" and isinstance(table, Mapping):
            text = _arm_places(table["strategies"])[part]
        else:
            text += f"[{part}]"
    return text or "the space"


def _problem(section: type[Section], table: object, detail: Detail) -> Problem:
    location, kind, value = _location(detail), detail["type"], detail["input"]
    where = _where(location, table)
    if kind == "missing":
        return Problem(where=where, rule="is missing", remedy=_how_to_add(location))
    if kind == "extra_forbidden":
        rule, remedy = _unknown_key(section, location, where)
    else:
        if kind == "union_tag_invalid":
            where, value = f"{where}.kind", detail["ctx"]["tag"]
        rule, remedy = _rule_and_remedy(kind, value, detail)
    return Problem(where=where, value=as_toml(value), rule=rule, remedy=remedy)


def _how_to_add(location: Location) -> str:
    if len(location) == 1:
        return f"add '{location[0]}' (the template that `sweeps new` writes shows how)"
    if isinstance(location[-1], int):
        return "write the whole list"
    if location[0] == "strategies":
        return f"add '{location[-1]}' to this [[strategies]] table"
    return f"add '{location[-1]}' under [{'.'.join(map(str, location[:-1]))}]"


def _unknown_key(section: type[Section], location: Location, where: str) -> tuple[str, str]:
    *parents, key = [part for part in location if isinstance(part, str)]
    is_of_arm = parents[:1] == ["strategies"] or section is Strategy
    table = parents[-1] if is_of_arm and parents and parents[-1] in ARM_TABLES else None
    if key in _SHARED_BY_ALL_ARMS and is_of_arm:
        where = f"[{table}]" if table else "the space itself"
        return "is what the comparison rests on, the same for all arms", f"set it once, in {where}"
    paths = list(dict.fromkeys(_paths(section)))
    known = [path.rpartition(".")[2] for path in paths if path.split(".")[:-1] == parents]
    if table is not None and (changes := _changes(Strategy.model_fields[table])) is not None:
        known = list(changes.keys)
    if parents == ["search"] and key in known:
        return "belongs to the search of kind 'optuna'", "leave it out or set search.kind to optuna"
    rule = "is not a key of a space" if len(location) == 1 else f"is not a key of {where.rpartition('.')[0]}"
    places = [path for path in paths if path.rpartition(".")[2] == key]
    place = places[0] if len(places) == 1 else _SYNONYMS.get(key)  # of several, none is more likely than the others
    remedy = f"did you mean '{place}'?" if place else did_you_mean(key, known)
    fixed = f" ({_FIXED[parents[-1]]})" if parents and parents[-1] in _FIXED else ""
    return rule, remedy or _RETIRED.get(key) or f"leave it out{fixed}; known keys: {', '.join(known)}"


def _paths(annotation: Any, prefix: str = "") -> Iterator[str]:
    """The dotted path of every key of a section, or of the sections inside a type such as a union or a tuple."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        for key, field in annotation.model_fields.items():
            yield prefix + key
            yield from _paths(field.annotation, f"{prefix}{key}.")
    for argument in get_args(annotation):
        yield from _paths(argument, prefix)


def _rule_and_remedy(kind: str, value: object, detail: Detail) -> tuple[str, str]:
    context: Detail = detail.get("ctx", {})
    if kind == "rule_broken":
        return context["rule"], context["remedy"]
    if kind in _BOUNDS:
        name, words, sign = _BOUNDS[kind]
        limit = str(context[name]) if isinstance(context[name], int) else f"{context[name]:g}"
        return f"must be {words} {limit}", f"choose a value {sign} {limit}"
    if kind in _WORDS:
        return _WORDS[kind](value, context)
    message: str = detail["msg"]
    return f"is not allowed: {message[0].lower()}{message[1:]}", "correct it"


def _whole_number(value: object, _: Detail) -> tuple[str, str]:
    is_whole = isinstance(value, float) and value.is_integer()
    return "must be a whole number", f"write {value:.0f}" if is_whole else "write it like 4 or 65_536"


def _one_of(value: object, context: Detail) -> tuple[str, str]:
    expected = str(context.get("expected") or context.get("expected_tags"))
    choices = [word.strip(" '") for word in expected.replace(" or ", ", ").split(",")]
    return f"must be one of {', '.join(choices)}", did_you_mean(str(value), choices) or f"write {choices[0]!r}"


def _pattern(_: object, context: Detail) -> tuple[str, str]:
    if context["pattern"] == ONE_LINE:
        return "must not hold control characters", "write it in one line of plain text"
    rule = f"must match {context['pattern'].strip('^').removesuffix(chr(92) + 'z')}"
    return rule, "use letters, digits, '.', '_' and '-', and start with a letter or a digit"


def _fixed(rule: str, remedy: str) -> Callable[[object, Detail], tuple[str, str]]:
    return lambda _value, _context: (rule, remedy)


def _at_most(things: str) -> Callable[[object, Detail], tuple[str, str]]:
    return lambda _, context: (f"must have at most {context['max_length']} {things}", "shorten it")


_BOUNDS = {
    "greater_than": ("gt", "greater than", ">"),
    "greater_than_equal": ("ge", "at least", ">="),
    "less_than": ("lt", "less than", "<"),
    "less_than_equal": ("le", "at most", "<="),
}
_WORDS: Mapping[str, Callable[[object, Detail], tuple[str, str]]] = {
    "int_type": _whole_number,
    "float_type": _fixed("must be a number", "write it without quotes, like 0.01"),
    "finite_number": _fixed("must be a finite number", "choose a finite value"),
    "string_type": _fixed("must be text", "write it in quotes"),
    "bool_type": _fixed("must be true or false", "write true or false without quotes"),
    "string_too_short": _fixed("must not be empty", "write a name"),
    "string_too_long": _at_most("characters"),
    "tuple_type": _fixed("must be a list", "write it in brackets, like [1, 2]"),
    "too_short": _fixed("must not be empty", "write at least one value"),
    "too_long": _at_most("entries"),
    "dict_type": _fixed("must be a table", "write it as a [table] with its keys"),
    "model_type": _fixed("must be a table", "write it as a [table] with its keys"),
    "model_attributes_type": _fixed("must be a table", "write it as a [table] with its keys"),
    "literal_error": _one_of,
    "union_tag_invalid": _one_of,
    "string_pattern_mismatch": _pattern,
}
