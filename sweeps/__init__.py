"""How many models are trained and judged: plan, ledger, engine, early stopping, verdict, report, MLflow."""
