"""Trains one model: an iterator of reports, with a clock of tokens and a checkpoint that holds everything.

| state | begins as | kept in a checkpoint |
|---|---|---|
| model | drawn as ``seed`` says, before the first step; nothing else is random | yes |
| Muon, AdamW | empty momenta | yes |
| scaler (fp16 only) | torch's default scale | yes |
| data position | window 0 of ``data.windows``, a pure function of seed and step | as ``step`` |
| schedule position | a pure function of ``tokens_seen`` | as ``tokens_seen`` |
| micro-batch parts, splits, skipped steps, times, peak memory, records | one part, zeros, empty | yes |
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe.accumulation import GradientAccumulation, MicroBatch
from moe.checkpoint import read_state, write_state
from moe.config import TrainConfig, check_config
from moe.device import Device, device_identity, is_out_of_memory, set_arithmetic
from moe.device_choices import DeviceChoices, choose
from moe.errors import ConfigError, Diverged, OutOfMemory
from moe.exam_views import ExamScores, Score, score, score_all_views
from moe.flops import mfu_pct
from moe.memory import PeakMemory, training_tensors
from moe.model import MoELanguageModel
from moe.optim import StepOutcome, build_optimizers
from moe.precision import resolve_precision
from moe.report import GradientSums, Report, StepSums, Tally
from moe.schedule import lr_factor
from moe.windows import WindowsOnDevice

if TYPE_CHECKING:
    from moe.exam import TrainingData

# A scale this small still overflows: the gradients themselves are beyond fp16, and no scale will repair that.
_SMALLEST_LOSS_SCALE = 2.0**-8

_STEPS_MEASURED_ON_CPU = 2

_COUNTERS = ("step", "skipped_steps", "train_time_s", "counting_time_s", "exam_time_s", "peak_mem_allocated_gib")


class Trainer:
    """One model in training: at ``tokens_seen`` 0 when built, elsewhere after ``load``.

    The data is ``data.windows`` for training and ``data.exam`` for scoring. ``choices`` are the device's own unless
    others are given, which the tests do to run a GPU's on a CPU.

    Raises:
        ConfigError: the config cannot be trained; the message names every problem.
        DeviceMissing: the config asks for a device that is not there.
    """

    def __init__(self, config: TrainConfig, data: TrainingData, *, choices: DeviceChoices | None = None) -> None:
        check_config(config)
        self.config = config
        self.data = data
        self.device = Device.resolve(config.device)
        self.precision = resolve_precision(config.precision, self.device)
        self.choices = choose(self.device, self.precision) if choices is None else choices
        set_arithmetic(self.device, deterministic=config.deterministic)
        self.model = MoELanguageModel(config.model, seed=config.seed, choices=self.choices)
        self.model.to(self.device.torch_device)
        self.optimizers = build_optimizers(self.model.weight_groups(), config.optimizer, self.choices)
        self._tokens = (
            WindowsOnDevice(data.windows, self.device.torch_device) if self.choices.tokens_on_device else data.windows
        )
        self.scaler = self.precision.make_scaler()
        self.accumulation = GradientAccumulation(
            self.model,
            self.precision,
            self.device,
            lb_loss_coef=config.model.lb_loss_coef,
            z_loss_coef=config.model.z_loss_coef,
        )
        self.step = 0
        self.skipped_steps = 0
        self.train_time_s = 0.0
        self.counting_time_s = 0.0
        self.exam_time_s = 0.0
        self.peak_mem_allocated_gib = 0.0
        self.records: list[dict[str, Any]] = []
        self._tally = Tally()

    @property
    def tokens_seen(self) -> int:
        """Target tokens trained on so far, those of skipped steps included."""
        return self.step * self.config.batch.tokens_per_step

    def run(self, until_tokens: int | None = None, *, pause: Callable[[], bool] | None = None) -> Iterator[Report]:
        """Trains up to ``until_tokens`` (the whole budget by default), yielding a report at every point due.

        Due are multiples of ``report_every_tokens``, ``exam_at_tokens`` (with validation losses) and the end. Between
        two reports the state is consistent: save it, or cease to iterate and the run stops there. A point that is no
        multiple of the tokens of a step is met by the first step that reaches it. Where reports lie far apart,
        ``pause`` is asked after each step without one: once it says yes the run ends there, to be saved and run on.

        Raises:
            ConfigError: ``until_tokens`` lies beyond the budget, where the schedule has no rate.
            Diverged: a loss, or a gradient that no loss scale can repair, is not finite.
            OutOfMemory: there is no room for a single row, or for the optimizers.
        """
        budget_tokens = self.config.schedule.budget_tokens
        until_tokens = budget_tokens if until_tokens is None else until_tokens
        if until_tokens > budget_tokens:
            raise ConfigError(
                f"until_tokens={until_tokens} exceeds budget_tokens={budget_tokens}; choose one within it"
            )
        while self.tokens_seen < until_tokens:
            before = self.tokens_seen
            self._train_one_step()
            exam_due = any(before < point <= self.tokens_seen for point in self.config.exam_at_tokens)
            every = self.config.report_every_tokens
            report_due = before // every < self.tokens_seen // every
            if exam_due or report_due or self.tokens_seen >= until_tokens:
                self._wait_for_device()
                yield self._report(exam_due=exam_due)
            elif pause is not None and pause():
                self._wait_for_device()
                return

    def _train_one_step(self) -> None:
        started_s = time.perf_counter()
        batch, optimizers = self.config.batch, self.optimizers
        optimizers.set_lr(lr_factor(self.config.schedule, self.tokens_seen, batch.tokens_per_step))
        micro_batches = [self._micro_batch(micro_step) for micro_step in range(batch.grad_accum_steps)]
        with self._peak_memory():
            sums = self.accumulation.backward(
                micro_batches, scaler=self.scaler, zero_grad=optimizers.zero_grad, tokens_seen=self.tokens_seen
            )
            on_host, outcome = self._step_optimizers(sums)
        optimizers.zero_grad()
        counting_s = sums.counting.seconds
        self.counting_time_s += counting_s
        self._count(on_host, outcome, step_time_s=time.perf_counter() - started_s - counting_s)

    def _wait_for_device(self) -> None:
        """Time what the device still has to do, before a report: a step itself waits only for what it must read."""
        started_s = time.perf_counter()
        self.device.synchronize()
        waited_s = time.perf_counter() - started_s
        self.train_time_s += waited_s
        self._tally.add_time(waited_s)

    def _micro_batch(self, micro_step: int) -> MicroBatch:
        batch = self._tokens.batch(self.step, micro_step, document_ids=self.config.document_attention)
        return MicroBatch(tokens_BT=batch.inputs_BT, targets_BT=batch.targets_BT, document_ids_BT=batch.document_ids_BT)

    def _step_optimizers(self, sums: GradientSums) -> tuple[StepSums, StepOutcome]:
        """One read of the step's numbers, one decision for all weights.

        Running out of memory here is final: some weights may have moved.
        """
        try:
            found = self.optimizers.look(self.scaler, sums.means)
            on_host = sums.on_host(found.facts)
            if not math.isfinite(on_host.train_loss):
                raise Diverged(self.tokens_seen, f"the training loss is {on_host.train_loss} in step {self.step + 1}")
            outcome = self.optimizers.decide(found, self.scaler, self.config.optimizer.clip_grad_norm)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(
                self.tokens_seen,
                f"no memory for the optimizers' step on {self.device.name} ({error}); choose a smaller model or a "
                "device with more memory",
            ) from error
        if outcome.skipped and (self.scaler is None or self.scaler.get_scale() < _SMALLEST_LOSS_SCALE):
            raise Diverged(self.tokens_seen, f"the gradient norm is {outcome.grad_norm} in step {self.step + 1}")
        return on_host, outcome

    def _count(self, sums: StepSums, outcome: StepOutcome, *, step_time_s: float) -> None:
        self.step += 1
        self.skipped_steps += outcome.skipped
        self.train_time_s += step_time_s
        self._tally.add(sums, grad_norm=None if outcome.skipped else outcome.grad_norm, step_time_s=step_time_s)

    def _report(self, *, exam_due: bool) -> Report:
        """Closes the tally of the steps since the previous report, and sits the validation exam where it is due."""
        tally, self._tally, config = self._tally, Tally(), self.config
        val_loss, val_bpb, val_common_loss = self._validation_scores() if exam_due else (None, None, None)
        tokens_per_s = tally.n_tokens / tally.train_time_s
        report = Report(
            tokens_seen=self.tokens_seen,
            step=self.step,
            train_loss=tally.mean("train_loss"),
            lb_loss=tally.mean("lb_loss"),
            z_loss=tally.mean("z_loss"),
            grad_norm=tally.grad_norm,
            lr=self.optimizers.lr,
            adamw_lr=self.optimizers.adamw_lr,
            tokens_per_s=tokens_per_s,
            mfu_pct=mfu_pct(config.model, config.batch.seq_len, tokens_per_s, self.device),
            peak_mem_allocated_gib=self.peak_mem_allocated_gib,
            loss_scale=None if self.scaler is None else float(self.scaler.get_scale()),
            skipped_steps=self.skipped_steps,
            expert_load_max_over_mean=tally.expert_load_max_over_mean,
            router_entropy=tally.mean("router_entropy"),
            micro_batch_splits=self.accumulation.splits,
            train_time_s=self.train_time_s,
            counting_time_s=self.counting_time_s,
            exam_time_s=self.exam_time_s,
            val_loss=val_loss,
            val_bpb=val_bpb,
            val_common_loss=val_common_loss,
            precision=self.precision.name,
            timestamp_s=time.time(),
        )
        self.records.append(report.as_record())
        return report

    @contextmanager
    def _peak_memory(self) -> Iterator[None]:
        """Raises ``peak_mem_allocated_gib`` to this step's peak.

        CUDA's allocator is asked in every step. On a CPU every operation has to be watched, so only a cell's first two
        steps are: the second is the first with all of the optimizers' state, and the rest are like it.
        """
        if self.device.kind == "cpu" and self.step >= _STEPS_MEASURED_ON_CPU:
            yield
            return
        tensors = training_tensors(self.model, self.optimizers) if self.device.kind == "cpu" else ()
        with PeakMemory(self.device, tensors) as peak:
            yield
        self.peak_mem_allocated_gib = max(self.peak_mem_allocated_gib, peak.peak_gib)

    def _validation_scores(self) -> tuple[float, float, float | None]:
        """Own-context loss and bits per byte, and at the end of the budget the loss at the shortest arm's length."""
        own_len, common_len = self.config.batch.seq_len, self.data.exam.common_len
        with self._evaluating():
            own = self._validation_score(own_len)
            common_loss: float | None = own.loss if common_len == own_len else None
            if common_loss is None and self.tokens_seen == self.config.schedule.budget_tokens:
                common_loss = self._validation_score(common_len).loss
        if not math.isfinite(own.loss):
            raise Diverged(self.tokens_seen, f"the validation loss is {own.loss} after step {self.step}")
        return own.loss, own.bpb, common_loss

    def _validation_score(self, chunk_len: int) -> Score:
        return score(
            self.model,
            self.data.exam.validation,
            chunk_len=chunk_len,
            pass_tokens=self._exam_pass_tokens,
            document_attention=self.config.document_attention,
        )

    def test_scores(self) -> ExamScores:
        """Every view of the model as it stands, on the test rows, in fp32 whatever the training precision."""
        with self._evaluating():
            return score_all_views(
                self.model,
                self.data.exam,
                seq_len=self.config.batch.seq_len,
                pass_tokens=self._exam_pass_tokens,
                document_attention=self.config.document_attention,
            )

    @property
    def _exam_pass_tokens(self) -> int | None:
        """Tokens of one forward pass of the exam on a GPU: a training micro-batch's, whose step needs more memory.

        None on a CPU, which is no faster with more. Free memory decides nothing here: scores are to be the same to
        the last bit whoever else is on the GPU.
        """
        return self.config.batch.tokens_per_micro_step if self.choices.tokens_on_device else None

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Times an exam apart from training, and says whose memory it was that ran out."""
        started_s = time.perf_counter()
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(
                self.tokens_seen,
                f"no memory for the exam on {self.device.name} ({error}); choose a shorter longest seq_len, a smaller "
                "model or a device with more memory",
            ) from error
        finally:
            self.exam_time_s += time.perf_counter() - started_s

    @property
    def _identity(self) -> dict[str, str]:
        """What decides the numbers beside the config: the precision in use, the exam and the training windows.

        Where a GPU is required to give equal bits, they are those of one kind of GPU and one version of torch and
        CUDA. Without that requirement a run may go on elsewhere.
        """
        first = self.data.windows.batch(0)
        digest = hashlib.blake2b(first.inputs_BT.contiguous().numpy().tobytes(), digest_size=16)
        return {
            "precision in use": self.precision.name,
            "exam fingerprint": self.data.exam.fingerprint,
            "first micro-batch": digest.hexdigest(),
            **(device_identity(self.device) if self.config.deterministic else {}),
        }

    def save(self, folder: Path) -> None:
        """Writes the whole state into ``folder``, which exists; call it between two steps."""
        write_state(folder, self._state(), self.config, self._identity)

    def load(self, folder: Path) -> None:
        """Takes over the state that ``save`` wrote: training continues to the last bit as if it had not stopped.

        That holds on a CPU with one thread count, and on a GPU with ``deterministic``.

        Raises:
            CheckpointError: there is none, it is damaged, or another config, precision or data made it, or another
                GPU, torch or CUDA where bits are required to be equal (all differences are named).
        """
        state = read_state(folder, self.config, self._identity)
        self.model.load_state_dict(state["model"])
        self.optimizers.load_state_dict(state["optimizers"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.accumulation.n_parts = state["micro_batch_parts"]
        self.accumulation.splits = state["micro_batch_splits"]
        for name in _COUNTERS:
            setattr(self, name, state[name] if name != "counting_time_s" else state.get(name, 0.0))  # new in 0.2
        self.records = state["records"]
        self._tally = Tally.from_state(state["tally"], self.device.torch_device)

    def _state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizers": self.optimizers.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "micro_batch_parts": self.accumulation.n_parts,
            "micro_batch_splits": self.accumulation.splits,
            "records": self.records,
            "tally": self._tally.state_dict(),
            **{name: getattr(self, name) for name in _COUNTERS},
        }
