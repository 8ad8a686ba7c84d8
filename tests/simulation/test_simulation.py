"""Deterministic simulation: one seed is one schedule of kills, pauses, outages, lost answers and wrong clocks.

``SWEEPS_SIMULATIONS`` says how many schedules are run, from ``SWEEPS_SIMULATIONS_FROM`` on; those that failed once, and
those that fail when a protection is taken away on purpose, are kept and run always.
"""

import os
import time
from functools import cache
from typing import Any

import pytest

from sweeps.verdict.decision import decide
from tests.simulation.sweep import SimulatedSweep, what_counts
from tests.simulation.world import Faults

SHORT = 60
KEPT: tuple[tuple[int, Faults | None], ...] = (
    # a driver that read the plan twice at its start, while an earlier one added a page
    (19, Faults(pause=0.004, lost_answer=0.01, slow=0.01, outages=1, namespaces=True)),
    # a death that was counted at a checkpoint which a worker that was taken for dead had left behind meanwhile
    (0, Faults(kill=0.002, pause=0.004, lost_answer=0.01, slow=0.01, outages=1, clock_steps=True)),
    # a plan without its newest page, since the listing was late
    (45, Faults(kill=0.0015, pause=0.003, lost_answer=0.01, slow=0.01, partial_listing=0.2, outages=1)),
    # an outcome without its records: the checkpoints that a driver had listed went before it read one of them
    (10907, None),
    # a claim whose creator heard nothing, and whose successor deleted it while that one looked again
    (12567, None),
    (2, None),  # without ``require_held`` before records are written
    (10, None),  # without a look for the outcome after the lease was waited for, or with outcomes written over
    (56, None),  # without ``require_held``
    (85, None),  # without the second look for what an earlier holder has completed
)


@cache
def undisturbed() -> tuple[dict[str, Any], dict[str, Any]]:
    """What counts, and the verdict, where nothing happens."""
    results = SimulatedSweep(0, Faults()).run()
    return what_counts(results), decide(results).as_dict()


def assert_ends_as_undisturbed(seed: int, faults: Faults | None = None) -> SimulatedSweep:
    sweep = SimulatedSweep(seed, faults)
    results = sweep.run()
    expected, verdict = undisturbed()
    assert what_counts(results) == expected
    assert results.fixed_margin is not None
    if seed % 50 == 0:
        assert decide(results).as_dict() == verdict
    return sweep


def test_an_undisturbed_sweep_ends_in_every_way_that_a_cell_can() -> None:
    outcomes = {found[0] for found in undisturbed()[0].values()}
    assert outcomes >= {"completed", "stopped_early"}


@pytest.mark.parametrize(("seed", "faults"), KEPT)
def test_a_schedule_that_failed_once_ends_as_undisturbed(seed: int, faults: Faults | None) -> None:
    assert_ends_as_undisturbed(seed, faults)


@pytest.mark.parametrize("seed", range(6))
def test_hung_workers_are_replaced_whether_they_can_be_killed_or_not(seed: int) -> None:
    sweep = assert_ends_as_undisturbed(seed, Faults(hang=0.002, pause=0.002, lost_answer=0.01))
    assert sweep.sim.counts["hung"] > 0


def test_a_host_that_lost_its_storage_is_left_alone() -> None:
    left_alone = 0  # not in every schedule: in some no segment is left by the time that it is clear
    for seed in range(12):
        sweep = SimulatedSweep(seed, Faults())
        sweep.sim.outages = [(10.0, 10_000.0, "host-1")]
        assert what_counts(sweep.run()) == undisturbed()[0]
        found = {what for what in sweep.sim.counts if what.startswith("left")}
        assert found <= {"left host-1 alone"}
        left_alone += bool(found)
    assert left_alone > 1


@pytest.mark.timeout(0)
def test_every_schedule_ends_as_an_undisturbed_one() -> None:
    count = int(os.environ.get("SWEEPS_SIMULATIONS") or SHORT)
    first = int(os.environ.get("SWEEPS_SIMULATIONS_FROM", "0"))
    began_s = time.perf_counter()
    failed: dict[int, str] = {}
    struck: dict[str, int] = {}
    for seed in range(first, first + count):
        try:
            sweep = assert_ends_as_undisturbed(seed)
        except AssertionError as error:
            failed[seed] = f"{type(error).__name__}: {str(error)[:300]}"
        else:
            for what, times in sweep.sim.counts.items():
                struck[what] = struck.get(what, 0) + times
    per_minute = 60 * count / (time.perf_counter() - began_s)
    print(f"\n{count} schedules, {per_minute:.0f} a minute, {len(failed)} failed; {struck}")
    assert not failed, "\n".join(f"{seed}: {what}" for seed, what in failed.items())
