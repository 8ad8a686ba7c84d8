"""Optuna suggests rates to each arm, one after another; the ledger is the study, Optuna's own is a view of it.

The n-th suggestion of an arm is a function of the space's seed, the arm and the losses before it, so an
interrupted search goes on exactly as it would have without the interruption.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from search_spaces import OptunaSearch, Rate, Space, rates_at
from sweeps.ledger.results import CellResult, SweepResults
from sweeps.ledger.sweep_folder import Ledger

if TYPE_CHECKING:
    import optuna

STUDY_FILE: Final = "optuna.db"
STARTUP_TRIALS: Final = 3
"""Suggestions drawn at random before the model of TPE is used: an arm has few trials in all."""


def suggest(space: Space, strategy: str, known: Sequence[CellResult], budget_tokens: int) -> Rate:
    """The next rate of one arm at one budget after those ``known``, in order of suggestion, each with its outcome."""
    search = _search_of(space)
    import optuna

    sampler = optuna.samplers.TPESampler(
        seed=_seed(search.seed, budget_tokens, strategy, space.strategy(strategy).windows, len(known)),
        n_startup_trials=STARTUP_TRIALS,
        multivariate=True,
    )
    with _quiet():
        study = optuna.create_study(sampler=sampler)
        study.add_trials([_trial(search, number, result) for number, result in enumerate(known)])
        asked = study.ask(_distributions(search))
    lr = float(f"{asked.params['lr']:.6g}")
    if not search.searches_adamw_ratio:
        return rates_at(space, strategy, lr)[0]
    return Rate(lr=lr, adamw_lr=float(f"{lr * asked.params['adamw_ratio']:.6g}"))


def write_study(ledger: Ledger, space: Space, results: SweepResults) -> None:
    """Put a study per arm and budget where optuna-dashboard opens it, in ``optuna.db``. Made anew each time."""
    search = _search_of(space)
    import optuna

    with TemporaryDirectory(prefix="moe-sweeps-") as folder, _quiet():
        path = Path(folder) / STUDY_FILE
        storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
        for budget in space.budgets_tokens:
            for strategy in space.strategies:
                name = strategy.name if budget == space.budget_tokens else f"{strategy.name} at {budget:,} tokens"
                study = optuna.create_study(study_name=name, storage=storage, direction="minimize")
                explored = results.at(budget).of("explore", strategy.name)
                cells = [result for result in explored if result.outcome is not None]
                study.add_trials([_trial(search, number, result) for number, result in enumerate(cells)])
        storage.engine.dispose()
        ledger.storage.write_bytes(STUDY_FILE, path.read_bytes())


def _search_of(space: Space) -> OptunaSearch:
    assert isinstance(space.search, OptunaSearch), "only a space that searches with optuna has suggestions"
    return space.search


def _distributions(search: OptunaSearch) -> dict[str, optuna.distributions.BaseDistribution]:
    from optuna.distributions import FloatDistribution

    found: dict[str, optuna.distributions.BaseDistribution] = {
        "lr": FloatDistribution(search.lr_low, search.lr_high, log=True)
    }
    if search.adamw_ratio_low is not None and search.adamw_ratio_high is not None:
        found["adamw_ratio"] = FloatDistribution(search.adamw_ratio_low, search.adamw_ratio_high, log=True)
    return found


def _trial(search: OptunaSearch, number: int, result: CellResult) -> optuna.trial.FrozenTrial:
    """One ended cell as Optuna sees it: pruned where it was stopped early, failed where it ended badly."""
    import optuna

    assert result.cell.lr is not None, "an ended cell has a rate"
    assert result.cell.adamw_lr is not None, "an ended cell has a rate"
    distributions = _distributions(search)
    params = {"lr": _within(result.cell.lr, search.lr_low, search.lr_high)}
    if search.adamw_ratio_low is not None and search.adamw_ratio_high is not None:
        ratio = result.cell.adamw_lr / result.cell.lr
        params["adamw_ratio"] = _within(ratio, search.adamw_ratio_low, search.adamw_ratio_high)
    losses = {
        int(record["tokens_seen"]): float(record["val_loss"])
        for record in result.records
        if record.get("val_loss") is not None
    }
    states = optuna.trial.TrialState
    state = {"completed": states.COMPLETE, "stopped_early": states.PRUNED}.get(str(result.outcome), states.FAIL)
    trial = optuna.trial.create_trial(
        state=state,
        value=result.val_loss if state == states.COMPLETE else None,
        params=params,
        distributions=distributions,
        intermediate_values=losses,
        user_attrs={"cell_id": result.cell.cell_id, "seed": result.cell.seed},
    )
    trial.number = number
    return trial


def _within(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def _seed(*decided_by: object) -> int:
    digest = hashlib.sha256(" ".join(map(str, decided_by)).encode()).digest()
    return int.from_bytes(digest[:4], "big")


class _quiet:  # noqa: N801 - reads as a word where it is used
    """Optuna without its log lines and its warnings about experimental options."""

    def __enter__(self) -> None:
        import warnings

        import optuna

        self._level = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._caught = warnings.catch_warnings()
        self._caught.__enter__()
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)

    def __exit__(self, *_error: object) -> None:
        import optuna

        self._caught.__exit__(None, None, None)
        optuna.logging.set_verbosity(self._level)
