"""The kinds of values that a space is written in, and the section that holds them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

Count = Annotated[int, Field(strict=True, ge=1)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(strict=True, ge=0, lt=1, allow_inf_nan=False)]
Decay = Annotated[float, Field(strict=True, ge=0, lt=1, allow_inf_nan=False)]
Switch = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(strict=True)]
NonEmptyText = Annotated[str, Field(strict=True, min_length=1)]
ArmName = Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\z")]


class Section(BaseModel):
    """A table of a space's TOML file: frozen, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def expand(cls, raw: Any) -> Any:
        """``raw`` with its shorthand written out; what is no shorthand comes back as it is."""
        return raw

    @model_validator(mode="before")
    @classmethod
    def _expanded(cls, raw: Any) -> Any:
        return cls.expand(raw)


def rule_broken(rule: str, remedy: str) -> PydanticCustomError:
    """An error for a validator to raise, that becomes a ``Problem`` with these words."""
    return PydanticCustomError("rule_broken", "{rule}; {remedy}", {"rule": rule, "remedy": remedy})


def _auto_or_count(value: Any) -> Any:
    if value == "auto" or (type(value) is int and value >= 1):
        return value
    raise rule_broken('must be "auto" or a whole number of at least 1', 'write "auto" or a number such as 2')


def _auto_or_positive(value: Any) -> Any:
    if value == "auto" or (type(value) in (int, float) and 0 < value < float("inf")):
        return value
    raise rule_broken('must be "auto" or a positive number', 'write "auto" or a number such as 0.01')


def is_gpu_share(value: object) -> bool:
    """Whether ``value`` is an amount of GPU that Ray can grant: 0, a fraction up to 1, or whole GPUs."""
    if type(value) is int:
        return value >= 0
    return isinstance(value, float) and (0 <= value <= 1 or (value < float("inf") and value.is_integer()))


def _gpu_share(value: Any) -> Any:
    amounts = list(value.values()) if isinstance(value, dict) else [value]
    if value == "auto" or (amounts and all(is_gpu_share(amount) for amount in amounts)):
        return value
    raise rule_broken(
        'must be "auto", 0, a fraction of a GPU up to 1, a whole number of GPUs, or a table of these by arm',
        'write "auto", 0.25, or { large_batch = 0.5, ... }',
    )


def _keep_share(value: Any) -> Any:
    if (type(value) is int and value >= 1) or (type(value) is float and 0 < value <= 1):
        return value
    raise rule_broken(
        "must be a count of at least 1, or a fraction above 0 and up to 1",
        "write how many of an arm's cells pass the rung, such as 2 or 0.5",
    )


AutoOrCount = Annotated[int | Literal["auto"], BeforeValidator(_auto_or_count)]
AutoOrPositive = Annotated[float | Literal["auto"], BeforeValidator(_auto_or_positive)]
GpuShare = Annotated[float | dict[str, float] | Literal["auto"], BeforeValidator(_gpu_share)]
KeepShare = Annotated[int | float, BeforeValidator(_keep_share)]
