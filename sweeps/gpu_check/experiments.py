"""The experiments of ``sweeps gpu-check`` on the Ray that is connected: each yields rows, and keeps what it measured.

Steps, packing, a kill and a shortage of memory go the way of a sweep: Ray Tune, its trainable, shares of a GPU, the
ledger. What looks into a step runs as a task in a worker of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from moe import gpu_criteria
from moe.config import PrecisionName
from moe.device import Device
from moe.gpu_criteria import ResumeFacts, Row, StepFacts, not_measured
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
    train_steps,
)
from moe.precision import resolve_precision
from search_spaces import Space, load_space
from sweeps.cluster.connection import in_a_worker
from sweeps.gpu_check import criteria
from sweeps.gpu_check.criteria import PackingFacts
from sweeps.gpu_check.segments import Laboratory, Order, Trained, killed_once, waiting_for_each_other
from sweeps.packing.memory import predicted_peaks
from sweeps.packing.shares import CUDA_CONTEXT_GIB, Share, allocator_share, required_gib
from sweeps.training_config import batch_configs, model_config
from sweeps.training_data import load_training_data

T = TypeVar("T")

STEPS = 12
PACKED = (1, 2, 4, 8)
PACKED_STEPS = 24
PACKED_PRESET = "matched"  # its text is embedded, so it is what a first sweep on a GPU runs
SHORTAGE = 0.75
"""Of the peak that a trial had alone. Not of what was reserved then, which may exceed the peak so far that nothing
would have to be split."""

TASK_DEADLINE_S = 600.0
OWN_TEXT = ("corpus=embedded", "tokenizer=bpe:46080")  # no network; the study's has 49,152, that text yields 46,727


def presets_to_check() -> dict[str, Space]:
    """The presets that are made for GPUs; those whose text is on the hub with the embedded one."""
    overrides = {"tutorial": OWN_TEXT, "published": OWN_TEXT, "matched": ()}
    return {name: load_space(preset=name, overrides=list(changes)) for name, changes in overrides.items()}


@dataclass(frozen=True, kw_only=True)
class Target:
    """The GPU that is checked, and the machine's CPUs. ``device`` is what sweeps here predict memory for.

    Of ``gpu_gib``, None where nothing can be limited, others occupy ``occupied_gib``.
    """

    device: Device
    gpu_gib: float | None
    occupied_gib: float
    cpus: int


@dataclass(kw_only=True)
class GpuCheck:
    """All experiments on one target: ``trials`` are the steps that were measured, ``measured`` the rest."""

    target: Target
    laboratory: Laboratory
    presets: Mapping[str, Space]
    steps: int = STEPS
    packed_steps: int = PACKED_STEPS
    trials: list[StepFacts] = field(init=False, default_factory=list)
    measured: dict[str, list[Any]] = field(init=False, default_factory=dict)
    _orders: list[Order] = field(init=False, default_factory=list)

    def training(self) -> Iterator[Row]:
        """Steps of every arm as a sweep trains it, and of each preset's first arm in the other precisions."""
        own = self._own_precision
        others = [name for name in precisions_of(self.target.device) if name != own]
        for preset, space in self.presets.items():
            first, *rest = (arm.name for arm in space.strategies)
            self._orders += [self._order(preset, arm, own, with_test_exam=True) for arm in (first, *rest)]
            self._orders += [self._order(preset, first, precision) for precision in others]
        for trained in self.laboratory.run(self._orders, share=self._share(1)):
            facts = self._facts(trained)
            self.trials.append(facts)
            yield from gpu_criteria.step_rows(facts)
            if trained.order.with_test_exam and facts.error is None:
                yield criteria.exam_row(facts, trained.order.space.budget_tokens)
        yield from gpu_criteria.agreement_rows(self.trials)
        if not self.target.device.has_fast_bf16:
            yield not_measured("loss in bf16", f"{self.target.device.name} has no bf16 units")

    def memory(self) -> Iterator[Row]:
        """What a process occupies beyond its tensors."""
        yield from criteria.memory_rows(self._in_a_worker(_as_trained, self._shape(PACKED_PRESET)))

    def profiles(self) -> Iterator[Row]:
        """Launches, host reads and attention's kernel."""
        for preset in self.presets:
            yield from gpu_criteria.profile_rows(self._in_a_worker(profile_step, self._shape(preset)))

    def determinism(self) -> Iterator[Row]:
        """Steps with deterministic algorithms and without."""
        yield gpu_criteria.determinism_row(self._in_a_worker(determinism, self._shape(PACKED_PRESET)))

    def overflow(self) -> Iterator[Row]:
        """Steps in fp16 that overflow."""
        yield gpu_criteria.overflow_row(self._in_a_worker(overflow, self._shape(PACKED_PRESET)))

    def contests(self) -> Iterator[Row]:
        """Steps beside those of ``transformers``."""
        for preset in self.presets:
            yield gpu_criteria.contest_row(self._in_a_worker(against_transformers, self._shape(preset)))

    def compilation(self) -> Iterator[Row]:
        """Steps under ``torch.compile`` and with graphs."""
        yield from gpu_criteria.compile_rows(self._in_a_worker(compiled, self._shape(PACKED_PRESET)))

    def packing(self, *, with_mps: bool) -> Iterator[Row]:
        """1, 2, 4 and 8 trials of the arm that needs the least memory at the same time."""
        light = self._extreme(min)
        order = replace(self._order_of(light), with_test_exam=False, steps=self.packed_steps)
        for n_trials in PACKED:
            reason = self._why_not_packed(n_trials, light.peak_gib)
            if reason is not None:
                yield not_measured(criteria.packed(light.arm, n_trials, with_mps=with_mps), reason)
                continue
            trained = self.laboratory.run(
                [replace(order, seed=seed) for seed in range(1, n_trials + 1)],
                share=self._share(n_trials),
                slots=n_trials,
                trainable=waiting_for_each_other(n_trials, self.laboratory.scratch()),
            )
            measured: list[PackingFacts] = self.measured.setdefault("packing", [])
            problem = next((each.problem for each in trained if each.problem is not None), None)
            records = [each.result.records for each in trained]
            measured.append(criteria.packing_facts(light.arm, records, with_mps=with_mps, error=problem))
            yield from criteria.packing_rows(measured[-1], measured[0])  # the first is one alone, without MPS

    def kill_and_resume(self) -> Iterator[Row]:
        """A worker killed -9 on the way from a rung to the end, and its cell resumed by another."""
        order = replace(self._order_of(self._extreme(min)), with_test_exam=False)
        share = self._share(1)
        [undisturbed] = self.laboratory.run([order], share=share, keeps_weights=True)
        marker = self.laboratory.scratch() / "killed"
        [resumed] = self.laboratory.run(
            [order],
            share=share,
            trainable=killed_once(order.half_tokens, marker),
            rungs=lambda order: [order.half_tokens, order.budget_tokens, order.budget_tokens],
            keeps_weights=True,
        )
        facts = _resume_facts(undisturbed, resumed, was_killed=marker.exists())
        self.measured["kill and resume"] = [facts]
        yield gpu_criteria.resume_row(facts, "killed -9 and resumed")

    def shortage(self) -> Iterator[Row]:
        """The arm that needs the most memory, on a share of the GPU that is too small for it."""
        alone = self._extreme(max)
        what = f"{alone.arm}: short of memory"
        if self.target.gpu_gib is None:
            yield not_measured(what, "the allocator of a CPU cannot be limited")
            return
        fraction = (SHORTAGE * alone.peak_gib + CUDA_CONTEXT_GIB) / self.target.gpu_gib
        if allocator_share(fraction, self.target.gpu_gib) * self.target.gpu_gib >= alone.peak_gib:
            yield not_measured(what, f"its peak of {alone.peak_gib:.1f} GiB fits the smallest share of this GPU")
            return
        order = self._order_of(alone)
        [trained] = self.laboratory.run([order], share=Share(threads=1, gpu_fraction=fraction))
        short = self._facts(trained)
        self.measured["shortage"] = [short]
        yield from gpu_criteria.shortage_rows(alone, short)

    @property
    def _own_precision(self) -> PrecisionName:
        """The precision of a sweep here."""
        return resolve_precision("auto", self.target.device).name

    def _order(self, preset: str, arm: str, precision: PrecisionName, *, with_test_exam: bool = False) -> Order:
        space = self.presets[preset].model_copy(update={"precision": precision})
        return Order(preset=preset, space=space, arm=arm, steps=self.steps, with_test_exam=with_test_exam)

    def _order_of(self, facts: StepFacts) -> Order:
        return next(
            order for order in self._orders if (order.name, order.space.precision) == (facts.arm, facts.precision)
        )

    def _facts(self, trained: Trained) -> StepFacts:
        order = trained.order
        arm_alone = order.space.model_copy(update={"strategies": (order.space.strategy(order.arm),)})
        vocab_size = load_training_data(order.space).tokens.vocab_size
        peaks_gib = predicted_peaks(arm_alone, self.target.device, vocab_size=vocab_size)
        return trained.facts(peaks_gib[order.arm], self.target.device.name, self.target.gpu_gib)

    def _extreme(self, pick: Callable[..., StepFacts]) -> StepFacts:
        """Of the arms in a sweep's precision the one with the highest peak, or the lowest of the preset for packing."""
        own, presets = self._own_precision, [PACKED_PRESET] if pick is min else list(self.presets)
        names = {order.name for order in self._orders if order.preset in presets}
        found = [facts for facts in self.trials if facts.error is None and facts.precision == own]
        found = [facts for facts in found if facts.arm in names]
        if not found:
            raise LookupError("no arm could be trained alone")
        return pick(found, key=lambda facts: facts.peak_gib)

    def _share(self, n_trials: int) -> Share:
        return Share(threads=1, gpu_fraction=0.0 if self.target.gpu_gib is None else 1 / n_trials)

    def _why_not_packed(self, n_trials: int, peak_gib: float) -> str | None:
        if n_trials > self.target.cpus:
            return f"this machine has {self.target.cpus} CPUs, one a trial"
        needed_gib = n_trials * required_gib(peak_gib)
        if self.target.gpu_gib is not None and needed_gib > self.target.gpu_gib:
            return f"{n_trials} trials need {needed_gib:.1f} GiB of {self.target.gpu_gib:.1f}"
        return None

    def _shape(self, preset: str) -> Shape:
        """The first arm of a preset."""
        space = self.presets[preset]
        arm = space.strategies[0].name
        model = model_config(space, arm, vocab_size=load_training_data(space).tokens.vocab_size)
        return Shape(name=f"{preset} {arm}", model=model, batch=batch_configs(space)[arm])

    def _in_a_worker(self, experiment: Callable[[Bench, Shape], T], shape: Shape) -> T:
        arguments = (experiment, shape, self.steps, self.target.occupied_gib)
        gpus = 0.0 if self.target.gpu_gib is None else 1.0
        found = in_a_worker(_measure, *arguments, gpus=gpus, deadline_s=TASK_DEADLINE_S)
        self.measured.setdefault(experiment.__name__.strip("_"), []).append(found)
        return found  # type: ignore[no-any-return]


def _measure(experiment: Callable[[Bench, Shape], T], shape: Shape, steps: int, occupied_gib: float) -> T:
    """One of the experiments of ``moe``, on the GPU that this worker was given."""
    return experiment(
        Bench(device=Device.resolve(), corpus=read_corpus(), steps=steps, occupied_gib=occupied_gib), shape
    )


def _as_trained(bench: Bench, shape: Shape) -> StepFacts:
    return train_steps(bench, shape, "auto")


def _losses(trained: Trained) -> list[float]:
    return [record["train_loss"] for record in trained.result.records]


def _resume_facts(undisturbed: Trained, resumed: Trained, *, was_killed: bool) -> ResumeFacts:
    order = resumed.order
    error = undisturbed.problem or resumed.problem or (None if was_killed else "it ended before it was killed")
    equal = {
        "losses": _losses(undisturbed) == _losses(resumed),
        "validation loss": undisturbed.result.val_loss == resumed.result.val_loss,
        "weights": undisturbed.weights == resumed.weights,
    }
    return ResumeFacts(
        arm=order.name,
        steps_after=(order.budget_tokens - order.half_tokens) // order.tokens_per_step,
        differences=tuple(name for name, is_equal in equal.items() if not is_equal),
        error=error,
    )
