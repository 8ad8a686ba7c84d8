"""The precision that a sweep began in is the one it goes on in, or it does not go on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moe.device import Device
from search_spaces import Identity, Space, explore_cells, load_space
from sweeps.cluster.machines import Machines, Node
from sweeps.errors import BadInputError
from sweeps.ledger.storage import Storage
from sweeps.ledger.sweep_folder import Ledger
from sweeps.running.begin import begin
from sweeps.trial import precision as frozen_precision
from sweeps.trial.precision import as_trained, precision_note, precision_to_freeze, require_precision

CPU = Device(kind="cpu")
HERE = Machines.of(cpus=2)
OLD_GPU = Device(kind="cuda", name="Tesla V100", compute_capability=(7, 0))
NEW_GPU = Device(kind="cuda", name="A100", compute_capability=(8, 0))


@pytest.fixture
def space() -> Space:
    return load_space(preset="smoke")


def here(device: Device | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_precision, "_device", lambda _space, _machines: device)


def begun_in(precision: str | None, *records: str) -> Any:
    """A ledger as far as its precision goes: what was frozen, and the precisions of its cells' records."""
    folders = {
        str(i): SimpleNamespace(records=lambda name=name: [{"precision": name}]) for i, name in enumerate(records)
    }
    return SimpleNamespace(
        beginning=lambda: {"precision": precision},
        planned_cells=lambda: [SimpleNamespace(cell_id=cell_id) for cell_id in folders],
        cell_folder=folders.__getitem__,
    )


@pytest.mark.parametrize(("device", "name"), [(CPU, "fp32"), (OLD_GPU, "fp16"), (NEW_GPU, "bf16"), (None, None)])
def test_what_auto_comes_to_on_the_device_of_the_trials_is_frozen(
    space: Space, monkeypatch: pytest.MonkeyPatch, device: Device | None, name: str | None
) -> None:
    here(device, monkeypatch)
    assert precision_to_freeze(space, HERE) == name


def test_a_precision_that_was_named_is_frozen_as_it_is(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    for device in (CPU, None):
        here(device, monkeypatch)
        assert precision_to_freeze(space.model_copy(update={"precision": "bf16"}), HERE) == "bf16"


def test_the_frozen_precision_decides_training_and_leaves_the_ids_of_cells_alone(space: Space) -> None:
    trained = as_trained(space, begun_in("fp16"))
    assert (trained.precision, space.precision) == ("fp16", "auto")
    assert as_trained(space, begun_in(None)) == space


def test_what_the_first_records_say_counts_where_nothing_was_frozen(space: Space) -> None:
    assert as_trained(space, begun_in(None, "bf16", "fp32")).precision == "bf16"


@pytest.mark.parametrize("requested", [0.0, {"large_batch": 0.5, "balanced": 0.0, "long_seq": 0.5}])
def test_trials_without_a_share_of_a_gpu_go_by_the_cpu(space: Space, requested: Any) -> None:
    gpu = Machines(nodes=(Node(cpus=2, gpus=1),), gpu_name="Tesla V100", compute_capability=(7, 0))
    resources = space.resources.model_copy(update={"gpu_per_trial": requested})
    assert precision_to_freeze(space, gpu) == "fp16"
    assert precision_to_freeze(space.model_copy(update={"resources": resources}), gpu) == "fp32"
    assert precision_to_freeze(space, replace(gpu, address="auto")) is None


def test_a_machine_that_lacks_the_precision_is_refused_with_the_remedy() -> None:
    require_precision("bf16", NEW_GPU)
    with pytest.raises(BadInputError, match=r"began in bf16 and must go on in it.*Tesla V100 has 7\.0.*another name"):
        require_precision("bf16", OLD_GPU)


def test_a_machine_that_would_choose_another_precision_is_told(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    here(NEW_GPU, monkeypatch)
    note = precision_note(space, begun_in("fp32"), HERE)
    assert note is not None
    assert note.startswith("the sweep goes on in fp32, in which it began; a sweep that begins here would train in bf16")
    assert precision_note(space, begun_in("bf16"), HERE) is None
    assert precision_note(space, begun_in(None), HERE) is None
    here(OLD_GPU, monkeypatch)
    with pytest.raises(BadInputError, match="began in bf16"):
        precision_note(space, begun_in("bf16"), HERE)
    here(None, monkeypatch)
    assert precision_note(space, begun_in("fp32"), HERE) == "the sweep goes on in fp32, in which it began"


def test_a_sweep_begins_with_its_precision_written_down(
    space: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here(OLD_GPU, monkeypatch)
    identity = Identity(corpus_fingerprint="c", tokenizer_fingerprint="t", exam_fingerprint="e")
    rows = SimpleNamespace(n_rows=4)
    data: Any = SimpleNamespace(
        identity=identity,
        fingerprints={"corpus": "c", "tokenizer": "t", "exam": "e"},
        tokens=SimpleNamespace(vocab_size=512, facts={}),
        exam=SimpleNamespace(fingerprint="e", validation=rows, test=rows, block_len=64, common_len=8, packed=False),
    )
    ledger = Ledger(Storage(str(tmp_path)), "first")
    begin(ledger, space, data, HERE, audit={}, peaks_gib={}, command=None)
    beginning = ledger.beginning()
    assert (beginning["precision"], beginning["space"]["precision"]) == ("fp16", "auto")
    requested = {cell.cell_id for cell in explore_cells(space, identity)}
    assert {planned.cell_id for planned in ledger.planned_cells()} == requested
