"""What runs next: segments, early stopping, phases and searches, as pure functions of what the ledger holds."""
