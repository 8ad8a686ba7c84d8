"""The machines that trials run on: this one, or the cluster that ``RAY_ADDRESS`` names.

A command resolves them once (``machines_at_hand``) and hands them on to packing, precision, memory prediction and plan.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps.cluster.connection import cluster_address, is_job_address, joined_ray, live_nodes
from sweeps.cluster.gpus import GIB, usable_gpu_memories_gib
from sweeps.cluster.node_probe import ask_gpus, node_deadline_s
from sweeps.errors import BadInputError

if TYPE_CHECKING:
    from moe.device import Device

GROWTH_VARIABLE = "SWEEPS_CLUSTER_GROWTH"
"""Ray does not report to a driver what its autoscaler may still start, so the user declares it."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """What one machine offers to trials. ``gpu_gib`` is the memory of one GPU, of the smallest where they differ."""

    cpus: int
    gpus: int = 0
    gpu_gib: float | None = None
    memory_gib: float | None = None
    name: str = "this machine"


@dataclass(frozen=True, kw_only=True)
class Machines:
    """The nodes that are up, and those that an autoscaler may still start (``growth``).

    ``address`` is the cluster's, None for this machine alone. ``gpu_name`` and ``compute_capability`` describe the GPU
    that stands for all in predictions, and are empty where trials train on CPUs.
    """

    nodes: tuple[Node, ...]
    growth: tuple[Node, ...] = ()
    address: str | None = None
    gpu_name: str = ""
    compute_capability: tuple[int, int] | None = None

    @classmethod
    def of(cls, *, cpus: int, gpus: int = 0, gpu_gib: float | None = None) -> Machines:
        """One machine."""
        return cls(nodes=(Node(cpus=cpus, gpus=gpus, gpu_gib=gpu_gib),))

    @property
    def reachable(self) -> tuple[Node, ...]:
        """Every node that a trial may run on, now or later."""
        return self.nodes + self.growth

    @property
    def gpus(self) -> int:
        """GPUs of all reachable nodes."""
        return sum(node.gpus for node in self.reachable)

    @property
    def gpu_gib(self) -> float | None:
        """Memory of the smallest GPU, None where no GPU's memory is known."""
        return min((node.gpu_gib for node in self.reachable if node.gpus and node.gpu_gib is not None), default=None)

    @property
    def most_cpus(self) -> int:
        """CPUs of the largest node."""
        return max((node.cpus for node in self.reachable), default=0)

    @property
    def device(self) -> Device:
        """The device that trials train on."""
        from moe.device import Device

        if self.compute_capability is None:
            return Device.resolve("cpu")
        return Device(
            kind="cuda",
            name=self.gpu_name,
            compute_capability=self.compute_capability,
            memory_bytes=None if self.gpu_gib is None else int(self.gpu_gib * GIB),
        )

    def declaring(self, gpus: int | None) -> Machines:
        """This machine with a declared number of GPUs (``resources.declared_gpus``); a cluster declares its own."""
        if gpus is None or self.address is not None:
            return self
        return replace(self, nodes=tuple(replace(node, gpus=gpus) for node in self.nodes))

    def assuming(self, gpu_gib: float, *, cpus: int) -> Machines:
        """The same GPUs with another memory; without any, one machine that has one such GPU and ``cpus`` CPUs."""
        from moe.device import BF16_COMPUTE_CAPABILITY

        gpu = {"gpu_name": f"a GPU of {gpu_gib:g} GiB", "compute_capability": BF16_COMPUTE_CAPABILITY}
        if not self.gpus:
            node = Node(cpus=cpus, gpus=1, gpu_gib=gpu_gib, name="an assumed machine")
            return replace(self, nodes=(node,), growth=(), **gpu)  # type: ignore[arg-type]
        nodes, growth = (tuple(replace(node, gpu_gib=gpu_gib) for node in some) for some in (self.nodes, self.growth))
        return replace(self, nodes=nodes, growth=growth, **gpu)  # type: ignore[arg-type]


@contextmanager
def machines_at_hand() -> Iterator[Machines]:
    """The cluster that ``RAY_ADDRESS`` names, joined until the block ends; otherwise this machine.

    The nodes behind a job server cannot be seen from here: that is this machine, too.

    Raises:
        BadInputError: ``RAY_ADDRESS`` is no address, or the declared growth is not understood.
        WorldError: no cluster answers.
    """
    address = cluster_address()
    if address is None or is_job_address(address):
        yield local_machine()
        return
    with joined_ray(address):
        yield _joined_machines(address)


def local_machine() -> Machines:
    """This machine alone, without Ray."""
    import psutil

    memories_gib = usable_gpu_memories_gib()
    node = Node(
        cpus=usable_cpus(),
        gpus=len(memories_gib),
        gpu_gib=min(memories_gib, default=None),
        memory_gib=psutil.virtual_memory().total / GIB,
    )
    if not memories_gib:
        return Machines(nodes=(node,))
    from moe.device import Device

    device = Device.resolve()
    return Machines(nodes=(node,), gpu_name=device.name, compute_capability=device.compute_capability)


def _joined_machines(address: str) -> Machines:
    """The cluster that Ray is connected to, and the growth that ``SWEEPS_CLUSTER_GROWTH`` declares."""
    declared = declared_growth(os.environ.get(GROWTH_VARIABLE, ""))
    gpus = ask_gpus(node_deadline_s(os.environ))
    nodes = tuple(
        _node(entry, gpus[entry["NodeID"]].memory_gib if entry["NodeID"] in gpus else None) for entry in live_nodes()
    )
    found = Machines(nodes=nodes, growth=not_yet_up(declared, nodes), address=address)
    if not found.gpus:
        return found
    from moe.device import BF16_COMPUTE_CAPABILITY

    # bf16 and fp16 take the same memory, so a GPU that can do bf16 stands for those whose node did not answer
    known = [gpu.compute_capability for gpu in gpus.values() if gpu.compute_capability is not None]
    return replace(
        found, gpu_name="a GPU of the cluster", compute_capability=min(known, default=BF16_COMPUTE_CAPABILITY)
    )


def usable_cpus() -> int:
    """Logical CPUs that this process may use: its affinity, and a container's quota rounded down (at least one)."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota_file = Path("/sys/fs/cgroup/cpu.max")  # cgroup v2: "quota period", or "max period"
    if quota_file.is_file():
        quota, _, period = quota_file.read_text().partition(" ")
        if quota.isdecimal() and int(quota) > 0:
            allowed = min(allowed, max(1, int(quota) // int(period)))
    return allowed


def declared_growth(text: str) -> tuple[Node, ...]:
    """Nodes as in ``nodes=4,cpus=8,gpus=1,gpu_gib=24``; several kinds are separated by ``;``.

    Raises BadInputError naming the kind that is not understood.
    """
    declared: list[Node] = []
    for kind in filter(None, (part.strip() for part in text.split(";"))):
        fields = dict(part.partition("=")[::2] for part in kind.replace(" ", "").split(","))
        try:
            unknown = fields.keys() - {"nodes", "cpus", "gpus", "gpu_gib"}
            if unknown:
                raise ValueError(f"unknown {', '.join(sorted(unknown))}")
            node = Node(
                name="a node that the autoscaler starts",
                cpus=int(fields["cpus"]),
                gpus=int(fields.get("gpus", 0)),
                gpu_gib=float(fields["gpu_gib"]) if "gpu_gib" in fields else None,
            )
            declared += [node] * int(fields["nodes"])
        except (KeyError, ValueError) as error:
            raise BadInputError(
                f"{GROWTH_VARIABLE}: {kind!r} is not understood ({error}); write nodes=4,cpus=8,gpus=1,gpu_gib=24"
            ) from error
    return tuple(declared)


def not_yet_up(declared: Sequence[Node], nodes: Sequence[Node]) -> tuple[Node, ...]:
    """The declared nodes without those that are up already, recognized by their CPUs and GPUs."""
    up = [(node.cpus, node.gpus) for node in nodes]
    waiting = []
    for node in declared:
        if (node.cpus, node.gpus) in up:
            up.remove((node.cpus, node.gpus))
        else:
            waiting.append(node)
    return tuple(waiting)


def _node(entry: Mapping[str, Any], gpu_gib: float | None) -> Node:
    resources = entry["Resources"]
    memory_bytes = resources.get("memory")
    return Node(
        name=str(entry["NodeManagerAddress"]),
        cpus=int(resources.get("CPU", 0)),
        gpus=int(resources.get("GPU", 0)),
        gpu_gib=gpu_gib,
        memory_gib=None if memory_bytes is None else memory_bytes / GIB,
    )
