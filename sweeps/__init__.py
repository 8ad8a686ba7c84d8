"""How many models are trained and judged: plan, ledger, engine, early stopping, verdict, report, MLflow."""

from sweeps.commands.api import Sweep, names, open, preview, run  # noqa: A004 - `sweeps.open`
from sweeps.errors import BadInputError, SweepError, WorldError

__all__ = ["BadInputError", "Sweep", "SweepError", "WorldError", "names", "open", "preview", "run"]
