"""``sweeps rm``: delete a sweep that is not running."""

from __future__ import annotations

from sweeps.ledger.lease import DRIVER_LEASE, Lease
from sweeps.ledger.sweep_folder import Ledger


def remove(ledger: Ledger, runs_uri: str) -> str:
    """Delete the sweep's runs and model in MLflow first, then its folder; returns a line for the user."""
    from sweeps.tracking.projector import delete_runs
    from sweeps.tracking.registry import unregister
    from sweeps.tracking.store import tracking_store

    sweep_id = str(ledger.beginning()["sweep_id"])
    store = tracking_store(runs_uri)
    lease = Lease(ledger.storage, DRIVER_LEASE)
    lease.acquire()
    try:
        unregister(store, ledger.name, sweep_id)
        count = delete_runs(store, sweep_id=sweep_id, experiment=ledger.name)
        ledger.storage.delete("sweep.json")  # first, so that a half-deleted sweep cannot be resumed
    finally:
        lease.release()
    ledger.storage.delete("")
    return f"deleted {ledger.storage.uri} and {count} runs in MLflow"
