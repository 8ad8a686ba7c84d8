"""Pinned packages: the versions in ``constraints.txt``, and which of them a machine lacks.

``python -m sweeps.cluster.pinned torch==2.13.0 ...`` prints those that are missing or of another version where it runs,
as one line of JSON. It needs only the standard library: it runs as a job on clusters that have nothing else yet.
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
    """Yield the ``name==version`` pairs of a constraints file, without comments, markers and options."""
    for line in lines:
        requirement = line.partition("#")[0].partition(";")[0].strip()
        name, separator, pinned = requirement.partition("==")
        if separator and not name.startswith("-"):
            yield name.partition("[")[0].strip(), pinned.strip()


def installed_version(package: str) -> str | None:
    """Return the version of ``package`` that is installed here, None without one."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def public(number: str) -> str:
    """Return a version without its local part: 2.13.0+cpu is 2.13.0."""
    return number.partition("+")[0]


def project_pins(constraints: Path) -> list[str]:
    """Return the pins of the packages that the project itself names, but not Ray's, which a cluster is made of."""
    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(line) for line in requires(PROJECT) or ()]
    except PackageNotFoundError:
        return []
    markers = {_normal(each.name): each.marker for each in requirements}
    names = {name for name, marker in markers.items() if marker is None or marker.evaluate({"extra": ""})} - {"ray"}
    pinned = read_constraints(constraints.read_text(encoding="utf-8").splitlines())
    return [f"{name}=={number}" for name, number in pinned if _normal(name) in names]


def lacking(pins: Sequence[str]) -> list[str]:
    """Return those of the pins, as ``name==version``, that are not installed here in that version."""
    wanted = [(pin, *pin.split("==", 1)) for pin in pins]
    return [pin for pin, name, number in wanted if public(installed_version(name) or "") != public(number)]


def _normal(name: str) -> str:
    """Return a name as PEP 503 has it: ``typing_extensions`` and ``typing-extensions`` are one package."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    print(LACKING + json.dumps(lacking(sys.argv[1:])))
