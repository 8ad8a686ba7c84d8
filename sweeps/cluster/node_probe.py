"""The state of one node of a cluster: versions, storage, token cache, GPUs, asked by one pinned Ray task per node."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sweeps.cluster.connection import live_nodes
from sweeps.cluster.shipping import JOB_MARKER, SHIPPED_PACKAGES
from sweeps.ledger.storage import Storage

NODE_DEADLINE_S = 90.0
"""A cold node unpacks the working directory and starts a Python before it answers."""

INSTALL_DEADLINE_S = 1_800.0
"""The same where Ray makes the job's environment on the node first: some gigabytes of packages."""

OK = "ok"

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class NodeAnswer:
    """What one node answered. ``error`` is set, and little else, where its task failed or did not answer in time.

    ``storage`` and ``token_cache`` are ``ok``, or what is wrong. ``clock_skew_s`` is how far its clock is outside the
    interval between question and answer by the driver's.
    """

    node_id: str
    address: str
    cpus: int
    gpus: int
    is_driver: bool = False
    error: str | None = None
    gpu_gib: float | None = None
    python: str = ""
    ray: str = ""
    torch: str = ""
    code: str = ""
    storage: str = ""
    token_cache: str = ""
    clock_skew_s: float = 0.0


def node_deadline_s(environment: Mapping[str, str]) -> float:
    """Return how long a node may take to answer: longer within a job for which packages are installed."""
    job_config = json.loads(environment.get(JOB_MARKER) or "{}")
    return INSTALL_DEADLINE_S if (job_config.get("runtime_env") or {}).get("pip") else NODE_DEADLINE_S


def ask_nodes(storage_uri: str, token_cache_dir: str | None, deadline_s: float) -> tuple[NodeAnswer, ...]:
    """Return the answers of all live nodes, asked at once by one pinned task each.

    A node that does not answer within ``deadline_s`` is reported, not awaited. Ray must be connected.
    """
    import ray

    nodes = live_nodes()
    asked_s = time.time()
    pending = {_on_node(node, inspect_node, storage_uri, node["NodeID"], token_cache_dir): node for node in nodes}
    done, late = ray.wait(list(pending), num_returns=len(pending), timeout=deadline_s)
    here = ray.get_runtime_context().get_node_id()
    answers = {pending[ref]["NodeID"]: _answer(pending[ref], ref, here, asked_s) for ref in done}
    for ref in late:
        ray.cancel(ref, force=True)
        problem = f"did not answer within {deadline_s:.0f} s; look at its raylet, or end it with `ray stop` there"
        answers[pending[ref]["NodeID"]] = NodeAnswer(**_known(pending[ref], here), error=problem)
    return tuple(answers[node["NodeID"]] for node in nodes)


@dataclass(frozen=True, kw_only=True)
class NodeGpus:
    """Of one node's GPUs the smallest memory and the lowest compute capability, None where it is not known."""

    memory_gib: float
    compute_capability: tuple[int, int] | None


def ask_gpus(deadline_s: float) -> dict[str, NodeGpus]:
    """The GPUs by node id, of the nodes that have some and answer in time. Ray must be connected."""
    import ray

    nodes = [node for node in live_nodes() if node["Resources"].get("GPU", 0)]
    pending = {_on_node(node, inspect_gpus): node["NodeID"] for node in nodes}
    done, late = ray.wait(list(pending), num_returns=len(pending), timeout=deadline_s) if pending else ([], [])
    for ref in late:
        ray.cancel(ref, force=True)
    found = {}
    for ref in done:
        try:
            gpus = ray.get(ref)
        except ray.exceptions.RayError:
            continue  # a node that cannot answer is one whose GPUs are unknown, which the plan says
        if gpus is not None:
            found[pending[ref]] = gpus
    return found


def inspect_gpus() -> NodeGpus | None:
    """What ``nvidia-smi`` says of the GPUs of the node that this runs on; None where it lists none."""
    from sweeps.cluster.gpus import gpu_memories_gib, lowest_compute_capability

    memories_gib = gpu_memories_gib()
    if not memories_gib:
        return None
    return NodeGpus(memory_gib=min(memories_gib), compute_capability=lowest_compute_capability())


def _on_node(node: Mapping[str, Any], function: Callable[..., Any], *arguments: object) -> Any:
    """A task on this node and no other, which takes none of its CPUs; returns Ray's reference to its answer."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    pinned = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    task = ray.remote(num_cpus=0, max_retries=0)(function)
    return task.options(scheduling_strategy=pinned).remote(*arguments)


def _known(node: Mapping[str, Any], driver_node_id: str) -> dict[str, Any]:
    return {
        "node_id": node["NodeID"],
        "address": node["NodeManagerAddress"],
        "cpus": int(node["Resources"].get("CPU", 0)),
        "gpus": int(node["Resources"].get("GPU", 0)),
        "is_driver": node["NodeID"] == driver_node_id,
    }


def _answer(node: Mapping[str, Any], ref: Any, driver_node_id: str, asked_s: float) -> NodeAnswer:
    import ray

    known = _known(node, driver_node_id)
    try:
        answer = ray.get(ref)
    except Exception as error:  # noqa: BLE001 - whatever a node raises is that node's row, never the table's end
        reason = str(error).strip().splitlines()[-1]
        return NodeAnswer(**known, error=f"its probe failed: {reason}; are the project's packages installed there?")
    now_s = answer.pop("now_s")
    return NodeAnswer(**known, **answer, clock_skew_s=max(asked_s - now_s, now_s - time.time(), 0.0))


def sources_fingerprint(packages: Sequence[str] = SHIPPED_PACKAGES) -> str:
    """Return eight hex digits of a hash over the Python sources of these packages as this process imports them."""
    from importlib.util import find_spec

    digest = hashlib.sha256()
    for package in packages:
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            return "missing"
        folder = Path(spec.origin).parent
        for source in sorted(folder.rglob("*.py")):
            digest.update(f"{package}/{source.relative_to(folder).as_posix()}\n".encode())
            digest.update(source.read_bytes())
    return digest.hexdigest()[:8]


def inspect_node(storage_uri: str, node_id: str, token_cache_dir: str | None = None) -> dict[str, Any]:
    """Return the fields of a ``NodeAnswer`` that only the node on which this runs knows."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from sweeps.cluster.gpus import gpu_memories_gib
    from sweeps.training_data import cache_dir

    def installed(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "missing"

    gpus_gib = gpu_memories_gib()
    return {
        "python": platform.python_version(),
        "ray": installed("ray"),
        "torch": installed("torch"),
        "code": sources_fingerprint(),
        "storage": _storage_state(Storage(storage_uri), node_id),
        "token_cache": _token_cache_state(Path(token_cache_dir) if token_cache_dir else cache_dir()),
        "gpu_gib": min(gpus_gib, default=None),
        "now_s": time.time(),
    }


def _storage_state(storage: Storage, node_id: str) -> str:
    from sweeps.errors import SweepError

    try:
        if not storage.exists("driver"):
            return (
                "what the driver wrote is not visible there, so it is not shared; "
                "give --runs-dir a mount that all nodes have, or s3:// or gs://"
            )
        storage.write_bytes(node_id, b"node")
    except SweepError as error:
        return str(error)
    return OK


def _token_cache_state(folder: Path) -> str:
    """Whether token files can be made in ``folder``; every node keeps its own."""
    probe = folder / f".preflight-{secrets.token_hex(6)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        return f"{folder} cannot be written ({error.strerror}); set SWEEPS_CACHE_DIR to a folder that can"
    return OK
