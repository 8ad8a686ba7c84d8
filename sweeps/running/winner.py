"""The winner, or any cell whose weights are kept, as a checkpoint that stock ``transformers`` loads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from sweeps.errors import BadInputError, StorageError
from sweeps.ledger.destinations import require_empty_folder, require_file, writing
from sweeps.ledger.reading import LedgerReader
from sweeps.ledger.results import CellResult, SweepResults
from sweeps.ledger.space import current_space, space_of
from sweeps.ledger.sweep_folder import Ledger
from sweeps.training_data import load_training_data
from sweeps.trial.precision import as_trained

if TYPE_CHECKING:
    from sweeps.tracking.store import TrackingStore


def best_cell(results: SweepResults, arm: str) -> CellResult | None:
    """Of an arm, the confirm cell of lowest validation loss: selected by validation loss, judged by test loss."""
    done = [result for result in results.of("confirm", arm) if result.reached_budget and result.val_loss is not None]
    return min(done, key=lambda result: result.val_loss or 0.0, default=None)


def cell_to_export(results: SweepResults, verdict: Mapping[str, Any] | None) -> tuple[CellResult, str]:
    """The cell whose weights represent a sweep, and the reason in a sentence.

    Raises BadInputError while no confirm cell has completed.
    """
    arm = None if verdict is None else verdict["winner"]
    why = "the winner's confirm cell with the lowest validation loss"
    if arm is None:
        means = {entry["name"]: entry["mean"] for entry in (verdict or {"strategies": []})["strategies"]}
        judged = {name: mean for name, mean in means.items() if mean is not None}
        if not judged:
            raise BadInputError(f"sweep {results.name} has no completed confirm cell yet; nothing can be exported")
        arm = min(judged, key=lambda name: judged[name])
        why = f"there is no winner; {arm} has the lowest mean test loss, and this cell its lowest validation loss"
    cell = best_cell(results, arm)
    if cell is None:
        raise BadInputError(f"{arm} has no completed confirm cell; nothing can be exported")
    return cell, why


def export(ledger: Ledger, out: Path, cell_id: str | None = None) -> tuple[CellResult, str]:
    """Write the checkpoint folder ``out``, new or empty; returns the cell and why it was chosen.

    Raises BadInputError for a place that cannot be written, a cell that does not exist or whose weights were not kept.
    """
    require_empty_folder(out, "--out")
    results = LedgerReader(ledger).results()
    if cell_id is None:
        result, why = cell_to_export(results, ledger.verdict())
    else:
        found = [entry for entry in results.cells if entry.cell.cell_id == cell_id]
        if not found:
            raise BadInputError(
                f"sweep {ledger.name} has no cell {cell_id!r}; `sweeps status {ledger.name} --json` lists them"
            )
        result, why = found[0], "as requested"
    write_checkpoint(ledger, results, result, out)
    return result, why


def write_checkpoint(ledger: Ledger, results: SweepResults, result: CellResult, out: Path) -> None:
    """Load a cell's newest checkpoint and write it for ``transformers``, tokenizer included."""
    from moe.checkpoint import read_model
    from moe.export import export_checkpoint
    from moe.model import MoELanguageModel

    folder = ledger.cell_folder(str(result.cell.cell_id))
    if folder.newest_checkpoint() is None:
        raise BadInputError(
            f"the weights of cell {result.cell.cell_id} were not kept; --set keep=all keeps those of every cell"
        )
    space = as_trained(space_of(results.beginning), ledger)
    data = load_training_data(space, beginning=ledger.beginning())
    # The weights alone: a version that draws other windows could not train on from there, and need not.
    config, weights = folder.load_newest(read_model)
    model = MoELanguageModel(config, seed=0)
    model.load_state_dict(weights)
    with writing(out):
        export_checkpoint(model, config, data.tokens.tokenizer_dir, out)
    _give_usual_permissions(out)


def _give_usual_permissions(folder: Path) -> None:
    """``safetensors`` makes files that only their owner can read, whatever the umask says."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~mask)


def write_exam(ledger: Ledger, out: Path) -> None:
    """Write the exam's tokens as ``test`` and ``validation``, int32 [rows, S+1], in one npz file."""
    import numpy as np

    require_file(out, "--out")
    data = load_training_data(current_space(ledger), beginning=ledger.beginning())
    out.parent.mkdir(parents=True, exist_ok=True)
    with writing(out), out.open("wb") as file:
        np.savez(file, test=data.exam.test.tokens_RS, validation=data.exam.validation.tokens_RS)


def register_winner(ledger: Ledger, store: TrackingStore, *, on_request: bool = False) -> str | None:
    """Register the winner in MLflow as ``champion`` and return its URI; without a winner None, unless on request."""
    from sweeps.tracking.registry import register_champion

    results = LedgerReader(ledger).results()
    verdict = ledger.verdict()
    if not on_request and (verdict is None or verdict["outcome"] not in ("wins", "tie")):
        return None
    result, why = cell_to_export(results, verdict)
    with TemporaryDirectory(prefix="moe-sweeps-") as folder:
        checkpoint = Path(folder) / "model"
        try:
            write_checkpoint(ledger, results, result, checkpoint)
        except StorageError as error:
            raise BadInputError(f"the winner's weights cannot be read: {error}") from error
        registered = register_champion(
            store,
            checkpoint=checkpoint,
            sweep=ledger.name,
            sweep_id=str(results.beginning["sweep_id"]),
            cell_id=str(result.cell.cell_id),
            test_loss=result.test_loss,
            description=f"{why}. {(verdict or {}).get('statement', '')}",
            tags={"strategy": result.cell.strategy, "lr": f"{result.cell.lr:g}", "seed": str(result.cell.seed)},
        )
    return registered.uri
