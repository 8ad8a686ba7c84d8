"""One short run per arm on a GPU before fractions are assigned: the measured peak replaces the predicted one.

Measurements are remembered, so that a second sweep of the same arms on such a device does not repeat them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from search_spaces import Space
from sweeps.cluster.connection import in_a_worker, local_ray
from sweeps.cluster.machines import Machines
from sweeps.packing.remembered import remembered

if TYPE_CHECKING:
    from moe.config import PrecisionName, TrainConfig
    from moe.gpu_criteria import StepFacts

PROBE_STEPS = 2
"""The first step makes the optimizers' state, the second holds it: the peak is the second's."""

PROBE_LEARNING_RATE = 1e-3
PROBE_DEADLINE_S = 900.0


@dataclass(frozen=True, kw_only=True)
class ShortRun:
    """What to train: ``steps`` optimizer steps of ``arm`` of ``space`` (resolved), without exams."""

    space: dict[str, Any]
    arm: str
    precision: PrecisionName
    steps: int
    lr: float
    seed: int = 1


Run = Callable[[ShortRun], "StepFacts"]


@dataclass(frozen=True, kw_only=True)
class ProbedPeaks:
    """Peak GiB of tensors per arm, measured where that was possible; ``notes`` name the failures."""

    peaks_gib: Mapping[str, float]
    notes: tuple[str, ...]


def probed_peaks(
    space: Space,
    predicted_peaks_gib: Mapping[str, float],
    *,
    precision: PrecisionName,
    device_name: str,
    run: Run,
) -> ProbedPeaks:
    """Measure each arm's peak on the device called ``device_name`` by ``run``, or take what was measured before.

    An arm whose probe fails keeps its prediction, with a note.
    """
    peaks_gib = dict(predicted_peaks_gib)
    notes: list[str] = []
    for strategy in space.strategies:
        short_run = ShortRun(
            space=space.resolved(),
            arm=strategy.name,
            precision=precision,
            steps=PROBE_STEPS,
            lr=PROBE_LEARNING_RATE,
        )
        measured_gib = remembered(
            "peaks", what_decides(short_run, space, device_name), partial(_measured, short_run, run, notes)
        )
        if measured_gib is not None:
            peaks_gib[strategy.name] = measured_gib
    told = tuple(f"{note} on {device_name}; its peak is predicted" for note in notes)
    return ProbedPeaks(peaks_gib=peaks_gib, notes=told)


def calibrated_peaks(space: Space, predicted_peaks_gib: Mapping[str, float], machines: Machines) -> ProbedPeaks:
    """Peaks measured on a GPU of these machines; the predictions where trials run on CPUs or shares were given.

    A cluster whose GPUs are all still to be started is not waited for. On this machine alone a Ray is started for the
    measurements that are not remembered.
    """
    device, requested = machines.device, space.resources
    gpus_gib = [node.gpu_gib or 0.0 for node in machines.nodes if node.gpus]
    if device.kind == "cpu" or not gpus_gib or requested.declared_gpus is not None or requested.gpu_per_trial != "auto":
        return ProbedPeaks(peaks_gib=predicted_peaks_gib, notes=())
    from moe.precision import resolve_precision

    is_here = machines.address is None
    with ExitStack() as started:

        def run(short_run: ShortRun) -> StepFacts:
            import ray

            if is_here and not ray.is_initialized():
                started.enter_context(local_ray(cpus=1, declared_gpus=None))
            return run_in_ray(short_run)

        return probed_peaks(
            space,
            predicted_peaks_gib,
            precision=resolve_precision(space.precision, device).name,
            device_name=device.name if is_here else f"a GPU of {min(gpus_gib):.0f} GiB",
            run=run,
        )


def what_decides(short_run: ShortRun, space: Space, device_name: str) -> Mapping[str, Any]:
    """All that a measured peak depends on: nothing of the sweep's budget, rates or seeds."""
    table = space.of_arm(short_run.arm).resolved()
    return {
        "model": table["model"],
        "optimizer": table["optimizer"]["kind"],
        "tokenizer": table["tokenizer"],
        "arm": list(space.strategy(short_run.arm).shape),
        "precision": short_run.precision,
        "device": device_name,
    }


def _measured(short_run: ShortRun, run: Run, notes: list[str]) -> float | None:
    facts = run(short_run)
    if facts.error is None:
        return facts.peak_gib
    notes.append(f"{short_run.arm} could not be probed ({facts.error})")
    return None


def run_in_ray(short_run: ShortRun, *, gpus: float = 1.0) -> StepFacts:
    """Train in a worker of the Ray that is connected, on a whole GPU by default; an error is in the facts."""
    from moe.gpu_criteria import StepFacts

    try:
        return in_a_worker(train, short_run, gpus=gpus, deadline_s=PROBE_DEADLINE_S)
    except Exception as error:  # noqa: BLE001 - a probe that fails leaves the prediction in force, with a note
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        return StepFacts(arm=short_run.arm, precision=short_run.precision, error=reason)


def train(short_run: ShortRun) -> StepFacts:
    """Train the steps in this process."""
    from moe.device import set_threads
    from moe.gpu_experiments import facts_of
    from sweeps.training_data import load_training_data

    space = Space.from_resolved(short_run.space)
    set_threads(space.resources.threads_per_trial)
    data = load_training_data(space)
    config = _config(short_run, space, data.tokens.vocab_size)
    trainer = data.trainer(config)
    list(trainer.run(short_run.steps * config.batch.tokens_per_step))
    return facts_of(trainer, short_run.arm)


def _config(short_run: ShortRun, space: Space, vocab_size: int) -> TrainConfig:
    """The arm's training config as a sweep would make it, reporting after every step and without exams."""
    from sweeps.training_config import any_cell, train_config

    adamw_lr = short_run.lr * (space.of_arm(short_run.arm).rates.adamw_ratio or 1.0)
    cell = replace(any_cell(space, short_run.arm), lr=short_run.lr, adamw_lr=adamw_lr, seed=short_run.seed)
    config = train_config(space, cell, vocab_size=vocab_size)
    return replace(
        config, precision=short_run.precision, exam_at_tokens=(), report_every_tokens=config.batch.tokens_per_step
    )
