"""The frozen beginning of a sweep: what is written to ``sweep.json`` before anything runs."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import Any

from search_spaces import Problem, Space, SpaceErrors, explore_cells
from sweeps.ledger.provenance import code_fingerprint, git_state, hardware, versions
from sweeps.ledger.sweep_folder import Ledger
from sweeps.plan.phases import first_cells
from sweeps.training_config import batch_configs, model_config
from sweeps.training_data import Material
from sweeps.trial.precision import precision_to_freeze


def audit_table(space: Space, material: Material) -> dict[str, Any]:
    """The leak and fitness audit as plain data; raises SpaceErrors where a rule refuses the corpus."""
    from moe.audit import audit

    found = audit(material.tokens, material.exam, arms=batch_configs(space), budget_tokens=space.budget_tokens)
    problems = [
        Problem(where="corpus", value=refusal.rule, rule=refusal.message, remedy=refusal.remedy)
        for refusal in found.refusals
    ]
    if problems:
        raise SpaceErrors(problems, source="the corpus")
    table: dict[str, Any] = found.as_dict()
    return table


def _parameters(space: Space, material: Material) -> dict[str, int]:
    from moe.flops import active_parameters, total_parameters

    model = model_config(space, vocab_size=material.tokens.vocab_size)
    return {"total": total_parameters(model), "active": active_parameters(model)}


def begin(
    ledger: Ledger,
    space: Space,
    material: Material,
    *,
    audit: Mapping[str, Any],
    peaks_gib: Mapping[str, float],
    command: str | None,
) -> None:
    """Write the first grid, then ``sweep.json``: a sweep exists once that is there."""
    exam = material.exam
    sweep_id = secrets.token_hex(8)  # pages that a beginning left that was cut short have another one
    cells = first_cells(space, explore_cells(space, material.identity))
    ledger.add_cells(cells, because="the first grid", sweep_id=sweep_id)
    ledger.begin(
        {
            "sweep_id": sweep_id,
            "created_s": time.time(),
            "command": command,
            "space": space.resolved(),
            "strategies": [
                {
                    **strategy.model_dump(),
                    "tokens_per_step": strategy.tokens_per_step,
                    "predicted_peak_gib": peaks_gib.get(strategy.name),
                }
                for strategy in space.strategies
            ],
            "parameters": _parameters(space, material),
            "exam": {
                "fingerprint": exam.fingerprint,
                "rows_validation": exam.validation.n_rows,
                "rows_test": exam.test.n_rows,
                "block_len": exam.block_len,
                "common_len": exam.common_len,
                "packed": exam.packed,
            },
            "vocab_size": material.tokens.vocab_size,
            "precision": precision_to_freeze(space),
            "fingerprints": {**material.fingerprints, "code": code_fingerprint()},
            "corpus_facts": dict(material.tokens.facts),
            "audit": dict(audit),
            "versions": versions(),
            "hardware": hardware(),
            "git": git_state(),
        }
    )
