"""What is wrong with a space, in words its author can act on: the value, the rule and the remedy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import isqrt

# Nobody corrects more at once; a file that is no space at all can have hundreds of thousands.
MAX_PROBLEMS = 50
MAX_SHOWN_CHARS = 80


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong.

    ``where`` is the place as ``--set`` would address it, ``value`` what stands there in TOML (empty when nothing
    does), ``rule`` continues the sentence that ``where=value`` starts, ``remedy`` is an instruction.
    """

    where: str
    value: str = ""
    rule: str
    remedy: str

    def __str__(self) -> str:
        subject = f"{self.where}={self.value}" if self.value else self.where
        return _printable(f"{subject} {self.rule}; {self.remedy}")


def problem_at(where: str, value: object, rule: str, remedy: str) -> Problem:
    """A problem with ``value`` as TOML would write it; None where nothing stands at ``where``."""
    return Problem(where=where, value="" if value is None else as_toml(value), rule=rule, remedy=remedy)


class SpaceErrors(ValueError):  # noqa: N818 - it carries every problem of a space, not one error
    """Every problem of one space, reported together."""

    def __init__(self, problems: Sequence[Problem], *, source: str = "the space") -> None:
        assert problems, "an error needs a problem"
        self.problems = list(problems)
        self.source = source
        super().__init__(str(self))

    def __str__(self) -> str:
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        return "\n".join([f"{count} in {_printable(self.source)}:", *(f"  {problem}" for problem in self.problems)])


def first_problems(problems: Sequence[Problem], n_more: int) -> list[Problem]:
    """The first problems of many, each once, and how many there are besides (``n_more`` of them not in the list)."""
    distinct = list(dict.fromkeys(problems))
    n_more += max(0, len(distinct) - MAX_PROBLEMS)
    if not n_more:
        return distinct
    rest = Problem(where="the space", rule=f"has {n_more:,} more problems", remedy="correct those above first")
    return [*distinct[:MAX_PROBLEMS], rest]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``did you mean 'x'?`` for the known word nearest to ``word``, or an empty string when none is near."""
    nearest = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"did you mean '{nearest[0]}'?" if nearest else ""


def as_toml(value: object) -> str:
    """``value`` as TOML would write it, cut short where it is long."""
    if value is None:
        text = "unset"
    elif isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, str):
        text = f'"{value}"'
    elif isinstance(value, list | tuple):
        text = "[" + ", ".join(as_toml(item) for item in value[:MAX_SHOWN_CHARS]) + "]"
    elif isinstance(value, dict):
        text = "{" + ", ".join(f"{key} = {as_toml(item)}" for key, item in value.items()) + "}"
    elif isinstance(value, int) and value.bit_length() > 1_000:
        text = "a number of hundreds of digits"  # Python refuses to print thousands of them
    else:
        text = str(value)
    return shortened(text)


def shortened(text: str) -> str:
    """``text``, cut short where it is long."""
    return text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 3] + "..."


def _printable(text: str) -> str:
    """``text`` without characters that a terminal would obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def divisors(number: int) -> list[int]:
    """Every divisor of a positive ``number``, in increasing order."""
    small = [divisor for divisor in range(1, isqrt(number) + 1) if number % divisor == 0]
    return sorted({*small, *(number // divisor for divisor in small)})


def nearest_multiples(value: int, multiple: int) -> str:
    """The multiples next to ``value``, below (when there is one) and above, in words."""
    below = value // multiple * multiple
    return f"{below} or {below + multiple}" if below else str(multiple)


def nearest_divisors(value: int, number: int) -> str:
    """The divisors of ``number`` next to ``value``, below and above (when there is one), in words."""
    found = divisors(number)
    below = max((divisor for divisor in found if divisor < value), default=None)
    above = min((divisor for divisor in found if divisor > value), default=None)
    return " or ".join(str(divisor) for divisor in (below, above) if divisor is not None)
