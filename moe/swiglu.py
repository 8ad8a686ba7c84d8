"""The experts' activation, ``silu(gate) * up``, forward and backward over rows of gate and up side by side."""

# S rows, F expert width, H = 2F

from __future__ import annotations

import torch
from torch import Tensor

_silu_out = torch.ops.aten.silu.out
_silu_backward_out = torch.ops.aten.silu_backward.grad_input


def swiglu(gate_up_SH: Tensor, *, out_SF: Tensor) -> Tensor:
    """``silu(gate) * up`` into ``out_SF``, which is returned."""
    gate_SF, up_SF = gate_up_SH.chunk(2, dim=1)
    _silu_out(gate_SF, out=out_SF)
    return out_SF.mul_(up_SF)


def swiglu_backward(gate_up_SH: Tensor, grad_SF: Tensor, *, act_SF: Tensor, grad_gate_up_SH: Tensor) -> None:
    """Compute ``silu(gate) * up`` again into ``act_SF``, and the gradient of gate and up into ``grad_gate_up_SH``.

    ``grad_SF``, the gradient of the activation, is overwritten.
    """
    gate_SF, up_SF = gate_up_SH.chunk(2, dim=1)
    grad_gate_SF, grad_up_SF = grad_gate_up_SH.chunk(2, dim=1)
    _silu_out(gate_SF, out=act_SF)
    torch.mul(grad_SF, act_SF, out=grad_up_SF)
    act_SF.mul_(up_SF)
    _silu_backward_out(grad_SF.mul_(up_SF), gate_SF, grad_input=grad_gate_SF)
