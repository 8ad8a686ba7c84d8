"""A made-up sweep for the tests of tracking: nine explore and three confirm cells whose losses are a formula."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from search_spaces import Cell
from sweeps.ledger.results import Arm, CellResult, SweepResults
from sweeps.verdict.decision import decide
from sweeps.verdict.findings import Check
from sweeps.verdict.rows import ArmResult, PairResult
from sweeps.verdict.verdict import Verdict

CREATED_S = 1_760_000_000.0
BUDGET_TOKENS = 4_096
STRATEGIES = (("large_batch", 32, 64), ("long_seq", 2, 1024), ("balanced", 8, 256))
SHAPES = [
    {"name": name, "micro_batch_size": batch, "seq_len": length, "grad_accum_steps": 1, "tokens_per_step": 2_048}
    for name, batch, length in STRATEGIES
]


def beginning(name: str = "first", sweep_id: str = "feed0001") -> dict[str, Any]:
    """The ``sweep.json`` of the made-up sweep."""
    return {
        "schema": 1,
        "sweep": name,
        "sweep_id": sweep_id,
        "created_s": CREATED_S,
        "space": {
            "description": "Three shapes of one batch.",
            "budget_tokens": BUDGET_TOKENS,
            "corpus": {"kind": "embedded"},
            "model": {"d_model": 64, "n_layers": 3, "n_experts": 8, "top_k": 2},
            "optimizer": {"muon_momentum": 0.95},
            "schedule": {"warmup_share": 0.05, "decay_share": 0.2},
        },
        "exam": {"fingerprint": "e" * 16, "rows_test": 8, "packed": False},
        "fingerprints": {"corpus": "c" * 64, "tokenizer": "t" * 64, "exam": "e" * 64, "code": "d" * 64},
        "versions": {"torch": "2.13.0", "ray": "2.60.0"},
        "hardware": {"cpus": 2},
        "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": False},
        "strategies": SHAPES,
        "margin": 0.02,
    }


def record(tokens_seen: int, start_s: float = CREATED_S, **changed: Any) -> dict[str, Any]:
    """One durable record at ``tokens_seen``, a second of training for every 1,024 tokens."""
    time_s = tokens_seen / 1_024
    return {
        "tokens_seen": tokens_seen,
        "step": tokens_seen // 2_048,
        "timestamp_s": start_s + 10 + time_s,
        "train_loss": 8.0 - math.log1p(tokens_seen) / 3,
        "val_loss": 8.1 - math.log1p(tokens_seen) / 3,
        "val_bpb": 2.5,
        "val_common_loss": None,
        "lb_loss": 1.01,
        "z_loss": 0.5,
        "router_entropy": 1.9,
        "grad_norm": 0.7,
        "lr": 0.01,
        "adamw_lr": 0.003,
        "tokens_per_s": 1_024.0,
        "mfu_pct": None,
        "peak_mem_allocated_gib": 0.25,
        "loss_scale": None,
        "skipped_steps": 0,
        "expert_load_max_over_mean": 1.3,
        "micro_batch_splits": 0,
        "train_time_s": time_s,
        "counting_time_s": 0.0,
        "exam_time_s": 0.1,
        "precision": "fp32",
        **changed,
    }


def cell(strategy: str = "balanced", lr: float = 0.02, seed: int = 1, phase: Any = "explore", **changed: Any) -> Cell:
    """One cell; its id is written out so that a failing test can be read."""
    facts: dict[str, Any] = {
        "cell_id": f"{strategy}-{lr:g}-{seed}-{phase}",
        "phase": phase,
        "strategy": strategy,
        "lr": lr,
        "adamw_lr": lr * 0.3,
        "arrangement": "shuffled",
        "seed": seed,
        "budget_tokens": BUDGET_TOKENS,
        **changed,
    }
    return Cell(**facts)


def finished(which: Cell, n_records: int = 4) -> CellResult:
    """The cell at the end of its budget, with a test loss when it is a confirm cell."""
    records = tuple(record(BUDGET_TOKENS * (i + 1) // n_records) for i in range(n_records))
    return CellResult(
        cell=which,
        outcome="completed",
        tokens_seen=BUDGET_TOKENS,
        val_loss=records[-1]["val_loss"],
        test_loss=5.25 + which.seed / 1_000 if which.phase == "confirm" else None,
        records=records,
    )


def underway(which: Cell, n_records: int = 2) -> CellResult:
    """The cell in the middle of its budget: the first records of what ``finished`` has."""
    return underway_of(finished(which), n_records)


def underway_of(full: CellResult, n_records: int) -> CellResult:
    """What ``full`` was when it had ``n_records``."""
    records = full.records[:n_records]
    return CellResult(cell=full.cell, tokens_seen=records[-1]["tokens_seen"] if records else 0, records=records)


def all_cells() -> list[Cell]:
    """Nine explore cells and three confirm cells of ``balanced``."""
    explore = [cell(name, lr) for name, _, _ in STRATEGIES for lr in (0.01, 0.02, 0.04)]
    return explore + [cell(seed=seed, phase="confirm") for seed in (101, 102, 103)]


def results(cells: Sequence[CellResult], name: str = "first", sweep_id: str = "feed0001") -> SweepResults:
    """The sweep with these cells."""
    return SweepResults(name=name, beginning=beginning(name, sweep_id), cells=tuple(cells))


def finished_sweep(name: str = "first", sweep_id: str = "feed0001") -> SweepResults:
    """The sweep at its end, every cell completed but one that was stopped early and one that diverged."""
    cells = [finished(each) for each in all_cells()]
    stopped, diverged = cells[0].cell, cells[3].cell
    cells[0] = CellResult(cell=stopped, outcome="stopped_early", tokens_seen=2_048, records=cells[0].records[:2])
    cells[3] = CellResult(
        cell=diverged, outcome="diverged", tokens_seen=1_024, reason="loss is nan", records=cells[3].records[:1]
    )
    return results(cells, name, sweep_id)


def verdict(mean: float = 5.25, outcome: str = "wins") -> Verdict:
    """A verdict on the made-up sweep, ``balanced`` in front."""
    arms = tuple(
        ArmResult(
            arm=Arm(**shape),
            best_lr=0.02,
            best_lr_at_edge=False,
            seeds=(101, 102, 103),
            losses=(mean + i / 10,) * 3,
            mean=mean + i / 10,
            ci_low=mean + i / 10 - 0.02,
            ci_high=mean + i / 10 + 0.02,
            bpb=2.4,
            common_context_loss=None,
            tokens_per_s=1_024.0,
            peak_mem_allocated_gib=0.25,
            diverged=0,
        )
        for i, shape in enumerate(reversed(SHAPES))
    )
    pair = PairResult(
        a="balanced",
        b="long_seq",
        difference=-0.1,
        ci_low=-0.12,
        ci_high=-0.08,
        p_value=0.001,
        p_adjusted=0.003,
        probability_a_better=0.999,
        decision="balanced is better",
    )
    statement = "balanced learns best at 4,096 tokens."
    check = Check(rule=13, kept=False, sentence="made up")
    winner = "balanced" if outcome == "wins" else None
    decided = decide(finished_sweep())
    return replace(
        decided, outcome=outcome, winner=winner, statement=statement, strategies=arms, pairs=(pair,), checks=(check,)
    )
