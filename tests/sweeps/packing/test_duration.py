"""How long a sweep is said to take: tokens, exams and speed, and what is said where the speed cannot be measured."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from search_spaces import Space, load_space
from sweeps.cluster.machines import Machines
from sweeps.packing import duration
from sweeps.packing.duration import BUSY_SHARE, OUTSIDE_S, Speed, expected_seconds, expected_tokens, find_speed
from sweeps.packing.shares import Packing
from sweeps.running.live_table import time_taken

VOCAB = 1024
CPUS = Machines.of(cpus=2)


@pytest.fixture
def space() -> Space:
    return load_space(preset="smoke")


def packing(space: Space, *, gpu_fraction: float | None = None, workers: int = 2) -> Packing:
    arms = [arm.name for arm in space.strategies]
    return Packing(threads=1, gpu_fraction=dict.fromkeys(arms, gpu_fraction), slots=dict.fromkeys(arms, workers))


def data_without_exams(vocab_size: int = VOCAB) -> Any:
    exam = SimpleNamespace(
        validation=SimpleNamespace(n_targets=0),
        test=SimpleNamespace(n_rows=0),
        common_len=64,
        eval_lens=(64,),
        block_len=1024,
    )
    return SimpleNamespace(exam=exam, tokens=SimpleNamespace(vocab_size=vocab_size))


def speed(monkeypatch: pytest.MonkeyPatch, measured: dict[str, float] | None) -> list[int]:
    """Pretend that probes find this; returns the numbers of processes that were asked for."""
    asked: list[int] = []

    def probe(space: Space, *, processes: int, on_gpus: bool) -> dict[str, float] | None:
        asked.append(processes)
        return measured

    monkeypatch.setattr(duration, "seconds_per_token", probe)
    return asked


def test_tokens_are_those_of_early_stopping_and_of_every_confirm_cell(space: Space) -> None:
    # two rates, one goes on at half of the budget, two confirm seeds: 1.5 + 2 budgets for each arm
    assert expected_tokens(space, vocab_size=2_048) == dict.fromkeys(
        ("large_batch", "balanced", "long_seq"), 3.5 * space.budget_tokens
    )


def test_the_time_is_tokens_at_the_measured_speed_shared_among_the_workers(
    space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = {"large_batch": 1e-5, "balanced": 2e-5, "long_seq": 3e-5}
    asked = speed(monkeypatch, measured)
    monkeypatch.setattr(duration, "_exam_tokens", lambda *_: 0)
    found = find_speed(space, data_without_exams(), packing(space), CPUS)
    assert found == Speed(seconds_per_token=measured, processes=2, source="measured by some steps of each arm")
    assert asked == [2], "as many processes as trials"
    trained_s = expected_seconds(space, data_without_exams(), found) - OUTSIDE_S
    assert trained_s == pytest.approx(3.5 * space.budget_tokens * 6e-5 / 2 / BUSY_SHARE)


def test_exams_take_time_too(space: Space) -> None:
    even = dict.fromkeys(("large_batch", "balanced", "long_seq"), 1e-5)
    found = Speed(seconds_per_token=even, processes=2, source="")
    data = data_without_exams()
    without_s = expected_seconds(space, data, found)
    data.exam.validation.n_targets = 3000
    # 3 arms, 2 explore and 2 confirm cells each, a validation exam at the rung and at the end, a third of a step's cost
    more_s = 3 * 4 * 2 * 3000 * 1e-5 / 3 / 2 / BUSY_SHARE
    assert expected_seconds(space, data, found) - without_s == pytest.approx(more_s)


def test_steps_too_long_to_time_are_estimated_from_matrix_products(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = speed(monkeypatch, None)
    monkeypatch.setattr(duration, "matmul_flops_per_s", lambda: 1e10)
    tutorial = load_space(preset="tutorial")
    data = data_without_exams(49_152)
    found = find_speed(tutorial, data, packing(tutorial), CPUS)
    assert found is not None
    assert found.source == "from this machine's matmul rate"
    assert expected_seconds(tutorial, data, found) > 100 * 3600
    assert asked == []


def test_a_probe_that_fails_leaves_the_estimate_from_matrix_products(
    space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    speed(monkeypatch, None)
    found = find_speed(space, data_without_exams(), packing(space), CPUS)
    assert found is not None
    assert found.source == "from this machine's matmul rate"


def test_trials_that_share_a_gpu_take_turns_and_are_never_estimated_without_a_measurement(
    space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = speed(monkeypatch, None)
    gpu = Machines.of(cpus=16, gpus=1, gpu_gib=24.0)
    assert find_speed(space, data_without_exams(), packing(space, gpu_fraction=0.125, workers=8), gpu) is None
    assert asked == [1]


def test_a_cluster_is_measured_on_its_nodes(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def on_cluster(space: Space, *, processes: int, gpus: int) -> None:
        asked.append((processes, gpus))

    monkeypatch.setattr(duration, "seconds_per_token_on_cluster", on_cluster)
    cpus = replace(CPUS, address="auto")
    gpus = replace(Machines.of(cpus=16, gpus=2, gpu_gib=24.0), address="auto")
    by_flops = find_speed(space, data_without_exams(), packing(space), cpus)
    assert by_flops is not None and by_flops.source == "from this machine's matmul rate"
    assert find_speed(space, data_without_exams(), packing(space, gpu_fraction=0.125, workers=16), gpus) is None
    assert asked == [(2, 0), (2, 1)]


def test_the_first_estimate_is_held_against_the_truth() -> None:
    assert time_taken(400.0, 300.0) == "took 6 min 40 s; first estimate 5 min (25% too low)"
    assert time_taken(40.0, None) == "took 40 s"
