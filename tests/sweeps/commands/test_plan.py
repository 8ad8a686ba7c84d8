"""Which machines a plan is for: this one, or the cluster that RAY_ADDRESS names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from search_spaces import Identity, Space, load_space, planned_cells
from sweeps.cluster.machines import ClusterFacts, NodeFacts
from sweeps.commands.plan import SweepPlan, make_plan
from sweeps.packing.duration import Duration

FOUR_GPUS = ClusterFacts(
    nodes=(NodeFacts(cpus=0), *(NodeFacts(cpus=8, gpus=2, gpu_gib=gib, name=f"node of {gib}") for gib in (24.0, 40.0)))
)


@pytest.fixture
def space(monkeypatch: pytest.MonkeyPatch) -> Space:
    """One that is planned without its corpus, on a machine of two CPUs and no GPU."""
    monkeypatch.setattr("sweeps.commands.plan._from_corpus", lambda space, warnings: (None, None))
    monkeypatch.setattr("sweeps.packing.shares.local_facts", lambda **_: ClusterFacts.of(cpus=2))
    monkeypatch.setattr("sweeps.commands.plan.estimate", lambda *_: Duration(hours=1.0, source="measured"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return load_space(preset="smoke")


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Addresses of the clusters that were joined; all of them are ``FOUR_GPUS``."""
    addresses: list[str] = []

    @contextmanager
    def join(address: str) -> Iterator[None]:
        addresses.append(address)
        yield

    monkeypatch.setattr("sweeps.commands.plan.joined_ray", join)
    monkeypatch.setattr("sweeps.cluster.machines.joined_ray", join)
    monkeypatch.setattr("sweeps.cluster.machines.cluster_facts", lambda gpu_gib_by_node=None: FOUR_GPUS)
    monkeypatch.setattr("sweeps.cluster.node_probe.ask_gpu_memories", dict)
    monkeypatch.setattr("sweeps.cluster.node_probe.ask_compute_capability", lambda: (7, 5))
    monkeypatch.setattr("sweeps.trial.precision.joined_ray", join)
    return addresses


def fractions(plan: SweepPlan) -> set[float | None]:
    return {arm.gpu_fraction for arm in plan.arms}


def test_without_an_address_the_plan_is_this_machines(space: Space, joined: list[str]) -> None:
    plan = make_plan(space)
    assert (plan.workers, fractions(plan), plan.hours) == (2, {None}, 1.0)
    assert joined == []


def test_with_an_address_the_plan_is_the_clusters_and_tells_no_hours_of_this_machine(
    space: Space, joined: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    plan = make_plan(space)
    assert set(joined) == {"auto"}
    assert fractions(plan) == {1 / 8}, "of 24 GiB, the memory of the cluster's smallest GPU"
    assert plan.workers == 16, "eight CPUs on each of two nodes"
    assert plan.hours is None
    assert "no hours are told for a cluster" in " ".join(plan.warnings)


def test_an_assumed_memory_is_that_of_the_clusters_own_gpus(
    space: Space, joined: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    plan = make_plan(space, assume_gpu_gib=1.0)
    assert fractions(plan) == {1.0}
    assert plan.workers == 4, "one trial on each of the cluster's GPUs, and not on one assumed GPU"


def test_a_job_server_cannot_be_looked_at_and_the_plan_says_whose_it_is(
    space: Space, joined: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    plan = make_plan(space)
    assert joined == []
    assert plan.workers == 2
    [said] = [warning for warning in plan.warnings if "job server" in warning]
    assert said.startswith("RAY_ADDRESS=http://head:8265 is a job server, whose nodes cannot be looked at from here")


@pytest.mark.parametrize(("assumed_gib", "name"), [(None, "fp32"), (24.0, "bf16")])
def test_a_plan_has_the_cells_that_a_sweep_here_or_on_the_assumed_gpu_would_begin(
    space: Space, monkeypatch: pytest.MonkeyPatch, assumed_gib: float | None, name: str
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", dict)
    identity = Identity(corpus_fingerprint="c", tokenizer_fingerprint="t", exam_fingerprint="e")
    material = SimpleNamespace(identity=identity, tokens=SimpleNamespace(vocab_size=512))
    monkeypatch.setattr("sweeps.commands.plan._from_corpus", lambda _space, _warnings: (material, None))
    expected = planned_cells(space.model_copy(update={"precision": name}), identity)
    assert make_plan(space, assume_gpu_gib=assumed_gib).cells == expected
    named = space.model_copy(update={"precision": "fp32"})
    assert make_plan(named, assume_gpu_gib=assumed_gib).cells == planned_cells(named, identity)
