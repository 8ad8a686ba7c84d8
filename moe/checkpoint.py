"""The state of a run on disk: one file that ``torch.load(weights_only=True)`` reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe.config import ModelConfig, TrainConfig
from moe.errors import CheckpointError

STATE_FILE = "state.pt"
_SCHEMA = 1

# These decide where a run happens and when it reports. (Where determinism decides bits, the identity holds it.)
_FREE_FIELDS = frozenset({"device", "deterministic", "report_every_tokens", "exam_at_tokens"})


def write_state(folder: Path, state: dict[str, Any], config: TrainConfig, identity: dict[str, str]) -> None:
    """Writes ``state`` (tensors and plain containers) into an existing folder, by way of a temporary name.

    ``identity`` names what else decides the numbers: data fingerprints and the precision in use.
    """
    document = {"schema": _SCHEMA, "config": json.dumps(config.as_dict()), "identity": dict(identity), "state": state}
    unfinished = folder / f"{STATE_FILE}.unfinished"
    torch.save(document, unfinished)
    unfinished.replace(folder / STATE_FILE)


def read_state(folder: Path, config: TrainConfig, identity: dict[str, str]) -> dict[str, Any]:
    """The state that ``write_state`` wrote, with its tensors on the CPU: a GPU need not hold it beside the model.

    Raises:
        CheckpointError: there is none, it cannot be read, or another config or other data made it; the message names
            every field that differs, with both values.
    """
    document = _read(folder)
    stored = json.loads(document["config"])
    stored["optimizer"].setdefault("kind", "muon")  # earlier versions had no other
    differences = _differences(stored, json.loads(json.dumps(config.as_dict())))
    differences += _differences(document["identity"], identity)
    if differences:
        raise CheckpointError(
            f"{folder / STATE_FILE} belongs to another run: "
            + "; ".join(differences)
            + ". Resume with the configuration and data that made it, or start afresh elsewhere"
        )
    state: dict[str, Any] = document["state"]
    return state


def read_model(folder: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The shape and the weights, on the CPU, of the model in a checkpoint, for export and scoring.

    Raises:
        CheckpointError: there is no checkpoint, or it cannot be read.
    """
    document = _read(folder)
    return ModelConfig(**json.loads(document["config"])["model"]), document["state"]["model"]


def _read(folder: Path) -> dict[str, Any]:
    path = folder / STATE_FILE
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; choose a folder that holds a complete checkpoint")
    try:
        document: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}: {error}); remove it and go on from an older checkpoint"
        ) from error
    if document.get("schema") != _SCHEMA:
        raise CheckpointError(
            f"{path} has schema {document.get('schema')!r}, and this version reads {_SCHEMA}; "
            "use the version that made it"
        )
    return document


def _differences(then: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    lines = []
    for name in sorted(then.keys() | now.keys()):
        path = prefix + name
        if path in _FREE_FIELDS or (name in then and name in now and then[name] == now[name]):
            continue
        before, after = then.get(name, "nothing"), now.get(name, "nothing")
        if isinstance(before, dict) and isinstance(after, dict):
            lines += _differences(before, after, f"{path}.")
        else:
            lines.append(f"{path} was {before!r} and is now {after!r}")
    return lines
