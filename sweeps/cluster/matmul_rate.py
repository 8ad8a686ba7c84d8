"""How fast this machine multiplies matrices: what the hours of a plan rest on."""

from __future__ import annotations

import time
from typing import Final

MATMUL_SIZE: Final = 1024
MATMUL_REPEATS: Final = 5


def matmul_flops_per_s() -> float:
    """fp32 FLOP/s of one CPU thread, the best of a few multiplications (some 50 ms)."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        left = torch.randn(MATMUL_SIZE, MATMUL_SIZE, generator=torch.Generator().manual_seed(0))
        torch.mm(left, left)  # the first call sets up the library
        best_s = float("inf")
        for _ in range(MATMUL_REPEATS):
            started_s = time.perf_counter()
            torch.mm(left, left)
            best_s = min(best_s, time.perf_counter() - started_s)
    finally:
        torch.set_num_threads(threads)
    return 2 * MATMUL_SIZE**3 / best_s
