"""Orthogonalisation of matrices by Newton-Schulz iteration, the heart of Muon."""

# N matrices in a batch, R rows, C columns, S the shorter side of a matrix

from __future__ import annotations

import torch
from torch import Tensor

# Quintic coefficients of Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/): the steepest slope at zero,
# at the price of singular values that end between about 0.7 and 1.2 instead of at 1.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
_EPS = 1e-7

# From this ratio of sides on, fp32 iterates on the S x S Gram matrix. Measured on one core in fp32, ms for 24 matrices
# direct / Gram: 64x128 2.3 / 1.8, 64x256 4.8 / 2.3, and for 32 matrices 128x512 38 / 20; squares lose (0.67 / 0.80).
_GRAM_SIDE_RATIO = 2


def orthogonalise(matrices_NRC: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """U V^T, approximately, of every matrix U S V^T of a batch [N, R, C]; same shape, in ``dtype``.

    A matrix is divided by its Frobenius norm first, so its scale does not matter (in fp32 between 1e-7 and 1e18); a
    matrix of zeros stays zero.
    In fp32 and fp64, long matrices are iterated on as Gram matrices: every factor of the iteration is a polynomial of
    X X^T, so the factors are multiplied up among S x S matrices and X is touched twice instead of ten times. The
    squares of singular values need fp32's digits, so lower precisions iterate on the matrix itself.

    Raises:
        ValueError: ``dtype`` is fp16, whose range does not hold the iteration (and which is very slow on CPUs).
    """
    if dtype == torch.float16:
        raise ValueError("Newton-Schulz in float16 is refused: use bfloat16 where it is fast, float32 elsewhere")
    if _is_by_gram(matrices_NRC, dtype):
        left, right = _gram_factors(matrices_NRC.to(dtype))
        return left @ right
    rows, columns = matrices_NRC.shape[-2:]
    x_NSL = matrices_NRC.mT if rows > columns else matrices_NRC
    norm_N11 = torch.linalg.vector_norm(x_NSL, dim=(-2, -1), keepdim=True, dtype=_accumulation_dtype(dtype))
    x_NSL = _iterate((x_NSL / norm_N11.clamp(min=_EPS)).to(dtype))
    return x_NSL.mT if rows > columns else x_NSL


def add_orthogonalised_(weights_NRC: Tensor, matrices_NRC: Tensor, *, factor: float, dtype: torch.dtype) -> None:
    """Add ``factor`` times what ``orthogonalise`` makes of the matrices to the weights, in place.

    From Gram matrices that is the last product itself, which saves two passes over the weights.
    """
    if _is_by_gram(matrices_NRC, dtype) and weights_NRC.dtype == dtype:
        left, right = _gram_factors(matrices_NRC.to(dtype))
        weights_NRC.baddbmm_(left, right, alpha=factor)
    else:
        weights_NRC.add_(orthogonalise(matrices_NRC, dtype=dtype).to(weights_NRC.dtype), alpha=factor)


def _is_by_gram(matrices_NRC: Tensor, dtype: torch.dtype) -> bool:
    shorter, longer = sorted(matrices_NRC.shape[-2:])
    return dtype in {torch.float32, torch.float64} and longer >= _GRAM_SIDE_RATIO * shorter


def _accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _iterate(x_NSL: Tensor) -> Tensor:
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram_NSS = x_NSL @ x_NSL.mT
        polynomial_NSS = torch.baddbmm(gram_NSS, gram_NSS, gram_NSS, beta=b, alpha=c)
        x_NSL = torch.baddbmm(x_NSL, polynomial_NSS, x_NSL, beta=a)
    return x_NSL


def _gram_factors(x_NRC: Tensor) -> tuple[Tensor, Tensor]:
    """Two factors of what the same iteration gives: X' = P X with P = a I + b A + c A^2 and A = X X^T gives A' = P A P.

    The squared norm of X is the trace of A, and dividing by it is left to the S x S matrices.
    """
    a, b, c = COEFFICIENTS
    tall = x_NRC.shape[-2] > x_NRC.shape[-1]
    gram_NSS = x_NRC.mT @ x_NRC if tall else x_NRC @ x_NRC.mT
    squared_norm_N11 = gram_NSS.diagonal(dim1=-2, dim2=-1).sum(dim=-1)[:, None, None].clamp(min=_EPS**2)
    gram_NSS /= squared_norm_N11
    product_NSS = None
    for iteration in range(ITERATIONS):
        polynomial_NSS = torch.baddbmm(gram_NSS, gram_NSS, gram_NSS, beta=b, alpha=c)
        polynomial_NSS.diagonal(dim1=-2, dim2=-1).add_(a)
        product_NSS = polynomial_NSS if product_NSS is None else polynomial_NSS @ product_NSS
        if iteration + 1 < ITERATIONS:
            gram_NSS = polynomial_NSS @ (gram_NSS @ polynomial_NSS)
    assert product_NSS is not None
    product_NSS *= squared_norm_N11.rsqrt()
    return (x_NRC, product_NSS.mT) if tall else (product_NSS, x_NRC)
