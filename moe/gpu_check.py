"""What a GPU makes of training here, measured in minutes: ``python -m moe gpu-check`` needs torch and numpy alone.

| row | criterion |
|---|---|
| milliseconds a step, in each precision that the GPU has | measured, not judged |
| loss after the same steps, 16 bits against fp32 | within 0.1 nats |
| peak memory against its prediction | within 25% |
| kernels of attention | those that ``moe.device_choices`` names |
| saved, loaded and trained on | equal bits to a run that was not interrupted |
| the cost of determinism | measured, not judged |
| memory that holds half of a step | the step is split, and training goes on |
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from moe.config import BatchConfig, ModelConfig, OptimizerConfig, PrecisionName, ScheduleConfig, TrainConfig
from moe.device import Device, device_memory_gib, limit_memory, release_cached_memory
from moe.exam import Exam, ExamRows, TrainingData
from moe.memory import predict_peak_gib
from moe.token_file import TokenFile
from moe.trainer import Trainer
from moe.windows import Windows

LOSS_TOLERANCE_NATS = 0.1
PEAK_TOLERANCE = 0.25
WARM_UP_STEPS = 2  # CUDA loads its code in them, and the first makes the optimizers' state
LARGEST_CORPUS_BYTES = 2**23
_OPERATIONS = {
    "_scaled_dot_product_flash_attention": "flash",
    "_scaled_dot_product_cudnn_attention": "cuDNN",
    "_scaled_dot_product_efficient_attention": "memory-efficient",
    "_scaled_dot_product_flash_attention_for_cpu": "flash for CPU",
    "_scaled_dot_product_attention_math": "math",
}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One arm of a preset."""

    name: str
    model: ModelConfig
    batch: BatchConfig


def _study(vocab_size: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab_size, d_model=384, n_layers=6, n_heads=8, n_kv_heads=8, d_expert=1536, n_experts=8, top_k=2
    )


SHAPES = (
    Shape(name="tutorial", model=_study(49_152), batch=BatchConfig(micro_batch_size=64, seq_len=256)),
    Shape(name="published", model=_study(49_152), batch=BatchConfig(micro_batch_size=104, seq_len=256)),
    Shape(name="matched", model=_study(8192), batch=BatchConfig(micro_batch_size=32, seq_len=1024)),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table; ``passed`` is None where nothing is judged."""

    check: str
    found: str
    passed: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a few steps gave."""

    weights: Tensor
    losses: tuple[float, ...]
    ms_per_step: float
    peak_gib: float
    splits: int


class GpuCheck:
    """Trains a few steps again and again, on ``device``, on the bytes of ``corpus``."""

    def __init__(self, device: Device, corpus: bytes, *, shapes: Sequence[Shape] = SHAPES, steps: int = 12) -> None:
        self.device, self.shapes, self.steps = device, tuple(shapes), steps
        self._corpus = corpus

    def rows(self) -> Iterator[Row]:
        """The table, line by line as it is measured."""
        for shape in self.shapes:
            yield from self._precisions(shape)
        first = self.shapes[0]
        yield self._attention(first)
        yield self._resume(first)
        yield self._cost_of_determinism(first)
        if self.device.kind == "cuda":
            yield self._out_of_memory(first)

    def _precisions(self, shape: Shape) -> Iterator[Row]:
        half: tuple[PrecisionName, ...] = ("bf16", "fp16") if self.device.has_fast_bf16 else ("fp16",)
        runs = {name: self._run(shape, name) for name in ("fp32", *half)}
        for name, run in runs.items():
            tokens_per_s = 1e3 * shape.batch.tokens_per_step / run.ms_per_step
            yield Row(
                check=f"{shape.name}, {name}: step", found=f"{run.ms_per_step:.1f} ms, {tokens_per_s:,.0f} tokens/s"
            )
            predicted = predict_peak_gib(self._config(shape, name), precision=name, device=self.device)
            yield Row(
                check=f"{shape.name}, {name}: peak memory",
                found=f"{run.peak_gib:.2f} GiB, predicted {predicted:.2f} GiB",
                passed=abs(run.peak_gib - predicted) <= PEAK_TOLERANCE * predicted,
            )
        for name in half:
            apart = abs(runs[name].losses[-1] - runs["fp32"].losses[-1])
            yield Row(
                check=f"{shape.name}: loss in {name} against fp32",
                found=f"{runs[name].losses[-1]:.4f} and {runs['fp32'].losses[-1]:.4f} nats",
                passed=apart <= LOSS_TOLERANCE_NATS,
            )

    def _attention(self, shape: Shape) -> Row:
        trainer = self._trainer(shape, "auto")
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.device.kind == "cuda" else [])]
        with profile(activities=activities) as profiler:
            list(trainer.run(shape.batch.tokens_per_step))
        counts = {event.key: event.count for event in profiler.key_averages()}
        used = sorted({name for key, name in _OPERATIONS.items() if f"aten::{key}" in counts})
        launches = sum(count for key, count in counts.items() if key.startswith("cudaLaunchKernel"))
        expected = trainer.choices.attention_kernel
        return Row(
            check=f"{shape.name}: attention",
            found=f"{' and '.join(used)} (expected {expected}); {launches} kernels launched in the first step",
            passed=bool(used) and set(used) <= set(expected.split(" or ")),
        )

    def _resume(self, shape: Shape) -> Row:
        whole = self._run(shape, "auto")
        half = self._trainer(shape, "auto")
        half_tokens = self.steps // 2 * shape.batch.tokens_per_step
        list(half.run(half_tokens))
        with tempfile.TemporaryDirectory() as folder:
            half.save(Path(folder))
            del half
            resumed = self._trainer(shape, "auto")
            resumed.load(Path(folder))
        list(resumed.run())
        equal = torch.equal(_weights(resumed), whole.weights)
        return Row(
            check=f"{shape.name}: saved, loaded, trained on",
            found="equal to the last bit" if equal else "another result",
            passed=equal,
        )

    def _cost_of_determinism(self, shape: Shape) -> Row:
        bound, free = (self._run(shape, "auto", deterministic=choice).ms_per_step for choice in (True, False))
        return Row(
            check=f"{shape.name}: determinism",
            found=f"{bound:.1f} ms a step with it, {free:.1f} without ({100 * (bound / free - 1):+.0f}%)",
        )

    def _out_of_memory(self, shape: Shape) -> Row:
        peak_gib, total_gib = self._run(shape, "auto").peak_gib, device_memory_gib()
        assert total_gib is not None
        limit_memory(0.5 * peak_gib / total_gib)
        try:
            run = self._run(shape, "auto")
        finally:
            limit_memory(1.0)
        return Row(
            check=f"{shape.name}: half of the memory",
            found=f"split {run.splits} times, loss {run.losses[-1]:.4f}",
            passed=run.splits > 0,
        )

    def _run(self, shape: Shape, precision: PrecisionName, *, deterministic: bool = True) -> Run:
        release_cached_memory()
        trainer = self._trainer(shape, precision, deterministic=deterministic)
        reports = list(trainer.run())
        timed = reports[WARM_UP_STEPS:] or reports
        return Run(
            weights=_weights(trainer),
            losses=tuple(report.train_loss for report in reports),
            ms_per_step=statistics.median(1e3 * shape.batch.tokens_per_step / report.tokens_per_s for report in timed),
            peak_gib=trainer.peak_mem_allocated_gib,
            splits=trainer.accumulation.splits,
        )

    def _trainer(self, shape: Shape, precision: PrecisionName, *, deterministic: bool = True) -> Trainer:
        config = replace(self._config(shape, precision), deterministic=deterministic)
        return Trainer(config, data_of(self._corpus, config))

    def _config(self, shape: Shape, precision: PrecisionName) -> TrainConfig:
        budget_tokens = self.steps * shape.batch.tokens_per_step
        return TrainConfig(
            model=shape.model,
            batch=shape.batch,
            optimizer=OptimizerConfig(lr=0.01, adamw_lr=0.003),
            schedule=ScheduleConfig(budget_tokens=budget_tokens, warmup_tokens=0, decay_tokens=0),
            seed=1,
            block_len=shape.batch.seq_len,
            precision=precision,
            device=self.device.kind,
            report_every_tokens=shape.batch.tokens_per_step,
        )


def _weights(trainer: Trainer) -> Tensor:
    return torch.cat([param.detach().flatten().cpu() for param in trainer.model.parameters()])


def data_of(corpus: bytes, config: TrainConfig) -> TrainingData:
    """Training windows of a corpus of bytes, each a token, and an exam of one row that is never evaluated."""
    tokens = np.frombuffer(corpus, dtype=np.uint8).astype(np.uint16)
    whole = np.zeros(1, dtype=np.int64)
    file = TokenFile(
        folder=Path(),
        split="train",
        tokens=tokens,
        document_starts=whole,
        document_bytes=np.full(1, tokens.size, dtype=np.int64),
        document_names=("corpus",),
    )
    rows = ExamRows(
        split="test",
        tokens_RS=tokens[None, : config.block_len + 1].astype(np.int32),
        documents_RS=np.zeros((1, config.block_len + 1), dtype=np.int32),
        document_names=("corpus",),
        bytes_of_document=np.ones(1),
    )
    exam = Exam(
        validation=rows,
        test=rows,
        block_len=config.block_len,
        common_len=config.batch.seq_len,
        eval_lens=(config.batch.seq_len,),
        packed=True,
        single_documents=1,
        single_document_share=1.0,
        fingerprint="none",
    )
    windows = Windows(
        file,
        block_len=config.block_len,
        budget_tokens=config.schedule.budget_tokens,
        seed=config.seed,
        batch=config.batch,
    )
    return TrainingData(windows=windows, exam=exam, bytes_per_token=1.0)


def read_corpus(path: Path | None) -> bytes:
    """The first 8 MiB of a file, or of the sources of Python's standard library, which are everywhere."""
    if path is not None:
        with path.open("rb") as stream:
            return stream.read(LARGEST_CORPUS_BYTES)
    sources = b"".join(file.read_bytes() for file in sorted(Path(os.__file__).parent.glob("*.py")))
    return sources[:LARGEST_CORPUS_BYTES]


def gpu_check(corpus: Path | None, out: Path, steps: int) -> bool | None:
    """Measure, print the table and write ``out``; whether all that is judged passed, None where there is no GPU."""
    if not torch.cuda.is_available():
        names = ", ".join(shape.name for shape in SHAPES)
        print(
            f"torch {torch.__version__} sees no CUDA device. With one this would train {steps} steps of {names} in "
            "every precision it has, and measure time, memory against its prediction, losses against each other, "
            "attention's kernels, resuming to the last bit, the cost of determinism, and running out of memory"
        )
        return None
    device = Device.resolve("cuda")
    print(f"{device.name}, compute capability {device.compute_capability}, torch {torch.__version__}")
    rows = []
    for row in GpuCheck(device, read_corpus(corpus), steps=steps).rows():
        rows.append(row)
        print(line_of(row), flush=True)
    facts = {"device": device.name, "torch": str(torch.__version__), "rows": [asdict(row) for row in rows]}
    out.write_text(json.dumps(facts, indent=1))
    return all(row.passed is not False for row in rows)


def line_of(row: Row) -> str:
    """A row as it is printed."""
    verdict = {None: "", True: "ok", False: "FAILED"}[row.passed]
    return f"{row.check:44} {row.found:64} {verdict}".rstrip()
