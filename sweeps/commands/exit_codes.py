"""What an error means to the user: one message on standard error, and the exit code of the command."""

from __future__ import annotations

import errno
import gc
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from sweeps.commands.console import close_output, require_usable_environment
from sweeps.errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_NO_DEVICE, EXIT_SOME_FAILED, SweepError

if TYPE_CHECKING:
    from sweeps.ledger.sweep_folder import Ledger


def run_to_exit(command: Callable[[], object]) -> NoReturn:
    """Run a command line and end the process with its exit code.

    Imports leave a million objects that live to the end. They are searched for garbage seldom, and not on the way out:
    a fifth of the time of the imports, and a second at the end.
    """
    gc.set_threshold(100_000, 50, 50)
    code = exit_code_of(command)
    gc.freeze()
    sys.exit(code)


def exit_code_of(command: Callable[[], object]) -> int:
    """Run a command line that ends with SystemExit; return its exit code, after a message where it failed.

    Raises what no user can fix: a bug of this program.
    """
    from search_spaces import SpaceErrors
    from sweeps.shown_commands import with_shown_commands

    code: int = 0
    try:
        require_usable_environment()
        try:
            command()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else EXIT_BAD_INPUT
        close_output()
    except (SweepError, SpaceErrors) as error:
        code = getattr(error, "exit_code", EXIT_BAD_INPUT)
        print(f"sweeps: {with_shown_commands(str(error))}", file=sys.stderr)
    except ValueError as error:
        code = _code_of_known_error(error)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        code = EXIT_BAD_INPUT
        print(f"sweeps: {error}; free some space", file=sys.stderr)
    return code


def code_of(ledger: Ledger) -> int:
    """Return the exit code of a session that ran to its end."""
    from sweeps.running.driver import failed_cells

    return EXIT_SOME_FAILED if failed_cells(ledger) else EXIT_DONE


def _code_of_known_error(error: ValueError) -> int:
    """Errors of ``moe`` and of record files are the user's to fix; any other ValueError is a bug of this program."""
    from moe.errors import DeviceMissing, MoeError
    from sweeps.shown_commands import with_shown_commands
    from sweeps.verdict.records_table import RecordsError

    if not isinstance(error, MoeError | RecordsError):
        raise error
    print(f"sweeps: {with_shown_commands(str(error))}", file=sys.stderr)
    return EXIT_NO_DEVICE if isinstance(error, DeviceMissing) else EXIT_BAD_INPUT
