"""Products of fp32 matrices on AMX tiles: as exact as any in fp32, in every shape and order of the numbers."""

# N rows, I terms of a sum, O columns

import pytest
import torch

from moe import kernels
from moe.matmul import fast_matmuls, linear, multiply, product


@pytest.fixture(autouse=True)
def _tiled():
    if not kernels.multiplies(torch.zeros(1)):
        pytest.skip(f"no AMX tiles: kernels are '{kernels.load().found}'")


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def in_order(matrix, order):
    """The same numbers, rows or columns side by side in memory."""
    return matrix.contiguous() if order == "rows" else matrix.T.contiguous().T


def errors(found, a, b):
    """Of every number, relative to the sum of its terms' sizes."""
    exact, size = a.double() @ b.double(), a.double().abs() @ b.double().abs()
    return (found.double() - exact) / size


def rms(numbers):
    return float(numbers.square().mean().sqrt())


def by_torch(a_NI, b_IO):
    with kernels.switched_off(), fast_matmuls(a_NI.device):
        return product(a_NI, b_IO)


@pytest.mark.parametrize("a_order", ["rows", "columns"])
@pytest.mark.parametrize("b_order", ["rows", "columns"])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (5, 3, 7), (16, 32, 16), (33, 31, 17), (31, 129, 65), (64, 256, 96), (600, 40, 33)], ids=str
)
def test_a_product_equals_float64_in_every_order(shape, a_order, b_order):
    n_rows, n_terms, n_columns = shape
    a_NI, b_IO = in_order(normal(n_rows, n_terms), a_order), in_order(normal(n_terms, n_columns, seed=1), b_order)
    assert float(errors(product(a_NI, b_IO), a_NI, b_IO).abs().max()) < 2**-22


@pytest.mark.parametrize("n_terms", [32, 128, 1024])
@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0])
def test_errors_are_no_larger_than_those_of_torch(n_terms, spread):
    """Also among numbers whose sizes spread over several powers of ten."""
    a_NI, b_IO = normal(128, n_terms), normal(n_terms, 128, seed=1)
    a_NI, b_IO = (each * 10 ** (spread * normal(*each.shape, seed=2)) for each in (a_NI, b_IO))
    ours, theirs = errors(product(a_NI, b_IO), a_NI, b_IO), errors(by_torch(a_NI, b_IO), a_NI, b_IO)
    assert rms(ours) < 1.1 * rms(theirs)
    assert float(ours.abs().max()) < 2**-20


def test_products_of_whole_numbers_are_exact():
    a_NI = torch.arange(-60_000, 60_000, 25).view(80, 60).float()
    b_IO = (torch.arange(60 * 70) % 5 - 2).view(60, 70).float()
    assert torch.equal(product(a_NI, b_IO).double(), a_NI.double() @ b_IO.double())


@pytest.mark.parametrize("shape", [(33, 150, 17), (32, 32, 32), (65, 300, 100)], ids=str)
def test_a_product_is_added_and_nothing_else_is_written(shape):
    n_rows, n_terms, n_columns = shape
    a_NI, b_IO, around = normal(n_rows, n_terms), normal(n_terms, n_columns, seed=1), normal(n_rows + 2, n_columns + 9)
    before, out_NO = around.clone(), around[1:-1, 4:-5]
    assert multiply(a_NI, b_IO, out_NO=out_NO, is_added=True) is out_NO
    wanted = before.double()
    wanted[1:-1, 4:-5] += a_NI.double() @ b_IO.double()
    torch.testing.assert_close(around, wanted.float(), rtol=1e-5, atol=1e-4)
    before[1:-1, 4:-5] = around[1:-1, 4:-5]
    assert torch.equal(around, before)


@pytest.mark.parametrize("n_rows", [1, 17, 40, 513])
def test_a_row_has_the_same_bits_whatever_other_rows_there_are(n_rows):
    a_NI, b_IO = normal(1100, 160), normal(160, 50, seed=1)
    whole = product(a_NI, b_IO)
    for first in (0, 7, 530):
        assert torch.equal(product(a_NI[first : first + n_rows], b_IO), whole[first : first + n_rows])


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf"), -torch.finfo(torch.float32).max])
@pytest.mark.parametrize("at", [(0, 0), (15, 31), (16, 16), (36, 44)], ids=str)
def test_a_number_that_is_not_finite_reaches_all_that_it_is_part_of_and_nothing_else(poison, at):
    row, term = at
    a_NI, b_IO = normal(37, 45), normal(45, 40, seed=1).abs() + 2
    a_NI[row, term] = poison
    for found in (product(a_NI, b_IO), product(b_IO.T.contiguous(), a_NI.T).T):
        assert not found[row].isfinite().any()
        assert found.isfinite().all(dim=1).sum() == len(a_NI) - 1


def test_a_nan_of_any_bits_stays_one():
    a_NI, b_IO = torch.ones(16, 32), torch.ones(32, 16)
    a_NI.view(torch.int32)[3, 5] = 0x7FFFFFFF
    assert product(a_NI, b_IO).isnan().sum(dim=1).tolist() == [16 * (row == 3) for row in range(16)]


def test_a_gradient_that_is_one_number_for_all_is_taken():
    """A sum's gradient has no rows in memory: strides of zero."""
    x_NI, weight_OI = normal(40, 50).requires_grad_(), normal(33, 50, seed=1).requires_grad_()
    found = torch.autograd.grad(linear(x_NI, weight_OI).sum(), (x_NI, weight_OI))
    torch.testing.assert_close(found[0], weight_OI.sum(dim=0).expand(40, -1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1], x_NI.sum(dim=0).expand(33, -1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("a", "b", "out", "reason"),
    [
        ((3, 4), (5, 2), (3, 2), "expected 4 rows, not 5"),
        ((3, 4), (4, 2), (2, 2), r"expected \(3, 2\), not \(2, 2\)"),
        ((3, 0), (0, 2), (3, 2), "expected terms"),
    ],
)
def test_matrices_that_do_not_fit_are_refused(a, b, out, reason):
    with pytest.raises(AssertionError, match=reason):
        multiply(torch.zeros(a), torch.zeros(b), out_NO=torch.zeros(out))


def test_other_types_and_a_second_thread_are_torchs(monkeypatch):
    assert not kernels.multiplies(torch.zeros(1).bfloat16())
    assert not kernels.multiplies(torch.zeros(1).double())
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert not kernels.multiplies(torch.zeros(1))
