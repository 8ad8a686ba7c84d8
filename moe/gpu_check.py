"""What a GPU makes of training here, measured in minutes: ``python -m moe gpu-check`` needs torch and numpy alone.

``EXPERIMENTS`` lists what is measured, ``moe.gpu_criteria`` has the criteria. Packing, a kill and the exam need Ray and
the corpus: those are in ``sweeps gpu-check``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from moe import gpu_criteria as criteria
from moe.config import BatchConfig, ModelConfig
from moe.device import Device
from moe.gpu_criteria import Row, StepFacts, not_measured
from moe.gpu_experiments import (
    Bench,
    Shape,
    against_transformers,
    compiled,
    determinism,
    overflow,
    precisions_of,
    profile_step,
    read_corpus,
    resume,
    shortage,
    train_steps,
)


def _study(vocab_size: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab_size, d_model=384, n_layers=6, n_heads=8, n_kv_heads=8, d_expert=1536, n_experts=8, top_k=2
    )


SHAPES = (
    Shape(name="tutorial", model=_study(49_152), batch=BatchConfig(micro_batch_size=64, seq_len=256)),
    Shape(name="published", model=_study(49_152), batch=BatchConfig(micro_batch_size=104, seq_len=256)),
    Shape(name="matched", model=_study(8192), batch=BatchConfig(micro_batch_size=32, seq_len=1024)),
)


def _precisions(bench: Bench, shapes: Sequence[Shape]) -> Iterator[Row]:
    runs: list[StepFacts] = []
    for shape in shapes:
        for precision in precisions_of(bench.device):
            facts = train_steps(bench, shape, precision)
            runs.append(facts)
            yield from criteria.step_rows(facts)
            if facts.reserved_gib is not None and facts.context_gib is not None:
                found = f"{facts.reserved_gib:.2f} GiB reserved, {facts.context_gib:.2f} outside of the allocator"
                yield Row(what=f"{facts.name}: memory beside", found=found)
    yield from criteria.agreement_rows(runs)
    if not bench.device.has_fast_bf16:
        yield not_measured("loss in bf16", f"{bench.device.name} has no bf16 units")


def _shortage(bench: Bench, shape: Shape) -> Iterator[Row]:
    if bench.device.kind == "cpu":
        yield not_measured(f"{shape.name}: short of memory", "the allocator of a CPU cannot be limited")
    else:
        yield from criteria.shortage_rows(*shortage(bench, shape))


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One experiment: what it does, in words, and the rows that it gives for a bench and its shapes."""

    does: str
    rows: Callable[[Bench, Sequence[Shape]], Iterator[Row]]


EXPERIMENTS = (
    Experiment(does="train every shape in every precision: time, MFU, memory, losses", rows=_precisions),
    Experiment(
        does="profile a step of every shape: launches, host reads, attention's kernel",
        rows=lambda bench, shapes: (
            row for shape in shapes for row in criteria.profile_rows(profile_step(bench, shape))
        ),
    ),
    Experiment(
        does="save, load and train on, to the last bit",
        rows=lambda bench, shapes: iter([criteria.resume_row(resume(bench, shapes[0]))]),
    ),
    Experiment(
        does="time a step with and without deterministic algorithms",
        rows=lambda bench, shapes: iter([criteria.determinism_row(determinism(bench, shapes[0]))]),
    ),
    Experiment(
        does="overflow in fp16",
        rows=lambda bench, shapes: iter([criteria.overflow_row(overflow(bench, shapes[0]))]),
    ),
    Experiment(does="run out of memory", rows=lambda bench, shapes: _shortage(bench, shapes[0])),
    Experiment(
        does="time a step of every shape beside transformers, where it is installed",
        rows=lambda bench, shapes: (criteria.contest_row(against_transformers(bench, shape)) for shape in shapes),
    ),
    Experiment(
        does="time a step under torch.compile and with CUDA graphs",
        rows=lambda bench, shapes: iter(criteria.compile_rows(compiled(bench, shapes[0]))),
    ),
)


def rows_of(bench: Bench, shapes: Sequence[Shape] = SHAPES) -> Iterator[Row]:
    """The table, line by line as it is measured; an experiment that fails is a row that fails, and the next begins."""
    for experiment in EXPERIMENTS:
        try:
            yield from experiment.rows(bench, shapes)
        except Exception as error:  # noqa: BLE001 - whatever a GPU answers belongs in the table
            yield Row(what=experiment.does, found=f"{type(error).__name__}: {error}", criterion="it runs", held=False)


def gpu_check(corpus: Path | None, out: Path, steps: int) -> bool | None:
    """Measure, print the table and write ``out``; whether all criteria held, None where there is no GPU."""
    if not torch.cuda.is_available():
        print(f"torch {torch.__version__} sees no CUDA device. With one this would, in {steps} steps each of ", end="")
        print(", ".join(shape.name for shape in SHAPES) + ":")
        print("\n".join(f"  {experiment.does}" for experiment in EXPERIMENTS))
        return None
    device = Device.resolve("cuda")
    print(f"{device.name}, compute capability {device.compute_capability}, torch {torch.__version__}")
    rows = []
    for row in rows_of(Bench(device=device, corpus=read_corpus(corpus), steps=steps)):
        rows.append(row)
        print(line_of(row), flush=True)
    found = [{"check": row.what, "found": row.found, "criterion": row.criterion, "passed": row.held} for row in rows]
    facts = {"device": device.name, "torch": str(torch.__version__), "rows": found}
    out.write_text(json.dumps(facts, indent=1))
    return all(row.held is not False for row in rows)


def line_of(row: Row) -> str:
    """A row as it is printed."""
    verdict = {None: "", True: "ok", False: f"FAILED: {row.criterion}"}[row.held]
    return f"{row.what:44} {row.found:64} {verdict}".rstrip()
