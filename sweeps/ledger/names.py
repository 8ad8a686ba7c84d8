"""Names of sweeps: what they may be, fresh ones, the newest one."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Final

from sweeps.errors import BadInputError, DamagedError
from sweeps.ledger.storage import Storage
from sweeps.ledger.sweep_folder import Ledger, sweep_names

NAME_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def require_name(name: str) -> None:
    """Raises BadInputError unless ``name`` can be the name of a sweep."""
    if not NAME_PATTERN.fullmatch(name):
        raise BadInputError(
            f"name={name!r} must be 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit; "
            "for example: --name first"
        )


def fresh_name(runs: Storage, label: str) -> str:
    """``label-N`` with the lowest N that is free."""
    stem = re.sub(r"[^A-Za-z0-9._-]", "-", label).lstrip("._-")[:56] or "sweep"
    taken = set(runs.names())
    number = 1
    while f"{stem}-{number}" in taken:
        number += 1
    return f"{stem}-{number}"


def newest_name(runs: Storage) -> str:
    """The sweep that began last; raises BadInputError where there is none."""
    began_s: dict[str, float] = {}
    for name in sweep_names(runs):
        with suppress(DamagedError):  # `sweeps status` names it; it hides no other
            began_s[name] = float(Ledger(runs, name).beginning()["created_s"])
    if not began_s:
        raise BadInputError(f"there is no sweep in {runs.uri}; `sweeps run` begins one")
    return max(began_s, key=lambda name: began_s[name])
