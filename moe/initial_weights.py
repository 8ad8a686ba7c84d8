"""Initial weights: each parameter is drawn by a generator of its own, seeded by the seed and the parameter's name.

Thus a parameter that two models have in common starts equal in both, whatever else the models have, on every device.
"""

from __future__ import annotations

import hashlib

import torch
from torch import nn

_WRITES_TO_RESIDUAL = ("o_proj.weight", "down_proj")


@torch.no_grad()
def draw_weights(module: nn.Module, *, seed: int, std: float, n_layers: int) -> None:
    """Draw every matrix of ``module`` in place, on the CPU in fp32; vectors (norms) keep their ones.

    | weights | drawn from |
    |---|---|
    | ``o_proj``, ``down_proj``, which write to the residual stream | N(0, std / sqrt(2 n_layers)), as GPT-2 |
    | all others | N(0, std) |
    """
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            scale = (2 * n_layers) ** -0.5 if name.endswith(_WRITES_TO_RESIDUAL) else 1.0
            parameter.normal_(0.0, std * scale, generator=torch.Generator().manual_seed(_stream(seed, name)))


def _stream(seed: int, name: str) -> int:
    """63 bits that depend on both."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
