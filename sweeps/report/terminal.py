"""The verdict on a terminal: the table of arms and the statement."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sweeps import formatting as written
from sweeps.shown_commands import with_shown_commands

if TYPE_CHECKING:
    from rich.console import Console

    from sweeps.verdict.rows import ArmResult
    from sweeps.verdict.verdict import Verdict


def show_verdict(verdict: Verdict, console: Console) -> None:
    """Print the table of arms and the statement, which stays one line where it is piped."""
    from rich.text import Text

    numbers = ("best lr", "seeds", "test loss ± interval", "tokens/s")
    table = written.terminal_table("Verdict", texts=("arm", "shape"), numbers=numbers)
    for arm in verdict.strategies:
        table.add_row(
            Text(arm.name),
            _shape(arm),
            "" if arm.best_lr is None else written.rate(arm.best_lr) + (" (edge)" if arm.best_lr_at_edge else ""),
            str(len(arm.seeds)),
            _mean(arm),
            "" if arm.tokens_per_s is None else written.count(arm.tokens_per_s),
        )
    console.print(table)
    for arm in verdict.strategies:
        if differs_in := arm.arm.differs_in:
            console.print(f"{arm.name} differs in {written.settings(differs_in)}", markup=False, highlight=False)
    statement = with_shown_commands(verdict.statement)
    if before := verdict.before:
        console.print(with_shown_commands(before), markup=False, highlight=False, soft_wrap=not console.is_terminal)
    console.print(statement, style="bold", markup=False, highlight=False, soft_wrap=not console.is_terminal)


def _shape(arm: ArmResult) -> str:
    return "" if None in arm.arm.shape else "x".join(map(str, arm.arm.shape))


def _mean(arm: ArmResult) -> str:
    if arm.mean is None or arm.ci_low is None or arm.ci_high is None:
        return "" if arm.mean is None else written.loss(arm.mean)
    return f"{written.loss(arm.mean)} ± {(arm.ci_high - arm.ci_low) / 2:.4f}"
