"""A session: what is refused leaves the ledger as it was, and what is interrupted is done again."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from moe.flops import total_parameters
from search_spaces import Identity, Space, explore_cells, load_space, with_overrides
from sweeps.cluster.machines import Machines
from sweeps.commands.extend import extend_plan
from sweeps.commands.status import status_of
from sweeps.errors import BadInputError, DamagedError, WorldError
from sweeps.ledger.cell_folder import CellWriter
from sweeps.ledger.free_space import BYTES_OF_RECORDS_PER_CELL, BYTES_PER_PARAMETER, bytes_needed, require_room
from sweeps.ledger.reading import LedgerReader
from sweeps.ledger.storage import Storage
from sweeps.ledger.sweep_folder import Ledger
from sweeps.plan.phases import first_cells
from sweeps.running.begin import SpaceChoice
from sweeps.running.finish import finish, keep_needed_weights
from sweeps.running.session import SessionOptions, _peaks, resume, run_new
from sweeps.running.signals import Interruption
from sweeps.training_config import model_config

IDENTITY = Identity(corpus_fingerprint="c", tokenizer_fingerprint="t", exam_fingerprint="e")


def options(folder: Path, **more: Any) -> SessionOptions:
    return SessionOptions(runs_uri=str(folder), console=Console(), **more)


def interruption_of(ledger: Ledger) -> Interruption:
    interruption = Interruption(Console())
    interruption.ledger = ledger
    return interruption


@pytest.fixture
def space() -> Space:
    return load_space(preset="smoke")


@pytest.fixture
def ledger(tmp_path: Path, space: Space) -> Ledger:
    ledger = Ledger(Storage(str(tmp_path)), "first")
    ledger.add_cells(first_cells(space, explore_cells(space, IDENTITY)), because="the first grid")
    fingerprints = {"code": "of yesterday", "corpus": "c", "tokenizer": "t", "exam": "e"}
    strategies = [{**arm.model_dump(), "predicted_peak_gib": None} for arm in space.strategies]
    beginning = {"space": space.resolved(), "fingerprints": fingerprints, "strategies": strategies}
    ledger.begin({**beginning, "created_s": 0.0, "sweep_id": "1"})
    return ledger


def test_an_extension_that_other_code_refuses_is_not_written(ledger: Ledger, tmp_path: Path) -> None:
    def more(held: Ledger, space: Space) -> Space:
        return extend_plan(held, space, lr=[0.5])

    with pytest.raises(BadInputError, match="the code of moe has changed"):
        resume("first", options(tmp_path), extend=more)
    assert len(ledger.plan_pages()) == 1
    assert ledger.code_changes() == []


def test_a_retry_that_other_code_refuses_keeps_the_outcome(ledger: Ledger, tmp_path: Path) -> None:
    planned = ledger.planned_cells()[0]
    folder = ledger.cell_folder(planned.cell_id)
    folder.write_outcome(planned.cell, "failed", reason="a bug")
    with pytest.raises(BadInputError, match="the code of moe has changed"):
        resume("first", options(tmp_path, retry_failed=True))
    assert folder.outcome() is not None


def test_a_new_sweep_does_not_take_over_the_rest_of_a_deleted_one(tmp_path: Path) -> None:
    (tmp_path / "first" / "cells").mkdir(parents=True)
    with pytest.raises(BadInputError, match=r"holds no sweep and is not empty \(cells\)"):
        run_new(SpaceChoice(preset="smoke"), "first", options(tmp_path))


def test_the_verdict_is_written_once_the_report_is(
    ledger: Ledger, space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sweeps.running.finish.write_reports", killed)
    with pytest.raises(KeyboardInterrupt):
        finish(ledger, space, Console(), quiet=True)
    assert ledger.verdict() is None


def test_weights_are_kept_as_the_last_session_requests(ledger: Ledger) -> None:
    planned = ledger.planned_cells()[0]
    folder = ledger.cell_folder(planned.cell_id)
    CellWriter(folder, "000001-cafe").save(100, lambda path: (path / "state.bin").write_bytes(b"x") and None)
    folder.write_outcome(planned.cell, "completed", tokens_seen=100, val_loss=4.0)
    results = LedgerReader(ledger).results()
    keep_needed_weights(ledger, results, "all")
    assert folder.newest_checkpoint() == 100
    keep_needed_weights(ledger, results, "best")
    assert folder.newest_checkpoint() is None
    assert folder.checkpoints.names() == []


def test_an_arm_that_an_extension_added_gets_a_predicted_peak(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen, added = (arm.name for arm in space.strategies[:2])
    beginning = {"strategies": [{"name": frozen, "predicted_peak_gib": 1.0}]}
    predicted = {arm.name: 2.0 for arm in space.strategies}
    monkeypatch.setattr("sweeps.running.session.predicted_peaks", lambda *_, **__: predicted)
    peaks = _peaks(beginning, space, Machines.of(cpus=2), vocab_size=512)
    assert (peaks[frozen], peaks[added]) == (1.0, 2.0)


@pytest.mark.parametrize("ended_by", [WorldError("No space left on device"), KeyboardInterrupt()])
def test_whatever_interrupts_a_session_names_the_command_that_resumes(ledger: Ledger, ended_by: BaseException) -> None:
    with pytest.raises(WorldError, match=r"Resume with: .*sweeps resume first"), interruption_of(ledger):
        raise ended_by


def test_what_ends_it_before_the_sweep_began_names_none(tmp_path: Path) -> None:
    nothing = Ledger(Storage(str(tmp_path)), "nothing")
    with pytest.raises(BadInputError, match=r"^no Ray cluster answers$"), interruption_of(nothing):
        raise WorldError("no Ray cluster answers")
    with pytest.raises(WorldError, match=r"^interrupted before the sweep began"), interruption_of(nothing):
        raise KeyboardInterrupt


def test_damage_is_not_called_resumable(ledger: Ledger) -> None:
    with pytest.raises(DamagedError, match=r"^outcome is damaged$"), interruption_of(ledger):
        raise DamagedError("outcome is damaged")


def test_sigterm_is_as_resumable_as_ctrl_c_before_and_after_the_trials_run(ledger: Ledger) -> None:
    with pytest.raises(WorldError, match=r"interrupted; .*sweeps resume first"), interruption_of(ledger):
        signal.raise_signal(signal.SIGTERM)
    with pytest.raises(WorldError, match=r"interrupted; .*sweeps resume first"), interruption_of(ledger):
        raise SystemExit(signal.SIGTERM)  # what Ray makes of one


def test_a_sweep_that_another_driver_began_meanwhile_is_not_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = Ledger(Storage(str(tmp_path)), "first")
    prints = {"code": "of yesterday", "corpus": "c", "tokenizer": "t", "exam": "e"}
    beginning = {"space": {}, "fingerprints": prints, "strategies": [], "created_s": 0.0, "sweep_id": "1"}

    def meanwhile(*_: Any, **__: Any) -> SimpleNamespace:
        elsewhere.begin(beginning)
        return SimpleNamespace(tokens=SimpleNamespace(vocab_size=512, notes=()))

    @contextmanager
    def no_ray(*_: Any) -> Iterator[None]:
        yield

    monkeypatch.setattr("sweeps.running.session._ray", no_ray)
    monkeypatch.setattr("sweeps.running.session._training_data", meanwhile)
    monkeypatch.setattr("sweeps.running.session.corpus_facts", lambda _: None)
    for pure in ("audit_table", "predicted_peaks"):
        monkeypatch.setattr(f"sweeps.running.session.{pure}", lambda *_, **__: {})
    with pytest.raises(BadInputError, match="'first' exists already and is never overwritten"):
        run_new(SpaceChoice(preset="smoke"), "first", options(tmp_path, quiet=True))
    assert elsewhere.plan_pages() == []


def test_what_a_retry_would_go_on_from_is_kept(ledger: Ledger) -> None:
    for planned, outcome in zip(ledger.planned_cells(), ("failed", "oom", "diverged"), strict=False):
        folder = ledger.cell_folder(planned.cell_id)
        CellWriter(folder, "000001-cafe").save(100, lambda path: (path / "state.bin").write_bytes(b"x") and None)
        folder.write_outcome(planned.cell, outcome, tokens_seen=100)  # type: ignore[arg-type]
    keep_needed_weights(ledger, LedgerReader(ledger).results(), "best")
    kept = [ledger.cell_folder(planned.cell_id).newest_checkpoint() for planned in ledger.planned_cells()[:3]]
    assert kept == [100, 100, None]


def test_a_rate_that_is_named_twice_is_added_once(ledger: Ledger, space: Space) -> None:
    extend_plan(ledger, space, lr=[0.5, 0.5])
    ids = [planned.cell_id for planned in ledger.planned_cells()]
    assert len(ids) == len(set(ids)) == 6 + 3


def test_a_status_that_is_asked_for_while_cells_are_added_shows_those_it_knows(
    ledger: Ledger, space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = LedgerReader.results

    def added_meanwhile(self: LedgerReader) -> Any:
        extend_plan(ledger, space, lr=[0.5])
        return results(self)

    monkeypatch.setattr(LedgerReader, "results", added_meanwhile)
    assert len(status_of(ledger)["cells"]) == 6


def test_room_is_asked_for_what_is_held_at_once_and_not_for_less(space: Space) -> None:
    checkpoint = 2 * BYTES_PER_PARAMETER * total_parameters(model_config(space, "balanced", vocab_size=512))
    confirm = with_overrides(space, ["seeds.confirm=9"])  # 6 explore cells, 27 confirm cells
    more = bytes_needed(confirm, vocab_size=512) - bytes_needed(space, vocab_size=512)
    assert more == (27 - 6) * checkpoint + 21 * BYTES_OF_RECORDS_PER_CELL


def test_cells_that_have_ended_ask_for_no_more_room(ledger: Ledger, space: Space) -> None:
    cells = [planned.cell for planned in ledger.planned_cells()]
    whole = bytes_needed(space, vocab_size=512, unfinished=cells)
    assert whole == bytes_needed(space, vocab_size=512)
    late = bytes_needed(space, vocab_size=512, ended=cells[:4], unfinished=cells[4:])
    assert whole - late >= 4 * BYTES_OF_RECORDS_PER_CELL


def test_a_sweep_is_not_resumed_where_the_storage_lacks_room_for_what_is_left(
    ledger: Ledger, space: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = SimpleNamespace(vocab_size=512, notes=())
    monkeypatch.setattr("sweeps.running.session._training_data", lambda *_, **__: SimpleNamespace(tokens=tokens))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2**20))
    with pytest.raises(BadInputError, match=r"has 1 MiB free, and this sweep may come to hold \d+ MiB more; free some"):
        resume("first", options(tmp_path, quiet=True, allow_code_change=True))

    planned = ledger.planned_cells()
    held = ledger.cell_folder(planned[0].cell_id)
    needed = bytes_needed(space, vocab_size=512, unfinished=[p.cell for p in planned])
    CellWriter(held, "000001-cafe").save(100, lambda path: (path / "state.bin").write_bytes(b"x" * 1_000) and None)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=needed - 1_000))
    require_room(ledger, space, vocab_size=512)  # what a cell holds already is not asked for again
