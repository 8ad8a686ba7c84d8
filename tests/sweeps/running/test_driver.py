"""The driver as the engine's desk: what it does when the world around it fails."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from search_spaces import Identity, Rate, confirm_cells, explore_cells, load_space, with_overrides
from sweeps.errors import DamagedError, StorageError, SweepHeldError, WorldError
from sweeps.ledger.cell_folder import CellWriter
from sweeps.ledger.lease import CELL_LEASE, Lease
from sweeps.ledger.storage import Storage
from sweeps.ledger.sweep_folder import Ledger, PlannedCell
from sweeps.ledger.world import RealWorld
from sweeps.packing.shares import Packing
from sweeps.plan.phases import first_cells
from sweeps.plan.queue import Plan, StoppingRule
from sweeps.running.driver import Driver
from sweeps.running.faults import MAX_DEATHS, MAX_DEATHS_AT_A_POINT, WorldFaults
from sweeps.trial.trainable import SegmentJob

IDENTITY = Identity(corpus_fingerprint="c", tokenizer_fingerprint="t", exam_fingerprint="e")

PRINTS = {"corpus": "c", "tokenizer": "t", "exam": "e", "code": "d"}


class Listener:
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def on_report(self, cell_id: str, record: Mapping[str, Any]) -> None:
        """Nothing."""

    def on_change(self, plan: Plan) -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        self.said.append(line)


@pytest.fixture
def driver(tmp_path: Path) -> Driver:
    space = load_space(preset="smoke")
    ledger = Ledger(Storage(str(tmp_path)), "first")
    ledger.add_cells(first_cells(space, explore_cells(space, IDENTITY)), because="the first grid")
    beginning = {"space": space.resolved(), "strategies": [], "fingerprints": PRINTS, "sweep_id": "1", "created_s": 0.0}
    ledger.begin(beginning)
    arms = [arm.name for arm in space.strategies]
    driver = Driver(
        ledger=ledger,
        space=space,
        identity=IDENTITY,
        packing=Packing(threads=1, gpu_fraction=dict.fromkeys(arms), slots=dict.fromkeys(arms, 2)),
        watcher=Listener(),
        checkpoint_every_s=60.0,
        wake_tracking=lambda: None,
    )
    driver._group = tuple(arms)
    return driver


def taken(driver: Driver) -> SegmentJob:
    job = driver.take()
    assert isinstance(job, SegmentJob)
    return job


def test_a_storage_that_fails_the_driver_ends_the_sweep_in_order(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = taken(driver)

    def away(*_: object) -> None:
        raise StorageError("cannot read outcome.json: the network is down")

    monkeypatch.setattr("sweeps.running.driver.read_cell", away)
    driver.done(job.cell_id, {"ended": "done"})
    assert driver.take() == "finished"
    assert driver.ledger.storage.exists(driver.stop_request), "running segments are asked to save"
    driver.engine = lambda *_, **__: None
    with pytest.raises(StorageError, match="the network is down"):
        driver.run()


def test_the_first_error_of_the_world_is_the_one_that_is_raised(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = taken(driver), taken(driver)

    def damaged(*_: object) -> None:
        raise DamagedError("outcome.json is damaged")

    monkeypatch.setattr("sweeps.running.driver.read_cell", damaged)
    driver.done(first.cell_id, {"ended": "done"})
    driver.done(second.cell_id, {"ended": "world_fault", "reason": "No space left on device"})
    driver.engine = lambda *_, **__: None
    with pytest.raises(DamagedError, match=r"outcome\.json is damaged"):
        driver.run()


def test_a_stop_on_a_storage_that_cannot_be_written_is_a_stop_all_the_same(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StorageError("No space left on device")

    monkeypatch.setattr(Storage, "write_json", full)
    driver.stop()
    assert driver.take() == "finished"
    assert isinstance(driver.watcher, Listener)
    assert driver.watcher.said == ["running trials cannot be asked to save: No space left on device"]


def test_an_error_is_tried_again_once_and_its_traceback_is_kept(driver: Driver) -> None:
    cell_id = taken(driver).cell_id
    for _ in range(2):
        driver.done(cell_id, {"ended": "error", "reason": "RuntimeError: bug", "traceback": "line 7"})
    folder = driver.ledger.cell_folder(cell_id)
    assert [attempt["traceback"] for attempt in folder.attempts()] == ["line 7", "line 7"]
    outcome = folder.outcome()
    assert outcome is not None
    assert (outcome["outcome"], outcome["reason"]) == ("failed", "RuntimeError: bug")


def test_a_worker_that_always_dies_at_the_same_point_is_not_replaced_for_ever(driver: Driver) -> None:
    cell_id = taken(driver).cell_id
    driver.report(cell_id, {"tokens_seen": 1_024})
    for _ in range(MAX_DEATHS_AT_A_POINT - 1):
        driver.done(cell_id, None)
        assert driver.plan.state(cell_id) == "queued"
    driver.done(cell_id, None)
    outcome = driver.ledger.cell_folder(cell_id).outcome()
    assert outcome is not None
    assert outcome["outcome"] == "failed"
    assert outcome["reason"] == "the worker process died (killed, or its node was lost)"


def test_workers_that_lost_nodes_take_at_different_points_say_nothing_about_a_cell(driver: Driver) -> None:
    cell_id = taken(driver).cell_id
    for number in range(MAX_DEATHS - 1):
        driver._deaths.started(cell_id)
        driver.report(cell_id, {"tokens_seen": 1_024 * number, "hostname": f"node-{number}"})
        driver.done(cell_id, None)
    folder = driver.ledger.cell_folder(cell_id)
    assert folder.outcome() is None
    assert [attempt["node"] for attempt in folder.attempts()][:2] == ["node-0", "node-1"]
    assert isinstance(driver.watcher, Listener)
    assert "is tried again from its checkpoint: the worker process died" in driver.watcher.said[-1]
    assert driver.watcher.said[-1].endswith(f"on node-{MAX_DEATHS - 2}")
    driver.done(cell_id, None)
    assert driver.plan.state(cell_id) == "failed", "what cannot live until its next checkpoint has no end"


class Clock(RealWorld):
    """A clock that sleeps move."""

    now_s = 0.0

    def monotonic_s(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def test_faults_of_the_world_are_waited_for_longer_and_longer_and_end_the_session_when_nothing_works(
    driver: Driver,
) -> None:
    clock = driver._world = Clock()
    driver._faults = WorldFaults(clock)
    handed_out: list[float] = []

    def engine(desk: Any, *_: object, **__: object) -> None:
        while isinstance(job := desk.take(), SegmentJob):
            handed_out.append(round(clock.now_s))
            desk.done(job.cell_id, {"ended": "world_fault", "reason": "No space left on device", "hostname": "a"})

    driver.engine = engine
    with pytest.raises(WorldError, match=r"^No space left on device$"):
        driver.run()
    assert handed_out == [0, 1, 3, 7, 15, 31]
    assert {driver.plan.state(planned.cell_id) for planned in driver.plan.cells} == {"queued"}
    assert isinstance(driver.watcher, Listener)
    assert "is tried again in 1 s, the fault on a is not its own: No space left on device" in driver.watcher.said[0]


def test_one_bad_node_ends_no_session_while_another_one_works(driver: Driver) -> None:
    clock = driver._world = Clock()
    driver._faults = WorldFaults(clock)
    works = taken(driver).cell_id
    clock.now_s = 1.0
    for _ in range(20):
        bad = taken(driver).cell_id
        driver.done(bad, {"ended": "world_fault", "reason": "is the storage mounted there?"})
        clock.now_s += 1_000
    driver.done(works, {"ended": "stopped"})
    driver.done(taken(driver).cell_id, {"ended": "world_fault", "reason": "is the storage mounted there?"})
    assert driver._faults.wait_s() == 1.0, "a segment that ended well ends the succession"


def test_the_cell_of_a_hung_worker_is_handed_out_again_and_nothing_is_held_against_it(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = driver._world = Clock()
    driver._faults = WorldFaults(clock)
    cell_id = taken(driver).cell_id
    driver.report(cell_id, {"tokens_seen": 1_024, "hostname": "a"})
    monkeypatch.setattr(driver._hangs, "ended", lambda _: "its worker hung: no report for 95 s")
    driver.done(cell_id, None)
    assert driver.plan.state(cell_id) == "queued"
    assert driver.ledger.cell_folder(cell_id).attempts() == []
    assert isinstance(driver.watcher, Listener)
    [line] = driver.watcher.said
    assert "is tried again in 1 s, the fault on a is not its own: its worker hung: no report for 95 s" in line
    clock.now_s += 2
    queued = [planned.cell_id for planned in driver.plan.cells]
    handed_out = [taken(driver).cell_id for _ in queued]
    assert sorted(handed_out) == sorted(queued)
    assert handed_out[-1] == cell_id, "what hung once may hang again, and holds up no other"


def test_whoever_has_the_cell_of_a_lost_worker_is_given_up_and_nobody_else(driver: Driver) -> None:
    cells = [taken(driver).cell_id for _ in range(2)]
    for cell_id in cells:
        Lease(driver.ledger.cell_folder(cell_id).storage, CELL_LEASE).acquire()  # and lives on, cut off from the driver
    driver.done(cells[0], None)
    driver.done(cells[1], {"ended": "stopped"})
    again = {job.cell_id: job.given_up for job in (taken(driver) for _ in driver.plan.cells)}
    assert {cell_id: number for cell_id, number in again.items() if number} == {cells[0]: 1}


def leave_alone(driver: Driver, node: str) -> None:
    """Two cells in succession fail on a node, with a host of the same name, while a third one ends well elsewhere."""
    clock = driver._world = Clock()
    driver._faults = WorldFaults(clock)
    first, well = taken(driver).cell_id, taken(driver).cell_id
    fault = {"ended": "world_fault", "reason": "No space left on device", "hostname": "gpu-7", "node_ip": node}
    driver.done(first, fault)
    driver.done(well, {"ended": "stopped", "hostname": "gpu-8", "node_ip": "10.0.0.8"})
    again, other = taken(driver).cell_id, taken(driver).cell_id
    driver.done(other if again == first else again, fault)
    clock.now_s += 100


def test_a_node_that_fails_twice_gets_no_more_segments_and_is_named_once(driver: Driver) -> None:
    leave_alone(driver, "10.0.0.7")
    assert isinstance(driver.watcher, Listener)
    said = [line for line in driver.watcher.said if "left alone" in line]
    assert said == [
        "node 10.0.0.7 is left alone until the next resume: two cells in succession failed there while others ended "
        "well elsewhere"
    ]
    assert taken(driver).avoid == ("10.0.0.7",)


def test_the_session_ends_resumable_when_no_node_is_left(driver: Driver) -> None:
    leave_alone(driver, "10.0.0.7")
    waiting = taken(driver).cell_id
    driver.nowhere()
    driver.done(waiting, None)
    assert driver.ledger.cell_folder(waiting).attempts() == [], "it never ran"
    assert driver.take() == "finished"
    driver.engine = lambda *_, **__: None
    with pytest.raises(WorldError, match=r"^no node is left: cells in succession failed on 10\.0\.0\.7, and no other"):
        driver.run()


def test_a_worker_that_dies_after_its_cell_has_ended_takes_nothing_back(driver: Driver) -> None:
    job = taken(driver)
    folder = driver.ledger.cell_folder(job.cell_id)
    written = folder.write_outcome(driver.plan.planned(job.cell_id).cell, "completed", tokens_seen=65_536, val_loss=4.0)
    for _ in range(3):
        driver.done(job.cell_id, None)
    assert folder.outcome() == written
    assert folder.attempts() == []


def test_a_driver_that_lost_the_sweep_hands_out_and_writes_nothing_more(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = taken(driver)

    def lost() -> None:
        raise SweepHeldError("first was taken over by pid 7 on elsewhere")

    driver.require_held = lost
    monkeypatch.setattr(Storage, "write_json", lambda *_: pytest.fail("the sweep is another driver's"))
    driver.done(job.cell_id, {"ended": "error", "reason": "RuntimeError: bug"})
    assert driver.take() == "finished"
    driver.engine = lambda *_, **__: None
    (Path(driver.ledger.storage.uri) / "stop-of-the-new-driver.json").write_text("{}")
    with pytest.raises(WorldError, match="taken over by pid 7 on elsewhere"):
        driver.run()
    assert driver.ledger.storage.exists("stop-of-the-new-driver.json")


def test_a_driver_that_loses_the_sweep_while_it_decides_writes_neither_margin_nor_outcome(driver: Driver) -> None:
    looks = iter([True])  # held when the segment's end is reported, and not when something follows from it
    failing = taken(driver)

    def lost() -> None:
        if not next(looks, False):
            raise SweepHeldError("first was taken over by pid 7 on elsewhere")

    for _ in range(2):
        driver.ledger.cell_folder(failing.cell_id).add_attempt("error", "RuntimeError: bug")
    driver.require_held = lost
    driver.done(failing.cell_id, {"ended": "error", "reason": "RuntimeError: bug"})
    assert driver.ledger.cell_folder(failing.cell_id).outcome() is None


@pytest.mark.parametrize(("keep", "kept"), [("best", None), ("all", 65_536)])
def test_an_explore_cell_that_has_ended_gives_its_checkpoints_back_unless_all_are_kept(
    driver: Driver, keep: str, kept: int | None
) -> None:
    driver.space = with_overrides(driver.space, [f"keep={keep}"])
    job = taken(driver)
    folder = driver.ledger.cell_folder(job.cell_id)
    CellWriter(folder, "000001-cafe").save(65_536, lambda path: (path / "state.bin").write_bytes(b"x") and None)
    folder.write_outcome(driver.plan.planned(job.cell_id).cell, "completed", tokens_seen=65_536, val_loss=4.0)
    driver.done(job.cell_id, {"ended": "done"})
    assert folder.newest_checkpoint() == kept


def test_cells_that_the_engine_lost_without_a_word_are_tried_again_and_end_as_failed(driver: Driver) -> None:
    def forgetful(desk: Any, *_: object, **__: object) -> None:
        while isinstance(desk.take(), SegmentJob):
            pass

    driver.engine = forgetful
    driver.run()
    outcomes = [driver.ledger.cell_folder(planned.cell_id).outcome() for planned in driver.plan.cells]
    assert {outcome["outcome"] for outcome in outcomes if outcome is not None} == {"failed"}
    assert None not in outcomes


def test_with_exclusive_a_judged_cell_runs_alone(driver: Driver) -> None:
    driver.exclusive = True
    rates = {arm.name: 0.01 for arm in driver.space.strategies}
    judged = confirm_cells(driver.space, IDENTITY, {arm: Rate(lr=lr, adamw_lr=lr) for arm, lr in rates.items()})
    planned = [PlannedCell(cell=cell, reason="confirm", may_stop_early=False) for cell in judged[:2]]
    _, second = taken(driver), taken(driver)  # explore cells share
    assert len(driver.plan.running) == 2
    driver.plan = Plan(StoppingRule(), planned)
    alone = taken(driver)
    assert driver.take() == "wait", "the other judged cell waits for the first"
    assert second.cell_id != alone.cell_id
