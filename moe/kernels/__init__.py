"""What torch does in many passes over memory, in one: C functions for fp32 tensors on a CPU, where they were built.

Installing the project compiles them if it finds GCC. Elsewhere, and for other types and devices, callers compute the
same with torch: ``available`` tells which. The two agree within rounding, and for one processor and one installation
the choice depends on nothing but types, the number of threads and whether Linux lets a process use tiles, so that a
resumed run computes the bits of the run it resumes.
"""

# N tokens or rows of a product, I its terms and O its columns, R or S rows, D width of a row, F expert width, H = 2F,
# J heads, C head dimension, V vocabulary

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

_INTERFACE = 2  # of kernels.c
_WIDTHS = {"avx512": 2, "avx2": 1}  # the widest first, with its bit in what kernels_instructions returns
_TILES = 4  # the bit of AMX

_POINTER, _COUNT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_SIGNATURES: dict[str, Sequence[type[Any]]] = {
    "swiglu": [_POINTER] * 3 + [_COUNT] * 2,
    "swiglu_backward": [_POINTER] * 4 + [_COUNT] * 3,
    "rms_norm": [_POINTER] * 4 + [_COUNT] * 2 + [_FLOAT],
    "rms_norm_backward": [_POINTER] * 6 + [_COUNT] * 2,
    "normalise_and_rotate": [_POINTER, _COUNT] + [_POINTER] * 5 + [_COUNT] * 4 + [_FLOAT],
    "normalise_and_rotate_backward": (
        [_POINTER, _COUNT, _POINTER, _COUNT] + [_POINTER] * 5 + [_COUNT, _POINTER] + [_COUNT] * 4
    ),
    "cross_entropy": [_POINTER, _COUNT] + [_POINTER] * 2 + [_COUNT] * 2,
    "gradient_of_rows": [_POINTER] * 6 + [_COUNT] * 2,
    "attention": [_POINTER, _COUNT] * 2 + [_POINTER] * 2 + [_COUNT] * 5,
    "attention_backward": [_POINTER] + [_POINTER, _COUNT] * 2 + [_POINTER] * 4 + [_COUNT] * 5,
}
_TILED: dict[str, Sequence[type[Any]]] = {"multiply": [_POINTER, _COUNT, _COUNT] * 2 + [_POINTER] + [_COUNT] * 5}
_ANSWERING = {"cross_entropy", "attention", "attention_backward"}  # return a number


class Loaded(NamedTuple):
    """The compiled functions by name, and which they are, or why there are none."""

    functions: dict[str, Any]
    found: str


@functools.cache
def load() -> Loaded:
    """Find and open the compiled kernels for this processor, once."""
    spec = importlib.util.find_spec("moe.kernels._compiled")
    if spec is None or spec.origin is None:
        return Loaded({}, "not built: no GCC was found when the project was installed")
    try:
        library = ctypes.CDLL(spec.origin)
        library.kernels_interface.restype = library.kernels_instructions.restype = _COUNT
        if library.kernels_interface() != _INTERFACE:
            return Loaded({}, f"{spec.origin} was built from other sources: install the project again")
        there = library.kernels_instructions()
        for width, bit in _WIDTHS.items():
            if there & bit:
                functions = _functions(library, _SIGNATURES, width)
                if width == "avx512" and there & _TILES:
                    return Loaded(functions | _functions(library, _TILED, "amx"), "avx512 and amx")
                return Loaded(functions, width)
    except (OSError, AttributeError) as error:
        return Loaded({}, f"built for another machine, or damaged: {error}")
    return Loaded({}, "none: they are for x86-64 with AVX2, built by GCC")


def _functions(library: ctypes.CDLL, signatures: dict[str, Sequence[type[Any]]], ending: str) -> dict[str, Any]:
    functions = {}
    for name, types in signatures.items():
        function = library[f"{name}_{ending}"]
        function.argtypes, function.restype = types, _COUNT if name in _ANSWERING else None
        functions[name] = function
    return functions


_switched_off = False


@contextlib.contextmanager
def switched_off() -> Iterator[None]:
    """A scope in which torch computes everything, to compare the two."""
    global _switched_off  # noqa: PLW0603
    before, _switched_off = _switched_off, True
    try:
        yield
    finally:
        _switched_off = before


def available(x: Tensor) -> bool:
    """Whether the kernels can work on tensors like this one."""
    return fit(x) and not isinstance(x, FakeTensor)


def fit(x: Tensor) -> bool:
    """Whether they could if it had numbers: fp32, on the CPU, on one thread, which is all that the kernels use."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not _switched_off
        and torch.get_num_threads() == 1
        and bool(load().functions)
    )


def attends(x: Tensor, head_dim: int) -> bool:
    """Whether the kernels can attend with tensors like this one: heads are a multiple of 32 numbers."""
    return available(x) and head_dim % 32 == 0


def multiplies(a_NI: Tensor, b_IO: Tensor, out_NO: Tensor) -> bool:
    """Whether the kernels can multiply these: on AMX tiles, some numbers in fp32, the product's rows side by side."""
    return (
        "multiply" in load().functions
        and all(available(matrix) and matrix.numel() > 0 for matrix in (a_NI, b_IO, out_NO))
        and out_NO.stride(1) == 1
        and out_NO.stride(0) >= out_NO.shape[1]
    )


def _kernel(name: str) -> Any:
    return load().functions[name]


def _at(tensor: Tensor, dtype: torch.dtype = torch.float32) -> int:
    """Where the numbers of a dense tensor begin."""
    assert tensor.dtype == dtype, f"expected {dtype}, not {tensor.dtype}"
    assert tensor.is_contiguous(), f"expected dense rows, not strides {tensor.stride()} of {tuple(tensor.shape)}"
    return tensor.data_ptr()


def _rows(matrix: Tensor) -> tuple[int, int]:
    """Where the numbers of a matrix begin, and how many numbers further on its next row does."""
    assert matrix.dtype == torch.float32, f"expected fp32, not {matrix.dtype}"
    assert matrix.stride(1) == 1, f"expected rows, not strides {matrix.stride()}"
    return matrix.data_ptr(), matrix.stride(0)


def _factor(matrix: Tensor) -> tuple[int, int, int]:
    """Where the numbers of a matrix or of its transpose begin, and the distances of its rows and of its columns."""
    assert matrix.dtype == torch.float32, f"expected fp32, not {matrix.dtype}"
    row, column = (stride if size > 1 else 1 for stride, size in zip(matrix.stride(), matrix.shape, strict=True))
    assert 1 in {row, column}, f"expected rows or columns, not strides {matrix.stride()}"
    return matrix.data_ptr(), row, column


def multiply(a_NI: Tensor, b_IO: Tensor, *, out_NO: Tensor, is_added: bool) -> None:
    """``a_NI @ b_IO`` into ``out_NO``, or added to it; as exact as a product in fp32, by tiles of bf16.

    As with the ``out`` of torch's products, there is no gradient.
    """
    (n_rows, n_terms), (n_terms_of_b, n_columns) = a_NI.shape, b_IO.shape
    assert n_terms == n_terms_of_b, f"expected {n_terms} rows, not {n_terms_of_b}"
    assert out_NO.shape == (n_rows, n_columns), f"expected {(n_rows, n_columns)}, not {tuple(out_NO.shape)}"
    assert not (torch.is_grad_enabled() and (a_NI.requires_grad or b_IO.requires_grad)), "a product without gradient"
    a_NI, b_IO = (factor if 1 in factor.stride() else factor.contiguous() for factor in (a_NI, b_IO))
    _kernel("multiply")(*_factor(a_NI), *_factor(b_IO), *_rows(out_NO), n_rows, n_columns, n_terms, is_added)
    torch.autograd.graph.increment_version(out_NO)


def swiglu(gate_up_SH: Tensor, *, out_SF: Tensor, kept_SH: Tensor | None) -> None:
    """``silu(gate) * up`` into ``out_SF``; ``kept_SH``, if any, gets a copy of the inputs, past the caches."""
    kept = None if kept_SH is None else _at(kept_SH)
    _kernel("swiglu")(_at(gate_up_SH), _at(out_SF), kept, *out_SF.shape)
    if kept_SH is not None:  # as torch's own operations do: memory used anew before its backward pass is refused
        torch.autograd.graph.increment_version(kept_SH)


def swiglu_backward(gate_up_SH: Tensor, grad_SF: Tensor, *, act_SF: Tensor, grad_gate_up_SH: Tensor) -> None:
    """``silu(gate) * up`` again into ``act_SF``, and the gradient of gate and up into ``grad_gate_up_SH``."""
    inputs = _at(gate_up_SH), _at(grad_SF)
    _kernel("swiglu_backward")(*inputs, _at(act_SF), *_rows(grad_gate_up_SH), *act_SF.shape)


def rms_norm(x_RD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Normalised and weighted rows [R, D], and their inverse root mean squares [R, 1]."""
    assert x_RD.shape[1:] == weight_D.shape, f"expected rows of {tuple(weight_D.shape)}, not {tuple(x_RD.shape)}"
    x_RD = x_RD.contiguous()
    out_RD, scale_R1 = torch.empty_like(x_RD), x_RD.new_empty(len(x_RD), 1)
    _kernel("rms_norm")(_at(x_RD), _at(weight_D), _at(out_RD), _at(scale_R1), *x_RD.shape, eps)
    return out_RD, scale_R1


def rms_norm_backward(grad_RD: Tensor, x_RD: Tensor, weight_D: Tensor, scale_R1: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the rows and of the weight."""
    grad_RD, x_RD = grad_RD.contiguous(), x_RD.contiguous()
    grad_x_RD, grad_weight_D = torch.empty_like(x_RD), torch.zeros_like(weight_D, dtype=torch.float64)
    _kernel("rms_norm_backward")(
        _at(grad_RD),
        _at(x_RD),
        _at(weight_D),
        _at(scale_R1),
        _at(grad_x_RD),
        _at(grad_weight_D, torch.float64),
        *x_RD.shape,
    )
    return grad_x_RD, grad_weight_D.to(weight_D.dtype)


def _heads(x_BTJC: Tensor) -> tuple[int, int]:
    """Where the heads of the first token begin, and how many numbers further on those of the next."""
    n_rows, length, n_heads, head_dim = x_BTJC.shape
    return _rows(x_BTJC.view(n_rows * length, n_heads * head_dim))


def normalise_and_rotate(
    x_BTJC: Tensor, weight_JC: Tensor, tables: tuple[Tensor, Tensor], eps: float
) -> tuple[Tensor, Tensor]:
    """Normalised, weighted and turned heads [B, T, J, C], and their inverse root mean squares [B, T, J, 1].

    ``tables`` are the cosines and sines of the positions' angles, [T, C / 2] each.
    """
    cos, sin = tables
    n_rows, length, n_heads, head_dim = x_BTJC.shape
    assert weight_JC.shape == (n_heads, head_dim), f"expected weights of {n_heads} heads, not {tuple(weight_JC.shape)}"
    assert cos.shape == sin.shape == (length, head_dim // 2), f"expected {length} positions, not {tuple(cos.shape)}"
    out_BTJC, scale_BTJ1 = x_BTJC.new_empty(x_BTJC.shape), x_BTJC.new_empty(*x_BTJC.shape[:-1], 1)
    counts = n_rows * length, length, n_heads, head_dim // 2
    _kernel("normalise_and_rotate")(
        *_heads(x_BTJC), _at(weight_JC), _at(cos), _at(sin), _at(out_BTJC), _at(scale_BTJ1), *counts, eps
    )
    return out_BTJC, scale_BTJ1


def normalise_and_rotate_backward(
    grad_BTJC: Tensor, saved: tuple[Tensor, Tensor, tuple[Tensor, Tensor], Tensor], *, grad_x_BTJC: Tensor
) -> Tensor:
    """Gradient of the heads into ``grad_x_BTJC``; returns that of the weights [J, C].

    ``saved`` are heads, weights and tables as ``normalise_and_rotate`` took them, and the scales that it returned.
    """
    x_BTJC, weight_JC, tables, scale_BTJ1 = saved
    n_rows, length, n_heads, head_dim = x_BTJC.shape
    grad_BTJC = grad_BTJC.contiguous()
    grad_weight_JC = torch.zeros_like(weight_JC, dtype=torch.float64)
    _kernel("normalise_and_rotate_backward")(
        *_heads(grad_BTJC),
        *_heads(x_BTJC),
        _at(weight_JC),
        *(_at(table) for table in tables),
        _at(scale_BTJ1),
        *_heads(grad_x_BTJC),
        _at(grad_weight_JC, torch.float64),
        n_rows * length,
        length,
        n_heads,
        head_dim // 2,
    )
    return grad_weight_JC.to(weight_JC.dtype)


def cross_entropy_(logits_CV: Tensor, targets_C: Tensor) -> Tensor:
    """Cross-entropies [C]; the logits become their own gradient, softmax minus one at the target.

    Raises:
        IndexError: a target is not in the vocabulary.
    """
    loss_C, targets_C = logits_CV.new_empty(len(logits_CV)), targets_C.contiguous()
    done = _kernel("cross_entropy")(*_rows(logits_CV), _at(targets_C, torch.int64), _at(loss_C), *logits_CV.shape)
    if done < len(logits_CV):
        raise IndexError(f"target {int(targets_C[done])} is not in a vocabulary of {logits_CV.shape[1]}")
    return loss_C


def gradient_of_rows(grad_ND: Tensor, out_RD: Tensor, token_R: Tensor, weight_R: Tensor) -> tuple[Tensor, Tensor]:
    """Rows ``weight[r] * grad[token[r]]`` [R, D], and inner products of ``out[r]`` and ``grad[token[r]]`` [R]."""
    grad_ND = grad_ND.contiguous()
    grad_RD, grad_weight_R = torch.empty_like(out_RD), torch.empty_like(weight_R)
    _kernel("gradient_of_rows")(
        _at(grad_ND),
        _at(out_RD),
        _at(token_R, torch.int64),
        _at(weight_R),
        _at(grad_RD),
        _at(grad_weight_R),
        *out_RD.shape,
    )
    return grad_RD, grad_weight_R


def attention(qk_BTJC: Tensor, v_BTGC: Tensor, n_heads: int) -> tuple[Tensor, Tensor]:
    """Causal softmax attention of the first heads to the others: [B, T, H, C], and log-sums of exponentials [B, T, H].

    Raises:
        MemoryError: there is no memory for the scores of a tile.
    """
    n_rows, length, _, head_dim = qk_BTJC.shape
    n_groups = v_BTGC.shape[2]
    out_BTHC = qk_BTJC.new_empty(n_rows, length, n_heads, head_dim)
    log_sum_BTH = qk_BTJC.new_empty(n_rows, length, n_heads)
    failed = _kernel("attention")(
        *_heads(qk_BTJC), *_heads(v_BTGC), _at(out_BTHC), _at(log_sum_BTH), n_rows, length, n_heads, n_groups, head_dim
    )
    if failed:
        raise MemoryError("no memory for attention's scores")
    return out_BTHC, log_sum_BTH


def attention_backward(
    grad_BTHC: Tensor, qk_BTJC: Tensor, v_BTGC: Tensor, out_BTHC: Tensor, log_sum_BTH: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of queries and keys [B, T, J, C] and of values [B, T, G, C].

    Raises:
        MemoryError: there is no memory for the scores of a tile.
    """
    n_rows, length, n_heads, head_dim = out_BTHC.shape
    grad_BTHC = grad_BTHC.contiguous()
    grad_qk_BTJC, grad_v_BTGC = qk_BTJC.new_empty(qk_BTJC.shape), v_BTGC.new_empty(v_BTGC.shape)
    failed = _kernel("attention_backward")(
        _at(grad_BTHC),
        *_heads(qk_BTJC),
        *_heads(v_BTGC),
        _at(out_BTHC),
        _at(log_sum_BTH),
        _at(grad_qk_BTJC),
        _at(grad_v_BTGC),
        n_rows,
        length,
        n_heads,
        v_BTGC.shape[2],
        head_dim,
    )
    if failed:
        raise MemoryError("no memory for attention's scores")
    return grad_qk_BTJC, grad_v_BTGC
