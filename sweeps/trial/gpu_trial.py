"""One short training run in a process of its own, measured: the trials of ``sweeps gpu-check``.

``python -m sweeps.trial.gpu_trial ORDER.json FACTS.json`` trains some steps of one arm as the order says and writes
what it found. It is a separate process, because a CUDA context, its memory limit and a kill belong to a process.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_spaces import Cell, Space

if TYPE_CHECKING:
    from moe.config import PrecisionName, TrainConfig

GIB = 2**30
GATE_DEADLINE_S = 300.0


@dataclass(frozen=True, kw_only=True)
class TrialOrder:
    """What to train: ``steps`` optimizer steps of ``arm`` of ``space`` (resolved), and under what circumstances.

    ``gpu_share`` limits the allocator to a share of the GPU (None: no limit). With ``save_at_step`` a checkpoint is
    written into ``checkpoint_dir`` there, and a file ``saved`` beside it once it is whole; with ``resumes`` training
    begins from that checkpoint. ``step_pause_s`` slows the steps down, for a kill that must fall between two of them.
    With ``gate_dir`` training begins when ``gate_count`` processes have come so far, so that they run at the same time.
    """

    space: dict[str, Any]
    arm: str
    precision: PrecisionName
    steps: int
    lr: float
    seed: int = 1
    gpu_share: float | None = None
    checkpoint_dir: str | None = None
    save_at_step: int | None = None
    resumes: bool = False
    step_pause_s: float = 0.0
    gate_dir: str | None = None
    gate_count: int = 1


@dataclass(frozen=True, kw_only=True)
class TrialFacts:
    """What was measured. ``losses`` has the training loss of each step, from the first step of this process on.

    ``tokens_per_s`` leaves out the first two steps (CUDA code is loaded there). Outside CUDA ``reserved_gib``,
    ``context_gib`` and ``gpu_gib`` are None. ``context_gib`` is what is occupied beyond this process's
    allocator: its own context where it is alone on the GPU. Where ``error`` is set nothing was measured.
    """

    arm: str
    precision: str
    losses: tuple[float, ...] = ()
    tokens_per_s: float = 0.0
    peak_gib: float = 0.0
    predicted_peak_gib: float = 0.0
    micro_batch_splits: int = 0
    skipped_steps: int = 0
    device: str = ""
    reserved_gib: float | None = None
    context_gib: float | None = None
    gpu_gib: float | None = None
    error: str | None = None


def train(order: TrialOrder) -> TrialFacts:
    """Carry the order out in this process."""
    import torch

    from moe.device import Device, limit_memory, set_threads
    from moe.memory import predict_peak_gib
    from sweeps.training_data import load_training_data

    if order.gpu_share is not None:
        limit_memory(order.gpu_share)
    space = Space.from_resolved(order.space)
    set_threads(space.resources.threads_per_trial)
    data = load_training_data(space)
    config = order_config(order, space, data.tokens.vocab_size)
    trainer = data.trainer(config)
    if order.resumes:
        trainer.load(_checkpoint(order))
    first_step = trainer.step
    _wait_at_gate(order)
    for report in trainer.run(order.steps * config.batch.tokens_per_step):
        if report.step == order.save_at_step:
            _checkpoint(order).mkdir(parents=True)
            trainer.save(_checkpoint(order))
            (_checkpoint(order).parent / "saved").touch()
        time.sleep(order.step_pause_s)
    records = [record for record in trainer.records if record["step"] > first_step]
    timed = records[2:] or records
    device = Device.resolve(config.device)
    facts = TrialFacts(
        arm=order.arm,
        precision=trainer.precision.name,
        losses=tuple(record["train_loss"] for record in records),
        tokens_per_s=len(timed) / sum(1 / record["tokens_per_s"] for record in timed),
        peak_gib=records[-1]["peak_mem_allocated_gib"],
        predicted_peak_gib=predict_peak_gib(config, precision=trainer.precision.name, device=trainer.device),
        micro_batch_splits=records[-1]["micro_batch_splits"],
        skipped_steps=records[-1]["skipped_steps"],
        device=device.name,
    )
    if device.kind == "cpu":
        return facts
    free_after, total = torch.cuda.mem_get_info()
    reserved = torch.cuda.memory_reserved()
    return replace(
        facts,
        reserved_gib=torch.cuda.max_memory_reserved() / GIB,
        context_gib=max(0, total - free_after - reserved) / GIB,
        gpu_gib=total / GIB,
    )


def order_config(order: TrialOrder, space: Space, vocab_size: int) -> TrainConfig:
    """The arm's training config as a sweep would make it, reporting after every step and without exams."""
    from sweeps.training_config import train_config

    cell = Cell(
        cell_id=None,
        phase="confirm",
        strategy=order.arm,
        lr=order.lr,
        adamw_lr=order.lr * (space.rates.adamw_ratio or 1.0),
        arrangement="shuffled",
        seed=order.seed,
        budget_tokens=space.budget_tokens,
    )
    config = train_config(space, cell, vocab_size=vocab_size)
    return replace(
        config, precision=order.precision, exam_at_tokens=(), report_every_tokens=config.batch.tokens_per_step
    )


def _wait_at_gate(order: TrialOrder) -> None:
    if order.gate_dir is None:
        return
    gate = Path(order.gate_dir)
    (gate / str(os.getpid())).touch()
    deadline_s = time.monotonic() + GATE_DEADLINE_S
    while len(list(gate.iterdir())) < order.gate_count and time.monotonic() < deadline_s:
        time.sleep(0.02)


def _checkpoint(order: TrialOrder) -> Path:
    assert order.checkpoint_dir is not None, "an order that saves or resumes names a folder"
    return Path(order.checkpoint_dir) / "checkpoint"


def main(order_file: str, facts_file: str) -> None:
    """Read an order, train, write the facts; without them, the last line of the log says why."""
    order = TrialOrder(**json.loads(Path(order_file).read_text()))
    Path(facts_file).write_text(json.dumps(asdict(train(order))))


if __name__ == "__main__":
    main(*sys.argv[1:])
