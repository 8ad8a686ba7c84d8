"""What a sweep runs: the frozen space with its extensions, and the fingerprints behind the ids of its cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from search_spaces import Identity, Space, SpaceErrors, extended_space
from search_spaces.cells import cell_at
from sweeps.errors import DamagedError
from sweeps.ledger.storage import Storage
from sweeps.ledger.sweep_folder import Ledger, PlannedCell
from sweeps.training_config import model_config


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


def arm_entry(space: Space, name: str, *, vocab_size: int | None, peak_gib: float | None = None) -> dict[str, Any]:
    """An arm as ``sweep.json`` holds it: its values, what follows from them, and the size of its model where known."""
    arm = space.strategy(name)
    entry = {**arm.model_dump(mode="json"), "tokens_per_step": arm.tokens_per_step, "predicted_peak_gib": peak_gib}
    if vocab_size is None:
        return entry
    from moe.flops import active_parameters, flops_per_token, total_parameters

    model = model_config(space, name, vocab_size=vocab_size)
    return {
        **entry,
        "parameters": {"total": total_parameters(model), "active": active_parameters(model)},
        "flops_per_token": flops_per_token(model, arm.seq_len),
    }


def require_own_ids(storage: Storage, space: Space, identity: Identity, planned: Iterable[PlannedCell]) -> None:
    """Raises DamagedError, naming the cell, where an id is not the hash of what decides the cell's numbers."""
    for entry in planned:
        cell = entry.cell
        try:
            again = cell_at(
                space,
                identity,
                phase=cell.phase,
                strategy=cell.strategy,
                rate=cell.rate,
                seed=cell.seed,
                budget_tokens=cell.budget_tokens,
            ).cell_id
        except (KeyError, ValueError, SpaceErrors) as error:
            raise DamagedError(f"{storage.uri}/plan is damaged: {entry} is not of this space: {error}") from error
        if again != entry.cell_id:
            raise DamagedError(
                f"{storage.uri}/plan is damaged: {entry} has cell_id={entry.cell_id!r}, and its values give {again!r}; "
                "restore it from a copy"
            )
