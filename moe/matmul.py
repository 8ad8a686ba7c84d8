"""Matrix products: the type they are computed in, and the fastest way that is measured to be as exact as requested.

On CPU, torch computes a product of two fp32 matrices through MKL, which on an AMD core reaches half of what oneDNN
does. ``torch.set_float32_matmul_precision("medium")`` sends it to oneDNN, and also allows bf16 inside: some CPUs do
not use that permission, others (Intel with AMX) do, and silently lose five digits. So the permission is given only on
a CPU where products under it were measured to be exact, and only within ``fast_matmuls``.
"""

# N rows, I inputs, O outputs

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.utils._python_dispatch import _disable_current_modes

# Root-mean-square relative error of an fp32 product with sums of up to 2,048 terms is 2e-7 to 6e-7; through bf16 it
# is 2e-3, through TF32 3e-4. Anything between separates them.
FP32_RELATIVE_ERROR = 2e-6
_PROBE_SHAPES = ((64, 128, 1024), (1024, 512, 128), (512, 64, 2048), (128, 2048, 64))


def compute_dtype(device: torch.device) -> torch.dtype | None:
    """The type that autocast asks matrix products to be computed in, or None outside of autocast."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


@functools.cache
def onednn_keeps_fp32() -> bool:
    """Whether fp32 products that may go through oneDNN are still fp32 on this CPU, measured once.

    All three products of a training step (forward, input gradient, weight gradient) are compared with float64 in
    several shapes. The result depends on the CPU alone, never on timing, so that a resumed run computes the same bits
    as the run it resumes.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    generator = torch.Generator().manual_seed(0)
    plainly = _disable_current_modes(), torch.device("cpu"), torch.autocast("cpu", enabled=False)
    with plainly[0], plainly[1], plainly[2], _matmul_precision("medium"):
        return all(_is_exact(shape, generator) for shape in _PROBE_SHAPES)


def _is_exact(shape: tuple[int, int, int], generator: torch.Generator) -> bool:
    n_rows, n_in, n_out = shape
    x_NI = torch.randn(n_rows, n_in, generator=generator)
    weight_OI = torch.randn(n_out, n_in, generator=generator)
    grad_NO = torch.randn(n_rows, n_out, generator=generator)
    pairs = ((x_NI, weight_OI.T), (grad_NO, weight_OI), (grad_NO.T, x_NI))
    return all(relative_error(a, b) < FP32_RELATIVE_ERROR for a, b in pairs)


def relative_error(a: Tensor, b: Tensor) -> float:
    """Root-mean-square error of ``a @ b`` relative to the product in float64."""
    exact = a.double() @ b.double()
    return float(((a @ b).double() - exact).norm() / exact.norm())


@contextlib.contextmanager
def _matmul_precision(name: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def fast_matmuls(device: torch.device) -> Iterator[None]:
    """Context in which products have the type of their factors, and fp32 ones take the fastest way that is fp32.

    Outside of it torch's own settings hold, for attention above all: oneDNN makes short sequences slower there.
    """
    with torch.autocast(device.type, enabled=False):
        if device.type == "cpu" and onednn_keeps_fp32():
            with _matmul_precision("medium"):
                yield
        else:
            yield


def product_in_fp32(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
    """``a @ b`` of factors of one type, summed and stored in fp32, into ``out``.

    One product on CUDA. On CPU tensors, where torch has none of that kind, the factors are cast.
    """
    if a.dtype == out.dtype:
        return torch.mm(a, b, out=out)
    if a.device.type == "cpu" and not isinstance(a, FakeTensor):
        return torch.mm(a.to(out.dtype), b.to(out.dtype), out=out)
    return torch.mm(a, b, out_dtype=out.dtype, out=out)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x_NI: Tensor, weight_OI: Tensor, dtype: torch.dtype) -> Tensor:
        x_NI, weight_cast_OI = x_NI.to(dtype), weight_OI.to(dtype)
        ctx.save_for_backward(x_NI, weight_cast_OI)
        with fast_matmuls(x_NI.device):
            return x_NI @ weight_cast_OI.T

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_NO: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x_NI, weight_OI = ctx.saved_tensors  # type: ignore[attr-defined]
        with fast_matmuls(grad_NO.device):
            return grad_NO @ weight_OI, grad_NO.T @ x_NI, None


def linear(x_NI: Tensor, weight_OI: Tensor) -> Tensor:
    """``x_NI @ weight_OI.T`` in autocast's type where autocast is on, forward and backward within ``fast_matmuls``.

    Returns:
        [N, O] in the type it was computed in.
    """
    dtype = compute_dtype(x_NI.device) or x_NI.dtype
    out: Tensor = _Linear.apply(x_NI, weight_OI, dtype)  # type: ignore[no-untyped-call]
    return out


class Projection(nn.Module):
    """A linear map without bias; its weight [O, I] is still to be drawn."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_out, n_in))

    def forward(self, x_NI: Tensor) -> Tensor:
        """Map [N, I] to [N, O]."""
        return linear(x_NI, self.weight)
