"""How this sweep's trials share the machine or cluster at hand: predicted peaks in, a packing out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from search_spaces import Space, Strategy
from sweeps.cluster.connection import cluster_address
from sweeps.cluster.machines import ClusterFacts, cluster_has_gpu, local_facts
from sweeps.errors import BadInputError
from sweeps.packing.fit_memory import fit_memory
from sweeps.packing.fractions import MAX_TRIALS_PER_GPU, ResourcePlan, plan_resources
from sweeps.training_config import any_cell, train_config

if TYPE_CHECKING:
    from moe.device import Device


def predicted_peaks(space: Space, *, vocab_size: int) -> dict[str, float]:
    """Peak GiB of tensors of each arm's training, predicted before it runs, where it will run."""
    device = training_device()
    return {arm.name: _predicted_gib(space, arm, vocab_size, device) for arm in space.strategies}


def fit_arms(space: Space, *, vocab_size: int) -> tuple[Space, tuple[str, ...]]:
    """``space`` with arms that fill ``fit_memory_gib``, and what must be said; as it is where it asks for none."""
    if not space.needs_fitting:
        return space, ()

    device = training_device()

    def predict(micro_batch_size: int, seq_len: int) -> float:
        arm = next(arm for arm in space.strategies if arm.seq_len == seq_len)
        tried = arm.model_copy(update={"micro_batch_size": micro_batch_size, "grad_accum_steps": 1})
        return _predicted_gib(space, tried, vocab_size, device)

    fit = fit_memory(space, predict)
    shapes = ", ".join(
        f"{arm.name} {arm.micro_batch_size} x {arm.seq_len} x {arm.grad_accum_steps}" for arm in fit.space.strategies
    )
    return fit.space, (f"arms made to fill {space.fit_memory_gib:g} GiB: {shapes}", *fit.warnings)


def training_device() -> Device:
    """The device that trials will train on: this machine's, or a GPU of the cluster where this machine has none.

    What that GPU can do is not known here. bf16 and fp16 take the same memory, so one that can do bf16 stands for all.
    """
    from moe.device import BF16_COMPUTE_CAPABILITY, Device

    here = Device.resolve()
    if here.kind == "cpu" and cluster_address() and cluster_has_gpu():
        return Device(kind="cuda", name="a GPU of the cluster", compute_capability=BF16_COMPUTE_CAPABILITY)
    return here


def _predicted_gib(space: Space, arm: Strategy, vocab_size: int, device: Device) -> float:
    from moe.memory import predict_peak_gib

    shaped = space.model_copy(update={"strategies": (arm,), "budget_tokens": arm.tokens_per_step, "rungs_tokens": ()})
    config = replace(train_config(shaped, any_cell(shaped, arm.name), vocab_size=vocab_size), block_len=space.block_len)
    return predict_peak_gib(config, precision=space.precision, device=device)


def resource_plan(
    space: Space,
    peaks_gib: Mapping[str, float],
    *,
    facts: ClusterFacts | None = None,
    assume_gpu_gib: float | None = None,
) -> ResourcePlan:
    """The space's wishes on the machines at hand (this one, unless ``facts`` says otherwise)."""
    wishes = space.resources
    return plan_resources(
        arms=[strategy.name for strategy in space.strategies],
        predicted_peaks_gib=peaks_gib,
        facts=facts or local_facts(declared_gpus=wishes.declared_gpus),
        workers=wishes.workers,
        threads_per_trial=wishes.threads_per_trial,
        gpu_per_trial=wishes.gpu_per_trial,
        assume_gpu_gib=assume_gpu_gib,
    )


def cpus_wanted(space: Space) -> int:
    """CPUs of this machine that the space's trials can use at once, whatever their peaks turn out to be."""
    facts = local_facts(declared_gpus=space.resources.declared_gpus)
    threads, workers = space.resources.threads_per_trial, space.resources.workers
    usable = sum(node.cpus for node in facts.nodes)
    if facts.gpus and space.resources.gpu_per_trial == "auto":
        usable = min(usable, facts.gpus * MAX_TRIALS_PER_GPU * threads)
    return usable if workers == "auto" else min(usable, workers * threads)


def packing_for(space: Space, peaks_gib: Mapping[str, float], *, facts: ClusterFacts | None = None) -> Packing:
    """The packing of a sweep; raises BadInputError for what no node can ever meet."""
    found = resource_plan(space, peaks_gib, facts=facts)
    homeless = [arm for arm, slots in found.slots.items() if slots == 0]
    if found.problems or homeless:
        problems = [*found.problems, *found.warnings]
        raise BadInputError("\n".join(problems) or f"{', '.join(homeless)} fits on no node; see `sweeps plan`")
    return Packing(threads=found.threads_per_trial, gpu_fraction=found.gpu_fraction, slots=found.slots)


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one trial gets of a machine."""

    threads: int
    gpu_fraction: float


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How trials share the cluster: threads and GPU share per arm, and how many run at once for each share."""

    threads: int
    gpu_fraction: Mapping[str, float | None]
    slots: Mapping[str, int]

    def groups(self) -> dict[Share, tuple[str, ...]]:
        """Arms by equal share: Ray reuses workers only among trials that ask for the same."""
        groups: dict[Share, list[str]] = {}
        for arm, fraction in self.gpu_fraction.items():
            groups.setdefault(Share(threads=self.threads, gpu_fraction=fraction or 0.0), []).append(arm)
        return {share: tuple(arms) for share, arms in groups.items()}
