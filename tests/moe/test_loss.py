# N tokens, D model, V vocabulary

import pytest
import torch
from torch.nn import functional

from moe import loss
from moe.device import Device
from moe.device_choices import choices_for
from moe.memory import TensorBytes

N, D, V = 150, 24, 70


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    x_ND = torch.randn(N, D, generator=generator)
    weight_VD = torch.randn(V, D, generator=generator)
    return x_ND, weight_VD, torch.randint(0, V, (N,), generator=generator)


CPU = Device(kind="cpu")
GPU = Device(kind="cuda", name="a GPU", compute_capability=(8, 0))


@pytest.fixture(params=["cpu", "gpu"])
def choices(request):
    """Both heads, on CPU tensors."""
    return choices_for(CPU if request.param == "cpu" else GPU, None)


@pytest.fixture(params=[64, 128, 10**6], ids=["three chunks", "two chunks", "one chunk"])
def chunked(request, choices, monkeypatch):
    monkeypatch.setattr(type(choices), "head_rows", lambda *_: request.param)


@pytest.fixture
def cross_entropy_sum(choices):
    return lambda *inputs: loss.cross_entropy_sum(*inputs, choices)


@pytest.fixture
def token_cross_entropies(choices):
    return lambda *inputs: loss.token_cross_entropies(*inputs, choices)


def gradients(x_ND, weight_VD, targets_N, loss_of):
    leaves = x_ND.clone().requires_grad_(), weight_VD.clone().requires_grad_()
    total = loss_of(*leaves, targets_N)
    return total, torch.autograd.grad(3 * total, leaves)


def exact(x_ND, weight_VD, targets_N):
    return functional.cross_entropy((x_ND.double() @ weight_VD.double().T), targets_N, reduction="sum")


def relative(found, wanted):
    found, wanted = found.detach().double(), wanted.detach().double()
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.usefixtures("chunked")
def test_sum_and_gradients_equal_float64_cross_entropy(inputs, cross_entropy_sum):
    total, grads = gradients(*inputs, cross_entropy_sum)
    exact_total, exact_grads = gradients(*inputs, exact)
    assert relative(total, exact_total) < 1e-6
    for found, wanted in zip(grads, exact_grads, strict=True):
        assert relative(found, wanted) < 1e-6


@pytest.mark.usefixtures("chunked")
def test_token_losses_equal_float64_cross_entropy(inputs, token_cross_entropies):
    x_ND, weight_VD, targets_N = inputs
    exact_N = functional.cross_entropy((x_ND.double() @ weight_VD.double().T), targets_N, reduction="none")
    torch.testing.assert_close(token_cross_entropies(*inputs).double(), exact_N, rtol=1e-6, atol=1e-5)


def test_a_target_too_unlikely_for_fp32_has_its_true_loss_not_infinity(cross_entropy_sum, token_cross_entropies):
    x_ND, weight_VD = torch.tensor([[1.0]]), torch.tensor([[0.0], [500.0]])
    assert float(cross_entropy_sum(x_ND, weight_VD, torch.tensor([0]))) == 500.0
    assert token_cross_entropies(x_ND, weight_VD, torch.tensor([0])).tolist() == [500.0]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float16, 1e-3)])
def test_autocast_products_accumulate_in_fp32(inputs, dtype, tolerance, cross_entropy_sum):
    """Logits carry one rounding of 2^-9 or 2^-12; their sum over tokens and the weight's gradient carry no more."""
    with torch.autocast("cpu", dtype):
        total, grads = gradients(*inputs, cross_entropy_sum)
    exact_total, exact_grads = gradients(*inputs, exact)
    assert total.dtype == torch.float32
    assert all(grad.dtype == torch.float32 for grad in grads)
    assert relative(total, exact_total) < tolerance / 5
    for found, wanted in zip(grads, exact_grads, strict=True):
        assert relative(found, wanted) < tolerance


def test_tokens_times_vocabulary_is_never_held():
    n_tokens, vocab = 4096, 2048
    x_ND = torch.randn(n_tokens, 8, requires_grad=True)
    weight_VD = torch.randn(vocab, 8, requires_grad=True)
    with TensorBytes() as watch:
        loss.cross_entropy_sum(
            x_ND, weight_VD, torch.zeros(n_tokens, dtype=torch.int64), choices_for(CPU, None)
        ).backward()
    assert watch.peak_bytes < n_tokens * vocab * 4 / 2


@pytest.mark.parametrize("vocab_size", [2, 256, 4096, 49_152, 10**7])
def test_chunks_are_multiples_of_64_tokens_on_a_cpu(vocab_size):
    rows = choices_for(CPU, None).head_rows(vocab_size)
    assert rows >= 64
    assert rows % 64 == 0
    assert rows == 64 or rows * vocab_size <= 2**20


@pytest.mark.parametrize(
    ("memory_gib", "vocab_size", "rows"),
    [(None, 49_152, 8192), (16, 49_152, 8192), (24, 49_152, 8192), (141, 49_152, 8192), (141, 8192, 40_960)],
)
def test_chunks_are_8192_tokens_or_more_on_a_gpu_by_its_memory(memory_gib, vocab_size, rows):
    memory_bytes = None if memory_gib is None else memory_gib * 2**30
    gpu = Device(kind="cuda", name="a GPU", compute_capability=(9, 0), memory_bytes=memory_bytes)
    assert choices_for(gpu, torch.bfloat16).head_rows(vocab_size) == rows


def test_nothing_is_kept_without_a_gradient(inputs, cross_entropy_sum):
    with torch.no_grad():
        total = cross_entropy_sum(*inputs)
    assert not total.requires_grad
    torch.testing.assert_close(total, exact(*inputs).float())
