"""The beginning of a sweep: the space that was chosen, and what is frozen in ``sweep.json`` before anything runs."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_spaces import Problem, Space, SpaceErrors, explore_cells, load_space, with_overrides
from sweeps.cluster.machines import Machines
from sweeps.errors import BadInputError
from sweeps.ledger.lease import DRIVER_LEASE
from sweeps.ledger.provenance import code_fingerprint, git_state, hardware, versions
from sweeps.ledger.space import arm_entry
from sweeps.ledger.sweep_folder import Ledger
from sweeps.packing.remembered import remembered
from sweeps.plan.phases import first_cells
from sweeps.training_config import batch_configs
from sweeps.training_data import TrainingData

if TYPE_CHECKING:
    from moe.config import BatchConfig


@dataclass(frozen=True, kw_only=True)
class SpaceChoice:
    """The space that a user chose: a preset, a file or one that is read already, and values to change in it.

    With ``hours`` its budget is to be the largest with which the sweep fits in them.
    """

    preset: str | None = None
    path: Path | None = None
    space: Space | None = None
    overrides: tuple[str, ...] = ()
    hours: float | None = None

    def load(self, machines: Machines) -> tuple[Space, str]:
        """The space, and a word to number its sweeps by.

        Without a choice it is the preset ``matched`` where there is a GPU, else ``laptop``.
        """
        if self.space is not None:
            return with_overrides(self.space, self.overrides), "sweep"
        preset = self.preset
        if preset is None and self.path is None:
            preset = "matched" if machines.gpus else "laptop"
        label = str(preset) if self.path is None else self.path.stem
        return load_space(preset=preset, path=self.path, overrides=self.overrides), label


def require_new(ledger: Ledger) -> None:
    """Raises BadInputError where a sweep of this name exists, or other files are in its folder."""
    name = ledger.name
    if ledger.exists():
        raise BadInputError(
            f"a sweep named {name!r} exists already and is never overwritten; `sweeps resume {name}` continues it, "
            f"`sweeps extend {name}` adds to it, or choose another --name"
        )
    unknown = set(ledger.storage.names()) - {DRIVER_LEASE, "plan"}  # an interrupted beginning leaves these two
    if unknown:
        raise BadInputError(
            f"{ledger.storage.uri} holds no sweep and is not empty ({', '.join(sorted(unknown)[:5])}); "
            "a deletion may have been interrupted: remove the rest of it, or choose another --name"
        )


def audit_table(space: Space, data: TrainingData) -> dict[str, Any]:
    """The leak and fitness audit as plain data; raises SpaceErrors where a rule refuses the corpus."""
    arms = batch_configs(space)
    decides = (data.identity, data.tokens.corpus, arms, space.budget_tokens)
    table: dict[str, Any] = remembered("audits", decides, partial(_audited, space, data, arms))
    return table


def _audited(space: Space, data: TrainingData, arms: Mapping[str, BatchConfig]) -> dict[str, Any]:
    from moe.audit import audit

    found = audit(data.tokens, data.exam, arms=arms, budget_tokens=space.budget_tokens)
    problems = [Problem(where="corpus:", rule=refusal.message, remedy=refusal.remedy) for refusal in found.refusals]
    if problems:
        if found.shared:
            found.write_list(data.tokens.folder)
        raise SpaceErrors(problems, source="the corpus")
    return found.as_dict()


def begin(
    ledger: Ledger,
    space: Space,
    data: TrainingData,
    *,
    audit: Mapping[str, Any],
    peaks_gib: Mapping[str, float],
    command: str | None,
) -> None:
    """Write the first grid, then ``sweep.json``: a sweep exists once that is there."""
    assert space.precision != "auto", "the ids of cells depend on the precision that auto comes to"
    exam, tokens = data.exam, data.tokens
    arms = [
        arm_entry(space, arm.name, vocab_size=tokens.vocab_size, peak_gib=peaks_gib.get(arm.name))
        for arm in space.strategies
    ]
    sweep_id = secrets.token_hex(8)  # pages that an interrupted beginning left have another one
    cells = first_cells(space, explore_cells(space, data.identity))
    ledger.add_cells(cells, because="the first grid", sweep_id=sweep_id)
    ledger.begin(
        {
            "sweep_id": sweep_id,
            "created_s": time.time(),
            "command": command,
            "space": space.resolved(),
            "strategies": arms,
            "parameters": arms[0]["parameters"],
            "exam": {
                "fingerprint": exam.fingerprint,
                "rows_validation": exam.validation.n_rows,
                "rows_test": exam.test.n_rows,
                "block_len": exam.block_len,
                "common_len": exam.common_len,
                "packed": exam.packed,
                "document_groups": dict(tokens.splits["test"].document_groups),
            },
            "vocab_size": tokens.vocab_size,
            "precision": space.precision,
            "fingerprints": {**data.fingerprints, "code": code_fingerprint()},
            "corpus_facts": dict(tokens.facts),
            "audit": dict(audit),
            "versions": versions(),
            "hardware": hardware(),
            "git": git_state(),
        }
    )
