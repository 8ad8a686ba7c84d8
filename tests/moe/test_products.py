"""Products of fp32 matrices on AMX tiles: as exact as any in fp32, in every shape and order of the numbers."""

# N rows, I terms of a sum, O columns

import pytest
import torch

from moe import kernels
from moe.matmul import fast_matmuls, linear, multiply, product


def is_ours(a_NI, b_IO, out_NO=None):
    return kernels.multiplies(a_NI, b_IO, torch.zeros(len(a_NI), b_IO.shape[1]) if out_NO is None else out_NO)


@pytest.fixture(autouse=True)
def _tiled():
    if not is_ours(torch.zeros(1, 1), torch.zeros(1, 1)):
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
    "shape",
    [
        *[(1, 1, 1), (5, 3, 7), (16, 32, 16), (33, 31, 17), (31, 129, 65), (64, 256, 96), (600, 40, 33)],
        *[(33, 130, 1025), (5, 257, 2080)],
    ],
    ids=str,
)
def test_a_product_equals_float64_in_every_order(shape, a_order, b_order):
    n_rows, n_terms, n_columns = shape
    a_NI, b_IO = in_order(normal(n_rows, n_terms), a_order), in_order(normal(n_terms, n_columns, seed=1), b_order)
    assert float(errors(product(a_NI, b_IO), a_NI, b_IO).abs().max()) < 2**-22


@pytest.mark.parametrize("n_terms", [32, 128, 1024, 4096])
@pytest.mark.parametrize("numbers", ["normal", "positive", "half are zero", "over powers of ten"])
def test_errors_are_those_of_a_product_in_fp32(n_terms, numbers):
    a_NI, b_IO = normal(128, n_terms), normal(n_terms, 128, seed=1)
    change = {
        "normal": lambda each: each,
        "positive": lambda each: each.abs() + 1,
        "half are zero": torch.relu,
        "over powers of ten": lambda each: each * 10 ** normal(*each.shape, seed=2),
    }[numbers]
    a_NI, b_IO = change(a_NI), change(b_IO)
    ours, theirs = errors(product(a_NI, b_IO), a_NI, b_IO), errors(by_torch(a_NI, b_IO), a_NI, b_IO)
    assert rms(ours) < 1.5 * rms(theirs)
    assert float(ours.abs().max()) < 2**-20


def test_products_of_whole_numbers_are_exact():
    a_NI = torch.arange(-60_000, 60_000, 25).view(80, 60).float()
    b_IO = (torch.arange(60 * 70) % 5 - 2).view(60, 70).float()
    assert torch.equal(product(a_NI, b_IO).double(), a_NI.double() @ b_IO.double())


@pytest.mark.parametrize("shape", [(33, 150, 17), (32, 32, 32), (65, 300, 100), (3, 40, 1100)], ids=str)
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
    ],
)
def test_matrices_that_do_not_fit_are_refused(a, b, out, reason):
    with pytest.raises(AssertionError, match=reason):
        multiply(torch.zeros(a), torch.zeros(b), out_NO=torch.zeros(out))


def test_a_product_that_would_need_a_gradient_is_refused():
    a_NI, b_IO = normal(3, 4).requires_grad_(), normal(4, 2)
    with pytest.raises(AssertionError, match="a product without gradient"):
        product(a_NI, b_IO)
    with torch.no_grad():
        torch.testing.assert_close(product(a_NI, b_IO), a_NI @ b_IO)


def test_a_tensor_kept_for_a_backward_pass_is_not_written_without_a_word():
    x_NO = normal(3, 2).requires_grad_()
    kept_NO = x_NO * 2
    square = kept_NO.square().sum()
    multiply(normal(3, 4), normal(4, 2), out_NO=kept_NO.detach())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        square.backward()


@pytest.mark.parametrize("shape", [(0, 4, 2), (3, 0, 2), (3, 4, 0)], ids=str)
@pytest.mark.parametrize("is_added", [False, True])
def test_a_product_of_nothing_is_torchs(shape, is_added):
    n_rows, n_terms, n_columns = shape
    out_NO = torch.ones(n_rows, n_columns)
    multiply(torch.zeros(n_rows, n_terms), torch.zeros(n_terms, n_columns), out_NO=out_NO, is_added=is_added)
    assert torch.equal(out_NO, torch.full((n_rows, n_columns), float(is_added)))


def test_a_product_whose_rows_are_not_in_order_is_torchs():
    a_NI, b_IO = normal(40, 50), normal(50, 33, seed=1)
    for out_NO in (torch.empty(33, 40).T, torch.empty(40, 66)[:, ::2]):
        assert not is_ours(a_NI, b_IO, out_NO)
        torch.testing.assert_close(multiply(a_NI, b_IO, out_NO=out_NO), a_NI @ b_IO)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 40, 1), (40, 1, 1), (1, 1, 40), (20, 40, 33)], ids=str)
def test_factors_may_be_parts_of_other_matrices(shape):
    """Rows and columns that are not side by side, and a single one whose distance to the next means nothing."""
    n_rows, n_terms, n_columns = shape
    a_NI, b_IO = normal(4 * n_rows, 6 * n_terms)[::4, ::6], normal(3 * n_terms, 5 * n_columns, seed=1)[::3, ::5]
    assert is_ours(a_NI, b_IO)
    torch.testing.assert_close(product(a_NI, b_IO), a_NI.contiguous() @ b_IO.contiguous(), rtol=1e-5, atol=1e-5)


def test_other_types_other_devices_and_a_second_thread_are_torchs(monkeypatch):
    a, b = torch.zeros(2, 2), torch.zeros(2, 2)
    assert is_ours(a, b)
    assert not is_ours(a.bfloat16(), b)
    assert not is_ours(a, b.double())
    assert not is_ours(a, b.to("meta"))
    assert not is_ours(a, b, torch.zeros(2, 2).bfloat16())
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert not is_ours(a, b)
