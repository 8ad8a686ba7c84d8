"""Which nodes are left alone, by a clock that the tests move."""

from __future__ import annotations

import pytest

from sweeps.ledger.world import RealWorld
from sweeps.running.faults import WorldFaults


class Clock(RealWorld):
    """A clock that tests move."""

    now_s = 1_000.0

    def monotonic_s(self) -> float:
        return self.now_s


class Nodes:
    """What happens on nodes, a second apart."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.faults = WorldFaults(self.clock)

    def starts(self, *cells: str) -> None:
        self.clock.now_s += 1
        for cell in cells:
            self.faults.started(cell)

    def ends(self, cell: str, node: str) -> None:
        self.clock.now_s += 1
        self.faults.ended_well(cell, node)

    def fails(self, cell: str, node: str) -> None:
        self.clock.now_s += 1
        self.faults.struck(cell, node)


@pytest.fixture
def nodes() -> Nodes:
    return Nodes()


def test_a_node_on_which_two_cells_fail_in_succession_while_others_work_is_left_alone(nodes: Nodes) -> None:
    nodes.starts("a", "b")
    nodes.fails("a", "bad")
    nodes.ends("b", "good")
    nodes.starts("c")
    nodes.fails("c", "bad")
    assert nodes.faults.left_alone == {"bad"}


def test_a_storage_that_is_away_for_all_is_no_nodes_fault(nodes: Nodes) -> None:
    for cells in (("a", "b"), ("c", "d"), ("e", "f")):
        nodes.starts(*cells)
        nodes.fails(cells[0], "one")
        nodes.fails(cells[1], "other")
    assert nodes.faults.left_alone == set()


def test_a_fault_that_follows_one_cell_is_no_nodes_fault(nodes: Nodes) -> None:
    for _ in range(4):
        nodes.starts("a", "b")
        nodes.fails("a", "one")
        nodes.ends("b", "other")
    assert nodes.faults.left_alone == set()


def test_workers_that_fail_together_count_as_one_fault_of_their_node(nodes: Nodes) -> None:
    nodes.starts("a", "b", "c")
    nodes.fails("a", "one")
    nodes.ends("b", "other")
    nodes.fails("c", "one")
    assert nodes.faults.left_alone == set()


def test_a_node_that_worked_in_between_has_not_failed_in_succession(nodes: Nodes) -> None:
    nodes.starts("a", "b")
    nodes.fails("a", "one")
    nodes.ends("b", "other")
    nodes.starts("c")
    nodes.ends("c", "one")
    nodes.starts("d")
    nodes.fails("d", "one")
    assert nodes.faults.left_alone == set()


def test_the_last_node_that_works_is_not_left_alone(nodes: Nodes) -> None:
    test_a_node_on_which_two_cells_fail_in_succession_while_others_work_is_left_alone(nodes)
    for cell in ("d", "e", "f"):
        nodes.starts(cell)
        nodes.fails(cell, "good")
    assert nodes.faults.left_alone == {"bad"}
