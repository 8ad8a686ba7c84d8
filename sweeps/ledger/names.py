"""Names of sweeps: fresh ones, the newest one."""

from __future__ import annotations

import re
from contextlib import suppress

from sweeps.errors import BadInputError, DamagedError
from sweeps.ledger.storage import Storage
from sweeps.ledger.sweep_folder import Ledger, sweep_names


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
        raise BadInputError(f"there is no sweep in {runs.uri}; `sweeps run` starts one")
    return max(began_s, key=lambda name: began_s[name])
