"""Facts about machines: what an autoscaler may start, as its owner declares it."""

from __future__ import annotations

import pytest

from sweeps.cluster.connection import joined_ray
from sweeps.cluster.machines import ClusterFacts, Gpu, NodeFacts, cluster_has_gpu, declared_growth, not_yet_up
from sweeps.errors import BadInputError, WorldError
from sweeps.packing.fractions import plan_resources


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
    up = (NodeFacts(cpus=2), NodeFacts(cpus=8, gpus=1, gpu_gib=23.7))
    assert len(not_yet_up(declared, up)) == 2


def test_a_cluster_that_grows_from_zero_is_planned_at_its_full_size() -> None:
    head = NodeFacts(cpus=0)
    facts = ClusterFacts(nodes=(head,), growth=not_yet_up(declared_growth("nodes=4,cpus=8,gpus=1,gpu_gib=24"), (head,)))
    plan = plan_resources(arms=["long_seq"], predicted_peaks_gib={"long_seq": 6.5}, facts=facts)
    assert plan.problems == ()
    assert plan.gpu_fraction == {"long_seq": 1 / 3}
    assert plan.workers == 12


def test_a_gpu_is_looked_for_here_and_not_behind_a_job_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("sweeps.cluster.machines.listed_gpus", lambda: (Gpu(index=0, uuid="GPU-1", memory_gib=24.0),))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert cluster_has_gpu()
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)  # a torch for CPUs beside a GPU
    assert not cluster_has_gpu()
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    assert not cluster_has_gpu()


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
    monkeypatch.setattr("ray.shutdown", lambda: pytest.fail("the connection is somebody else's"))
    with joined_ray("auto"):
        pass
