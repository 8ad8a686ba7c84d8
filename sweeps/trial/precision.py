"""The number format that a sweep trains in: resolved when it begins, and the same wherever it goes on.

What ``precision = "auto"`` resolves to depends on the device. Half a sweep in bf16 and half in fp32 would compare
formats with arms, so the resolved one is frozen in ``sweep.json``. The ids of cells keep the requested one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from search_spaces import Space
from sweeps.cluster.machines import Machines
from sweeps.errors import BadInputError
from sweeps.ledger.sweep_folder import Ledger

if TYPE_CHECKING:
    from moe.device import Device


def precision_to_freeze(space: Space, machines: Machines) -> str | None:
    """The precision of all cells; None where it is left to the GPUs of a cluster, which are not seen from here."""
    from moe.precision import resolve_precision

    device = _device(space, machines)
    if device is None:
        return None if space.precision == "auto" else space.precision
    return resolve_precision(space.precision, device).name


def precision_of(ledger: Ledger) -> str | None:
    """What was frozen or, where that was left to the GPUs of a cluster, what a first cell was trained in; else None."""
    frozen: str | None = ledger.beginning().get("precision")
    if frozen is not None:
        return frozen
    for planned in ledger.planned_cells():
        for record in ledger.cell_folder(planned.cell_id).records():
            return str(record["precision"])
    return None


def as_trained(space: Space, ledger: Ledger) -> Space:
    """``space`` in the precision of its sweep: for training and its memory, never for the ids of cells."""
    return space.model_copy(update={"precision": precision_of(ledger) or space.precision})


def precision_note(space: Space, ledger: Ledger, machines: Machines) -> str | None:
    """What a user should know before a sweep is resumed here, or None.

    Raises BadInputError where this machine lacks the precision of the sweep.
    """
    from moe.precision import resolve_precision

    frozen, device = precision_of(ledger), _device(space, machines)
    if frozen is None:
        return None
    if device is None:
        return f"the sweep goes on in {frozen}, in which it began" if space.precision == "auto" else None
    require_precision(frozen, device)
    own = resolve_precision("auto", device)
    if own.name == frozen:
        return None
    return f"the sweep goes on in {frozen}, in which it began; a sweep that begins here would train in {own.reason}"


def require_precision(frozen: str, device: Device) -> None:
    """Raises BadInputError where ``device`` cannot train in the precision that a sweep began in."""
    from moe.errors import ConfigError
    from moe.precision import resolve_precision

    try:
        resolve_precision(frozen, device)  # type: ignore[arg-type]  # as sweep.json has it: an unknown one is refused
    except ConfigError as error:
        raise BadInputError(
            f"the sweep began in {frozen} and must go on in it, for losses in two precisions do not compare: {error}; "
            "resume it where that precision is available, or start a sweep here under another name"
        ) from error


def _device(space: Space, machines: Machines) -> Device | None:
    """What trials train on; None for the GPUs of a cluster.

    Where some train without a share of a GPU all go by the CPU, so that no two cells differ in precision.
    """
    from moe.device import Device

    requested = space.resources.gpu_per_trial
    if requested != "auto" and 0 in (requested.values() if isinstance(requested, Mapping) else [requested]):
        return Device.resolve("cpu")
    device = machines.device
    return None if machines.address is not None and device.kind == "cuda" else device
