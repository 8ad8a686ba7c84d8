"""How a cluster is shared out: trials at once, threads per trial, and a fraction of a GPU per arm.

Pure functions of facts; nothing here asks a device, a node or Ray. ``sweeps.cluster.machines`` gathers the facts.

Fractions of a GPU are bookkeeping in Ray: nothing isolates memory. So the fraction comes from the arm's predicted
peak, and the trial binds its own allocator to it (``allocator_share``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from sweeps.cluster.machines import ClusterFacts, NodeFacts

MAX_TRIALS_PER_GPU = 8
"""The smallest automatic share is 1/8: below that, context alone eats much of a share of a 16 GiB card."""

CUDA_CONTEXT_GIB = 0.6
"""Context and loaded CUDA code of one process, outside torch's allocator. A generous guess: not measured here, and
``sweeps gpu-check`` measures it."""

CUDA_WORKSPACE_GIB = 0.07
"""cuBLAS keeps 32 MiB per handle and stream on Hopper, about 8 MiB before it (pytorch.org/docs, notes/cuda,
cuBLAS workspaces); cuBLASLt as much again."""

FRAGMENTATION = 1.1
"""The allocator reserves more than its tensors hold. Ten percent is a guess with room, checked by ``gpu-check``."""

GpuWish = Literal["auto"] | float | Mapping[str, float]
"""``resources.gpu_per_trial``: automatic, one number for all arms, or a number per arm."""


@dataclass(frozen=True, kw_only=True)
class ResourcePlan:
    """How trials are packed.

    ``workers`` is the most trials that may run at once, ``slots`` the same for each arm alone (arms of different
    fractions have different numbers), ``gpu_fraction`` the share of a GPU of each arm's trials: None on a CPU, and
    None with a warning for an arm that does not fit. ``problems`` are requests that no node can ever meet: a sweep
    must not start with one, because Ray leaves such a trial pending without a word.
    """

    workers: int
    threads_per_trial: int
    gpu_fraction: Mapping[str, float | None]
    slots: Mapping[str, int]
    warnings: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def required_gib(predicted_peak_gib: float) -> float:
    """GiB of device memory that a trial with this peak of tensor bytes occupies, context and workspace included."""
    return predicted_peak_gib * FRAGMENTATION + CUDA_CONTEXT_GIB + CUDA_WORKSPACE_GIB


def packing_fraction(needed_gib: float, gpu_gib: float) -> float | None:
    """The smallest of 1, 1/2, 1/3 ... 1/8 of a GPU that holds ``needed_gib``; None where a whole GPU does not.

    Ray truncates a request to four decimals, so n trials of 1/n fit one GPU for every n.
    """
    for trials in range(MAX_TRIALS_PER_GPU, 0, -1):
        if needed_gib <= gpu_gib / trials:
            return 1 / trials
    return None


def allocator_share(gpu_fraction: float, gpu_gib: float) -> float:
    """The share of a GPU for ``torch.cuda.set_per_process_memory_fraction``.

    The process's share less its context, which lies outside the allocator's count; at least a twentieth.
    """
    return max(0.05, min(1.0, gpu_fraction) - CUDA_CONTEXT_GIB / gpu_gib)


def trials_per_gpu(gpu_fraction: float) -> int:
    """How many trials of this fraction one GPU takes."""
    return int(1 / gpu_fraction + 1e-3)


def plan_resources(
    *,
    arms: Sequence[str],
    predicted_peaks_gib: Mapping[str, float],
    facts: ClusterFacts,
    workers: Literal["auto"] | int = "auto",
    threads_per_trial: int = 1,
    gpu_per_trial: GpuWish = "auto",
    assume_gpu_gib: float | None = None,
) -> ResourcePlan:
    """Share a cluster among the trials of ``arms``.

    ``predicted_peaks_gib`` holds the peak of tensor bytes per arm (an arm without one gets a whole GPU and a
    warning). ``assume_gpu_gib`` plans on GPUs of that memory instead of the cluster's own, one where it has none.
    A ``workers`` number is a ceiling; it never buys more threads or GPU than the nodes have.
    """
    said = _Findings()
    if assume_gpu_gib is not None:
        facts = _with_assumed_gpus(facts, assume_gpu_gib, threads_per_trial)
    fractions = _gpu_fractions(arms, predicted_peaks_gib, facts, gpu_per_trial, said)
    slots = {arm: _slots(facts.reachable, threads_per_trial, fractions[arm]) for arm in arms}
    if facts.gpus and gpu_per_trial == "auto":
        slots.update({arm: 0 for arm in arms if fractions[arm] is None})
    for arm in arms:
        if slots[arm] == 0 and not (fractions[arm] is None and facts.gpus):
            said.problems.append(_unmeetable(arm, threads_per_trial, fractions[arm], facts))
    room = max(slots.values(), default=0)
    at_once = room if workers == "auto" else min(workers, room)
    if workers != "auto" and workers > room > 0:
        said.warnings.append(f"workers={workers} is more than this cluster has room for; {room} trials run at once")
    said.warnings += _growth_warnings(facts, threads_per_trial, fractions, at_once)
    said.warnings += _memory_warnings(facts, predicted_peaks_gib, fractions, at_once)
    return ResourcePlan(
        workers=at_once,
        threads_per_trial=threads_per_trial,
        gpu_fraction=fractions,
        slots={arm: min(at_once, count) for arm, count in slots.items()},
        warnings=tuple(said.warnings),
        problems=tuple(dict.fromkeys(said.problems)),
    )


@dataclass
class _Findings:
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def _with_assumed_gpus(facts: ClusterFacts, gpu_gib: float, threads_per_trial: int) -> ClusterFacts:
    """The cluster's GPUs at another memory; without any, one machine with one GPU and threads enough to fill it."""
    if not facts.gpus:
        cpus = MAX_TRIALS_PER_GPU * threads_per_trial
        return ClusterFacts(nodes=(NodeFacts(cpus=cpus, gpus=1, gpu_gib=gpu_gib, name="an assumed machine"),))
    return ClusterFacts(
        nodes=tuple(replace(node, gpu_gib=gpu_gib) for node in facts.nodes),
        growth=tuple(replace(node, gpu_gib=gpu_gib) for node in facts.growth),
    )


def _gpu_fractions(
    arms: Sequence[str],
    peaks_gib: Mapping[str, float],
    facts: ClusterFacts,
    wish: GpuWish,
    said: _Findings,
) -> dict[str, float | None]:
    if wish != "auto":
        return {arm: _wished_fraction(arm, wish, peaks_gib, facts, said) for arm in arms}
    if not facts.gpus:
        return dict.fromkeys(arms)
    gpu_gib = facts.gpu_gib
    if gpu_gib is None:
        said.warnings.append("the memory of the GPUs is unknown; every trial gets a whole one (or set gpu_per_trial)")
        return dict.fromkeys(arms, 1.0)
    fractions: dict[str, float | None] = {}
    for arm in arms:
        if arm not in peaks_gib:
            said.warnings.append(f"{arm} has no predicted peak memory; its trials get a whole GPU")
            fractions[arm] = 1.0
            continue
        fractions[arm] = packing_fraction(required_gib(peaks_gib[arm]), gpu_gib)
        if fractions[arm] is None:
            said.warnings.append(
                f"{arm} needs {required_gib(peaks_gib[arm]):.1f} GiB (predicted peak {peaks_gib[arm]:.1f} GiB, with "
                f"context and workspace), a GPU has {gpu_gib:.1f} GiB; "
                "halve its micro_batch_size and double its grad_accum_steps"
            )
    return fractions


def _wished_fraction(
    arm: str,
    wish: float | Mapping[str, float],
    peaks_gib: Mapping[str, float],
    facts: ClusterFacts,
    said: _Findings,
) -> float | None:
    share = float(wish[arm] if isinstance(wish, Mapping) else wish)
    if share == 0:
        return None
    if facts.gpu_gib is not None and arm in peaks_gib and required_gib(peaks_gib[arm]) > share * facts.gpu_gib:
        said.warnings.append(
            f"{arm} needs about {required_gib(peaks_gib[arm]):.1f} GiB and its share of {share:.3g} GPU is "
            f"{share * facts.gpu_gib:.1f} GiB; its micro-batches may be split to fit"
        )
    return share


def _slots(nodes: Sequence[NodeFacts], threads_per_trial: int, gpu_fraction: float | None) -> int:
    """Trials of one kind that the nodes hold at once; a trial never spans nodes."""
    total = 0
    for node in nodes:
        by_threads = node.cpus // threads_per_trial
        by_gpu = by_threads if gpu_fraction is None else node.gpus * trials_per_gpu(gpu_fraction)
        total += min(by_threads, by_gpu)
    return total


def _unmeetable(arm: str, threads_per_trial: int, gpu_fraction: float | None, facts: ClusterFacts) -> str:
    wanted = f"{threads_per_trial} CPU" + (f" and {gpu_fraction:.3g} GPU" if gpu_fraction is not None else "")
    most_cpus = max((node.cpus for node in facts.reachable), default=0)
    most_gpus = max((node.gpus for node in facts.reachable), default=0)
    return (
        f"a trial of {arm} asks for {wanted} and no node has that (the largest has {most_cpus} CPU, "
        f"most GPUs on a node: {most_gpus}); lower resources.threads_per_trial or gpu_per_trial, or add a node"
    )


def _growth_warnings(
    facts: ClusterFacts,
    threads_per_trial: int,
    fractions: Mapping[str, float | None],
    at_once: int,
) -> list[str]:
    present = max((_slots(facts.nodes, threads_per_trial, fraction) for fraction in fractions.values()), default=0)
    if facts.growth and at_once > present:
        return [f"{present} of {at_once} trials have room now; the rest wait for nodes the autoscaler starts"]
    return []


def _memory_warnings(
    facts: ClusterFacts,
    peaks_gib: Mapping[str, float],
    fractions: Mapping[str, float | None],
    at_once: int,
) -> list[str]:
    """On CPUs all trials of a node share its memory."""
    on_cpu = [peaks_gib[arm] for arm, fraction in fractions.items() if fraction is None and arm in peaks_gib]
    known = [node.memory_gib for node in facts.nodes if node.memory_gib is not None]
    if facts.gpus or not on_cpu or len(known) < len(facts.nodes):
        return []
    if max(on_cpu) * at_once > sum(known):
        return [
            f"{at_once} trials at a predicted {max(on_cpu):.1f} GiB exceed the {sum(known):.1f} GiB of memory; "
            "lower resources.workers"
        ]
    return []
