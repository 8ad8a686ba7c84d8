"""What the objects of the ledger hold, checked when they are read; keys beyond these are kept as they are."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from sweeps.errors import DamagedError
from sweeps.ledger.identifiers import NAME_PATTERN, is_folder_name
from sweeps.ledger.storage import Storage


def _folder_name(text: str) -> str:
    if not is_folder_name(text):
        raise ValueError(f"{text!r} is not the name of one folder ({NAME_PATTERN.pattern})")
    return text


FolderName = Annotated[str, AfterValidator(_folder_name)]
Phase = Literal["explore", "confirm", "time", "flops", "control"]
"""``control`` was a phase in earlier versions."""
Arrangement = Literal["shuffled", "grouped"]
PlanReason = Literal["grid", "confirm", "widening", "extension", "suggestion", "time", "flops", "control"]
Outcome = Literal["completed", "stopped_early", "diverged", "oom", "failed"]


class ObjectModel(BaseModel):
    """An object of the ledger: no value is converted, and no number is NaN or infinite."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, frozen=True)


class Fingerprints(ObjectModel):
    """What the ids of cells and the code check rest on."""

    corpus: str
    tokenizer: str
    exam: str
    code: str


class Arm(ObjectModel):
    """A strategy as the frozen beginning has it."""

    name: str
    tokens_per_step: int | None = None
    predicted_peak_gib: float | None = None


class Beginning(ObjectModel):
    """``sweep.json``."""

    sweep_id: str
    created_s: float
    space: dict[str, Any]
    strategies: list[Arm]
    fingerprints: Fingerprints
    ledger_version: int = 1


class PlannedEntry(ObjectModel):
    """A cell in a page of the plan."""

    cell_id: FolderName
    phase: Phase
    strategy: str
    lr: float
    adamw_lr: float
    arrangement: Arrangement
    seed: NonNegativeInt
    budget_tokens: NonNegativeInt
    reason: PlanReason
    may_stop_early: bool


class PlanPage(ObjectModel):
    """``plan/NNNN.json``. Pages of another ``sweep_id`` were left by a beginning that was cut short."""

    because: str = ""
    added_s: float = 0.0
    extension: dict[str, Any] | None
    cells: list[PlannedEntry]
    sweep_id: str | None = None


class StoredFile(ObjectModel):
    """Size and hash of an object."""

    size_bytes: NonNegativeInt = Field(alias="bytes")
    blake2b: str


class CountedSegment(StoredFile):
    """A segment of records that counts; ``name`` is that of the object in ``segments/``."""

    name: FolderName


class Manifest(ObjectModel):
    """``manifest.json`` of a checkpoint: the files that make it up."""

    tokens_seen: NonNegativeInt
    files: dict[FolderName, StoredFile]


class Commit(ObjectModel):
    """``commits/NNNN.json``: the checkpoint that a cell goes on from, and the segments that count up to it.

    ``holder`` is the token of the lease under which it was written; ``checkpoint`` is None before the first one.
    Version 0.1 wrote no commits: its ``segments`` are None, all that end at its newest checkpoint or before.
    """

    tokens_seen: NonNegativeInt
    holder: str
    checkpoint: FolderName | None
    segments: list[CountedSegment] | None


class Record(ObjectModel):
    """A report that counts."""

    tokens_seen: NonNegativeInt


class Segment(ObjectModel):
    """``segments/FROM-TO-TOKEN.json``."""

    records: list[Record]


class OutcomeEntry(ObjectModel):
    """``outcome.json``."""

    outcome: Outcome
    tokens_seen: NonNegativeInt
    val_loss: float | None
    test_loss: float | None
    reason: str | None
    scores: dict[str, Any] | None = None
    segments: list[CountedSegment] | None = None


class Attempt(ObjectModel):
    """``attempts/NNNN.json``."""

    kind: str
    reason: str
    tokens_seen: NonNegativeInt


class Margin(ObjectModel):
    """``margin.json``."""

    margin: float


class CodeChange(ObjectModel):
    """``code/NNNN.json``."""

    code: str


class SessionEntry(ObjectModel):
    """``sittings/NNNN.json``."""

    began_s: float
    wall_s: float
    first_estimate_s: float | None
    interrupted: bool


class VerdictEntry(ObjectModel):
    """``verdict.json`` and ``verdicts/NNNN.json``."""

    outcome: str


M = TypeVar("M", bound=ObjectModel)


def validated(storage: Storage, name: str, value: object, model: type[M]) -> M:
    """``value`` as the model; raises DamagedError, naming the object, where it is something else."""
    where = f"{storage.uri}/{name} is damaged"
    if not isinstance(value, dict):
        raise DamagedError(f"{where}: it is not a JSON object; restore it from a copy")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems = error.errors()
        missing = [_key(problem) for problem in problems if problem["type"] == "missing"]
        wrong = [f"{_key(problem)}: {problem['msg']}" for problem in problems if problem["type"] != "missing"]
        says = "; ".join([*([f"it has no {' and no '.join(missing)}"] if missing else []), *wrong[:5]])
        raise DamagedError(f"{where}: {says}; restore it from a copy") from error


def _key(problem: Any) -> str:
    return ".".join(map(str, problem["loc"]))
