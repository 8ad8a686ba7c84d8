import pytest
import torch

from moe import matmul
from moe.matmul import FP32_RELATIVE_ERROR, fast_matmuls, linear, onednn_keeps_fp32, relative_error


@pytest.fixture
def restored_precision():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def random_pair(n_rows=96, n_in=200, n_out=130):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n_rows, n_in, generator=generator), torch.randn(n_in, n_out, generator=generator)


def test_fp32_products_in_the_fast_scope_are_fp32():
    """Whatever this CPU makes of torch's permission to use less: with AMX it would be wrong by 2e-3."""
    with fast_matmuls(torch.device("cpu")):
        assert relative_error(*random_pair()) < FP32_RELATIVE_ERROR
        assert relative_error(*random_pair(n_rows=1024, n_in=512)) < FP32_RELATIVE_ERROR


def test_a_cpu_that_computes_in_bf16_is_found_out(monkeypatch):
    def error_of_rounded_factors(a, b):
        exact = a.double() @ b.double()
        return float((a.bfloat16().double() @ b.bfloat16().double() - exact).norm() / exact.norm())

    monkeypatch.setattr(matmul, "relative_error", error_of_rounded_factors)
    onednn_keeps_fp32.cache_clear()
    try:
        assert not onednn_keeps_fp32()
        with fast_matmuls(torch.device("cpu")):
            assert torch.get_float32_matmul_precision() == "highest"
    finally:
        onednn_keeps_fp32.cache_clear()


@pytest.mark.usefixtures("restored_precision")
def test_the_scope_ends_where_it_was_opened(monkeypatch):
    monkeypatch.setattr(matmul, "onednn_keeps_fp32", lambda: True)
    torch.set_float32_matmul_precision("high")
    with fast_matmuls(torch.device("cpu")):
        assert torch.get_float32_matmul_precision() == "medium"
    assert torch.get_float32_matmul_precision() == "high"
    with pytest.raises(ZeroDivisionError), fast_matmuls(torch.device("cpu")):
        raise ZeroDivisionError
    assert torch.get_float32_matmul_precision() == "high"


def test_the_probe_answers_the_same_inside_any_context():
    plain = onednn_keeps_fp32()
    onednn_keeps_fp32.cache_clear()
    with torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
        assert onednn_keeps_fp32() == plain


def test_linear_has_autocasts_type_and_fp32_gradients():
    x_NI = torch.randn(20, 12, requires_grad=True)
    weight_OI = torch.randn(8, 12, requires_grad=True)
    assert linear(x_NI, weight_OI).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        out_NO = linear(x_NI, weight_OI)
    assert out_NO.dtype == torch.bfloat16
    out_NO.sum().backward()
    assert x_NI.grad.dtype == weight_OI.grad.dtype == torch.float32


def test_linear_equals_torch_in_value_and_gradient():
    x_NI = torch.randn(20, 12, requires_grad=True)
    weight_OI = torch.randn(8, 12, requires_grad=True)
    grad_NO = torch.randn(20, 8)
    found = torch.autograd.grad(linear(x_NI, weight_OI), (x_NI, weight_OI), grad_NO)
    wanted = torch.autograd.grad(x_NI @ weight_OI.T, (x_NI, weight_OI), grad_NO)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_linear_takes_a_gradient_that_is_one_number_for_all():
    """The gradient of a sum has strides of zero."""
    x_NI, weight_OI = torch.randn(40, 50, requires_grad=True), torch.randn(33, 50, requires_grad=True)
    grad_x_NI, grad_weight_OI = torch.autograd.grad(linear(x_NI, weight_OI).sum(), (x_NI, weight_OI))
    torch.testing.assert_close(grad_x_NI, weight_OI.sum(dim=0).expand(40, -1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grad_weight_OI, x_NI.sum(dim=0).expand(33, -1), rtol=1e-5, atol=1e-5)
