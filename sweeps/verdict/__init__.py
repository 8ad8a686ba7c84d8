"""From records to the verdict: pure functions, no Ray, no MLflow."""
