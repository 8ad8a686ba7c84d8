"""Sharing a cluster out: fractions that pack, threads that are never oversubscribed, requests that cannot be met."""

from __future__ import annotations

import pytest

from sweeps.cluster.machines import ClusterFacts, NodeFacts
from sweeps.packing.fractions import (
    CUDA_CONTEXT_GIB,
    ResourcePlan,
    allocator_share,
    packing_fraction,
    plan_resources,
    required_gib,
    trials_per_gpu,
)

ARMS = ("large_batch", "balanced", "long_seq")
PEAKS_GIB = {"large_batch": 12.0, "balanced": 9.3, "long_seq": 6.5}


def on_gpus(gpu_gib: float | None, *, gpus: int = 2, cpus: int = 32, **more: object) -> ResourcePlan:
    facts = ClusterFacts.of(cpus=cpus, gpus=gpus, gpu_gib=gpu_gib)
    return plan_resources(arms=ARMS, predicted_peaks_gib=PEAKS_GIB, facts=facts, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("needed_gib", "fraction"),
    [(24.0, 1), (23.9, 1), (12.0, 1 / 2), (12.1, 1), (8.0, 1 / 3), (6.0, 1 / 4), (0.1, 1 / 8), (24.1, None)],
)
def test_a_fraction_is_rounded_up_to_one_that_packs(needed_gib: float, fraction: float | None) -> None:
    assert packing_fraction(needed_gib, 24.0) == fraction


@pytest.mark.parametrize("trials", range(1, 9))
def test_as_many_trials_fit_a_gpu_as_its_fraction_says(trials: int) -> None:
    assert trials_per_gpu(1 / trials) == trials
    assert trials_per_gpu(round(1 / trials - 5e-5, 4)) >= trials


def test_arms_of_different_appetite_get_different_shares() -> None:
    plan = on_gpus(24.0)
    # 12.0 GiB -> 13.9 with context, 9.3 -> 10.9, 6.5 -> 7.8
    assert plan.gpu_fraction == {"large_batch": 1.0, "balanced": 1 / 2, "long_seq": 1 / 3}
    assert plan.slots == {"large_batch": 2, "balanced": 4, "long_seq": 6}
    assert plan.workers == 6
    assert plan.warnings == ()


def test_a_share_holds_the_predicted_peak_with_context_and_workspace() -> None:
    for gpu_gib in (16.0, 24.0, 40.0, 80.0):
        for arm, fraction in on_gpus(gpu_gib).gpu_fraction.items():
            assert fraction is not None
            assert required_gib(PEAKS_GIB[arm]) <= fraction * gpu_gib


def test_an_arm_that_does_not_fit_has_no_fraction_and_a_warning() -> None:
    plan = on_gpus(12.0)
    assert plan.gpu_fraction["large_batch"] is None
    assert plan.slots["large_batch"] == 0
    assert plan.gpu_fraction["balanced"] == 1.0
    [warning] = plan.warnings
    assert warning.startswith("large_batch needs 13.9 GiB (predicted peak 12.0 GiB")
    assert "halve its micro_batch_size" in warning


def test_cpu_trials_get_whole_threads_and_never_oversubscribe() -> None:
    for cpus in range(1, 9):
        for threads in range(1, cpus + 1):
            facts = ClusterFacts.of(cpus=cpus)
            plan = plan_resources(arms=ARMS, predicted_peaks_gib={}, facts=facts, threads_per_trial=threads)
            assert plan.workers == cpus // threads
            assert plan.workers * plan.threads_per_trial <= cpus
            assert set(plan.gpu_fraction.values()) == {None}
            assert plan.problems == ()


def test_a_trial_never_spans_nodes() -> None:
    facts = ClusterFacts(nodes=(NodeFacts(cpus=3), NodeFacts(cpus=3)))
    plan = plan_resources(arms=ARMS, predicted_peaks_gib={}, facts=facts, threads_per_trial=2)
    assert plan.workers == 2


def test_more_workers_than_room_are_cut_to_the_room_with_a_warning() -> None:
    plan = plan_resources(arms=ARMS, predicted_peaks_gib={}, facts=ClusterFacts.of(cpus=2), workers=5)
    assert plan.workers == 2
    assert plan.warnings == ("workers=5 is more than this cluster has room for; 2 trials run at once",)


def test_fewer_workers_than_room_are_kept() -> None:
    plan = on_gpus(80.0, workers=3)
    assert plan.workers == 3
    assert set(plan.slots.values()) == {3}


def test_threads_that_no_node_has_are_a_problem_that_names_request_and_nodes() -> None:
    plan = plan_resources(arms=["balanced"], predicted_peaks_gib={}, facts=ClusterFacts.of(cpus=2), threads_per_trial=4)
    [problem] = plan.problems
    assert problem.startswith("a trial of balanced asks for 4 CPU and no node has that (the largest has 2 CPU")
    assert plan.workers == 0


def test_a_gpu_asked_of_a_cluster_without_one_is_a_problem() -> None:
    plan = plan_resources(arms=ARMS, predicted_peaks_gib={}, facts=ClusterFacts.of(cpus=2), gpu_per_trial=0.5)
    assert len(plan.problems) == len(ARMS)
    assert "asks for 1 CPU and 0.5 GPU" in plan.problems[0]


def test_a_gpu_that_an_autoscaler_can_start_is_no_problem() -> None:
    facts = ClusterFacts(nodes=(NodeFacts(cpus=4),), growth=(NodeFacts(cpus=8, gpus=1, gpu_gib=24.0),) * 3)
    plan = plan_resources(arms=ARMS, predicted_peaks_gib=PEAKS_GIB, facts=facts)
    assert plan.problems == ()
    assert plan.slots == {"large_batch": 3, "balanced": 6, "long_seq": 9}
    assert plan.warnings == ("0 of 9 trials have room now; the rest wait for nodes the autoscaler starts",)


def test_threads_limit_the_trials_of_a_gpu() -> None:
    plan = on_gpus(80.0, gpus=1, cpus=4, threads_per_trial=2)
    assert plan.workers == 2


def test_one_number_and_a_table_are_taken_as_given() -> None:
    assert set(on_gpus(80.0, gpu_per_trial=0.5).gpu_fraction.values()) == {0.5}
    table = {"large_batch": 1.0, "balanced": 0.5, "long_seq": 0.25}
    assert on_gpus(80.0, gpu_per_trial=table).gpu_fraction == table
    assert set(on_gpus(80.0, gpu_per_trial=0).gpu_fraction.values()) == {None}


def test_a_share_that_is_too_small_for_its_arm_is_warned_of() -> None:
    plan = on_gpus(24.0, gpu_per_trial=0.5)
    assert plan.warnings == (
        "large_batch needs about 13.9 GiB and its share of 0.5 GPU is 12.0 GiB; its micro-batches may be split to fit",
    )


def test_unknown_memory_or_peak_takes_a_whole_gpu_and_says_so() -> None:
    assert set(on_gpus(None).gpu_fraction.values()) == {1.0}
    assert "memory of the GPUs is unknown" in on_gpus(None).warnings[0]
    facts = ClusterFacts.of(cpus=4, gpus=1, gpu_gib=24.0)
    plan = plan_resources(arms=["balanced"], predicted_peaks_gib={}, facts=facts)
    assert plan.gpu_fraction == {"balanced": 1.0}
    assert plan.warnings == ("balanced has no predicted peak memory; its trials get a whole GPU",)


def test_an_assumed_gpu_is_planned_on_a_machine_that_has_none() -> None:
    facts = ClusterFacts.of(cpus=2)
    plan = plan_resources(arms=ARMS, predicted_peaks_gib=PEAKS_GIB, facts=facts, assume_gpu_gib=24.0)
    assert plan.gpu_fraction == on_gpus(24.0).gpu_fraction
    assert plan.workers == 3


def test_the_smallest_gpu_decides_the_fractions() -> None:
    nodes = (NodeFacts(cpus=8, gpus=1, gpu_gib=80.0), NodeFacts(cpus=8, gpus=1, gpu_gib=24.0))
    plan = plan_resources(arms=ARMS, predicted_peaks_gib=PEAKS_GIB, facts=ClusterFacts(nodes=nodes))
    assert plan.gpu_fraction == on_gpus(24.0).gpu_fraction


def test_cpu_trials_that_exceed_the_memory_are_warned_of() -> None:
    facts = ClusterFacts(nodes=(NodeFacts(cpus=4, memory_gib=16.0),))
    plan = plan_resources(arms=ARMS, predicted_peaks_gib=PEAKS_GIB, facts=facts)
    assert plan.warnings == ("4 trials at a predicted 12.0 GiB exceed the 16.0 GiB of memory; lower resources.workers",)


def test_the_allocators_share_leaves_room_for_the_context() -> None:
    assert allocator_share(0.5, 24.0) == pytest.approx(0.5 - CUDA_CONTEXT_GIB / 24.0)
    assert allocator_share(1 / 8, 2.0) == 0.05
