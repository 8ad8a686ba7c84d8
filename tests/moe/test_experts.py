"""Experts against a plain loop over tokens and slots in float64."""

# N tokens, D model, F expert width, E experts, K top-k

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from moe.device import Device
from moe.device_choices import choices_for
from moe.expert_products import (
    BlockedProducts,
    BufferPool,
    ExpertByExpertProducts,
    GroupedProducts,
    Weights,
    choose_products,
)
from moe.experts import Experts, dispatch, mixture_of_experts

D, F, E = 24, 40, 5
ON_CPU = choices_for(Device(kind="cpu"), None)


def blocked():
    return BlockedProducts(16, BufferPool())


def experts_with(gate_up, down):
    experts = Experts(E, D, F)
    experts.load_state_dict({"gate_up_proj": gate_up, "down_proj": down})
    return experts


PRODUCTS = {"blocked": blocked, "expert by expert": ExpertByExpertProducts, "grouped": GroupedProducts}


def choices(name, n_tokens, generator):
    """Experts of every token [N, 2], and weights that sum to one."""
    if name == "all on one":
        experts_NK = torch.full((n_tokens, 1), 3)
    elif name == "one is empty":
        experts_NK = torch.rand(n_tokens, E - 1, generator=generator).argsort(dim=1)[:, :2]  # never the last
    else:
        experts_NK = torch.rand(n_tokens, E, generator=generator).argsort(dim=1)[:, :2]
    weights_NK = torch.rand(experts_NK.shape, generator=generator) + 0.1
    return experts_NK, weights_NK / weights_NK.sum(dim=1, keepdim=True)


def loop_over_tokens(x_ND, weights_NK, experts_NK, gate_up, down):
    rows = []
    for n, x in enumerate(x_ND):
        total = torch.zeros(down.shape[1], dtype=x.dtype)
        for k, e in enumerate(experts_NK[n].tolist()):
            gate, up = (gate_up[e] @ x).chunk(2)
            total = total + weights_NK[n, k] * (down[e] @ (functional.silu(gate) * up))
        rows.append(total)
    return torch.stack(rows)


def run(products, inputs, experts_NK, grad_ND, dtype=torch.float32):
    x_ND, weights_NK, gate_up, down = (tensor.clone().requires_grad_() for tensor in inputs)
    counts_E = torch.bincount(experts_NK.flatten(), minlength=E)
    out = mixture_of_experts(x_ND, weights_NK, experts_NK, counts_E, Weights(gate_up, down), products, dtype)
    return out, torch.autograd.grad(out, (x_ND, weights_NK, gate_up, down), grad_ND)


def make_inputs(name, n_tokens=150, seed=0):
    generator = torch.Generator().manual_seed(seed)
    experts_NK, weights_NK = choices(name, n_tokens, generator)
    x_ND = torch.randn(n_tokens, D, generator=generator)
    gate_up = torch.randn(E, 2 * F, D, generator=generator) / D**0.5
    down = torch.randn(E, D, F, generator=generator) / F**0.5
    return (x_ND, weights_NK, gate_up, down), experts_NK, torch.randn(n_tokens, D, generator=generator)


def relative(found, exact):
    return float((found.detach().double() - exact.detach()).norm() / exact.detach().norm())


@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize("routing", ["spread", "one is empty", "all on one"])
def test_forward_and_every_gradient_equal_a_float64_loop(products, routing):
    inputs, experts_NK, grad_ND = make_inputs(routing)
    exact_inputs = [tensor.double().requires_grad_() for tensor in inputs]
    exact = loop_over_tokens(exact_inputs[0], exact_inputs[1], experts_NK, exact_inputs[2], exact_inputs[3])
    exact_grads = torch.autograd.grad(exact, exact_inputs, grad_ND.double())
    out, grads = run(PRODUCTS[products](), inputs, experts_NK, grad_ND)
    assert out.dtype == torch.float32
    # fp32 sums of up to a hundred terms; the issue asks for 1e-5 and 1e-4.
    assert relative(out, exact) < 1e-6
    for found, wanted in zip(grads, exact_grads, strict=True):
        assert relative(found, wanted) < 2e-6


@pytest.mark.parametrize("products", PRODUCTS)
def test_an_expert_without_tokens_gets_zero_gradients_not_none(products):
    inputs, experts_NK, grad_ND = make_inputs("one is empty")
    _, (_, _, grad_gate_up, grad_down) = run(PRODUCTS[products](), inputs, experts_NK, grad_ND)
    assert grad_gate_up[E - 1].count_nonzero() == 0
    assert grad_down[E - 1].count_nonzero() == 0
    assert all(grad_down[e].count_nonzero() > 0 for e in range(E - 1))


def test_segments_longer_than_a_block_are_worked_on_in_blocks(monkeypatch):
    inputs, experts_NK, grad_ND = make_inputs("all on one", n_tokens=300)
    whole_out, whole_grads = run(blocked(), inputs, experts_NK, grad_ND)
    monkeypatch.setattr("moe.expert_products.BLOCK_BYTES", 1)  # blocks of 64 rows, the fewest
    out, grads = run(blocked(), inputs, experts_NK, grad_ND)
    assert torch.equal(out, whole_out)
    for found, wanted in zip(grads, whole_grads, strict=True):
        assert relative(found, wanted.double()) < 1e-6  # a sum over rows in another order


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
@pytest.mark.parametrize("products", PRODUCTS)
def test_low_precision_products_keep_fp32_outputs_and_weight_gradients(products, dtype, tolerance):
    """A few roundings of 2^-9 (bf16) or 2^-12 (fp16) relative each, added at random."""
    inputs, experts_NK, grad_ND = make_inputs("spread")
    exact_out, exact_grads = run(blocked(), inputs, experts_NK, grad_ND)
    out, grads = run(PRODUCTS[products](), inputs, experts_NK, grad_ND, dtype)
    assert relative(out, exact_out.double()) < tolerance
    for found, wanted in zip(grads, exact_grads, strict=True):
        assert found.dtype == torch.float32
        assert relative(found, wanted.double()) < tolerance


@pytest.mark.parametrize("products", PRODUCTS)
def test_an_expert_that_would_overflow_on_a_token_it_does_not_get_has_finite_gradients(products):
    """Rows are padded with the first token, which is beyond fp16 in the second expert alone."""
    x_ND, gate_up = torch.ones(3, 8), torch.full((E, 16, 8), 1e-3)
    x_ND[0] = 300.0
    gate_up[1] = 0.2
    inputs = (x_ND, torch.ones(3, 1), gate_up, torch.full((E, 8, 8), 0.01))
    out, grads = run(PRODUCTS[products](), inputs, torch.tensor([[0], [1], [0]]), torch.ones(3, 8), torch.float16)
    assert out.isfinite().all()
    assert all(grad.isfinite().all() for grad in grads)
    assert grads[3][1].count_nonzero() > 0


@pytest.mark.parametrize("products", PRODUCTS)
def test_the_same_inputs_give_the_same_bits(products):
    inputs, experts_NK, grad_ND = make_inputs("spread")
    implementation = PRODUCTS[products]()
    first_out, first_grads = run(implementation, inputs, experts_NK, grad_ND)
    second_out, second_grads = run(implementation, inputs, experts_NK, grad_ND)
    assert torch.equal(first_out, second_out)
    assert all(torch.equal(a, b) for a, b in zip(first_grads, second_grads, strict=True))


@pytest.mark.parametrize(("row_multiple", "least_rows"), [(1, 0), (16, 0), (8, 1)])
def test_dispatch_sorts_slots_stably_and_pads_segments(row_multiple, least_rows):
    experts_NK = torch.tensor([[2, 0], [0, 2], [2, 0], [0, 4]])
    counts_E = torch.bincount(experts_NK.flatten(), minlength=E)
    plan = dispatch(experts_NK, counts_E, row_multiple=row_multiple, least_rows=least_rows)
    starts = [0, *plan.ends_E.tolist()[:-1]]
    tokens_of = {e: plan.token_R[starts[e] : starts[e] + int(counts_E[e])].tolist() for e in range(E)}
    assert tokens_of == {0: [0, 1, 2, 3], 1: [], 2: [0, 1, 2], 3: [], 4: [3]}
    assert all(end % row_multiple == 0 for end in plan.ends_E.tolist())
    assert int(plan.ends_E[-1]) <= len(plan.token_R)
    for n, k in ((n, k) for n in range(4) for k in range(2)):
        assert plan.token_R[plan.row_NK[n, k]] == n


def test_grouped_experts_never_make_the_host_wait():
    """Fake tensors hold no numbers: any read of one on the host raises. (The blocked way reads segment ends.)"""
    with FakeTensorMode():
        inputs = [torch.empty(64, D), torch.empty(64, 2), torch.empty(E, 2 * F, D), torch.empty(E, D, F)]
        experts_NK = torch.zeros(64, 2, dtype=torch.int64)
        x_ND, weights_NK, *weights = (tensor.requires_grad_() for tensor in inputs)
        counts_E = torch.zeros(E, dtype=torch.int64)
        out = mixture_of_experts(
            x_ND, weights_NK, experts_NK, counts_E, Weights(*weights), GroupedProducts(), torch.bfloat16
        )
        out.sum().backward()
        assert x_ND.grad is not None


def gpu(*capability):
    return choices_for(Device(kind="cuda", name="a GPU", compute_capability=capability), torch.bfloat16)


@pytest.mark.parametrize(
    ("choices", "dtype", "way"),
    [
        (choices_for(Device(kind="cpu"), None), torch.float32, BlockedProducts),
        (choices_for(Device(kind="cpu"), torch.bfloat16), torch.bfloat16, BlockedProducts),
        (gpu(9, 0), torch.bfloat16, GroupedProducts),
        (gpu(10, 0), torch.bfloat16, GroupedProducts),
        (gpu(9, 0), torch.float16, ExpertByExpertProducts),
        (gpu(9, 0), torch.float32, ExpertByExpertProducts),
        (gpu(8, 0), torch.bfloat16, ExpertByExpertProducts),
        (gpu(12, 0), torch.bfloat16, ExpertByExpertProducts),
        (gpu(7, 5), torch.float16, ExpertByExpertProducts),
    ],
)
def test_the_way_is_chosen_by_capability_and_type(choices, dtype, way):
    assert isinstance(choose_products(choices, dtype, BufferPool()), way)


def test_widths_that_a_grouped_product_cannot_take_go_expert_by_expert():
    pool = BufferPool()
    assert isinstance(choose_products(gpu(9, 0), torch.bfloat16, pool, (384, 1536)), GroupedProducts)
    assert isinstance(choose_products(gpu(9, 0), torch.bfloat16, pool, (384, 1532)), ExpertByExpertProducts)


def test_expert_by_expert_the_host_reads_once_for_forward_and_backward(monkeypatch):
    reads = []
    monkeypatch.setattr("moe.expert_products.read_on_host", lambda ends: reads.append(1) or ends.tolist())
    inputs, experts_NK, grad_ND = make_inputs("spread")
    run(ExpertByExpertProducts(), inputs, experts_NK, grad_ND)
    assert reads == [1]


def test_pre_activations_reuse_the_memory_of_the_step_before():
    inputs, experts_NK, _ = make_inputs("spread")
    x_ND, weights_NK, gate_up, down = inputs
    experts = experts_with(gate_up, down)
    counts_E = torch.bincount(experts_NK.flatten(), minlength=E)
    experts(x_ND, weights_NK, experts_NK, counts_E, ON_CPU).sum().backward()
    (kept,) = experts._pool._free
    experts(x_ND, weights_NK, experts_NK, counts_E, ON_CPU).sum().backward()
    assert [buffer.data_ptr() for buffer in experts._pool._free] == [kept.data_ptr()]


def test_backward_after_the_memory_was_given_away_is_refused():
    """Two forward passes with one backward in between share no memory; a backward done twice would, so it raises."""
    inputs, experts_NK, _ = make_inputs("spread")
    x_ND, weights_NK, gate_up, down = inputs
    experts = experts_with(gate_up, down)
    counts_E = torch.bincount(experts_NK.flatten(), minlength=E)
    out = experts(x_ND, weights_NK, experts_NK, counts_E, ON_CPU).sum()
    out.backward(retain_graph=True)
    experts(x_ND + 1, weights_NK, experts_NK, counts_E, ON_CPU)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()
