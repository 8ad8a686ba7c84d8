"""``sweeps extend``: more cells in the plan of a sweep, for new rates, arms, budgets or confirm seeds."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from search_spaces import (
    SHAPE,
    Rate,
    Space,
    SpaceErrors,
    Strategy,
    checked_strategy,
    explore_cells,
    explore_cells_at,
    extended_space,
    rates_at,
)
from search_spaces.cells import confirm_seeds
from search_spaces.overrides import apply_overrides
from search_spaces.reading import unequal_effort
from sweeps.errors import BadInputError
from sweeps.formatting import plural
from sweeps.ledger.reading import LedgerReader
from sweeps.ledger.results import SweepResults
from sweeps.ledger.space import identity_of
from sweeps.ledger.sweep_folder import Ledger, PlannedCell
from sweeps.plan.phases import first_cells
from sweeps.verdict.confirmed import DECIDED, FEWEST_SEEDS


def extension(
    say: Callable[[str], None],
    *,
    lr: Sequence[float],
    adamw_lr: Sequence[float],
    strategies: Sequence[str],
    confirm_seeds: int | None,
    budgets: Sequence[int],
) -> Callable[[Ledger, Space], Space]:
    """What extends a sweep once it is held: ``extend_plan`` with these options, and what a user must know before.

    Raises BadInputError or SpaceErrors for a strategy's text that is none.
    """
    arms = [parse_strategy(text) for text in strategies]

    def extend(ledger: Ledger, space: Space) -> Space:
        extended = extend_plan(
            ledger, space, lr=lr, adamw_lr=adamw_lr, strategies=arms, confirm_seeds=confirm_seeds, budgets=budgets
        )
        note = look_note(LedgerReader(ledger).results(), extended)
        if note is not None:
            say(f"note: {note}")
        return extended

    return extend


def extend_plan(
    ledger: Ledger,
    space: Space,
    *,
    lr: Sequence[float] = (),
    adamw_lr: Sequence[float] = (),
    strategies: Sequence[Strategy] = (),
    confirm_seeds: int | None = None,
    budgets: Sequence[int] = (),
) -> Space:
    """Write an extension of ``space`` with its explore cells to the plan; returns the extended space.

    Confirm cells follow from results. Raises SpaceErrors for what does not fit the frozen exam, blocks and budget,
    BadInputError where nothing is to be added.
    """
    if not lr and not adamw_lr and not strategies and not budgets and confirm_seeds is None:
        raise BadInputError("nothing to extend by; give --lr, --adamw-lr, --strategy, --budget or --seeds")
    extended = extended_space(
        space, lr=lr, adamw_lr=adamw_lr, strategies=strategies, confirm_seeds=confirm_seeds, budgets=budgets
    )
    problems = list(unequal_effort(extended, strategies))
    if problems:
        raise SpaceErrors(problems, source="the extension")
    identity = identity_of(ledger.beginning())
    old_arms = {strategy.name for strategy in space.strategies}
    added: list[PlannedCell] = [
        PlannedCell(cell=cell, reason="extension", may_stop_early=False)
        for budget in space.budgets_tokens
        for name in (arm.name for arm in extended.arms_at(budget))
        if name in old_arms
        for cell in explore_cells_at(
            extended,
            identity,
            strategy=name,
            rates=_added_rates(extended, name, lr, adamw_lr),
            budget_tokens=budget,
        )
    ]
    fresh = [
        cell
        for cell in explore_cells(extended, identity)
        if cell.strategy not in old_arms or cell.budget_tokens not in space.budgets_tokens
    ]
    added += first_cells(extended, fresh)
    extension = {
        "lr": [float(rate) for rate in lr],
        "adamw_lr": [float(rate) for rate in adamw_lr],
        "strategies": [strategy.model_dump(mode="json") for strategy in strategies],
        "confirm_seeds": confirm_seeds,
        "budgets": list(budgets),
    }
    ledger.add_cells(added, because="extension", extension=extension)
    return extended


def look_note(results: SweepResults, extended: Space) -> str | None:
    """What a user must know before anything is spent: an extension that has too few fresh seeds cannot decide again."""
    decided = [verdict for verdict in results.earlier_verdicts if verdict.get("outcome") in DECIDED]
    if len(decided) < int(results.rule("verdict", "looks", 1)):
        return None
    seen = {seed for verdict in decided for arm in verdict["strategies"] for seed in arm["seeds"]}
    planned = confirm_seeds(extended.seeds.confirm)
    fresh = len(set(planned) - seen)
    if fresh >= FEWEST_SEEDS:
        return None
    total = len(planned) - fresh + FEWEST_SEEDS
    return (
        f"this sweep was decided on {plural(len(seen), 'seed')}, and another decision needs {FEWEST_SEEDS} that it has "
        f"not seen, of which there are {fresh}: what comes next will be exploratory, and the verdict so far stays the "
        f"last decided one; --seeds {total} would decide again"
    )


def _added_rates(space: Space, strategy: str, lr: Sequence[float], adamw_lr: Sequence[float]) -> list[Rate]:
    """New rates with every AdamW rate that goes with them, and new AdamW rates with every rate of the arm's grid."""
    added = [pair for rate in lr for pair in rates_at(space, strategy, rate)]
    own = space.of_arm(strategy).rates
    fresh = adamw_lr if own.adamw_grid is not None else ()
    return added + [Rate(lr=rate, adamw_lr=adamw) for adamw in fresh for rate in own.lr]


def parse_strategy(text: str) -> Strategy:
    """``NAME=MICRO_BATCHxSEQ_LEN[xACCUMULATION][,KEY=VALUE ...]`` as a strategy, keys as in a [[strategies]] table.

    Raises BadInputError for text of another form, SpaceErrors for a name or values that no strategy can have.
    """
    shaped, *changes = re.split(r",(?=[a-z_]+(?:\.[a-z_]+)?=)(?![^{]*\})", text)
    name, _, shape = shaped.partition("=")
    parts = shape.split("x")
    if not name or len(parts) not in (2, 3) or not all(re.fullmatch("[0-9]{1,18}", part) for part in parts):
        raise BadInputError(
            f"--strategy {text!r} is not NAME=MICRO_BATCHxSEQ_LEN or NAME=MICRO_BATCHxSEQ_LENxACCUMULATION, with "
            "KEY=VALUE after commas; for example --strategy medium=16x128 or --strategy wide=32x64,model.d_expert=256"
        )
    table = {"name": name, **dict(zip(SHAPE, map(int, parts), strict=False))}
    twice = [change for change in changes if change.partition("=")[0] in table]
    if twice:
        raise BadInputError(
            f"--strategy {text!r} says twice what {twice[0].partition('=')[0]} is; leave {twice[0]} out"
        )
    table, problems = apply_overrides(table, changes)
    if problems:
        raise SpaceErrors(problems, source=f"--strategy {text}")
    return checked_strategy(table, source=f"--strategy {text}")
