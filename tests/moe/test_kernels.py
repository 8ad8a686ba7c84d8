"""The C kernels, for every kind of processor that they are built for, against plain float64 and torch."""

# B batch, T time, N tokens, R or S rows, D model, J = H + G query and key heads, C head dimension, F expert width

import ctypes
import importlib.util

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional

from moe import kernels
from moe.attention import Attention
from moe.config import ModelConfig
from moe.expert_products import BlockedProducts, BufferPool, Weights
from moe.experts import mixture_of_experts
from moe.loss import cross_entropy_sum
from moe.norm import RmsNorm
from moe.rotary import Rotary, positioned_heads
from moe.swiglu import swiglu, swiglu_backward
from tests.moe.kernel_builds import SOURCES, build, load_from

EPS = 1e-6
ROUNDING = 5e-7  # relative: fp32 rounds by 6e-8, and errors of tens of terms add up at random
ATTENTION_ROUNDING = 3e-6  # with four products around it, and scores of up to 8 in an exponent


@pytest.fixture(params=["avx512 and amx", "avx512", "avx2"])
def called(request, monkeypatch):
    """The names of the kernels that a test has called (but for products), for one kind of processor."""
    installed = importlib.util.find_spec("moe.kernels._compiled")
    width, _, tiles = request.param.partition(" and ")
    monkeypatch.setattr(kernels, "_WIDTHS", {width: kernels._WIDTHS[width]})
    monkeypatch.setattr(kernels, "_TILES", kernels._TILES if tiles else 0)
    loaded = load_from(installed and installed.origin)
    if loaded.found != request.param:
        pytest.skip(f"kernels here are for {loaded.found}")
    names = set()

    def named(name):
        if name != "multiply":
            names.add(name)
        return loaded.functions[name]

    monkeypatch.setattr(kernels, "load", lambda: loaded)
    monkeypatch.setattr(kernels, "_kernel", named)
    return names


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weight(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(7)) + 0.5


def outputs_and_gradients(function, inputs):
    """The outputs, and the gradients of all inputs for some gradient of the outputs."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    grads = [normal(*output.shape, seed=20 + i).to(output.dtype) for i, output in enumerate(outputs)]
    return [output.detach() for output in outputs], torch.autograd.grad(outputs, leaves, grads)


def assert_near(found, wanted, tolerance):
    """Relative to each tensor's own norm, or to the largest of theirs where it is zero but for rounding."""
    norms = [float(tensor.double().norm()) for tensor in wanted]
    for a, b, size in zip(found, wanted, norms, strict=True):
        assert a.isfinite().all()
        assert float((a.double() - b).norm()) <= tolerance * (size if size > 1e-5 * max(norms) else max(norms))


def assert_equal(function, plain, inputs, *, tolerance=ROUNDING):
    """Outputs and gradients with kernels equal those in float64, and those of torch in fp32."""
    found = outputs_and_gradients(function, inputs)
    exact = outputs_and_gradients(plain, [tensor.double() for tensor in inputs])
    with kernels.switched_off():
        by_torch = outputs_and_gradients(function, inputs)
    for wanted in (exact, by_torch):
        assert_near(found[0], wanted[0], tolerance)
        assert_near(found[1], wanted[1], tolerance)


def test_exponentials_are_within_two_units_in_the_last_place(tmp_path):
    source = tmp_path / "exponentials.c"
    source.write_text("""
        #include "exponential.h"
        void exponentials(const float *x, float *out, int64_t n) { while (n--) *out++ = exponential(*x++); }
    """)
    library = ctypes.CDLL(build(tmp_path / "exponentials.so", [source], "-O3", f"-I{SOURCES}"))
    x = torch.linspace(-87.3, 88.3, 300_001)
    found = torch.empty_like(x)
    library.exponentials(*(ctypes.c_void_p(tensor.data_ptr()) for tensor in (x, found)), ctypes.c_int64(len(x)))
    exact = x.double().exp()
    unit = 2.0 ** (exact.log2().floor() - 23)
    assert float(((found.double() - exact) / unit).abs().max()) < 2
    assert float(((found.double() - exact) / exact).square().mean().sqrt()) < 2**-24


def norm(x_RD, weight_D):
    return functional_call(RmsNorm(len(weight_D), EPS), {"weight": weight_D}, (x_RD,))


def plain_norm(x, weight):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * weight


@pytest.mark.parametrize("width", [3, 15, 16, 100])
@pytest.mark.parametrize("size", [1.0, 1e4, 1e-4])
def test_a_norm_equals_float64(called, width, size):
    assert_equal(norm, plain_norm, [size * normal(37, width), weight(width)])
    assert called == {"rms_norm", "rms_norm_backward"}


@pytest.mark.parametrize("shape", [(5, 7), (5, 9), (2, 5, 8)])
def test_rows_of_another_width_than_the_norms_are_refused(called, shape):
    with pytest.raises(AssertionError, match="expected rows of"):
        norm(torch.zeros(shape), weight(8))


@pytest.mark.parametrize(("n_positions", "n_weights"), [(4, 3), (5, 2)])
def test_tables_or_weights_of_other_heads_are_refused(called, n_positions, n_weights):
    tables = Rotary(8, 10_000.0)(n_positions, torch.device("cpu"))
    with pytest.raises(AssertionError, match=r"expected (5 positions|weights of 3 heads)"):
        kernels.normalise_and_rotate(normal(2, 5, 3, 8), weight(n_weights, 8), tables, EPS)


def turned(x_BTJC, weight_JC):
    """Plainly: normalised, weighted, and turned by position; and the values."""
    n_qk, half = len(weight_JC), x_BTJC.shape[-1] // 2
    cos, sin = (table[:, None] for table in Rotary(2 * half, 10_000.0)(x_BTJC.shape[1], x_BTJC.device))
    first, second = plain_norm(x_BTJC[:, :, :n_qk], weight_JC).chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1), x_BTJC[:, :, n_qk:]


def positioned(x_BTHC, weight_JC):
    tables = Rotary(x_BTHC.shape[-1], 10_000.0)(x_BTHC.shape[1], x_BTHC.device)
    return positioned_heads(x_BTHC, weight_JC, tables, EPS)


@pytest.mark.parametrize("shape", [(1, 1, 3, 2), (2, 33, 8, 24), (3, 5, 6, 64)])
def test_positioned_heads_equal_float64(called, shape):
    n_qk = shape[2] - 2
    assert_equal(positioned, turned, [normal(*shape), weight(n_qk, shape[3])])
    assert called == {"normalise_and_rotate", "normalise_and_rotate_backward"}


@pytest.mark.parametrize("n_rows", [1, 2])
def test_heads_take_a_gradient_that_is_one_number_for_all(called, n_rows):
    """A sum's gradient has no rows in memory: strides of zero."""
    x_BTHC = normal(n_rows, 5, 4, 8).requires_grad_()
    (found,) = torch.autograd.grad(positioned(x_BTHC, weight(3, 8))[0].sum(), x_BTHC)
    (wanted,) = torch.autograd.grad(turned(x_BTHC, weight(3, 8))[0].sum(), x_BTHC)
    torch.testing.assert_close(found, wanted)


def make_attention(n_heads, n_kv_heads, head_dim):
    """A module, its parameters such that attention is not uniform, and itself as a function of input and parameters."""
    config = ModelConfig(
        vocab_size=8,
        d_model=n_heads * head_dim,
        n_layers=1,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        d_expert=8,
        n_experts=2,
        top_k=1,
    )
    module = Attention(config, generator=torch.Generator().manual_seed(0))
    parameters = {name: weight(*p.shape) if "norm" in name else 5 * p.detach() for name, p in module.named_parameters()}

    def attend(x_BTD, *values):
        tables = Rotary(head_dim, 10_000.0)(x_BTD.shape[1], x_BTD.device)
        x_ND = x_BTD.flatten(0, 1)
        return functional_call(module, dict(zip(parameters, values, strict=True)), (x_ND, tables, None))

    def plain(x_BTD, *values):
        w = dict(zip(parameters, values, strict=True))
        b, t, _ = x_BTD.shape
        x_BTHC = torch.cat([(x_BTD @ w[f"{name}_proj.weight"].T) for name in "qkv"], dim=-1).view(b, t, -1, head_dim)
        weight_JC = torch.cat((w["q_norm.weight"].expand(n_heads, -1), w["k_norm.weight"].expand(n_kv_heads, -1)))
        qk_BTJC, v_BTGC = turned(x_BTHC, weight_JC)
        q_BTHC, k_BTGC = qk_BTJC.split([n_heads, n_kv_heads], dim=2)
        k_BTHC, v_BTHC = (part.repeat_interleave(n_heads // n_kv_heads, dim=2) for part in (k_BTGC, v_BTGC))
        scores_BHTT = torch.einsum("bthc,bshc->bhts", q_BTHC, k_BTHC) / head_dim**0.5
        future_TT = torch.ones(t, t, dtype=torch.bool).triu(1)
        weights_BHTT = scores_BHTT.masked_fill(future_TT, float("-inf")).softmax(-1)
        return torch.einsum("bhts,bshc->bthc", weights_BHTT, v_BTHC).reshape(b * t, -1) @ w["o_proj.weight"].T

    return attend, plain, list(parameters.values())


ATTENTION = {"attention", "attention_backward", "normalise_and_rotate", "normalise_and_rotate_backward"}


@pytest.mark.parametrize("heads", [(4, 4, 32), (4, 2, 32), (3, 1, 64), (2, 1, 96)], ids=str)
@pytest.mark.parametrize(("n_rows", "length"), [(1, 1), (3, 1), (2, 31), (3, 32), (2, 33), (1, 100)])
def test_attention_equals_float64(called, heads, n_rows, length):
    attend, plain, parameters = make_attention(*heads)
    inputs = [normal(n_rows, length, heads[0] * heads[2]), *parameters]
    assert_equal(attend, plain, inputs, tolerance=ATTENTION_ROUNDING)
    assert called == ATTENTION


@pytest.mark.parametrize("length", [33, 70])
def test_a_token_changes_nothing_before_it(called, length):
    attend, _, parameters = make_attention(4, 2, 32)
    x_BTD = normal(2, length, 128)
    before = attend(x_BTD, *parameters).view(2, length, -1)
    for t in (1, 31, 32, length - 1):
        changed = x_BTD.clone()
        changed[:, t] = normal(2, 128, seed=t)
        after = attend(changed, *parameters).view(2, length, -1)
        assert torch.equal(after[:, :t], before[:, :t])
        assert not torch.equal(after[:, t], before[:, t])


@pytest.mark.parametrize("t", [1, 31, 32, 40])
def test_what_comes_before_a_token_has_no_gradient_of_it(called, t):
    attend, _, parameters = make_attention(4, 2, 32)
    x_BTD = normal(2, 45, 128).requires_grad_()
    attend(x_BTD, *parameters).view(2, 45, -1)[:, :t].square().sum().backward()
    assert x_BTD.grad[:, t:].count_nonzero() == 0
    assert x_BTD.grad[:, :t].count_nonzero() == x_BTD[:, :t].numel()


def plain_swiglu(gate_up):
    gate, up = gate_up.chunk(2, dim=1)
    return functional.silu(gate) * up


def swiglu_and_gradients(gate_up_SH, grad_SF):
    """The activation of both passes, what was kept for the second, and the gradient of gate and up."""
    acts = torch.empty_like(grad_SF), torch.empty_like(grad_SF)
    kept_SH, grad_gate_up_SH = torch.empty_like(gate_up_SH), torch.empty_like(gate_up_SH)
    swiglu(gate_up_SH, out_SF=acts[0], kept_SH=kept_SH)
    swiglu_backward(gate_up_SH, grad_SF.clone(), act_SF=acts[1], grad_gate_up_SH=grad_gate_up_SH)
    return *acts, kept_SH, grad_gate_up_SH


@pytest.mark.parametrize("width", [1, 17, 24, 64])
@pytest.mark.parametrize("size", [1.0, 1e3, 1e-4])
def test_swiglu_equals_float64(called, width, size):
    gate_up_SH, grad_SF = size * normal(19, 2 * width), normal(19, width, seed=1)
    found = swiglu_and_gradients(gate_up_SH, grad_SF)
    assert called == {"swiglu", "swiglu_backward"}
    exact_SH = gate_up_SH.double().requires_grad_()
    exact_SF = plain_swiglu(exact_SH)
    (exact_grad_SH,) = torch.autograd.grad(exact_SF, exact_SH, grad_SF.double())
    assert_near(found, (exact_SF.detach(), exact_SF.detach(), gate_up_SH, exact_grad_SH), ROUNDING)
    with kernels.switched_off():
        assert_near(found, swiglu_and_gradients(gate_up_SH, grad_SF), ROUNDING)


@pytest.mark.parametrize("gate", [-1e4, -1e3, -104.0, -88.5, 0.0, 88.5, 1e3, 1e4])
def test_swiglu_of_an_extreme_gate_is_finite_and_right(called, gate):
    gate_up_SH = torch.cat((torch.full((2, 20), gate), normal(2, 20)), dim=1)
    act_SF, again_SF, _, grad_SH = swiglu_and_gradients(gate_up_SH, torch.ones(2, 20))
    exact_SH = gate_up_SH.double().requires_grad_()
    exact_SF = plain_swiglu(exact_SH)
    (exact_grad_SH,) = torch.autograd.grad(exact_SF.sum(), exact_SH)
    for found, wanted in ((act_SF, exact_SF), (again_SF, exact_SF), (grad_SH, exact_grad_SH)):
        torch.testing.assert_close(found, wanted.float(), rtol=1e-6, atol=1e-30)  # exp(-87) is 1.6e-38


def mixture(experts_NK):
    """The experts' weighted sum as a function of tokens and weights, and plainly."""

    def experts(x_ND, weights_NK, gate_up_EHD, down_EDF):
        counts_E = torch.bincount(experts_NK.flatten(), minlength=len(down_EDF))
        products = BlockedProducts(16, BufferPool())
        weights = Weights(gate_up_EHD, down_EDF)
        return mixture_of_experts(x_ND, weights_NK, experts_NK, counts_E, weights, products, x_ND.dtype)

    def plain(x_ND, weights_NK, gate_up_EHD, down_EDF):
        hidden = torch.einsum("ehd,nd->enh", gate_up_EHD, x_ND).flatten(0, 1)
        out_END = torch.einsum("edf,enf->end", down_EDF, plain_swiglu(hidden).unflatten(0, (len(down_EDF), -1)))
        out_NKD = out_END[experts_NK, torch.arange(len(x_ND))[:, None]]
        return (weights_NK[:, :, None] * out_NKD).sum(dim=1)

    return experts, plain


@pytest.mark.parametrize("routing", ["an idle expert", "all on one"])
@pytest.mark.parametrize(("d_model", "d_expert"), [(24, 40), (33, 7)])
def test_a_mixture_of_experts_equals_float64(called, routing, d_model, d_expert):
    experts_NK = torch.full((150, 1), 3) if routing == "all on one" else normal(150, 4).argsort(dim=1)[:, :2]
    inputs = [
        normal(150, d_model),
        weight(*experts_NK.shape),
        normal(5, 2 * d_expert, d_model) / d_model**0.5,
        normal(5, d_model, d_expert) / d_expert**0.5,
    ]
    assert_equal(*mixture(experts_NK), inputs, tolerance=2 * ROUNDING)
    assert called == {"swiglu", "swiglu_backward", "gradient_of_rows"}


def cross_entropy_of(targets_N):
    def plain(x_ND, weight_VD):
        return functional.cross_entropy(x_ND @ weight_VD.T, targets_N, reduction="sum")

    return lambda x_ND, weight_VD: cross_entropy_sum(x_ND, weight_VD, targets_N), plain


@pytest.mark.parametrize("n_words", [1, 2, 15, 16, 17, 100])
def test_a_cross_entropy_equals_float64(called, n_words):
    targets_N = torch.arange(70) * 7 % n_words
    assert_equal(*cross_entropy_of(targets_N), [normal(70, 24), normal(n_words, 24)], tolerance=2 * ROUNDING)
    assert called == {"cross_entropy"}


@pytest.mark.parametrize("size", [1e4, 1e-4, 0.0])
def test_a_cross_entropy_of_large_and_small_logits_equals_float64(called, size):
    """Logits are the weights themselves, without a rounding, where tokens are rows of the identity."""
    logits_NV = size * normal(37, 37)
    assert_equal(*cross_entropy_of(torch.arange(37).flip(0)), [torch.eye(37), logits_NV.T.contiguous()])


def test_large_logits_that_differ_little_keep_their_cross_entropy(called):
    logits_NV = 1e4 + torch.arange(20.0).repeat(20, 1) / 8
    function, plain = cross_entropy_of(torch.arange(20))
    found, _ = outputs_and_gradients(function, [torch.eye(20), logits_NV.T.contiguous()])
    exact, _ = outputs_and_gradients(plain, [torch.eye(20).double(), logits_NV.T.double()])
    assert_near(found, exact, ROUNDING)


@pytest.mark.parametrize("target", [-100, -1, 17])
def test_a_target_that_is_no_word_is_refused(called, target):
    with pytest.raises(IndexError, match=f"target {target} is not in a vocabulary of 17"):
        cross_entropy_sum(normal(3, 8), normal(17, 8), torch.tensor([4, target, 5]))


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("at", [0, 15, 16, 31, 32, 36])
def test_a_number_that_is_not_finite_never_comes_out_as_finite_ones(called, poison, at):
    x_RD = normal(37, 64)
    x_RD[at, at] = poison
    attend, _, parameters = make_attention(2, 1, 32)
    acts = swiglu_and_gradients(x_RD, torch.ones(37, 32))
    shown = {
        "norm": norm(x_RD, weight(64))[at],
        "heads": positioned(x_RD.view(1, 37, 2, 32), weight(2, 32))[0][0, at],
        "attention": attend(x_RD[None], *parameters)[at],
        "activation": acts[0][at],
        "activation again": acts[1][at],
        "cross-entropy": cross_entropy_sum(x_RD, normal(17, 64), torch.zeros(37, dtype=torch.int64)),
    }
    assert [name for name, values in shown.items() if values.isfinite().all()] == []


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("at", [0, 15, 16, 31, 32, 36])
def test_a_gradient_that_is_not_finite_never_comes_out_as_finite_ones(called, poison, at):
    attend, _, parameters = make_attention(2, 1, 32)
    x_RD, grad_RD = normal(37, 64).requires_grad_(), normal(37, 64)
    grad_RD[at, at] = poison
    experts, _ = mixture(torch.zeros(37, 1, dtype=torch.int64))
    outputs = {
        "norm": norm(x_RD, weight(64)),
        "heads": positioned(x_RD.view(1, 37, 2, 32), weight(2, 32))[0].view(37, 64),
        "attention": attend(x_RD[None], *parameters),
        "experts": experts(x_RD, weight(37, 1), normal(1, 16, 64), normal(1, 64, 8)),
    }
    grads = {name: torch.autograd.grad(output, x_RD, grad_RD)[0][at] for name, output in outputs.items()}
    assert [name for name, grad in grads.items() if grad.isfinite().all()] == []


@pytest.mark.parametrize("part", ["query", "key", "value"])
@pytest.mark.parametrize("at", [0, 31, 32, 39])
def test_attention_to_a_nan_is_nan(called, part, at):
    qk_BTJC, v_BTGC = normal(1, 40, 2, 32), normal(1, 40, 1, 32)
    {"query": qk_BTJC[:, :, 0], "key": qk_BTJC[:, :, 1], "value": v_BTGC[:, :, 0]}[part][0, at, 5] = float("nan")
    out_BTHC, log_sum_BTH = kernels.attention(qk_BTJC, v_BTGC, 1)
    reached = slice(at, at + 1 if part == "query" else None)
    assert out_BTHC[0, reached, :, 5].isnan().all()
    assert part == "value" or log_sum_BTH[0, reached].isnan().all()


def test_scores_far_apart_attend_to_the_largest_alone(called):
    """Scores of up to 1e4 and more: unnormalised queries, as no model has them."""
    qk_BTJC, v_BTGC = 100 * normal(2, 45, 3, 32), normal(2, 45, 1, 32)
    out_BTHC, log_sum_BTH = kernels.attention(qk_BTJC, v_BTGC, 2)
    grads = kernels.attention_backward(torch.ones_like(out_BTHC), qk_BTJC, v_BTGC, out_BTHC, log_sum_BTH)
    q_BHTC, k_BGTC = qk_BTJC.double().transpose(1, 2).split([2, 1], dim=1)
    exact_BHTC = functional.scaled_dot_product_attention(
        q_BHTC, k_BGTC, v_BTGC.double().transpose(1, 2), is_causal=True, enable_gqa=True
    )
    assert_near([out_BTHC], [exact_BHTC.transpose(1, 2)], 1e-3)  # fp32 has scores of 1e4 within 1e-3
    assert all(grad.isfinite().all() for grad in grads)
