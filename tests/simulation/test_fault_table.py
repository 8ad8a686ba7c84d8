"""Each fault of the world alone, many times over: what was lost, and how long nothing new counted after it.

A schedule fails where a record is lost or counted twice, a cell that has ended is trained again, or an outcome changes.
"""

import os
from bisect import bisect_right
from statistics import median

import pytest

from tests.simulation.sweep import SimulatedSweep
from tests.simulation.test_simulation import assert_ends_as_undisturbed
from tests.simulation.world import Faults

SCHEDULES = 200 if os.environ.get("SWEEPS_FAULTS") == "full" else 4
ALONE = {
    "a process is killed": Faults(kill=0.0015),
    "a host is paused": Faults(pause=0.003),
    "the same, its clocks stand still": Faults(pause=0.003, frozen_clocks=True),
    "the same, in three PID namespaces": Faults(pause=0.003, namespaces=True),
    "an operation takes up to 40 s": Faults(slow=0.01),
    "an answer is lost after its effect": Faults(lost_answer=0.01),
    "storage away for a host or for all": Faults(outages=3),
    "listings are 3 s late": Faults(partial_listing=0.2),
    "a host's clock steps": Faults(clock_steps=True),
}
"""A power loss is a kill of all that runs on a host; a partition is a storage that is away for one of them."""


def pauses_s(sweep: SimulatedSweep) -> list[float]:
    """Virtual seconds from each fault to the next commit or outcome of any cell."""
    counted_s = sorted(sweep.invariants.counted_s)
    places = ((struck_s, bisect_right(counted_s, struck_s)) for struck_s in sweep.sim.struck_s)
    return [counted_s[place] - struck_s for struck_s, place in places if place < len(counted_s)]


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(0)
@pytest.mark.parametrize("fault", ALONE)
def test_a_fault_alone_loses_doubles_and_repeats_nothing(fault: str) -> None:
    found: list[float] = []
    strikes = 0
    for seed in range(SCHEDULES):
        sweep = assert_ends_as_undisturbed(seed, ALONE[fault])
        strikes += len(sweep.sim.struck_s)
        found += pauses_s(sweep)
    assert strikes > 0
    print(f"| {fault} | {SCHEDULES} | {strikes} | {median(found):.0f} | {max(found):.0f} |")
