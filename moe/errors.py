"""Errors that a user of ``moe`` can meet. A message names the value, the rule and the remedy."""

from __future__ import annotations


class MoeError(ValueError):
    """Any error of this package that is the user's to fix."""


class ConfigError(MoeError):
    """A training configuration that cannot work."""


class DeviceMissing(ConfigError):  # noqa: N818 - a state of the machine, not of the config
    """A device was asked for explicitly and this machine does not have it."""


class CorpusError(MoeError):
    """A corpus or tokenizer that is missing, unreadable, changed or unfit for the question."""


class CorpusAway(CorpusError):  # noqa: N818 - where it is, not what is wrong with it
    """A corpus or tokenizer that this machine does not have and another one may: no such folder, no network."""


class CheckpointError(MoeError):
    """A checkpoint that is damaged, or that belongs to another configuration."""


class Diverged(MoeError):  # noqa: N818 - the field's word for it
    """Training met a loss that is not finite. ``tokens_seen`` is how far it got."""

    def __init__(self, tokens_seen: int, reason: str) -> None:
        super().__init__(reason)
        self.tokens_seen = tokens_seen
        self.reason = reason

    def __reduce__(self) -> tuple[type[Diverged], tuple[int, str]]:
        """Pickles with both arguments, so that the error crosses a process boundary whole."""
        return type(self), (self.tokens_seen, self.reason)


class OutOfMemory(MoeError):  # noqa: N818 - the field's word for it
    """The device has no room for one window of a micro-batch (``moe.device.is_out_of_memory`` recognises it).

    ``tokens_seen`` is how far training got.
    """

    def __init__(self, tokens_seen: int, reason: str) -> None:
        super().__init__(reason)
        self.tokens_seen = tokens_seen
        self.reason = reason

    def __reduce__(self) -> tuple[type[OutOfMemory], tuple[int, str]]:
        """Pickles with both arguments, so that the error crosses a process boundary whole."""
        return type(self), (self.tokens_seen, self.reason)
