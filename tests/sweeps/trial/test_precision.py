"""The precision that a sweep began in is the one it continues in, or it does not continue."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moe.device import Device
from search_spaces import Cell, Identity, Space, explore_cells, load_space
from sweeps.cluster.machines import Machines, Node, local_machine
from sweeps.errors import BadInputError
from sweeps.ledger.storage import Storage
from sweeps.ledger.sweep_folder import Ledger
from sweeps.running.begin import begin
from sweeps.trial.precision import as_trained, in_resolved_precision, precision_note, require_precision

CPU = Device(kind="cpu")
BF16_CPU = Device(kind="cpu", bf16_instructions=("avx512_bf16",))
OLD_GPU = Device(kind="cuda", name="Tesla V100", compute_capability=(7, 0))
NEW_GPU = Device(kind="cuda", name="A100", compute_capability=(8, 0))
IDENTITY = Identity(corpus_fingerprint="c", tokenizer_fingerprint="t", exam_fingerprint="e")


@pytest.fixture
def space() -> Space:
    return load_space(preset="smoke")


def machine(device: Device, monkeypatch: pytest.MonkeyPatch) -> Machines:
    """A machine whose trials train on this device."""
    if device.kind == "cpu":
        monkeypatch.setattr("moe.device.Device.resolve", lambda _kind="auto": device)
        return Machines(nodes=(Node(cpus=2),))
    node = Node(cpus=2, gpus=1, gpu_gib=24.0)
    return Machines(nodes=(node,), gpu_name=device.name, compute_capability=device.compute_capability)


def begun_in(precision: str | None) -> Any:
    """A ledger as far as its precision goes."""
    return SimpleNamespace(beginning=lambda: {"precision": precision})


@pytest.mark.parametrize(
    ("device", "name"), [(CPU, "fp32"), (BF16_CPU, "bf16"), (OLD_GPU, "fp16"), (NEW_GPU, "bf16")], ids=str
)
def test_auto_becomes_the_precision_of_the_device_and_part_of_the_ids_of_cells(
    space: Space, monkeypatch: pytest.MonkeyPatch, device: Device, name: str
) -> None:
    resolved = in_resolved_precision(space, machine(device, monkeypatch))
    assert resolved == space.model_copy(update={"precision": name})
    others = {"fp32", "bf16", "fp16"} - {name}
    ids_of_others = {cell.cell_id for other in others for cell in cells_in(other, space)}
    assert not {cell.cell_id for cell in explore_cells(resolved, IDENTITY)} & ids_of_others


def cells_in(precision: str, space: Space) -> tuple[Cell, ...]:
    return explore_cells(space.model_copy(update={"precision": precision}), IDENTITY)


@pytest.mark.parametrize(("capabilities", "name"), [({"avx2": True}, "fp32"), ({"amx_bf16": True}, "bf16")])
def test_without_a_gpu_auto_is_what_this_cpu_can_do(
    space: Space, monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], name: str
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("sweeps.cluster.machines.usable_gpu_memories_gib", tuple)
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: capabilities)
    assert in_resolved_precision(space, local_machine()).precision == name


def test_a_precision_that_the_space_names_stays(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    named = space.model_copy(update={"precision": "fp32"})
    for device in (CPU, BF16_CPU, NEW_GPU):
        assert in_resolved_precision(named, machine(device, monkeypatch)) == named


def test_older_sweeps_train_in_what_was_frozen_beside_auto(space: Space) -> None:
    trained = as_trained(space, begun_in("fp16"))
    assert (trained.precision, space.precision) == ("fp16", "auto")
    assert as_trained(space, begun_in(None)) == space


@pytest.mark.parametrize("requested", [0.0, {"large_batch": 0.5, "balanced": 0.0, "long_seq": 0.5}])
def test_trials_without_a_share_of_a_gpu_go_by_the_cpu(
    space: Space, monkeypatch: pytest.MonkeyPatch, requested: Any
) -> None:
    gpu = machine(OLD_GPU, monkeypatch)
    monkeypatch.setattr("moe.device.Device.resolve", lambda _kind="auto": CPU)
    resources = space.resources.model_copy(update={"gpu_per_trial": requested})
    assert in_resolved_precision(space, gpu).precision == "fp16"
    assert in_resolved_precision(space.model_copy(update={"resources": resources}), gpu).precision == "fp32"


def test_a_machine_that_lacks_the_precision_is_refused_with_the_remedy() -> None:
    require_precision("bf16", NEW_GPU)
    with pytest.raises(
        BadInputError, match=r"began in bf16 and must continue in it.*Tesla V100 has 7\.0.*another name"
    ):
        require_precision("bf16", OLD_GPU)


def test_a_resume_where_auto_would_be_another_precision_notes_it(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    new = machine(NEW_GPU, monkeypatch)
    assert precision_note(space, begun_in("fp32"), new) == (
        'the sweep continues in fp32, in which it began; `precision = "auto"` would be bf16, because A100 has compute '
        "capability 8.0 (8.0 or newer)"
    )
    assert precision_note(space, begun_in("bf16"), new) is None
    assert precision_note(space, begun_in(None), new) is None
    with pytest.raises(BadInputError, match="began in bf16"):
        precision_note(space, begun_in("bf16"), machine(OLD_GPU, monkeypatch))
    note = precision_note(space, begun_in("bf16"), machine(CPU, monkeypatch))
    assert note is not None
    assert "would be fp32, because the CPU has neither avx512_bf16 nor amx_bf16" in note


def test_a_sweep_begins_with_its_precision_written_down(
    space: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = SimpleNamespace(n_rows=4)
    data: Any = SimpleNamespace(
        identity=IDENTITY,
        fingerprints={"corpus": "c", "tokenizer": "t", "exam": "e"},
        tokens=SimpleNamespace(vocab_size=512, facts={}, splits={"test": SimpleNamespace(document_groups={})}),
        exam=SimpleNamespace(fingerprint="e", validation=rows, test=rows, block_len=64, common_len=8, packed=False),
    )
    ledger = Ledger(Storage(str(tmp_path)), "first")
    with pytest.raises(AssertionError, match="depend on the precision that auto comes to"):
        begin(ledger, space, data, audit={}, peaks_gib={}, command=None)
    resolved = in_resolved_precision(space, machine(OLD_GPU, monkeypatch))
    begin(ledger, resolved, data, audit={}, peaks_gib={}, command=None)
    beginning = ledger.beginning()
    assert (beginning["precision"], beginning["space"]["precision"]) == ("fp16", "fp16")
    assert [planned.cell_id for planned in ledger.planned_cells()] == [cell.cell_id for cell in cells_in("fp16", space)]


@pytest.mark.parametrize(("device", "kept"), [(CPU, True), (BF16_CPU, True), (OLD_GPU, False), (NEW_GPU, False)])
def test_determinism_is_a_question_for_gpus_only(monkeypatch: pytest.MonkeyPatch, device: Device, kept: bool) -> None:
    """A CPU gives equal bits anyway: what was requested decides nothing there, and no id either."""
    space = load_space(preset="smoke", overrides=["resources.deterministic=false"])
    resolved = in_resolved_precision(space, machine(device, monkeypatch))
    assert resolved.resources.deterministic is kept
    unasked = in_resolved_precision(load_space(preset="smoke"), machine(device, monkeypatch))
    assert unasked.resources.deterministic is True
