"""From pydantic's errors to problems in our words, and to the values that are sound although others are not.

Rules between values (see ``rules``) run on ``valid_values``, so that one wrong key hides no other problem.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, get_args

from pydantic import TypeAdapter, ValidationError

from search_spaces.problems import Problem, SpaceErrors, as_toml, did_you_mean
from search_spaces.values import Section

Location = tuple[str | int, ...]
# What other tools call a key of ours.
_SAME_THING = {
    "learning_rate": "rates.lr",
    "learning_rates": "rates.lr",
    "batch_size": "micro_batch_size",
    "sequence_length": "seq_len",
    "gradient_accumulation_steps": "grad_accum_steps",
    "vocabulary_size": "tokenizer.vocab_size",
}
NAME_RULE = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}"


@dataclass(frozen=True, kw_only=True)
class PartialArm:
    """A strategy of which some values may be unsound: those are None."""

    where: str
    name: str | None
    micro_batch_size: int | None
    seq_len: int | None
    grad_accum_steps: int | None

    @property
    def tokens_per_step(self) -> int | None:
        """Target tokens of one optimizer step, where all three numbers are sound."""
        if self.micro_batch_size is None or self.seq_len is None or self.grad_accum_steps is None:
            return None
        return self.micro_batch_size * self.seq_len * self.grad_accum_steps


def field_problems(section: type[Section], raw: object) -> list[Problem]:
    """Every value of ``raw`` that is wrong by itself, every missing and every unknown key."""
    try:
        section.model_validate(raw)
    except ValidationError as error:
        details = error.errors(include_url=False)
        return [_problem(section, raw, detail) for detail in details if not _is_from_rules(detail)]
    return []


def valid_values(section: type[Section], raw: object, prefix: str = "") -> dict[str, Any]:
    """The values of ``raw`` that are sound by themselves, by dotted path, with the defaults of absent keys.

    ``strategies`` is a list of ``PartialArm``.
    """
    table = section.expand(raw)
    if not isinstance(table, Mapping):
        return {}
    values: dict[str, Any] = {}
    for key, field in section.model_fields.items():
        path = prefix + key
        nested = field.annotation
        if key == "strategies":
            values[path] = partial_arms(table.get(key))
        elif isinstance(nested, type) and issubclass(nested, Section):
            if key in table or not field.is_required():
                part = table[key] if key in table else field.get_default().model_dump()
                values.update(valid_values(nested, part, path + "."))
        elif key not in table:
            if not field.is_required():
                values[path] = field.get_default()
        else:
            values.update(_validated(section, key, path, table[key]))
    return values


def _validated(section: type[Section], key: str, path: str, value: object) -> dict[str, Any]:
    try:
        return {path: _adapter(section, key).validate_python(value)}
    except ValidationError:
        return {}


@cache
def _adapter(section: type[Section], key: str) -> TypeAdapter[Any]:
    field = section.model_fields[key]
    declared: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    return TypeAdapter(declared)


def partial_arms(raw: object) -> list[PartialArm]:
    """The arms of a space's ``strategies`` as far as they are sound; where an arm's ``where`` names it if it can."""
    items = enumerate(raw) if isinstance(raw, list | tuple) else ()
    tables = [(index, item) for index, item in items if isinstance(item, Mapping)]

    def whole(table: Mapping[str, Any], key: str, default: int | None = None) -> int | None:
        value = table.get(key, default)
        return value if type(value) is int and value >= 1 else None

    return [
        PartialArm(
            where=arm_where(raw, index),
            name=table["name"] if isinstance(table.get("name"), str) else None,
            micro_batch_size=whole(table, "micro_batch_size"),
            seq_len=whole(table, "seq_len"),
            grad_accum_steps=whole(table, "grad_accum_steps", 1),
        )
        for index, table in tables
    ]


def arm_where(strategies: object, index: int) -> str:
    """``strategies.NAME`` where the name is unique, else ``strategies.INDEX``; ``--set`` understands both."""
    tables = strategies if isinstance(strategies, list | tuple) else []
    names = [item.get("name") if isinstance(item, Mapping) else None for item in tables]
    name = names[index] if index < len(names) else None
    return f"strategies.{name}" if isinstance(name, str) and name and names.count(name) == 1 else f"strategies.{index}"


def where_of(location: Location, raw: object) -> str:
    """A location inside a space as ``--set`` would write it: ``model.top_k``, ``strategies.balanced.seq_len``."""
    text = ""
    for position, part in enumerate(location):
        if isinstance(part, str):
            text = f"{text}.{part}" if text else part
        elif position == 1 and location[0] == "strategies" and isinstance(raw, Mapping):
            text = arm_where(raw.get("strategies"), part)
        else:
            text = f"{text}[{part}]"
    return text


def _is_from_rules(detail: Mapping[str, Any]) -> bool:
    return isinstance(detail.get("ctx", {}).get("error"), SpaceErrors)


def _problem(section: type[Section], raw: object, detail: Mapping[str, Any]) -> Problem:
    location: Location = detail["loc"]
    if location[:1] == ("search",) and len(location) > 1 and location[1] in ("grid", "optuna"):
        location = (location[0], *location[2:])  # pydantic puts the kind of search into the path
    kind: str = detail["type"]
    where = where_of(location, raw)
    if kind == "extra_forbidden":
        return _unknown_key(section, location, where, detail["input"])
    if kind == "missing":
        return _missing(location, where)
    value = detail["input"]
    if kind == "union_tag_invalid":
        where, value = f"{where}.kind", detail["ctx"]["tag"]
    rule, remedy = _words(kind, value, detail)
    return Problem(where=where, value=as_toml(value), rule=rule, remedy=remedy)


def _missing(location: Location, where: str) -> Problem:
    if len(location) == 1:
        remedy = f"add '{where}' (the template that `sweeps new` writes shows how)"
    elif isinstance(location[-1], int):
        remedy = "write the whole list"
    elif location[0] == "strategies":
        remedy = f"add '{location[-1]}' to this [[strategies]] table"
    else:
        table = ".".join(str(part) for part in location[:-1])
        remedy = f"add '{location[-1]}' under [{table}]"
    return Problem(where=where, rule="is missing", remedy=remedy)


def _unknown_key(section: type[Section], location: Location, where: str, value: object) -> Problem:
    key = str(location[-1])
    known = _keys_at(section, location[:-1])
    if location[0] == "search" and key in known:
        rule, remedy = "belongs to the search of kind 'optuna'", "leave it out or set search.kind to optuna"
    else:
        rule = "is not a key of a space" if len(location) == 1 else f"is not a key of {where.rpartition('.')[0]}"
        homes = [path for path in _all_keys(section) if path.rpartition(".")[2] == key]
        home = homes[0] if homes else _SAME_THING.get(key)
        elsewhere = f"did you mean '{home}'?" if home else ""
        remedy = elsewhere or did_you_mean(key, known) or f"leave it out; known keys: {', '.join(known)}"
    return Problem(where=where, value=as_toml(value), rule=rule, remedy=remedy)


def _keys_at(section: type[Section], location: Location) -> list[str]:
    here = [section]
    for part in location:
        if isinstance(part, str):
            fields = [one.model_fields[part] for one in here if part in one.model_fields]
            here = [found for field in fields for found in _sections_in(field.annotation)]
    return list(dict.fromkeys(key for one in here for key in one.model_fields))


def _all_keys(section: type[Section], prefix: str = "") -> Iterator[str]:
    for key, field in section.model_fields.items():
        yield prefix + key
        for nested in _sections_in(field.annotation):
            yield from _all_keys(nested, f"{prefix}{key}.")


def _sections_in(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [found for argument in get_args(annotation) for found in _sections_in(argument)]


def _words(kind: str, value: object, detail: Mapping[str, Any]) -> tuple[str, str]:
    context: Mapping[str, Any] = detail.get("ctx", {})
    if kind == "rule_broken":
        return context["rule"], context["remedy"]
    bound = _BOUNDS.get(kind)
    if bound is not None:
        name, sentence = bound
        limit = context[name]
        return sentence.format(f"{limit:g}"), f"choose a value {_SIGNS[name]} {limit:g}"
    words = _WORDS.get(kind)
    if words is None:
        message: str = detail["msg"]
        return f"is not allowed: {message[0].lower()}{message[1:]}", "correct it"
    return words(value, context)


_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
_BOUNDS = {
    "greater_than": ("gt", "must be greater than {}"),
    "greater_than_equal": ("ge", "must be at least {}"),
    "less_than": ("lt", "must be less than {}"),
    "less_than_equal": ("le", "must be at most {}"),
}

_Words = Callable[[object, Mapping[str, Any]], tuple[str, str]]


def _whole_number(value: object, _: Mapping[str, Any]) -> tuple[str, str]:
    integral = isinstance(value, float) and value.is_integer()
    return "must be a whole number", f"write {int(value)}" if integral else "write it like 4 or 65_536"  # type: ignore[call-overload]


def _one_of(value: object, context: Mapping[str, Any]) -> tuple[str, str]:
    expected = str(context.get("expected") or context.get("expected_tags"))
    choices = [word.strip(" '") for word in expected.replace(" or ", ", ").split(",")]
    return f"must be one of {', '.join(choices)}", did_you_mean(str(value), choices) or f"write {choices[0]!r}"


def _fixed(rule: str, remedy: str) -> _Words:
    return lambda _value, _context: (rule, remedy)


_WORDS: dict[str, _Words] = {
    "int_type": _whole_number,
    "float_type": _fixed("must be a number", "write it without quotes, like 0.01"),
    "finite_number": _fixed("must be a finite number", "choose a finite value"),
    "string_type": _fixed("must be text", "write it in quotes"),
    "bool_type": _fixed("must be true or false", "write true or false without quotes"),
    "string_too_short": _fixed("must not be empty", "write a name"),
    "tuple_type": _fixed("must be a list", "write it in brackets, like [1, 2]"),
    "too_short": _fixed("must not be empty", "write at least one value"),
    "model_type": _fixed("must be a table", "write it as a [table] with its keys"),
    "model_attributes_type": _fixed("must be a table", "write it as a [table] with its keys"),
    "literal_error": _one_of,
    "union_tag_invalid": _one_of,
    "string_pattern_mismatch": _fixed(
        f"must match {NAME_RULE}", "use letters, digits, '.', '_' and '-', and start with a letter or a digit"
    ),
}
