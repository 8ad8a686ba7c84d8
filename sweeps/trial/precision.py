"""The number format that a sweep trains in: resolved when it begins, and the same wherever it is resumed.

What ``precision = "auto"`` comes to depends on the device. Half a sweep in bf16 and half in fp32 would compare formats
with arms, so the space that is frozen in ``sweep.json`` names the format, and the ids of cells depend on it.
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


def in_resolved_precision(space: Space, machines: Machines) -> Space:
    """``space`` with ``auto`` replaced by what it comes to where its trials will train.

    On a CPU ``resources.deterministic`` comes to true, for there it decides nothing.

    Raises:
        ConfigError: the precision that the space names needs another device.
    """
    from moe.precision import resolve_precision

    device = _device(space, machines)
    resolved = {"precision": resolve_precision(space.precision, device).name}
    if device.kind == "cuda":
        return space.model_copy(update=resolved)
    resources = space.resources.model_copy(update={"deterministic": True})
    return space.model_copy(update={**resolved, "resources": resources})


def as_trained(space: Space, ledger: Ledger) -> Space:
    """``space`` in the precision of its sweep: older sweeps froze that beside a space that still says ``auto``."""
    return space.model_copy(update={"precision": ledger.beginning().get("precision") or space.precision})


def precision_note(space: Space, ledger: Ledger, machines: Machines) -> str | None:
    """What a user should know before a sweep is resumed here, or None.

    Raises:
        BadInputError: the devices here lack the precision of the sweep.
    """
    from moe.precision import resolve_precision

    frozen, device = as_trained(space, ledger).precision, _device(space, machines)
    require_precision(frozen, device)
    own = resolve_precision("auto", device)
    if frozen in {own.name, "auto"}:
        return None
    return f'the sweep continues in {frozen}, in which it began; `precision = "auto"` would be {own.reason}'


def require_precision(frozen: str, device: Device) -> None:
    """Raises BadInputError where ``device`` cannot train in the precision that a sweep began in."""
    from moe.errors import ConfigError
    from moe.precision import resolve_precision

    try:
        resolve_precision(frozen, device)  # type: ignore[arg-type]  # as sweep.json has it: an unknown one is refused
    except ConfigError as error:
        raise BadInputError(
            f"the sweep began in {frozen} and must continue in it, as two precisions do not compare: {error}; "
            "resume it where that precision is available, or start a sweep here under another name"
        ) from error


def _device(space: Space, machines: Machines) -> Device:
    """The device that decides for all trials, so that no two cells differ in precision.

    Where some train without a share of a GPU that is the CPU, and on a cluster the oldest of its GPUs.
    """
    from moe.device import Device

    requested = space.resources.gpu_per_trial
    if requested != "auto" and 0 in (requested.values() if isinstance(requested, Mapping) else [requested]):
        return Device.resolve("cpu")
    return machines.device
