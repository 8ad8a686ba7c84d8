"""Ray as the engine: the driver decides, the searcher hands out, the trainable trains."""
