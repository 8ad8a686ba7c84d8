# B batch, T time, D model, H query heads, G key and value heads, C head dimension

import pytest
import torch
from torch.nn import functional

from moe.attention import Attention, document_mask
from moe.config import ModelConfig
from moe.device import Device
from moe.device_choices import choices_for
from moe.initial_weights import draw_weights
from moe.norm import RmsNorm
from moe.rotary import Rotary

B, T, D = 3, 20, 32
ON_CPU = choices_for(Device(kind="cpu"), None)


def make_attention(n_kv_heads=4):
    config = ModelConfig(
        vocab_size=8, d_model=D, n_layers=1, n_heads=4, n_kv_heads=n_kv_heads, d_expert=8, n_experts=2, top_k=1
    )
    attention = Attention(config)
    draw_weights(attention, seed=0, std=config.init_std, n_layers=config.n_layers)
    with torch.no_grad():
        for norm in (attention.q_norm, attention.k_norm):
            norm.weight.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(2))
        for weight in (attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight):
            weight.mul_(10)  # attention that is not uniform
    return attention


def exact_attention(attention, x_ND, b, t):
    """Written out in float64: Qwen3's attention, one query at a time."""

    def norm(x, weight):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight

    def turn(x, position):
        half = x.shape[-1] // 2
        angle = position / 10_000.0 ** (torch.arange(half, dtype=torch.float64) / half)
        first, second = x[..., :half], x[..., half:]
        return torch.cat(
            (first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()), dim=-1
        )

    weights = {name: parameter.double() for name, parameter in attention.named_parameters()}
    c = attention.head_dim
    q, k, v = ((x_ND @ weights[f"{name}_proj.weight"].T).view(b, t, -1, c) for name in "qkv")
    q, k = norm(q, weights["q_norm.weight"]), norm(k, weights["k_norm.weight"])
    group = attention.n_heads // attention.n_kv_heads
    out = torch.zeros(b, t, attention.n_heads, c, dtype=torch.float64)
    for i in range(t):
        for h in range(attention.n_heads):
            keys = torch.stack([turn(k[:, j, h // group], j) for j in range(i + 1)], dim=1)
            scores = (keys @ turn(q[:, i, h], i)[:, :, None])[:, :, 0] / c**0.5
            out[:, i, h] = (scores.softmax(dim=-1)[:, :, None] * v[:, : i + 1, h // group]).sum(dim=1)
    return out.reshape(b * t, -1) @ weights["o_proj.weight"].T


def run(attention, x_ND, mask=None, t=T, choices=ON_CPU):
    return attention(x_ND, Rotary(attention.head_dim, 10_000.0)(t, x_ND.device), mask, choices)


@pytest.mark.parametrize("n_kv_heads", [4, 2, 1])
def test_values_and_gradients_equal_attention_written_out_in_float64(n_kv_heads):
    attention = make_attention(n_kv_heads)
    generator = torch.Generator().manual_seed(1)
    x_ND = torch.randn(B * T, D, generator=generator, requires_grad=True)
    grad_ND = torch.randn(B * T, D, generator=generator)
    leaves = [x_ND, *attention.parameters()]
    found = run(attention, x_ND)
    wanted = exact_attention(attention, x_ND.double(), B, T)
    assert float((found - wanted).detach().norm() / wanted.detach().norm()) < 2e-6
    found_grads = torch.autograd.grad(found, leaves, grad_ND)
    for a, b in zip(found_grads, torch.autograd.grad(wanted, leaves, grad_ND.double()), strict=True):
        assert float((a - b).norm() / b.norm()) < 5e-6  # fp32, through a softmax of large scores


def test_bf16_products_leave_attention_itself_in_fp32():
    attention = make_attention()
    x_ND = torch.randn(B * T, D, generator=torch.Generator().manual_seed(1))
    plain = run(attention, x_ND)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = run(attention, x_ND)
    assert float((mixed - plain).detach().norm() / plain.detach().norm()) < 3e-2  # some roundings of 2^-9 each


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16)])
def test_under_autocast_a_gpu_attends_in_16_bits_and_without_it_in_fp32(monkeypatch, capability, dtype):
    """Flash and cuDNN kernels take 16 bits only."""
    types, attend = [], functional.scaled_dot_product_attention
    monkeypatch.setattr(
        functional,
        "scaled_dot_product_attention",
        lambda q, k, v, **options: types.append({q.dtype, k.dtype, v.dtype}) or attend(q, k, v, **options),
    )
    choices = choices_for(Device(kind="cuda", name="a GPU", compute_capability=capability), dtype)
    attention, x_ND = make_attention(), torch.randn(B * T, D, generator=torch.Generator().manual_seed(1))
    plain = run(attention, x_ND, choices=choices)
    with torch.autocast("cpu", dtype):
        mixed = run(attention, x_ND, choices=choices)
    assert types == [{torch.float32}, {dtype}]
    assert float((mixed - plain).detach().norm() / plain.detach().norm()) < 3e-2  # some roundings of 2^-9 each


def test_with_document_ids_a_document_is_attended_to_alone():
    attention = make_attention()
    x_ND = torch.randn(T, D, generator=torch.Generator().manual_seed(1))
    ids_BT = torch.tensor([[0] * 7 + [1] * 13])
    together = run(attention, x_ND, document_mask(ids_BT))
    alone = run(attention, x_ND[:7], t=7)
    torch.testing.assert_close(together[:7], alone, rtol=1e-5, atol=1e-6)
    changed = torch.cat((torch.zeros_like(x_ND[:7]), x_ND[7:]))
    assert torch.equal(run(attention, changed, document_mask(ids_BT))[7:], together[7:])


def test_one_document_masks_as_plain_causality_does():
    attention = make_attention()
    x_ND = torch.randn(B * T, D, generator=torch.Generator().manual_seed(1))
    ids_BT = torch.zeros(B, T, dtype=torch.int64)
    torch.testing.assert_close(run(attention, x_ND, document_mask(ids_BT)), run(attention, x_ND), rtol=1e-4, atol=1e-6)


def test_rotary_tables_are_fp32_and_as_long_as_asked_and_never_saved():
    rotary = Rotary(8, 10_000.0)
    short, long = rotary(4, torch.device("cpu")), rotary(64, torch.device("cpu"))
    assert [table.shape for table in (*short, *long)] == [(4, 4), (4, 4), (64, 4), (64, 4)]
    assert all(table.dtype == torch.float32 for table in long)
    assert torch.equal(rotary(4, torch.device("cpu"))[0], short[0])
    assert not rotary.state_dict()


def test_rms_norm_equals_torch_in_value_and_gradient():
    norm = RmsNorm(D, 1e-6)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5)
    x_ND, grad_ND = torch.randn(40, D, requires_grad=True), torch.randn(40, D)
    wanted = functional.rms_norm(x_ND, (D,), norm.weight, 1e-6)
    found = norm(x_ND)
    torch.testing.assert_close(found, wanted)
    for a, b in zip(
        torch.autograd.grad(found, (x_ND, norm.weight), grad_ND),
        torch.autograd.grad(wanted, (x_ND, norm.weight), grad_ND),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
