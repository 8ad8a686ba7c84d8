"""What a sweep runs: the frozen space with its extensions, and the fingerprints behind the ids of its cells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search_spaces import (
    Identity,
    Space,
    extended_space,
)
from sweeps.ledger.sweep_folder import Ledger


def identity_of(beginning: Mapping[str, Any]) -> Identity:
    """The fingerprints that decide a cell's id, as they were frozen."""
    prints = beginning["fingerprints"]
    return Identity(
        corpus_fingerprint=prints["corpus"],
        tokenizer_fingerprint=prints["tokenizer"],
        exam_fingerprint=prints["exam"],
    )


def current_space(ledger: Ledger) -> Space:
    """The space as it was frozen, with all extensions that were written to the plan since."""
    space = space_of(ledger.beginning())
    for page in ledger.plan_pages():
        if page["extension"] is not None:
            space = extended_space(space, **page["extension"])
    return space


def space_of(beginning: Mapping[str, Any]) -> Space:
    """The space as it was frozen in ``sweep.json``."""
    return Space.from_resolved(beginning["space"])
