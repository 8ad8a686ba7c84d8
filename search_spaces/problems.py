"""What is wrong with a space, said so that its author can mend it: the value, the rule and the remedy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong.

    ``where`` is the place as ``--set`` would address it, ``value`` what stands there as TOML would write it (empty
    when nothing does), ``rule`` continues the sentence that ``where=value`` begins, ``remedy`` is an instruction.
    """

    where: str
    value: str = ""
    rule: str
    remedy: str

    def __str__(self) -> str:
        subject = f"{self.where}={self.value}" if self.value else self.where
        return f"{subject} {self.rule}; {self.remedy}"


class SpaceErrors(ValueError):  # noqa: N818 - it carries every problem of a space, not one error
    """Every problem of one space, reported together."""

    def __init__(self, problems: Sequence[Problem], *, source: str = "") -> None:
        assert problems, "an error needs a problem"
        self.problems = list(problems)
        self.source = source
        super().__init__(str(self))

    def __str__(self) -> str:
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        heading = f"{count} in {self.source}:" if self.source else f"{count} in the space:"
        return "\n".join([heading, *(f"  {problem}" for problem in self.problems)])


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
        text = "[" + ", ".join(as_toml(item) for item in value) + "]"
    elif isinstance(value, dict):
        text = "{" + ", ".join(f"{key} = {as_toml(item)}" for key, item in value.items()) + "}"
    else:
        text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."
