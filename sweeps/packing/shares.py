"""How trials share machines: threads and a fraction of a GPU for each trial, and how many run at once.

Pure functions of facts; nothing here asks a device, a node or Ray.

Fractions of a GPU are bookkeeping in Ray: nothing isolates memory. So the fraction comes from the arm's predicted
peak, and the trial binds its own allocator to it (``allocator_share``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from search_spaces import Cell, Space
from sweeps.cluster.machines import Machines, Node
from sweeps.errors import BadInputError

MAX_TRIALS_PER_GPU = 8
"""The smallest automatic share is 1/8: below that, context alone eats much of a share of a 16 GiB card."""

CUDA_CONTEXT_GIB = 0.6
"""Context and loaded kernels of one process, outside torch's allocator. A generous guess: not measured here, and
``sweeps gpu-check`` measures it."""

CUDA_WORKSPACE_GIB = 0.07
"""cuBLAS keeps 32 MiB per handle and stream on Hopper, about 8 MiB before it (pytorch.org/docs, notes/cuda,
cuBLAS workspaces); cuBLASLt as much again."""

FRAGMENTATION = 1.1
"""The allocator reserves more than its tensors hold. Ten percent is a guess with room, checked by ``gpu-check``."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one trial gets of a machine."""

    threads: int
    gpu_fraction: float


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How trials share the machines.

    ``slots`` is the most trials of each arm that run at once (arms of different fractions have different numbers),
    ``gpu_fraction`` the share of a GPU of each arm's trials: None on a CPU and for an arm that does not fit.
    ``problems`` are reasons why some trial could never run: a sweep must not start with one, because Ray leaves such a
    trial pending without a message.
    """

    threads: int
    gpu_fraction: Mapping[str, float | None]
    slots: Mapping[str, int]
    warnings: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def workers(self) -> int:
        """The most trials that run at once."""
        return max(self.slots.values(), default=0)

    def groups(self) -> dict[Share, tuple[str, ...]]:
        """Arms by equal share: Ray reuses workers only among trials that ask for the same."""
        groups: dict[Share, list[str]] = {}
        for arm, fraction in self.gpu_fraction.items():
            groups.setdefault(Share(threads=self.threads, gpu_fraction=fraction or 0.0), []).append(arm)
        return {share: tuple(arms) for share, arms in groups.items()}

    def most_at_once(self, cells: Sequence[Cell]) -> int:
        """The most trials that the cells can keep running: those of one phase and one group of arms."""
        phases = {cell.phase for cell in cells}
        return max(
            sum(cell.phase == phase and cell.strategy in arms for cell in cells)
            for arms in self.groups().values()
            for phase in phases
        )

    def most_gpus(self, cells: Sequence[Cell]) -> int | None:
        """The most GPUs that the cells can keep busy; None where trials run on CPUs."""
        phases = {cell.phase for cell in cells}
        needed = [
            math.ceil(
                sum(cell.phase == phase and cell.strategy in arms for cell in cells)
                / trials_per_gpu(share.gpu_fraction)
            )
            for share, arms in self.groups().items()
            for phase in phases
            if share.gpu_fraction
        ]
        return max(needed, default=None)


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


def pack(space: Space, peaks_gib: Mapping[str, float], machines: Machines) -> Packing:
    """Share the machines among the space's trials, as its ``resources`` request.

    ``peaks_gib`` holds the peak of tensor bytes per arm; an arm without one gets a whole GPU and a warning.
    ``resources.workers`` is a ceiling; it never buys more threads or GPU than the nodes have.
    """
    arms, requested = [arm.name for arm in space.strategies], space.resources
    threads = requested.threads_per_trial
    fractions, warnings, problems = _gpu_fractions(arms, peaks_gib, machines, requested.gpu_per_trial)
    on_gpus = machines.gpus > 0 and requested.gpu_per_trial == "auto"
    slots = {
        arm: 0 if on_gpus and fraction is None else _slots(machines.reachable, threads, fraction)
        for arm, fraction in fractions.items()
    }
    problems += _never_run(fractions, slots, threads, machines)
    room = max(slots.values(), default=0)
    at_once = room if requested.workers == "auto" else min(requested.workers, room)
    if requested.workers != "auto" and requested.workers > room > 0:
        warnings.append(f"workers={requested.workers} exceeds the room on these machines; {room} trials run at once")
    warnings += _growth_warnings(machines, threads, fractions, at_once)
    warnings += _memory_warnings(machines, peaks_gib, fractions, at_once)
    return Packing(
        threads=threads,
        gpu_fraction=fractions,
        slots={arm: min(at_once, count) for arm, count in slots.items()},
        warnings=tuple(warnings),
        problems=tuple(dict.fromkeys(problems)),
    )


def require_runnable(packing: Packing, problems: Sequence[str] = ()) -> None:
    """Raises BadInputError, naming these problems and the packing's, where some trial could never run."""
    found = [*problems, *packing.problems]
    if found:
        raise BadInputError("trials cannot run on these machines:\n" + "\n".join(f"  {line}" for line in found))


def _gpu_fractions(
    arms: Sequence[str], peaks_gib: Mapping[str, float], machines: Machines, requested: object
) -> tuple[dict[str, float | None], list[str], list[str]]:
    """Each arm's share of a GPU, with warnings and problems."""
    fractions: dict[str, float | None] = dict.fromkeys(arms)
    warnings: list[str] = []
    problems: list[str] = []
    if requested != "auto":
        for arm in arms:
            fractions[arm] = _requested_fraction(arm, requested, peaks_gib, machines.gpu_gib, warnings, problems)
    elif machines.gpus and machines.gpu_gib is None:
        fractions = dict.fromkeys(arms, 1.0)
        warnings.append("the memory of the GPUs is unknown; every trial gets a whole one (or set gpu_per_trial)")
    elif machines.gpus:
        for arm in arms:
            fractions[arm] = _packed_fraction(arm, peaks_gib, machines.gpu_gib or 0.0, warnings, problems)
    return fractions, warnings, problems


def _packed_fraction(
    arm: str, peaks_gib: Mapping[str, float], gpu_gib: float, warnings: list[str], problems: list[str]
) -> float | None:
    if arm not in peaks_gib:
        warnings.append(f"{arm} has no predicted peak memory; its trials get a whole GPU")
        return 1.0
    needed_gib = required_gib(peaks_gib[arm])
    fraction = packing_fraction(needed_gib, gpu_gib)
    if fraction is None:
        problems.append(
            f"{arm} needs {needed_gib:.1f} GiB (predicted peak {peaks_gib[arm]:.1f} GiB, with context and workspace), "
            f"a GPU has {gpu_gib:.1f} GiB; halve its micro_batch_size and double its grad_accum_steps"
        )
    return fraction


def _requested_fraction(
    arm: str,
    requested: object,
    peaks_gib: Mapping[str, float],
    gpu_gib: float | None,
    warnings: list[str],
    problems: list[str],
) -> float | None:
    if isinstance(requested, Mapping) and arm not in requested:
        problems.append(f"resources.gpu_per_trial names {', '.join(sorted(requested))} and not {arm}; add its share")
        return None
    share = float(requested[arm] if isinstance(requested, Mapping) else requested)  # type: ignore[arg-type]
    if share == 0:
        return None
    if not 0 < share <= 1:
        problems.append(f"resources.gpu_per_trial={share:g} for {arm}: one trial trains on one GPU; choose 0 to 1")
        return None
    if gpu_gib is not None and arm in peaks_gib and required_gib(peaks_gib[arm]) > share * gpu_gib:
        warnings.append(
            f"{arm} needs about {required_gib(peaks_gib[arm]):.1f} GiB and its share of {share:.3g} GPU is "
            f"{share * gpu_gib:.1f} GiB; its micro-batches may be split to fit"
        )
    return share


def _slots(nodes: Sequence[Node], threads: int, gpu_fraction: float | None) -> int:
    """Trials of one kind that the nodes hold at once; a trial never spans nodes."""
    total = 0
    for node in nodes:
        by_threads = node.cpus // threads
        by_gpu = by_threads if gpu_fraction is None else node.gpus * trials_per_gpu(gpu_fraction)
        total += min(by_threads, by_gpu)
    return total


def _never_run(
    fractions: Mapping[str, float | None], slots: Mapping[str, int], threads: int, machines: Machines
) -> list[str]:
    """Requests that no node can meet. An arm without a fraction on GPUs has a problem already, or enough CPUs."""
    stuck: dict[float | None, list[str]] = {}
    for arm, fraction in fractions.items():
        if slots[arm] == 0 and (fraction is not None or not machines.gpus or threads > machines.most_cpus):
            stuck.setdefault(fraction, []).append(arm)
    most_gpus = max((node.gpus for node in machines.reachable), default=0)
    place = "this machine" if machines.address is None else "the largest node"
    remedy = "" if machines.address is None else ", or add a node"
    problems = []
    for fraction, arms in stuck.items():
        needed = f"{threads:,} CPU" + ("" if fraction is None else f" and {fraction:.3g} GPU")
        problems.append(
            f"a trial of {', '.join(arms)} needs {needed}, and {place} has {machines.most_cpus:,} CPU and {most_gpus} "
            f"GPU; lower resources.threads_per_trial or gpu_per_trial{remedy}"
        )
    return problems


def _growth_warnings(
    machines: Machines, threads: int, fractions: Mapping[str, float | None], at_once: int
) -> list[str]:
    present = max((_slots(machines.nodes, threads, fraction) for fraction in fractions.values()), default=0)
    if machines.growth and at_once > present:
        return [f"{present} of {at_once} trials have room now; the rest wait for nodes the autoscaler starts"]
    return []


def _memory_warnings(
    machines: Machines, peaks_gib: Mapping[str, float], fractions: Mapping[str, float | None], at_once: int
) -> list[str]:
    """On CPUs all trials of a node share its memory."""
    on_cpu = [peaks_gib[arm] for arm, fraction in fractions.items() if fraction is None and arm in peaks_gib]
    known = [node.memory_gib for node in machines.nodes if node.memory_gib is not None]
    if machines.gpus or not on_cpu or len(known) < len(machines.nodes):
        return []
    if max(on_cpu) * at_once > sum(known):
        return [
            f"{at_once} trials at a predicted {max(on_cpu):.1f} GiB exceed the {sum(known):.1f} GiB of memory; "
            "lower resources.workers"
        ]
    return []
