"""A made-up sweep of three arms, shaped like a real one, for tests of the report; no number in it was measured."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from search_spaces import Cell
from sweeps.ledger.results import CellResult, SweepResults
from sweeps.report.facts import Facts

BUDGET = 524_288
RUNGS = (131_072, 262_144)
ARMS = {"large_batch": (32, 64), "balanced": (8, 256), "long_seq": (2, 1024)}
OFFSETS = (0.14, 0.0, 0.05, 0.3, 0.22, 0.4, 0.1, 0.5)
RATES = (0.005, 0.01, 0.02, 0.04)
BEGUN_S = 1_770_000_000.0


class _Clock:
    """Two workers that take turns, so that cells lie in time as in a real sweep."""

    def __init__(self) -> None:
        self.free_at = [BEGUN_S + 2.0, BEGUN_S + 2.4]

    def take(self, seconds: float) -> float:
        worker = int(np.argmin(self.free_at))
        start = self.free_at[worker]
        self.free_at[worker] = start + seconds + 0.4
        return start


def _records(
    rng: np.random.Generator, *, final: float, until: int, start_s: float, speed: float, points: int
) -> list[dict[str, Any]]:
    found = []
    exams = {*RUNGS, BUDGET}
    tokens_at = sorted({round(BUDGET * (i + 1) / points) for i in range(points)} | exams)
    exam_time_s = 0.0
    for tokens in (t for t in tokens_at if t <= until):
        share = tokens / BUDGET
        plateau = 0.12 if share < 0.8 else 0.12 * (1 - share) / 0.2
        loss = final + plateau + 3.6 * math.exp(-6.5 * share) + float(rng.normal(0, 0.012))
        exam_time_s += 0.6 if tokens in exams else 0.0
        train_time_s = tokens / speed
        found.append(
            {
                "tokens_seen": tokens, "step": tokens // 2048, "train_loss": loss - 0.1, "lb_loss": 1.02,
                "z_loss": 0.0, "grad_norm": 0.6, "lr": 0.02, "adamw_lr": 0.006,
                "tokens_per_s": speed * float(rng.uniform(0.97, 1.03)), "mfu_pct": None,
                "peak_mem_allocated_gib": 0.61, "loss_scale": None, "skipped_steps": 0,
                "expert_load_max_over_mean": 1.2 + 1.5 * math.exp(-8 * share) + float(rng.uniform(0, 0.06)),
                "router_entropy": 1.5 + 0.4 * math.exp(-4 * share), "micro_batch_splits": 0,
                "train_time_s": train_time_s, "exam_time_s": exam_time_s,
                "val_loss": loss if tokens in exams else None, "val_bpb": loss / 2.4 if tokens in exams else None,
                "val_common_loss": loss + 0.03 if tokens in exams else None, "precision": "fp32",
                "timestamp_s": start_s + train_time_s + exam_time_s, "concurrent_trials": 2, "threads": 1,
            }
        )  # fmt: skip
    return found


def _scores(rng: np.random.Generator, loss: float, seq_len: int) -> dict[str, Any]:
    edges = [0] + [2**i for i in range(seq_len.bit_length()) if 2**i <= seq_len]
    positions = [
        {
            "first": low,
            "last": high - 1,
            "start": low,
            "end": high,
            "loss": loss + 1.6 / (1 + low) ** 0.5 - 0.25,
            "n_targets": 64 * (high - low),
        }
        for low, high in itertools.pairwise(edges)
    ]
    lengths = [
        {
            "eval_len": n,
            "loss": loss + (0.02 if n > seq_len else 0.08) * abs(math.log2(n / seq_len)),
            "extrapolation": n > seq_len,
        }
        for n in (64, 256, 1024)
    ]
    # Some documents are harder than others, for every model alike.
    hard = np.linspace(-0.3, 0.3, 32)
    documents = {f"doc{i:02d}": (100 * (loss + hard[i] + float(rng.normal(0, 0.02))), 100) for i in range(32)}
    return {
        "test_loss": loss, "bpb": loss / 2.4, "common_context_loss": loss + 0.03 * math.log2(seq_len / 32),
        "sliding_loss": loss - 0.05, "sliding_own_loss": loss, "loss_by_position": positions,
        "loss_by_length": lengths, "context_use": None, "loss_by_document": documents,
        "common_loss_by_document": documents, "seq_len": seq_len, "n_targets": 65_536, "secondary_rows": 16,
    }  # fmt: skip


def _cell(phase: Any, strategy: str, lr: float, seed: int, arrangement: Any = "shuffled") -> Cell:
    point = f"{phase} {strategy} {lr} {seed} {arrangement}"
    return Cell(
        cell_id=hashlib.sha256(point.encode()).hexdigest()[:16], phase=phase, strategy=strategy, lr=lr,
        adamw_lr=0.3 * lr, arrangement=arrangement,
        seed=seed, budget_tokens=BUDGET,
    )  # fmt: skip


def beginning(arms: Mapping[str, tuple[int, int]] = ARMS, **changes: Any) -> dict[str, Any]:
    """Return what ``sweep.json`` would hold."""
    strategies = [
        {
            "name": name,
            "micro_batch_size": batch,
            "seq_len": length,
            "grad_accum_steps": 1,
            "tokens_per_step": batch * length,
        }
        for name, (batch, length) in arms.items()
    ]
    return {
        "schema": 1, "sweep": "first", "sweep_id": "5f2c9a10b3d44e11", "created_s": BEGUN_S, "preset": "laptop",
        "space": {
            "description": "Three batch shapes at laptop scale", "budget_tokens": BUDGET, "rungs_tokens": list(RUNGS),
            "early_stopping": {"kind": "asha", "keep": [3, 2]}, "strategies": strategies,
            "rates": {"lr": list(RATES), "adamw_ratio": 0.3, "max_widenings": 1},
            "seeds": {"explore": 1, "confirm": 5},
            "schedule": {"warmup_share": 0.05, "decay_share": 0.2}, "corpus": {"kind": "embedded"},
            "model": {
                "d_model": 64, "n_layers": 3, "n_heads": 2, "n_kv_heads": 2, "d_expert": 128, "n_experts": 8,
                "top_k": 2,
            },
        },
        "vocab_size": 2048,
        "exam": {"fingerprint": "9c1e55aa90d2f7e1", "rows_test": 64, "block_len": 1024, "packed": False},
        "fingerprints": {"corpus": "c0ffee1234567890", "tokenizer": "70ca1e5512345678", "code": "ab12"},
        "audit": {
            "findings": [
                {"rule": "overlap_share", "value": 0.0013, "threshold": 0.01, "level": "ok",
                 "message": "0.13% of the exam's 64-token runs also stand in train (refused above 1%)"},
                {"rule": "common_run_tokens", "value": 97, "threshold": 128, "level": "ok",
                 "message": "longest run common to exam and train: 97 tokens (refused from 128)"},
                {"rule": "straddling_windows", "value": 0.61, "threshold": 0.5, "level": "warn",
                 "message": "61% of long_seq's windows straddle documents, 4% of large_batch's"},
            ],
        },
        "versions": {"python": "3.11.2", "torch": "2.13.0", "ray": "2.60.0"},
        "hardware": {"system": "Linux x86_64", "processor": "an example processor", "cores": 2, "gpus": []},
        "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": False},
        "strategies": strategies,
        **changes,
    }  # fmt: skip


def results(
    arms: Mapping[str, tuple[int, int]] = ARMS,
    *,
    seeds: int = 5,
    points: int = 24,
    name: str = "first",
    explore_seeds: int = 1,
) -> SweepResults:
    """Return a finished sweep: explore with early stopping and one diverged cell, then confirm cells."""
    rng = np.random.default_rng(7)
    clock = _Clock()
    cells = []
    for index, arm in enumerate(arms):
        speed = (26_000.0, 22_000.0, 17_500.0)[index % 3]
        for seed in range(1, explore_seeds + 1):
            for place, lr in enumerate(RATES):
                final = 4.12 + OFFSETS[index % 8] + 0.11 * (math.log2(lr / 0.014)) ** 2
                until = (RUNGS[0], BUDGET, BUDGET, RUNGS[1])[place]
                outcome = ("stopped_early", "completed", "completed", "stopped_early")[place]
                if index == 2 and place == 3:
                    until, outcome = 87_382, "diverged"
                start_s = clock.take(until / speed + 1.8)
                records = _records(rng, final=final, until=until, start_s=start_s, speed=speed, points=points)
                exams = [record["val_loss"] for record in records if record["val_loss"] is not None]
                cells.append(
                    CellResult(
                        cell=_cell("explore", arm, lr, seed), outcome=outcome, tokens_seen=until,
                        val_loss=exams[-1] if exams and outcome != "diverged" else None, records=tuple(records),
                        reason={
                            "stopped_early": f"rank 4 of 4 in its arm at {until:,} tokens, 3 go on",
                            "diverged": "training loss is not finite",
                        }.get(outcome),
                    )
                )  # fmt: skip
    for seed in range(101, 101 + seeds):
        shared = float(rng.normal(0, 0.01))
        for index, arm in enumerate(arms):
            speed = (26_000.0, 22_000.0, 17_500.0)[index % 3]
            loss = 4.15 + OFFSETS[index % 8] + shared + float(rng.normal(0, 0.007))
            start_s = clock.take(BUDGET / speed + 1.8)
            records = _records(rng, final=loss - 0.01, until=BUDGET, start_s=start_s, speed=speed, points=points)
            cells.append(
                CellResult(
                    cell=_cell("confirm", arm, 0.02 if index == 0 else 0.01, seed), outcome="completed",
                    tokens_seen=BUDGET, val_loss=records[-1]["val_loss"], test_loss=loss,
                    scores=_scores(rng, loss, list(arms.values())[index][1]),
                    records=tuple(records),
                )
            )  # fmt: skip
    return SweepResults(name=name, beginning={**beginning(arms), "sweep": name}, cells=tuple(cells))


def judged(sweep: SweepResults, **changes: Any) -> Facts:
    """Return what a report reads out of a sweep and its verdict, which may be changed."""
    from sweeps.verdict.decision import decide

    return Facts(sweep, replace(decide(sweep), **changes))


def changed(sweep: SweepResults, change: Callable[[CellResult], CellResult | None]) -> SweepResults:
    """Return the sweep with every cell changed; a cell changed to None is left out."""
    return replace(sweep, cells=tuple(new for cell in sweep.cells if (new := change(cell)) is not None))


def many_cells(total: int) -> SweepResults:
    """Return a sweep of about ``total`` cells, most of them explore cells of many seeds, with short records."""
    per_seed = len(ARMS) * len(RATES)
    return results(explore_seeds=(total - 3 * 20) // per_seed + 1, seeds=20, points=8)
