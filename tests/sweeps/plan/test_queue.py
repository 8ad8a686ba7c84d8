"""The plan of segments: what runs next, and why."""

from dataclasses import replace

from search_spaces import Cell, EarlyStopping
from sweeps.ledger.sweep_folder import PlannedCell
from sweeps.plan.queue import Plan, Progress, Segment, StoppingRule

RULE = StoppingRule(rungs_tokens={400: (100, 200), 1600: (400, 800)}, keep=EarlyStopping(kind="asha", keep=(2, 1)))


def planned(
    name: str, *, phase: str = "explore", strategy: str = "balanced", stops: bool = True, budget: int = 400
) -> PlannedCell:
    cell = Cell(
        cell_id=name,
        phase=phase,  # type: ignore[arg-type]
        strategy=strategy,
        lr=0.01,
        adamw_lr=0.01,
        arrangement="shuffled",
        seed=1,
        budget_tokens=budget,
    )
    return PlannedCell(cell=cell, reason="grid", may_stop_early=stops)


def taken(plan: Plan) -> tuple[str, int]:
    segment = plan.next()
    assert isinstance(segment, Segment)
    plan.started(segment.planned.cell_id)
    return segment.planned.cell_id, segment.until_tokens


def at(tokens: int, **losses: float) -> Progress:
    return Progress(tokens_seen=tokens, exam_losses={int(key[1:]): loss for key, loss in losses.items()})


def test_cells_run_to_their_first_rung_and_the_better_ones_go_on() -> None:
    plan = Plan(RULE, [planned("a"), planned("b"), planned("c")])
    assert [taken(plan), taken(plan), taken(plan)] == [("a", 100), ("b", 100), ("c", 100)]
    assert plan.next() == "wait"
    plan.ended("a", at(100, t100=3.0))
    plan.ended("b", at(100, t100=2.0))
    assert plan.state("a") == "waiting"
    assert taken(plan) == ("b", 200)
    plan.ended("c", at(100, t100=1.0))
    assert (plan.dropped(), plan.state("a")) == ([], "waiting")  # until one of its arm has finished
    plan.ended("b", Progress(tokens_seen=400, exam_losses={100: 2.0, 200: 2.0, 400: 2.0}, outcome="completed"))
    assert [entry.planned.cell_id for entry in plan.dropped()] == ["a"]
    assert plan.dropped()[0].reason == "rank 3 of 3 in its arm at 100 tokens, 2 go on"
    assert taken(plan) == ("c", 200)


def test_arms_are_ranked_apart() -> None:
    plan = Plan(RULE, [planned(f"{arm}{i}", strategy=arm) for arm in ("slow", "fast") for i in range(2)])
    for name, loss in [("slow0", 9.0), ("slow1", 8.0), ("fast0", 1.0), ("fast1", 2.0)]:
        plan.ended(name, at(100, t100=loss))
    assert plan.dropped() == []


def test_a_cell_that_was_interrupted_between_rungs_goes_on_to_the_same_rung() -> None:
    plan = Plan(RULE, [planned("a")])
    plan.ended("a", at(150, t100=1.0))
    assert taken(plan) == ("a", 200)


def test_a_damaged_rung_checkpoint_sends_the_cell_back_to_that_rung() -> None:
    plan = Plan(RULE, [planned("a")])
    plan.ended("a", at(60))
    assert taken(plan) == ("a", 100)


def test_a_confirm_cell_runs_to_its_budget_after_explore_ones() -> None:
    plan = Plan(RULE, [planned("x", phase="confirm", stops=False), planned("a")])
    assert [taken(plan), taken(plan)] == [("a", 100), ("x", 400)]


def test_judged_cells_that_take_longest_begin_first_so_that_workers_end_together() -> None:
    cells = [
        planned(f"{arm}-{i}", phase="confirm", strategy=arm, stops=False) for arm in ("fast", "slow") for i in "12"
    ]
    plan = Plan(RULE, [planned("fast", strategy="fast", stops=False), planned("slow", strategy="slow", stops=False)])
    for name, tokens_per_s in (("fast", 200.0), ("slow", 100.0)):
        plan.ended(name, Progress(tokens_seen=400, outcome="completed", tokens_per_s=tokens_per_s))
    plan.add(cells)
    assert [taken(plan)[0] for _ in cells] == ["slow-1", "slow-2", "fast-1", "fast-2"]
    assert plan.next() == "wait"


def test_nothing_is_left_once_every_cell_has_an_outcome() -> None:
    plan = Plan(RULE, [planned("a")])
    plan.ended("a", Progress(tokens_seen=400, exam_losses={100: 1.0, 200: 1.0, 400: 1.0}, outcome="completed"))
    assert plan.next() == "finished"


def test_a_group_of_arms_is_asked_alone() -> None:
    plan = Plan(RULE, [planned("a", strategy="one"), planned("b", strategy="two")])
    segment = plan.next(["two"])
    assert isinstance(segment, Segment)
    assert segment.planned.cell_id == "b"
    assert plan.next(["three"]) == "finished"


def test_a_cell_that_runs_is_not_dropped_under_its_worker() -> None:
    plan = Plan(RULE, [planned("a"), planned("b"), planned("c")])
    plan.ended("a", Progress(tokens_seen=400, exam_losses={100: 1.0, 200: 1.0, 400: 1.0}, outcome="completed"))
    plan.ended("b", at(100, t100=2.0))
    plan.ended("c", at(100, t100=3.0))
    plan.started("c")
    assert plan.dropped() == []
    plan.ended("c", at(100, t100=3.0))
    assert [entry.planned.cell_id for entry in plan.dropped()] == ["c"]


def test_the_reason_of_a_suggestion_that_is_dropped_counts_those_before_it() -> None:
    rule = StoppingRule(rungs_tokens={400: (32,)}, keep=EarlyStopping(kind="asha", keep=(4,)), suggestions=12)
    names = ("a", "b", "c")
    plan = Plan(rule, [replace(planned(name), reason="suggestion") for name in names])
    for name, loss in zip(names, (1.0, 3.0, 2.0), strict=True):
        plan.ended(name, at(32, t32=loss))
    reasons = {dropped.planned.cell_id: dropped.reason for dropped in plan.dropped()}
    assert reasons["c"] == "rank 2 of the 3 suggested so far in its arm at 32 tokens, 1 go on"


def test_smaller_budgets_are_run_first_and_each_has_rungs_of_its_own() -> None:
    plan = Plan(
        RULE, [planned("large", budget=1600), planned("small"), planned("judged", phase="confirm", stops=False)]
    )
    assert taken(plan) == ("small", 100)
    assert taken(plan) == ("judged", 400)
    assert taken(plan) == ("large", 400)
    plan.ended("large", at(400, t400=3.0))
    plan.ended("small", at(100, t100=2.0))
    assert len(plan.brackets) == 2, "cells of two budgets are never ranked together"
    assert [taken(plan), taken(plan)] == [("small", 200), ("large", 800)]
