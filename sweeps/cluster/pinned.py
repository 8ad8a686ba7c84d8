"""Pinned packages: what the project needs of ``constraints.txt``, and what a machine lacks of it.

``python -m sweeps.cluster.pinned torch==2.13.0 ...`` prints what is missing or of another version where it runs, as one
line of JSON. It needs nothing but the standard library: it runs as a job on clusters that have nothing else yet.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

PROJECT = "moe-sweeps"
LACKING = "lacking: "
"""Before the JSON: a job's logs hold other lines too."""


def read_constraints(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The ``name==version`` pairs of a constraints file; comments, markers and options are left out."""
    for line in lines:
        requirement = line.partition("#")[0].partition(";")[0].strip()
        name, separator, pinned = requirement.partition("==")
        if separator and not name.startswith("-"):
            yield name.partition("[")[0].strip(), pinned.strip()


def installed_version(package: str) -> str | None:
    """What is installed here under that name."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def public(number: str) -> str:
    """A version without its local part: 2.13.0+cpu is 2.13.0."""
    return number.partition("+")[0]


def pins_of_project(constraints: Path) -> list[str]:
    """The pins of all that the project needs to run, its needs' needs included, as ``name==version``.

    Ray is left out, which a cluster is made of, and so are the tools for tests and checks.
    """
    return _pins(constraints, _needed(PROJECT))


def pins_of_first_rank(constraints: Path) -> list[str]:
    """The pins of the packages that the project itself names, without Ray: by these an environment is judged."""
    return _pins(constraints, {_normal(name) for name, _ in _requirements(PROJECT)})


def lacking(pins: Sequence[str]) -> list[str]:
    """Those of the pins, as ``name==version``, that are not installed here in that version."""
    wanted = [(pin, *pin.split("==", 1)) for pin in pins]
    return [pin for pin, name, number in wanted if public(installed_version(name) or "") != public(number)]


def _pins(constraints: Path, names: set[str]) -> list[str]:
    pinned = read_constraints(constraints.read_text(encoding="utf-8").splitlines())
    return [f"{name}=={number}" for name, number in pinned if _normal(name) in names - {"ray"}]


def _needed(root: str) -> set[str]:
    """Normalised names of all that ``root`` needs here, by the metadata of what is installed."""
    found: set[tuple[str, str]] = set()
    ahead = [(root, "")]
    while ahead:
        name, extra = ahead.pop()
        for needed, extras in _requirements(name, extra):
            fresh = {(_normal(needed), wish) for wish in ("", *extras)} - found
            found |= fresh
            ahead += sorted(fresh)
    return {name for name, _ in found}


def _requirements(package: str, extra: str = "") -> Iterator[tuple[str, set[str]]]:
    """Names and extras of what a package, or one of its extras, needs here; nothing where it is not installed."""
    from packaging.requirements import Requirement

    try:
        lines = requires(package) or ()
    except PackageNotFoundError:
        return
    for line in lines:
        needed = Requirement(line)
        if needed.marker is None or needed.marker.evaluate({"extra": extra}):
            yield needed.name, needed.extras


def _normal(name: str) -> str:
    """As PEP 503 has it: ``typing_extensions`` and ``typing-extensions`` are one package."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    print(LACKING + json.dumps(lacking(sys.argv[1:])))
