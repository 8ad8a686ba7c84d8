"""MLflow as a view of the ledger: one tidy tree, never in the way."""
