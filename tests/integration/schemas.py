"""Schemas of other tools' files, kept without their prose, and a validation that lets no unknown field pass.

A Kubernetes API server drops a field that a CRD does not know, without a word: ``closed`` makes it an error. Run as a
program, this makes the files in ``tests/data/schemas`` again from what the tools publish; see the README there.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from jsonschema import Draft7Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

SCHEMAS = Path(__file__).parents[1] / "data" / "schemas"

_PROSE = ("description", "title", "examples", "x-kubernetes-list-type", "x-kubernetes-map-type")
_BY_NAME = ("properties", "patternProperties", "definitions")
"""Keywords whose keys are names that the schema's author chose."""
_SHARED_FROM_CHARS = 200


def schema(name: str) -> dict[str, Any]:
    """One of the kept schemas."""
    content: dict[str, Any] = json.loads((SCHEMAS / f"{name}.json").read_text(encoding="utf-8"))
    return content


def problems(document: object, rules: Mapping[str, Any]) -> list[str]:
    """What is wrong with the document, each with the path at which it is."""
    found = _Validator(rules).iter_errors(document)
    return sorted(f"{'/'.join(map(str, error.absolute_path))}: {error.message}" for error in found)


def closed(rules: Any) -> Any:
    """The same schema, in which an object has no properties but those that are named."""
    if isinstance(rules, list):
        return [closed(entry) for entry in rules]
    if not isinstance(rules, Mapping):
        return rules
    made = {
        key: {name: closed(entry) for name, entry in value.items()} if key in _BY_NAME else closed(value)
        for key, value in rules.items()
    }
    if "properties" in made and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


def _unique_by_keys(_validator: object, keys: list[str], items: object, _rules: object) -> Iterator[ValidationError]:
    """A list that Kubernetes takes for a map has each key once."""
    entries = [item for item in items if isinstance(item, Mapping)] if isinstance(items, list) else []
    counts = Counter(tuple(entry.get(key) for key in keys) for entry in entries)
    yield from (ValidationError(f"{value} stands {count} times") for value, count in counts.items() if count > 1)


_Validator = extend(Draft7Validator, {"x-kubernetes-list-map-keys": _unique_by_keys})


def without_prose(rules: Any) -> Any:
    """The schema without what only a reader needs."""
    if isinstance(rules, list):
        return [without_prose(entry) for entry in rules]
    if not isinstance(rules, Mapping):
        return rules
    return {
        key: {name: without_prose(entry) for name, entry in value.items()} if key in _BY_NAME else without_prose(value)
        for key, value in rules.items()
        if key not in _PROSE
    }


def shared(rules: dict[str, Any]) -> dict[str, Any]:
    """The schema with every larger part that it repeats written once, under ``definitions``."""
    counts: Counter[str] = Counter()

    def count(part: Any) -> None:
        if isinstance(part, dict):
            if "type" in part:
                counts[json.dumps(part, sort_keys=True)] += 1
            for inner in part.values():
                count(inner)

    count(rules)
    names = {
        text: f"part{number}"
        for number, text in enumerate(t for t, n in counts.items() if n > 1 and len(t) > _SHARED_FROM_CHARS)
    }

    def refer(part: Any, *, top: bool = False) -> Any:
        if not isinstance(part, dict):
            return part
        name = None if top else names.get(json.dumps(part, sort_keys=True))
        return {key: refer(inner) for key, inner in part.items()} if name is None else {"$ref": f"#/definitions/{name}"}

    definitions = {name: refer(json.loads(text), top=True) for text, name in names.items()}
    return {**refer(rules, top=True), "definitions": definitions}


def of_custom_resource(text: str, version: str) -> dict[str, Any]:
    """The schema of one version in the YAML of a CustomResourceDefinition, without the status, which no user writes."""
    versions = yaml.safe_load(text)["spec"]["versions"]
    [found] = [entry["schema"]["openAPIV3Schema"] for entry in versions if entry["name"] == version]
    del found["properties"]["status"]
    return shared(without_prose(found))


if __name__ == "__main__":
    published = Path(sys.argv[1])
    source = published.read_text(encoding="utf-8")
    made = of_custom_resource(source, "v1") if published.suffix == ".yaml" else without_prose(json.loads(source))
    print(json.dumps(made, separators=(",", ":")))
