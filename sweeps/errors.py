"""Errors that a user of ``sweeps`` can meet, with the exit code that each ends the command with."""

from __future__ import annotations

from typing import Final

EXIT_DONE: Final = 0
EXIT_BAD_INPUT: Final = 2
EXIT_SOME_FAILED: Final = 3
EXIT_NO_DEVICE: Final = 4
EXIT_RESUMABLE: Final = 130


class SweepError(Exception):
    """Any error of this package that is the user's to fix; ``exit_code`` is what the command ends with."""

    exit_code = EXIT_BAD_INPUT


class BadInputError(SweepError):
    """A name, a file or an option that cannot work: value, rule and remedy are in the message."""


class SweepHeldError(SweepError):
    """Another process holds the sweep, or the cell."""


class NoDeviceError(SweepError):
    """This machine lacks a device that was asked for explicitly."""

    exit_code = EXIT_NO_DEVICE


class WorldError(SweepError):
    """The world failed, not the input (a full disk, a lost cluster): work done is kept and the sweep can be resumed."""

    exit_code = EXIT_RESUMABLE


class StorageError(WorldError):
    """The storage could not be read or written."""


class StorageAwayError(StorageError):
    """The storage did not answer; the same operation may succeed a moment later."""


class DamagedError(StorageError):
    """An object is there and is not what was written: cut short, changed, or a part of it missing.

    Trying again does not help: a person must repair or restore it.
    """

    exit_code = EXIT_BAD_INPUT
