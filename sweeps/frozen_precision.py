"""The number format that a sweep trains in: resolved when it begins, and the same wherever it goes on.

``precision = "auto"`` is a wish; what it comes to depends on the device. Half a sweep in bf16 and half in fp32 would
compare formats with arms, so what it came to is frozen in ``sweep.json``. The ids of cells keep the wish.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from search_spaces import Space
from sweeps.errors import BadInputError

if TYPE_CHECKING:
    from moe.device import Device


def precision_to_freeze(space: Space) -> str | None:
    """The precision of all cells; None where it is left to the GPUs of a cluster, which are not seen from here."""
    from moe.precision import resolve_precision

    device = _device()
    if device is None:
        return None if space.precision == "auto" else space.precision
    return resolve_precision(space.precision, device).name


def as_trained(space: Space, beginning: Mapping[str, Any]) -> Space:
    """``space`` in the precision that was frozen: for training and its memory, never for the ids of cells."""
    return space.model_copy(update={"precision": beginning.get("precision") or space.precision})


def precision_note(beginning: Mapping[str, Any]) -> str | None:
    """What a user should know before a sweep goes on here, or None.

    Raises BadInputError where this machine lacks the frozen precision.
    """
    from moe.precision import resolve_precision

    frozen, device = beginning.get("precision"), _device()
    if frozen is None or device is None:
        return None
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
            "resume it where that precision is, or start a sweep here under another name"
        ) from error


def _device() -> Device | None:
    """What trials train on; None for the GPUs of a cluster."""
    from moe.device import Device
    from sweeps.cluster.facts import usable_gpu_memories_gib
    from sweeps.cluster.packing import training_device

    if not os.environ.get("RAY_ADDRESS"):
        return Device.resolve("auto" if usable_gpu_memories_gib() else "cpu")
    device = training_device()
    return device if device.kind == "cpu" else None
