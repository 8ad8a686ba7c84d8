"""The experiments of the GPU check that need torch and numpy alone: each trains some steps and returns measurements.

They run on any device: on a CPU they are a rehearsal, with small shapes.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from moe.config import BatchConfig, ModelConfig, OptimizerConfig, PrecisionName, ScheduleConfig, TrainConfig
from moe.contestants import Contestant, ours, transformers_model
from moe.device import Device, limit_memory, release_cached_memory, set_arithmetic
from moe.errors import Diverged, OutOfMemory
from moe.exam import Exam, ExamRows, TrainingData
from moe.gpu_criteria import (
    ContestFacts,
    DeterminismFacts,
    OverflowFacts,
    ProfileFacts,
    ResumeFacts,
    StepFacts,
    host_reads_of_step,
    launch_budget,
    step_facts,
)
from moe.memory import GIB, predict_peak_gib
from moe.precision import resolve_precision
from moe.token_file import TokenFile
from moe.trainer import Trainer
from moe.windows import Windows

LARGEST_CORPUS_BYTES = 2**23
SHORTAGE = 0.5
"""Of the peak that a run had alone: the step must be split, and a half of it fits."""

OVERFLOWING_SCALE = 2.0**17
"""Times a step's tokens: the gradient of a logit is about 1 / tokens and fp16 ends at 65,504, so that the first steps
overflow."""

OVERFLOW_STEPS = 24
"""Each step that overflows halves the scale: from 2**33 to the 2**16 that torch begins with, and some steps more."""

SAME_LOSS_NATS = 0.1
"""Contestants begin with equal weights; what computes another loss does another job."""

_ATTENTION = {
    "_scaled_dot_product_flash_attention": "flash",
    "_scaled_dot_product_cudnn_attention": "cuDNN",
    "_scaled_dot_product_efficient_attention": "memory-efficient",
    "_scaled_dot_product_flash_attention_for_cpu": "flash for CPU",
    "_scaled_dot_product_attention_math": "math",
}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One arm: what is trained, and in which batches."""

    name: str
    model: ModelConfig
    batch: BatchConfig


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where and on what the experiments train: ``steps`` steps on the bytes of ``corpus``.

    ``occupied_gib`` is what others occupy of the GPU.
    """

    device: Device
    corpus: bytes
    steps: int = 12
    occupied_gib: float = 0.0

    def config(self, shape: Shape, precision: PrecisionName, *, deterministic: bool = True) -> TrainConfig:
        """The training of a shape: a report after every step, no exam."""
        return TrainConfig(
            model=shape.model,
            batch=shape.batch,
            optimizer=OptimizerConfig(lr=0.01, adamw_lr=0.003),
            schedule=ScheduleConfig(
                budget_tokens=self.steps * shape.batch.tokens_per_step, warmup_tokens=0, decay_tokens=0
            ),
            seed=1,
            block_len=shape.batch.seq_len,
            precision=precision,
            device=self.device.kind,
            report_every_tokens=shape.batch.tokens_per_step,
            deterministic=deterministic,
        )

    def trainer(self, shape: Shape, precision: PrecisionName, *, deterministic: bool = True) -> Trainer:
        """A trainer of a shape at zero tokens."""
        release_cached_memory()
        config = self.config(shape, precision, deterministic=deterministic)
        return Trainer(config, data_of(self.corpus, config))


def precisions_of(device: Device) -> tuple[PrecisionName, ...]:
    """fp32, and the 16-bit formats that a device can train in."""
    return ("fp32", "bf16", "fp16") if device.has_fast_bf16 else ("fp32", "fp16")


def occupied_gib() -> float:
    """GiB of this process's GPU that are in use, whoever uses them; 0 without CUDA."""
    if not torch.cuda.is_available():
        return 0.0
    free, total = torch.cuda.mem_get_info()
    return (total - free) / GIB


def train_steps(bench: Bench, shape: Shape, precision: PrecisionName, *, deterministic: bool = True) -> StepFacts:
    """Train the steps; what goes wrong is in the facts."""
    try:
        trainer = bench.trainer(shape, precision, deterministic=deterministic)
        list(trainer.run())
    except (Diverged, OutOfMemory) as error:
        return StepFacts(arm=shape.name, precision=precision, error=str(error))
    return facts_of(trainer, shape.name, occupied_before_gib=bench.occupied_gib)


def facts_of(trainer: Trainer, arm: str, *, occupied_before_gib: float = 0.0) -> StepFacts:
    """What a trainer that reported after every step has measured."""
    facts = step_facts(
        arm,
        trainer.precision.name,
        trainer.records,
        tokens_per_step=trainer.config.batch.tokens_per_step,
        predicted_peak_gib=predict_peak_gib(trainer.config, precision=trainer.precision.name, device=trainer.device),
        device=trainer.device.name,
    )
    if trainer.device.memory_bytes is None:
        return facts
    return replace(
        facts,
        reserved_gib=torch.cuda.max_memory_reserved() / GIB,
        context_gib=max(0.0, occupied_gib() - torch.cuda.memory_reserved() / GIB - occupied_before_gib),
        gpu_gib=trainer.device.memory_bytes / GIB,
    )


def profile_step(bench: Bench, shape: Shape) -> ProfileFacts:
    """Watch one step in the middle of training."""
    trainer = bench.trainer(shape, "auto")
    list(trainer.run(shape.batch.tokens_per_step))
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.device.kind == "cuda" else [])]
    with profile(activities=activities, acc_events=True) as profiler:
        trainer._train_one_step()  # alone: a report reads numbers of its own
        trainer.device.synchronize()
    counts = {event.key: event.count for event in profiler.key_averages()}
    model, batch, choices = shape.model, shape.batch, trainer.choices
    dtype = choices.autocast_dtype or torch.float32
    grouped = choices.products_way(dtype, (model.d_model, model.d_expert)) != "expert by expert"
    rows = batch.tokens_per_micro_step
    return ProfileFacts(
        arm=shape.name,
        **counted(counts),
        expected_attention=tuple(choices.attention_kernel.split(" or ")),
        most_launches=launch_budget(
            n_layers=model.n_layers,
            grad_accum_steps=batch.grad_accum_steps,
            head_chunks=-(-rows // choices.head_rows(model.vocab_size)),
        ),
        expected_host_reads=host_reads_of_step(
            n_layers=model.n_layers, grad_accum_steps=batch.grad_accum_steps, grouped=grouped
        ),
    )


def counted(events: Mapping[str, int]) -> dict[str, Any]:
    """Launches, host reads and attention's kernels among a profile's events and how often each was."""
    used = {kernel for name, kernel in _ATTENTION.items() if f"aten::{name}" in events}
    return {
        "launches": sum(count for name, count in events.items() if "LaunchKernel" in name),
        "host_reads": sum(count for name, count in events.items() if name.startswith("Memcpy DtoH")),
        "attention": tuple(sorted(used)),
    }


def resume(bench: Bench, shape: Shape) -> ResumeFacts:
    """Save half-way, load into another trainer, and train on; against a run that was not interrupted."""
    undisturbed, half = bench.trainer(shape, "auto"), bench.trainer(shape, "auto")
    list(undisturbed.run())
    list(half.run(bench.steps // 2 * shape.batch.tokens_per_step))
    with tempfile.TemporaryDirectory() as folder:
        half.save(Path(folder))
        del half
        resumed = bench.trainer(shape, "auto")
        resumed.load(Path(folder))
    list(resumed.run())
    equal = {
        "losses": [run.records[-1]["train_loss"] for run in (resumed, undisturbed)],
        "weights": [weights_of(run).numpy().tobytes() for run in (resumed, undisturbed)],
    }
    return ResumeFacts(
        arm=shape.name,
        steps_after=bench.steps - bench.steps // 2,
        differences=tuple(name for name, (found, expected) in equal.items() if found != expected),
    )


def weights_of(trainer: Trainer) -> Tensor:
    """All weights in one vector on the CPU."""
    return torch.cat([param.detach().flatten().cpu() for param in trainer.model.parameters()])


def determinism(bench: Bench, shape: Shape) -> DeterminismFacts:
    """The same steps with deterministic algorithms and without."""
    bound, free = (train_steps(bench, shape, "auto", deterministic=choice).ms_per_step for choice in (True, False))
    return DeterminismFacts(arm=shape.name, with_ms=bound, without_ms=free)


def overflow(bench: Bench, shape: Shape) -> OverflowFacts:
    """Train in fp16 from a loss scale that must overflow."""
    trainer = replace(bench, steps=OVERFLOW_STEPS).trainer(shape, "fp16")
    assert trainer.scaler is not None
    scale = OVERFLOWING_SCALE * shape.batch.tokens_per_step
    trainer.scaler.load_state_dict({**trainer.scaler.state_dict(), "scale": scale})
    list(trainer.run())
    return OverflowFacts(
        arm=shape.name,
        losses=tuple(record["train_loss"] for record in trainer.records),
        skipped_steps=trainer.skipped_steps,
        scale_before=scale,
        scale_after=float(trainer.scaler.get_scale()),
    )


def shortage(bench: Bench, shape: Shape) -> tuple[StepFacts, StepFacts]:
    """The steps with all of the memory, and with a share of the peak that they had then."""
    alone = train_steps(bench, shape, "auto")
    gpu_gib = alone.gpu_gib
    assert gpu_gib is not None, "only an allocator that can be limited runs short"
    limit_memory(SHORTAGE * alone.peak_gib / gpu_gib)
    try:
        return alone, train_steps(bench, shape, "auto")
    finally:
        limit_memory(1.0)


def against_transformers(bench: Bench, shape: Shape) -> ContestFacts:
    """Steps of one micro-batch beside ``transformers``: eager and grouped, with fp32 and with 16-bit weights."""
    precision = resolve_precision("auto", bench.device)
    dtypes = [torch.float32, *([precision.autocast_dtype] if precision.autocast_dtype == torch.bfloat16 else [])]
    makers: dict[str, Callable[[], Contestant]] = {}
    for experts in ("eager", "grouped_mm"):
        for dtype in dtypes:
            kept = "fp32 weights" if dtype == torch.float32 else "bf16 weights"
            makers[f"transformers {experts}, {kept}"] = partial(
                transformers_model, shape.model, precision, experts=experts, weights_dtype=dtype, device=bench.device
            )
    return _contest(bench, shape, makers)


def compiled(bench: Bench, shape: Shape, backend: str = "inductor") -> ContestFacts:
    """Our step as it is, and with its loss under ``torch.compile``, without and with CUDA graphs."""
    precision = resolve_precision("auto", bench.device)

    def maker(**options: str) -> Contestant:
        contestant = ours(shape.model, precision, bench.device)
        contestant.loss_of = torch.compile(contestant.loss_of, dynamic=False, **options)  # type: ignore[call-overload]
        return contestant

    makers: dict[str, Callable[[], Contestant]] = {"torch.compile": lambda: maker(backend=backend)}
    if bench.device.kind == "cuda":
        makers["torch.compile with graphs"] = lambda: maker(mode="reduce-overhead")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what dynamo says of code that is not made for it
            return _contest(bench, shape, makers)
    finally:
        torch._dynamo.reset()


def _contest(bench: Bench, shape: Shape, makers: Mapping[str, Callable[[], Contestant]]) -> ContestFacts:
    """Time ours, then each of the others; none of them under deterministic algorithms, which are ours alone."""
    precision = resolve_precision("auto", bench.device)
    others_ms, failures = {}, {}
    set_arithmetic(bench.device, deterministic=False)  # a trainer sets it anew
    ours_ms, expected = _timed(bench, shape, lambda: ours(shape.model, precision, bench.device))
    for name, make in makers.items():
        try:
            ms, loss = _timed(bench, shape, make)
        except Exception as error:  # noqa: BLE001 - what another cannot do here is a finding about it
            failures[name] = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
            continue
        if abs(loss - expected) > SAME_LOSS_NATS:
            failures[name] = f"another loss: {loss:.3f}, ours {expected:.3f}"
        else:
            others_ms[name] = ms
    return ContestFacts(arm=shape.name, ours_ms=ours_ms, others_ms=others_ms, failures=failures)


def _timed(bench: Bench, shape: Shape, make: Callable[[], Contestant]) -> tuple[float, float]:
    """Milliseconds of a contestant's step, the first two left out, and the loss of its first."""
    release_cached_memory()
    contestant = make()
    n_tokens = shape.batch.tokens_per_micro_step
    tokens = torch.from_numpy(np.frombuffer(bench.corpus, dtype=np.uint8)[: n_tokens + 1].astype(np.int64))
    tokens = tokens.to(bench.device.torch_device)
    inputs_BT, targets_BT = (part.view(-1, shape.batch.seq_len) for part in (tokens[:-1], tokens[1:]))
    first_loss, times_s = float("nan"), []
    for step in range(bench.steps):
        times_s.append(contestant.step(inputs_BT, targets_BT))
        if step == 0:
            first_loss = contestant.loss
    return 1e3 * statistics.median(times_s[2:] or times_s), first_loss


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


def read_corpus(path: Path | None = None) -> bytes:
    """The first 8 MiB of a file, or of the sources of Python's standard library, which are everywhere."""
    if path is not None:
        with path.open("rb") as stream:
            return stream.read(LARGEST_CORPUS_BYTES)
    sources = b"".join(file.read_bytes() for file in sorted(Path(os.__file__).parent.glob("*.py")))
    return sources[:LARGEST_CORPUS_BYTES]
