"""The facts about machines that planning needs: of this one without Ray, of a whole cluster through Ray."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeps.cluster.connection import cluster_address, is_job_address, joined_ray
from sweeps.errors import BadInputError

GIB = 2**30

NVIDIA_SMI_TIMEOUT_S = 20.0

GROWTH_VARIABLE = "SWEEPS_CLUSTER_GROWTH"
"""Ray does not tell a driver what its autoscaler may still start, so the user does."""


def usable_cpus() -> int:
    """Logical CPUs that this process may use: its affinity, and a container's quota rounded down (at least one)."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota_file = Path("/sys/fs/cgroup/cpu.max")  # cgroup v2: "quota period", or "max period"
    if quota_file.is_file():
        quota, _, period = quota_file.read_text().partition(" ")
        if quota.isdigit() and int(quota) > 0:
            allowed = min(allowed, max(1, int(quota) // int(period)))
    return allowed


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One NVIDIA GPU of this machine as ``nvidia-smi`` lists it."""

    index: int
    uuid: str
    memory_gib: float


def listed_gpus() -> tuple[Gpu, ...]:
    """Every NVIDIA GPU of this machine, by ``nvidia-smi``; empty without that program or a GPU.

    It is asked rather than torch, because a Ray task that holds no GPU sees none, and because a context costs memory.
    Ray counts the GPUs that trials may use; this only says how large they are.
    """
    return tuple(
        Gpu(index=int(row[0]), uuid=row[1], memory_gib=float(row[2]) / 1024)
        for row in _nvidia_smi("index", "uuid", "memory.total")
        if len(row) == 3 and row[0].isdigit() and row[2].replace(".", "").isdigit()
    )


def lowest_compute_capability() -> tuple[int, int] | None:
    """The lowest CUDA compute capability among this machine's GPUs, by ``nvidia-smi``; None where it names none."""
    versions = (row[0].partition(".")[::2] for row in _nvidia_smi("compute_cap"))
    found = [(int(major), int(minor)) for major, minor in versions if major.isdigit() and minor.isdigit()]
    return min(found, default=None)


def _nvidia_smi(*fields: str) -> list[list[str]]:
    """These fields of every GPU; empty where there is no such program, or its driver does not answer (see doctor)."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT_S, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return []
    return [[word.strip() for word in line.split(",")] for line in answer.stdout.splitlines()]


def gpu_memories_gib() -> tuple[float, ...]:
    """Memory of every NVIDIA GPU of this machine in GiB, hidden ones too."""
    return tuple(gpu.memory_gib for gpu in listed_gpus())


def visible_gpus(gpus: Sequence[Gpu], visible_devices: str | None) -> tuple[Gpu, ...]:
    """The GPUs that ``CUDA_VISIBLE_DEVICES`` leaves, in its order; all of them where it is not set (None).

    As CUDA reads it (CUDA C++ programming guide, environment variables): indices, or UUIDs of which a beginning that
    only one GPU has is enough; the list ends before its first entry that names no GPU. A slice of a GPU (``MIG-...``)
    is none of them. Indices are those of ``nvidia-smi``, which are CUDA's under ``CUDA_DEVICE_ORDER=PCI_BUS_ID`` and
    wherever all GPUs are of one kind.
    """
    if visible_devices is None:
        return tuple(gpus)
    found: list[Gpu] = []
    for entry in (word.strip() for word in visible_devices.split(",")):
        named = [gpu for gpu in gpus if (str(gpu.index) == entry if entry.isdigit() else gpu.uuid.startswith(entry))]
        if not entry or len(named) != 1:
            break
        found += named
    return tuple(found)


def local_facts(*, declared_gpus: int | None = None) -> ClusterFacts:
    """This machine alone, without Ray. ``declared_gpus`` stands for the number of its GPUs (for tests without any)."""
    import psutil

    memories_gib = usable_gpu_memories_gib()
    node = NodeFacts(
        cpus=usable_cpus(),
        gpus=len(memories_gib) if declared_gpus is None else declared_gpus,
        gpu_gib=min(memories_gib, default=None),
        memory_gib=psutil.virtual_memory().total / GIB,
    )
    return ClusterFacts(nodes=(node,))


def usable_gpu_memories_gib() -> tuple[float, ...]:
    """Memory of the GPUs that trials of this process's own Ray may use: those torch can train on and nobody hides."""
    gpus = listed_gpus()
    if not gpus:
        return ()
    import torch

    count = torch.cuda.device_count()
    visible = visible_gpus(gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))
    if len(visible) < count:  # slices of GPUs, which only CUDA itself can size
        return tuple(torch.cuda.get_device_properties(number).total_memory / GIB for number in range(count))
    return tuple(gpu.memory_gib for gpu in visible[:count])


def cluster_has_gpu() -> bool:
    """Whether trials would find a GPU: on the cluster that ``RAY_ADDRESS`` names, its declared growth, or here.

    Connects to the cluster for a moment. A job server's address says no: the job itself asks once it runs there.
    """
    address = cluster_address()
    if not address:
        return bool(usable_gpu_memories_gib())
    if is_job_address(address):
        return False
    with joined_ray(address):
        return cluster_facts().gpus > 0


def cluster_facts(gpu_gib_by_node: Mapping[str, float] | None = None) -> ClusterFacts:
    """The cluster that Ray is connected to: its live nodes, and those that ``SWEEPS_CLUSTER_GROWTH`` declares.

    ``gpu_gib_by_node`` maps node ids to the memory of a GPU there, as the preflight's probes have found it.
    """
    found = gpu_gib_by_node or {}
    nodes = tuple(_node_facts(node, found.get(node["NodeID"])) for node in live_nodes())
    return ClusterFacts(nodes=nodes, growth=not_yet_up(declared_growth(os.environ.get(GROWTH_VARIABLE, "")), nodes))


def declared_growth(text: str) -> tuple[NodeFacts, ...]:
    """Nodes as in ``nodes=4,cpus=8,gpus=1,gpu_gib=24``; several kinds are parted by ``;``.

    Raises BadInputError naming the part that is not understood.
    """
    declared: list[NodeFacts] = []
    for kind in filter(None, (part.strip() for part in text.split(";"))):
        said = dict(part.partition("=")[::2] for part in kind.replace(" ", "").split(","))
        try:
            unknown = said.keys() - {"nodes", "cpus", "gpus", "gpu_gib"}
            if unknown:
                raise ValueError(f"unknown {', '.join(sorted(unknown))}")
            facts = NodeFacts(
                name="a node that the autoscaler starts",
                cpus=int(said["cpus"]),
                gpus=int(said.get("gpus", 0)),
                gpu_gib=float(said["gpu_gib"]) if "gpu_gib" in said else None,
            )
            declared += [facts] * int(said["nodes"])
        except (KeyError, ValueError) as error:
            raise BadInputError(
                f"{GROWTH_VARIABLE}: {kind!r} is not understood ({error}); write nodes=4,cpus=8,gpus=1,gpu_gib=24"
            ) from error
    return tuple(declared)


def not_yet_up(declared: Sequence[NodeFacts], nodes: Sequence[NodeFacts]) -> tuple[NodeFacts, ...]:
    """The declared nodes without those that are up already, told by their CPUs and GPUs."""
    up = [(node.cpus, node.gpus) for node in nodes]
    waiting = []
    for facts in declared:
        if (facts.cpus, facts.gpus) in up:
            up.remove((facts.cpus, facts.gpus))
        else:
            waiting.append(facts)
    return tuple(waiting)


def _node_facts(node: Mapping[str, Any], gpu_gib: float | None) -> NodeFacts:
    resources = node["Resources"]
    memory_bytes = resources.get("memory")
    return NodeFacts(
        name=str(node["NodeManagerAddress"]),
        cpus=int(resources.get("CPU", 0)),
        gpus=int(resources.get("GPU", 0)),
        gpu_gib=gpu_gib,
        memory_gib=None if memory_bytes is None else memory_bytes / GIB,
    )


def live_nodes() -> list[dict[str, Any]]:
    """Ray's own entries of the live nodes, ordered by address."""
    import ray

    return sorted((node for node in ray.nodes() if node["Alive"]), key=lambda node: str(node["NodeManagerAddress"]))


@dataclass(frozen=True, kw_only=True)
class NodeFacts:
    """What one machine offers to trials. ``gpu_gib`` is the memory of one GPU, of the smallest where they differ."""

    cpus: int
    gpus: int = 0
    gpu_gib: float | None = None
    memory_gib: float | None = None
    name: str = "this machine"


@dataclass(frozen=True, kw_only=True)
class ClusterFacts:
    """The machines that are up (``nodes``), and those that an autoscaler may still start (``growth``)."""

    nodes: tuple[NodeFacts, ...]
    growth: tuple[NodeFacts, ...] = ()

    @classmethod
    def of(cls, *, cpus: int, gpus: int = 0, gpu_gib: float | None = None) -> ClusterFacts:
        """Facts of one machine."""
        return cls(nodes=(NodeFacts(cpus=cpus, gpus=gpus, gpu_gib=gpu_gib),))

    @property
    def reachable(self) -> tuple[NodeFacts, ...]:
        """Every node that a trial may one day run on."""
        return self.nodes + self.growth

    @property
    def gpus(self) -> int:
        """GPUs of all reachable nodes."""
        return sum(node.gpus for node in self.reachable)

    @property
    def gpu_gib(self) -> float | None:
        """Memory of the smallest GPU, None where no GPU's memory is known."""
        known = [node.gpu_gib for node in self.reachable if node.gpus and node.gpu_gib is not None]
        return min(known) if known else None
