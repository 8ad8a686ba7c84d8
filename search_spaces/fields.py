"""The kinds of values that a space is written in, and the section that holds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

# Far beyond every rate that trains, and near enough that ratios and widened grids stay finite and above zero.
MIN_RATE, MAX_RATE = 1e-12, 1e3
# The context of a hundred processes fills any GPU, and Ray truncates a request to four decimals.
MIN_GPU_SHARE = 0.01
MAX_WORKERS = 10_000  # trials at once: more than any one driver follows
ARM_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\z"
ONE_LINE = r"^[^\x00-\x1f\x7f]*\z"


class Section(BaseModel):
    """A table of a space's TOML file: frozen, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ChangesTo:
    """Annotates a table that holds any of a section's keys, each checked as the section checks it."""

    def __init__(self, section: type[Section], *, but: tuple[str, ...] = ()) -> None:
        self.keys: Mapping[str, Any] = {
            key: field.rebuild_annotation() for key, field in section.model_fields.items() if key not in but
        }

    def __get_pydantic_core_schema__(self, _source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """A table of which every key may be left out and none may be added."""
        fields = {
            key: core_schema.typed_dict_field(handler.generate_schema(annotation), required=False)
            for key, annotation in self.keys.items()
        }
        return core_schema.typed_dict_schema(fields, extra_behavior="forbid")


def rule_broken(rule: str, remedy: str) -> PydanticCustomError:
    """The error that a validator raises to report a ``Problem`` in these words."""
    return PydanticCustomError("rule_broken", "{rule}; {remedy}", {"rule": rule, "remedy": remedy})


def is_rate(value: float) -> bool:
    """Whether ``value`` can be a learning rate."""
    return MIN_RATE <= value <= MAX_RATE


def _rate(value: float) -> float:
    if not is_rate(value):
        raise rule_broken(f"must lie between {MIN_RATE:g} and {MAX_RATE:g}", "choose a value like 0.02")
    return value


def _auto_or_workers(value: Any) -> Any:
    if value == "auto" or (type(value) is int and 1 <= value <= MAX_WORKERS):
        return value
    if type(value) is int and value > MAX_WORKERS:
        raise rule_broken(f"must be at most {MAX_WORKERS}", 'write "auto" or a number such as 2')
    raise rule_broken('must be "auto" or a whole number of at least 1', 'write "auto" or a number such as 2')


def _auto_or_positive(value: Any) -> Any:
    if value == "auto" or (type(value) in (int, float) and 0 < value < float("inf")):
        return value
    raise rule_broken('must be "auto" or a positive number', 'write "auto" or a number such as 0.01')


def is_gpu_share(value: object) -> bool:
    """Whether a trial can be given ``value`` of a GPU: nothing, or a share of one."""
    return isinstance(value, int | float) and type(value) is not bool and (value == 0 or MIN_GPU_SHARE <= value <= 1)


def _gpu_share(value: Any) -> Any:
    shares = list(value.values()) if isinstance(value, dict) else [value]
    if value == "auto" or (shares and all(is_gpu_share(share) for share in shares)):
        return value
    raise rule_broken(
        f'must be "auto", 0, a share of one GPU from {MIN_GPU_SHARE} to 1 (a trial trains on one GPU), '
        "or a table of shares by arm",
        'write "auto", 0.25, or { large_batch = 0.5, ... }',
    )


def _keep_share(value: Any) -> Any:
    if (type(value) is int and value >= 1) or (type(value) is float and 0 < value <= 1):
        return value
    raise rule_broken(
        "must be a count of at least 1, or a fraction above 0 and up to 1",
        "write how many of an arm's cells pass the rung, such as 2 or 0.5",
    )


Count = Annotated[int, Field(strict=True, ge=1)]
CountOrZero = Annotated[int, Field(strict=True, ge=0)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]
FractionBelowOne = Annotated[float, Field(strict=True, ge=0, lt=1, allow_inf_nan=False)]
Rate = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False), AfterValidator(_rate)]
RateGrid = Annotated[tuple[Rate, ...], Field(max_length=1_000)]  # nobody tries more
Switch = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(strict=True, max_length=10_000)]
Word = Annotated[str, Field(strict=True, min_length=1, max_length=4_096, pattern=ONE_LINE)]  # 4,096: a path, on Linux
ArmName = Annotated[str, Field(strict=True, pattern=ARM_NAME)]
AutoOrWorkers = Annotated[int | Literal["auto"], BeforeValidator(_auto_or_workers)]
AutoOrPositive = Annotated[float | Literal["auto"], BeforeValidator(_auto_or_positive)]
GpuShare = Annotated[float | dict[str, float] | Literal["auto"], BeforeValidator(_gpu_share)]
KeepShare = Annotated[int | float, BeforeValidator(_keep_share)]
