"""What a worker does: train one cell from a checkpoint to a rung."""
