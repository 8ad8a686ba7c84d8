"""How trials share machines: fractions of GPUs, threads, memory and time."""
