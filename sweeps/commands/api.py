"""Sweeps from Python: ``import sweeps``; ``sweeps.run`` begins one, ``sweeps.open`` returns one that is there.

The command line does the same by the same functions. Nothing is printed unless asked for with ``show=True``, and heavy
imports wait until they are needed. Columns and their units: docs/metrics.md, "Records as a table".
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import pandas as pd

    from search_spaces import Space
    from sweeps.commands.plan import SweepPlan
    from sweeps.ledger.results import SweepResults
    from sweeps.ledger.sweep_folder import Ledger
    from sweeps.running.begin import SpaceChoice
    from sweeps.running.session import SessionOptions
    from sweeps.verdict.verdict import Verdict

CELL_COLUMNS = {
    "strategy": "string",
    "lr": "float64",
    "seed": "Int64",
    "phase": "string",
    "outcome": "string",
    "tokens_seen": "Int64",
    "val_loss": "float64",
    "test_loss": "float64",
    "cell_id": "string",
    "adamw_lr": "float64",
    "arrangement": "string",
    "budget_tokens": "Int64",
    "reason": "string",
}
"""Of ``Sweep.cells``, with the type of each in pandas: the first as in a table of records."""


def run(
    space: str | os.PathLike[str] | Space | None = None,
    *,
    name: str | None = None,
    set: Mapping[str, Any] | None = None,  # noqa: A002 - the option of the command line
    hours: float | None = None,
    runs_dir: str | os.PathLike[str] = "runs",
    exclusive: bool = False,
    on_end: str | None = None,
    show: bool = False,
) -> Sweep:
    """Run a sweep to its verdict, and return it.

    ``space`` is the name of a preset, the path of a TOML file, or a ``search_spaces.Space``; without it ``matched``
    where there is a GPU, else ``laptop``. ``set`` changes values of it by their dotted names; ``hours`` chooses the
    largest budget with which the sweep fits in them here. ``exclusive`` and ``on_end`` are the options of
    ``sweeps run``; ``show`` prints what that prints. RAY_ADDRESS names a cluster.

    Cells that failed are rows of ``cells()`` whose outcome is ``failed`` or ``oom``.

    Raises:
        SpaceErrors: every problem of the space at once.
        BadInputError: a name that is taken, a corpus that cannot be read, a thread that is not the main one.
        WorldError: it was interrupted (Ctrl-C, a full disk). Finished work is kept: ``sweeps.open(name).resume()``.

    >>> import sweeps
    >>> sweep = sweeps.run("smoke", name="first", set={"budget_tokens": 16384, "rungs_tokens": [8192]})
    >>> sweep.verdict().outcome
    'exploratory'
    """
    from sweeps.running.session import run_new
    from sweeps.shown_commands import commands_for

    given = {"name": name, "set": set, "hours": hours}
    words = [repr(space), *(f"{key}={value!r}" for key, value in given.items() if value is not None)]
    command = f"sweeps.run({', '.join(words)})"
    options = _options(runs_dir, command=command, show=show, exclusive=exclusive, on_end=on_end)
    with commands_for(os.fspath(runs_dir)):
        return Sweep(run_new(_choice(space, set, hours), name, options))


def open(name: str, *, runs_dir: str | os.PathLike[str] = "runs") -> Sweep:  # noqa: A001 - `sweeps.open` reads well
    """Return the sweep called ``name``, running, interrupted or finished, on this machine or in a bucket.

    Raises BadInputError where there is none.

    >>> sweeps.open("first").name
    'first'
    """
    from sweeps.ledger.storage import Storage
    from sweeps.ledger.sweep_folder import Ledger

    ledger = Ledger(Storage(os.fspath(runs_dir)), name)
    ledger.beginning()
    return Sweep(ledger)


def names(*, runs_dir: str | os.PathLike[str] = "runs") -> list[str]:
    """Return the names of the sweeps that are there, in alphabetical order.

    >>> sweeps.names()
    ['first']
    """
    from sweeps.ledger.storage import Storage
    from sweeps.ledger.sweep_folder import sweep_names

    return sorted(sweep_names(Storage(os.fspath(runs_dir))))


def preview(
    space: str | os.PathLike[str] | Space | None = None,
    *,
    set: Mapping[str, Any] | None = None,  # noqa: A002 - as of `run`
    hours: float | None = None,
    assume_gpu_gib: float | None = None,
    price_per_hour: float | None = None,
) -> SweepPlan:
    """Return what would run, before anything is spent: cells, tokens, memory, hours.

    ``assume_gpu_gib`` plans for a GPU of so many GiB that is not here; ``price_per_hour`` is the machine's.

    >>> sweeps.preview("smoke").budget_tokens
    65536
    """
    from sweeps.commands.plan import plan_here

    return plan_here(_choice(space, set, hours), assume_gpu_gib=assume_gpu_gib, price_per_hour=price_per_hour)


class Sweep:
    """One sweep in its folder. Every method reads what is there now, so that a running one can be watched."""

    def __init__(self, ledger: Ledger) -> None:
        """Not for callers: ``sweeps.open`` and ``sweeps.run`` return sweeps."""
        self.ledger = ledger

    def __repr__(self) -> str:
        """The sweep by name and folder."""
        return f"<Sweep {self.name} in {self.folder}>"

    @property
    def name(self) -> str:
        """The name that it was given, or that numbers it."""
        return self.ledger.name

    @property
    def folder(self) -> str:
        """Its folder: a path, or the address in a bucket."""
        return self.ledger.storage.uri

    def records(self) -> pd.DataFrame:
        """Return every report of training as a row: losses in nats per token, times in seconds, memory in GiB.

        The columns are those of ``sweeps records`` (docs/metrics.md), so ``sweeps verdict --records`` reads the frame
        as ``to_csv(index=False)`` writes it. The last row of a cell holds its outcome, and of earlier rows it is empty.

        >>> sweep = sweeps.open("first")
        >>> sweep.records().groupby("strategy").val_loss.min().round(1).index.tolist()
        ['balanced', 'large_batch', 'long_seq']
        """
        import pandas as pd

        from sweeps.verdict.records_table import PANDAS_TYPES, rows_of

        return pd.DataFrame(rows_of(self.results()), columns=list(PANDAS_TYPES)).astype(PANDAS_TYPES)

    def cells(self) -> pd.DataFrame:
        """Return every planned cell as a row: where it stands in the space, and how it ended, if it has.

        ``outcome`` is ``completed``, ``stopped_early``, ``diverged``, ``oom`` or ``failed``, and missing while there is
        none; losses are in nats per token, ``test_loss`` those of confirm, time and flops cells.

        >>> sweep.cells().outcome.isin(["completed", "stopped_early"]).all()
        np.True_
        """
        import pandas as pd

        rows = [{**result.cell.as_dict(), **vars(result)} for result in self.results().cells]
        return pd.DataFrame(rows, columns=list(CELL_COLUMNS)).astype(CELL_COLUMNS)

    def verdict(self) -> Verdict:
        """Decide from what the ledger holds now; nothing is written. ``as_dict()`` of it is ``verdict.json``.

        >>> verdict = sweep.verdict()
        >>> verdict.winner is None, [arm.name for arm in verdict.strategies]
        (True, ['large_batch', 'balanced', 'long_seq'])
        """
        from sweeps.verdict.decision import decide

        return decide(self.results())

    def report(self, *, price_per_hour: float | None = None) -> str:
        """Write verdict, report and pictures into the sweep's folder, and return the address of its ``report.html``.

        With the price of an hour of a GPU, or of the machine without one, the report says what the leading arm saves.

        >>> sweep.report().endswith("first/report.html")
        True
        """
        from sweeps.running.finish import write_reports
        from sweeps.shown_commands import commands_for
        from sweeps.verdict.decision import decide

        results = self.results()
        verdict = decide(results)
        self.ledger.write_verdict(verdict.as_dict())
        with commands_for(self.ledger.runs_uri):
            write_reports(self.ledger, results, verdict, price_per_hour)
        return f"{self.folder}/report.html"

    def resume(
        self,
        *,
        retry_failed: bool = False,
        allow_code_change: bool = False,
        on_end: str | None = None,
        show: bool = False,
    ) -> Self:
        """Run what has no outcome yet, to the verdict; a finished sweep is left as it is. Raises what ``run`` raises.

        >>> sweep.resume().verdict().outcome
        'exploratory'
        """
        from sweeps.running.session import resume
        from sweeps.shown_commands import commands_for

        options = self._options(show, retry_failed=retry_failed, allow_code_change=allow_code_change, on_end=on_end)
        with commands_for(self.ledger.runs_uri):
            resume(self.name, options)
        return self

    def extend(
        self,
        *,
        lr: Sequence[float] = (),
        adamw_lr: Sequence[float] = (),
        strategies: Sequence[str] = (),
        seeds: int | None = None,
        budgets: Sequence[int] = (),
        allow_code_change: bool = False,
        on_end: str | None = None,
        show: bool = False,
    ) -> Self:
        """Add rates, arms (``"medium=16x128"``), budgets in tokens or a larger total of confirm seeds, and run them.

        What has an outcome never runs again. Raises what ``run`` raises.
        """
        from sweeps.commands.extend import extension
        from sweeps.running.session import resume
        from sweeps.shown_commands import commands_for

        options = self._options(show, allow_code_change=allow_code_change, on_end=on_end)
        more = extension(
            options.say, lr=lr, adamw_lr=adamw_lr, strategies=strategies, confirm_seeds=seeds, budgets=budgets
        )
        with commands_for(self.ledger.runs_uri):
            resume(self.name, options, extend=more)
        return self

    def results(self) -> SweepResults:
        """Return everything that the ledger knows, of which ``cells`` and ``records`` are tables."""
        from sweeps.ledger.reading import LedgerReader

        return LedgerReader(self.ledger).results()

    def _options(self, show: bool, **options: Any) -> SessionOptions:
        return _options(self.ledger.runs_uri, command=None, show=show, **options)


def _choice(
    space: str | os.PathLike[str] | Space | None, changes: Mapping[str, Any] | None, hours: float | None
) -> SpaceChoice:
    """A string is a preset, unless it ends like a file of a space; values are written as TOML writes them."""
    from search_spaces import Space
    from sweeps.report.space_toml import toml_value
    from sweeps.running.begin import SpaceChoice

    overrides = tuple(f"{key}={toml_value(value)}" for key, value in (changes or {}).items())
    if space is None or isinstance(space, Space):
        return SpaceChoice(space=space, overrides=overrides, hours=hours)
    if isinstance(space, str) and not space.endswith(".toml"):
        return SpaceChoice(preset=space, overrides=overrides, hours=hours)
    return SpaceChoice(path=Path(space), overrides=overrides, hours=hours)


def _options(
    runs_dir: str | os.PathLike[str], *, command: str | None, show: bool, on_end: str | None, **options: Any
) -> SessionOptions:
    from rich.console import Console

    from sweeps.ledger.storage import Storage
    from sweeps.running.session import SessionOptions

    return SessionOptions(
        runs_uri=Storage(os.fspath(runs_dir)).uri,
        console=Console(quiet=not show),
        quiet=not show,
        command=command,
        on_end=on_end or os.environ.get("SWEEPS_ON_END") or None,
        **options,
    )
