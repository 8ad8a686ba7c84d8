"""What packing, the exam and the memory of a process must show, held and failed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from moe.gpu_criteria import Row, StepFacts
from sweeps.gpu_check.criteria import PackingFacts, exam_row, memory_rows, packing_facts, packing_rows

ALONE = PackingFacts(
    arm="matched long_seq",
    n_trials=1,
    with_mps=False,
    together_tokens_per_s=1000.0,
    least_concurrent=1,
    losses=(9.0, 8.5),
)
FOUR = replace(ALONE, n_trials=4, with_mps=True, together_tokens_per_s=1600.0, least_concurrent=4)
STEPS = StepFacts(
    arm="matched long_seq",
    precision="bf16",
    tokens_per_s=1000.0,
    peak_gib=3.0,
    reserved_gib=3.2,
    context_gib=0.5,
    exam_s=100.0,
)


def held(rows: list[Row]) -> list[bool | None]:
    return [row.held for row in rows]


def test_trials_that_are_faster_together_and_compute_the_same_hold() -> None:
    throughput, losses = packing_rows(FOUR, ALONE)
    assert throughput.what == "4 x matched long_seq with MPS: throughput"
    assert throughput.found == "1,600 tokens/s together, 1,000 alone (1.60x), 4 at the same time"
    assert held([throughput, losses]) == [True, True]


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"together_tokens_per_s": 900.0}, [False, True]),
        ({"least_concurrent": 3}, [False, True]),
        ({"losses": (9.0, 8.6)}, [True, False]),
        ({"together_tokens_per_s": None}, [False]),
        ({"error": "oom: no memory for one row"}, [False]),
    ],
)
def test_trials_that_are_slower_apart_other_or_fail_are_seen(wrong: dict[str, Any], expected: list[bool]) -> None:
    assert held(packing_rows(replace(FOUR, **wrong), ALONE)) == expected


def test_nothing_is_claimed_of_packing_where_one_alone_failed() -> None:
    [row] = packing_rows(FOUR, replace(ALONE, together_tokens_per_s=None, error="its worker died"))
    assert (row.found, row.held) == ("one alone was not measured", False)


def records(first_s: float, *, step_s: float = 1.0, n_steps: int = 10, concurrent: int | None = 2) -> list[Any]:
    """A trial that reports 100 tokens every ``step_s``; the last report comes late, after an exam."""
    times = [first_s + step_s * step for step in range(n_steps)]
    times[-1] += 100.0
    return [
        {
            "timestamp_s": time_s,
            "tokens_seen": 100 * (step + 1),
            "train_loss": 9.0 - step,
            "concurrent_trials": concurrent,
        }
        for step, time_s in enumerate(times)
    ]


def test_tokens_are_counted_while_all_trials_train() -> None:
    """The second has half of the speed: 150 tokens a second, from its third report to the end of the first."""
    facts = packing_facts("a", [records(0.0), records(0.0, step_s=2.0)], with_mps=False)
    assert facts.together_tokens_per_s == pytest.approx(150.0)
    assert facts.least_concurrent == 2
    assert facts.losses[:2] == (9.0, 8.0)


def test_a_trial_that_was_alone_for_a_time_does_not_count_as_packed() -> None:
    facts = packing_facts("a", [records(0.0), records(0.0, concurrent=None)], with_mps=False)
    assert facts.least_concurrent == 0


@pytest.mark.parametrize("other", [records(50.0), records(0.0, n_steps=3)])
def test_trials_that_never_trained_together_have_no_speed(other: list[Any]) -> None:
    assert packing_facts("a", [records(0.0), other], with_mps=False).together_tokens_per_s is None


def test_an_exam_that_takes_long_beside_training_fails() -> None:
    assert exam_row(STEPS, 1_000_000).held
    long = exam_row(replace(STEPS, exam_s=200.0), 1_000_000)
    assert (long.found, long.held) == ("200.0 s, 20.0% of 1000 s of training", False)


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [({}, [True, True]), ({"context_gib": 0.7}, [False, True]), ({"reserved_gib": 3.5}, [True, False])],
)
def test_a_context_or_an_allocator_that_takes_more_than_shares_assume_fails(
    wrong: dict[str, Any], expected: list[bool]
) -> None:
    assert held(memory_rows(replace(STEPS, **wrong))) == expected


def test_a_cpu_has_no_memory_beyond_tensors_to_measure() -> None:
    [row] = memory_rows(replace(STEPS, reserved_gib=None))
    assert row.held is None
    assert row.found.startswith("not measured: a CPU has no context")
