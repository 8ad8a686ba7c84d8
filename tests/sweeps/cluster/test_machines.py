"""Facts about machines: what an autoscaler may start, as its owner declares it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from moe.device import Device
from search_spaces import load_space
from sweeps.cluster.connection import joined_ray
from sweeps.cluster.gpus import Gpu
from sweeps.cluster.machines import Machines, Node, declared_growth, machines_at_hand, not_yet_up
from sweeps.cluster.node_probe import NodeGpus
from sweeps.errors import BadInputError, WorldError
from sweeps.packing.shares import pack


def test_declared_nodes_are_read_with_several_kinds() -> None:
    found = declared_growth("nodes=2, cpus=8, gpus=1, gpu_gib=24; nodes=1,cpus=4")
    assert [(node.cpus, node.gpus, node.gpu_gib) for node in found] == [(8, 1, 24.0), (8, 1, 24.0), (4, 0, None)]
    assert declared_growth("") == ()


@pytest.mark.parametrize("text", ["nodes=2", "nodes=x,cpus=1", "nodes=1,cpus=2,tpus=3", "4 GPUs"])
def test_a_declaration_that_is_not_understood_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(BadInputError, match=r"is not understood .*; write nodes=4,cpus=8,gpus=1,gpu_gib=24"):
        declared_growth(text)


def test_nodes_that_are_up_are_no_longer_to_come() -> None:
    declared = declared_growth("nodes=3,cpus=8,gpus=1,gpu_gib=24")
    up = (Node(cpus=2), Node(cpus=8, gpus=1, gpu_gib=23.7))
    assert len(not_yet_up(declared, up)) == 2


def test_a_cluster_that_grows_from_zero_is_planned_at_its_full_size() -> None:
    head = Node(cpus=0)
    growth = not_yet_up(declared_growth("nodes=4,cpus=8,gpus=1,gpu_gib=24"), (head,))
    space = load_space(preset="smoke")
    packing = pack(space, {arm.name: 6.5 for arm in space.strategies}, Machines(nodes=(head,), growth=growth))
    assert packing.problems == ()
    assert set(packing.gpu_fraction.values()) == {1 / 3}
    assert packing.workers == 12


def test_a_gpu_counts_where_torch_can_train_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("sweeps.cluster.gpus.listed_gpus", lambda: (Gpu(index=0, uuid="GPU-1", memory_gib=24.0),))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)  # a torch for CPUs beside a GPU
    with machines_at_hand() as machines:
        assert (machines.gpus, machines.device.kind, machines.address) == (0, "cpu", None)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    gpu = Device(kind="cuda", name="a GPU", compute_capability=(9, 0), memory_bytes=24 * 2**30)
    monkeypatch.setattr("moe.device.Device.resolve", lambda name="auto": gpu)
    with machines_at_hand() as machines:
        assert (machines.gpus, machines.gpu_gib, machines.device) == (1, 24.0, gpu)


def test_the_nodes_behind_a_job_server_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    with machines_at_hand() as machines:
        assert machines.address is None


def test_a_cluster_is_joined_once_and_its_oldest_gpu_stands_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [
        {"NodeID": name, "NodeManagerAddress": name, "Resources": {"CPU": 8.0, "GPU": gpus, "memory": 2.0**34}}
        for name, gpus in (("old", 1.0), ("new", 2.0), ("silent", 1.0), ("bare", 0.0))
    ]
    found = {
        "old": NodeGpus(memory_gib=16.0, compute_capability=(7, 0)),
        "new": NodeGpus(memory_gib=80.0, compute_capability=(9, 0)),
    }
    joined: list[str] = []

    @contextmanager
    def join(address: str) -> Iterator[None]:
        joined.append(address)
        yield

    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr("sweeps.cluster.machines.joined_ray", join)
    monkeypatch.setattr("sweeps.cluster.machines.live_nodes", lambda: entries)
    monkeypatch.setattr("sweeps.cluster.machines.ask_gpus", lambda _deadline_s: found)
    with machines_at_hand() as machines:
        assert [(node.name, node.gpus, node.gpu_gib) for node in machines.nodes] == [
            ("old", 1, 16.0),
            ("new", 2, 80.0),
            ("silent", 1, None),
            ("bare", 0, None),
        ]
        assert (machines.gpus, machines.gpu_gib, machines.address) == (4, 16.0, "auto")
        assert (machines.device.kind, machines.device.compute_capability) == ("cuda", (7, 0))
        assert machines.device.memory_bytes == 16 * 2**30, "how many rows the head has at once depends on it"
        assert machines.declaring(9) == machines, "a cluster declares its GPUs itself"
    assert joined == ["auto"]


def test_a_cluster_that_does_not_answer_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: object) -> None:
        raise ConnectionError("Could not find any running Ray instance.\nlong advice")

    monkeypatch.setattr("ray.init", refuse)
    with (
        pytest.raises(
            WorldError, match=r"no Ray cluster answers at RAY_ADDRESS=auto \(Could not find any running Ray.*start one"
        ),
        joined_ray("auto"),
    ):
        pytest.fail("nothing was joined")


def test_a_block_inside_another_uses_the_connection_that_is_there_and_leaves_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("connected twice"))
    monkeypatch.setattr("ray.shutdown", lambda: pytest.fail("the connection belongs to the outer block"))
    with joined_ray("auto"):
        pass
