"""Arm-fair ASHA: decisions follow recorded losses alone."""

import itertools
import random

import pytest

from sweeps.plan.early_stopping import Contender, Rung, decide, decide_in_turn

RUNGS = (Rung(tokens=100, keep=3), Rung(tokens=200, keep=2))


def contenders(
    losses: dict[str, dict[int, float]], ended: frozenset[str] = frozenset(), finished: frozenset[str] = frozenset()
) -> list[Contender]:
    return [
        Contender(cell_id=name, losses=found, ended_badly=name in ended, finished=name in finished)
        for name, found in losses.items()
    ]


def test_a_cell_is_promoted_once_nothing_to_come_can_push_it_out() -> None:
    early = decide(contenders({"a": {100: 1.0}, "b": {}, "c": {}, "d": {}}), RUNGS)
    assert early["a", 100] == "wait"
    later = decide(contenders({"a": {100: 1.0}, "b": {100: 2.0}, "c": {}, "d": {}}), RUNGS)
    assert later == {("a", 100): "promote", ("b", 100): "wait"}


def test_a_cell_that_enough_others_beat_waits_until_one_has_finished_and_is_dropped_then() -> None:
    losses = {"a": {100: 1.0}, "b": {100: 2.0}, "c": {100: 3.0}, "d": {100: 4.0}}
    decisions = decide(contenders(losses), RUNGS)
    assert decisions["d", 100] == "wait"
    assert decisions["c", 100] == "promote"
    assert decide(contenders(losses, finished=frozenset("a")), RUNGS)["d", 100] == "drop"


def test_where_all_that_went_on_ended_badly_the_others_are_ranked_again() -> None:
    losses = {"a": {100: 1.0, 200: 1.0}, "b": {100: 2.0, 200: 2.0}, "c": {100: 3.0, 200: 3.0}, "d": {100: 4.0}}
    one_left = decide(contenders(losses, frozenset("a")), RUNGS)
    assert (one_left["c", 200], one_left["d", 100]) == ("wait", "wait")
    none_left = decide(contenders(losses, frozenset("ab")), RUNGS)
    assert none_left == {("c", 100): "promote", ("c", 200): "promote", ("d", 100): "promote"}


def test_a_later_rung_expects_only_those_that_can_still_arrive() -> None:
    losses = {"a": {100: 1.0, 200: 0.9}, "b": {100: 2.0, 200: 1.5}, "c": {100: 3.0}, "d": {100: 4.0}}
    decisions = decide(contenders(losses), RUNGS)
    assert decisions["a", 200] == "promote"
    assert decisions["b", 200] == "wait"  # c may still arrive with a better loss
    ended = decide(contenders(losses, frozenset({"c"})), RUNGS)
    assert ended["b", 200] == "promote"


def test_a_cell_that_ended_badly_counts_as_arrived_and_worst() -> None:
    decisions = decide(
        contenders({"a": {100: 1.0}, "b": {}, "c": {100: 3.0}, "d": {100: 2.0}}, frozenset({"b"})), RUNGS
    )
    assert {decisions[name, 100] for name in "acd"} == {"promote"}


def test_equal_losses_are_ranked_by_place_in_the_bracket() -> None:
    decisions = decide(contenders({name: {100: 1.0} for name in "abcd"}, finished=frozenset("a")), RUNGS)
    assert decisions["d", 100] == "drop"
    assert decisions["a", 100] == "promote"


def run_to_the_end(curves: dict[str, dict[int, float]], order: list[str], dies: dict[str, int]) -> set[str]:
    """Simulate one worker that takes cells in ``order``; returns who reached the end."""
    losses: dict[str, dict[int, float]] = {name: {} for name in curves}
    bad: set[str] = set()
    finished: set[str] = set()
    while True:
        decisions = decide(contenders(losses, frozenset(bad), frozenset(finished)), RUNGS)
        for name in order:
            if name in bad or name in finished:
                continue
            at = max(losses[name], default=0)
            if at and decisions[name, at] != "promote":
                continue
            target = next((rung.tokens for rung in RUNGS if rung.tokens > at), None)
            if dies.get(name) == target and target is not None:
                bad.add(name)
            elif target is None:
                finished.add(name)
            else:
                losses[name][target] = curves[name][target]
            break
        else:
            undecided = {
                name for name in curves if name not in bad | finished and decisions[name, max(losses[name])] == "wait"
            }
            assert not undecided, "no rung may wait for ever"
            return finished


@pytest.mark.parametrize("trial", range(40))
def test_which_cells_win_does_not_depend_on_launch_order_and_no_rung_waits_for_ever(trial: int) -> None:
    rng = random.Random(trial)
    names = list("abcd")
    curves = {name: {rung.tokens: rng.random() for rung in RUNGS} for name in names}
    dies = {name: rng.choice([100, 200]) for name in names if rng.random() < 0.2}
    ends = {frozenset(run_to_the_end(curves, list(order), dies)) for order in itertools.permutations(names)}
    assert len(ends) == 1


def test_a_suggested_cell_is_ranked_with_earlier_ones_alone() -> None:
    rungs = (Rung(tokens=100, keep=2),)
    bracket = contenders({"a": {100: 2.0}, "b": {100: 3.0}, "c": {100: 2.5}, "d": {100: 1.0}})
    decisions = decide_in_turn(bracket, rungs, expected=4)
    assert [decisions[name, 100] for name in "abcd"] == ["promote", "drop", "promote", "promote"]
    assert decide_in_turn(bracket[:2], rungs, expected=4) == {("a", 100): "promote", ("b", 100): "drop"}


def test_a_suggested_cell_that_ended_badly_starves_none_of_those_after_it() -> None:
    losses = {"a": {100: 1.0, 200: 0.5}, "b": {100: 2.0, 200: 2.0}, "c": {100: 3.0}}
    decisions = decide_in_turn(contenders(losses, ended=frozenset("a")), (Rung(tokens=100, keep=1),), expected=3)
    assert (decisions["b", 100], decisions["c", 100]) == ("promote", "drop")
