"""Sharing a cluster out: fractions that pack, threads that are never oversubscribed, requests that cannot be met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from search_spaces import Space, explore_cells, load_space, planned_cells
from sweeps.cluster.machines import Machines, Node
from sweeps.errors import BadInputError
from sweeps.packing.shares import (
    CUDA_CONTEXT_GIB,
    MAX_TRIALS_PER_GPU,
    Packing,
    allocator_share,
    pack,
    packing_fraction,
    require_runnable,
    required_gib,
    trials_per_gpu,
)

ARMS = ("large_batch", "balanced", "long_seq")
PEAKS_GIB = {"large_batch": 12.0, "balanced": 9.3, "long_seq": 6.5}


def asking(arms: Sequence[str] = ARMS, **resources: Any) -> Space:
    """The preset ``smoke`` with these arms and resources."""
    space = load_space(preset="smoke")
    return space.model_copy(
        update={
            "strategies": tuple(arm for arm in space.strategies if arm.name in arms),
            "resources": space.resources.model_copy(update=resources),
        }
    )


def packed(
    machines: Machines, *, peaks_gib: Mapping[str, float] = PEAKS_GIB, arms: Sequence[str] = ARMS, **resources: Any
) -> Packing:
    return pack(asking(arms, **resources), peaks_gib, machines)


def on_gpus(gpu_gib: float | None, *, gpus: int = 2, cpus: int = 32, **resources: Any) -> Packing:
    return packed(Machines.of(cpus=cpus, gpus=gpus, gpu_gib=gpu_gib), **resources)


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


def test_arms_of_different_peaks_get_different_shares() -> None:
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


def test_an_arm_that_does_not_fit_has_no_fraction_and_is_a_problem() -> None:
    plan = on_gpus(12.0)
    assert plan.gpu_fraction["large_batch"] is None
    assert plan.slots["large_batch"] == 0
    assert plan.gpu_fraction["balanced"] == 1.0
    [problem] = plan.problems
    assert problem.startswith("large_batch needs 13.9 GiB (predicted peak 12.0 GiB")
    assert "halve its micro_batch_size" in problem


def test_cpu_trials_get_whole_threads_and_never_oversubscribe() -> None:
    for cpus in range(1, 9):
        for threads in range(1, cpus + 1):
            plan = packed(Machines.of(cpus=cpus), peaks_gib={}, threads_per_trial=threads)
            assert plan.workers == cpus // threads
            assert plan.workers * plan.threads <= cpus
            assert set(plan.gpu_fraction.values()) == {None}
            assert plan.problems == ()


def test_a_trial_never_spans_nodes() -> None:
    plan = packed(Machines(nodes=(Node(cpus=3), Node(cpus=3))), peaks_gib={}, threads_per_trial=2)
    assert plan.workers == 2


def test_more_workers_than_room_are_cut_to_the_room_with_a_warning() -> None:
    plan = packed(Machines.of(cpus=2), peaks_gib={}, workers=5)
    assert plan.workers == 2
    assert plan.warnings == ("workers=5 exceeds the room on these machines; 2 trials run at once",)


def test_fewer_workers_than_room_are_kept() -> None:
    plan = on_gpus(80.0, workers=3)
    assert plan.workers == 3
    assert set(plan.slots.values()) == {3}


def test_threads_that_no_node_has_are_a_problem_that_names_request_and_nodes() -> None:
    plan = packed(Machines.of(cpus=2), peaks_gib={}, threads_per_trial=100_000)
    [problem] = plan.problems
    assert problem == (
        "a trial of large_batch, balanced, long_seq needs 100,000 CPU, and this machine has 2 CPU and 0 GPU; "
        "lower resources.threads_per_trial or gpu_per_trial"
    )
    assert plan.workers == 0
    with pytest.raises(BadInputError, match=r"cannot run on these machines:\n  first\n  a trial of large_batch"):
        require_runnable(plan, ["first"])


def test_threads_that_no_node_of_a_cluster_with_gpus_has_are_a_problem_too() -> None:
    cluster = Machines(nodes=(Node(cpus=8, gpus=1, gpu_gib=80.0), Node(cpus=4)), address="auto")
    [problem] = packed(cluster, threads_per_trial=16, gpu_per_trial=0).problems
    assert problem.endswith(
        "the largest node has 8 CPU and 1 GPU; lower resources.threads_per_trial or gpu_per_trial, or add a node"
    )


def test_a_gpu_asked_of_a_cluster_without_one_is_a_problem() -> None:
    plan = packed(Machines.of(cpus=2), peaks_gib={}, gpu_per_trial=0.5)
    [problem] = plan.problems
    assert "needs 1 CPU and 0.5 GPU" in problem


def test_a_gpu_that_an_autoscaler_can_start_is_no_problem() -> None:
    plan = packed(Machines(nodes=(Node(cpus=4),), growth=(Node(cpus=8, gpus=1, gpu_gib=24.0),) * 3))
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


def test_a_table_without_an_arm_and_a_share_above_one_are_problems() -> None:
    missing = on_gpus(24.0, gpu_per_trial={"balanced": 0.5, "long_seq": 0.5})
    assert missing.problems == ("resources.gpu_per_trial names balanced, long_seq and not large_batch; add its share",)
    assert any("one trial trains on one GPU" in problem for problem in on_gpus(24.0, gpu_per_trial=2.0).problems)


def test_unknown_memory_or_peak_takes_a_whole_gpu_and_says_so() -> None:
    assert set(on_gpus(None).gpu_fraction.values()) == {1.0}
    assert "memory of the GPUs is unknown" in on_gpus(None).warnings[0]
    plan = packed(Machines.of(cpus=4, gpus=1, gpu_gib=24.0), peaks_gib={}, arms=["balanced"])
    assert plan.gpu_fraction == {"balanced": 1.0}
    assert plan.warnings == ("balanced has no predicted peak memory; its trials get a whole GPU",)


def test_an_assumed_gpu_is_planned_on_a_machine_that_has_none() -> None:
    plan = packed(Machines.of(cpus=2).assuming(24.0, cpus=MAX_TRIALS_PER_GPU))
    assert plan.gpu_fraction == on_gpus(24.0).gpu_fraction
    assert plan.workers == 3


def test_the_smallest_gpu_decides_the_fractions() -> None:
    plan = packed(Machines(nodes=(Node(cpus=8, gpus=1, gpu_gib=80.0), Node(cpus=8, gpus=1, gpu_gib=24.0))))
    assert plan.gpu_fraction == on_gpus(24.0).gpu_fraction


def test_cpu_trials_that_exceed_the_memory_are_warned_of() -> None:
    plan = packed(Machines(nodes=(Node(cpus=4, memory_gib=16.0),)))
    assert plan.warnings == ("4 trials at a predicted 12.0 GiB exceed the 16.0 GiB of memory; lower resources.workers",)


def test_the_allocators_share_leaves_room_for_the_context() -> None:
    assert allocator_share(0.5, 24.0) == pytest.approx(0.5 - CUDA_CONTEXT_GIB / 24.0)
    assert allocator_share(1 / 8, 2.0) == 0.05


def test_more_gpus_than_the_cells_of_a_phase_can_keep_busy_do_not_help() -> None:
    space = asking()
    cells = planned_cells(space)  # 2 explore cells and 2 confirm cells for each arm
    assert len(explore_cells(space, None)) == 6
    shared = pack(space, dict.fromkeys(ARMS, 0.1), Machines.of(cpus=64, gpus=8, gpu_gib=24.0))
    assert (shared.workers, shared.most_at_once(cells), shared.most_gpus(cells)) == (64, 6, 1)
    apart = on_gpus(24.0)  # a GPU holds one, two and three trials: each arm is a group that runs alone
    assert (apart.most_at_once(cells), apart.most_gpus(cells)) == (2, 2)
    assert pack(space, {}, Machines.of(cpus=2)).most_gpus(cells) is None
