# N tokens, D model, E experts, K top-k

import pytest
import torch

from moe.initial_weights import draw_weights
from moe.router import Router, load_balancing_loss

N, D, E, K = 50, 16, 6, 2


@pytest.fixture
def router():
    router = Router(D, E, K)
    draw_weights(router, seed=0, std=0.5, n_layers=1)
    return router


@pytest.fixture
def x_ND():
    return torch.randn(N, D, generator=torch.Generator().manual_seed(1))


def test_weights_are_the_best_probabilities_renormalised(router, x_ND):
    routing = router(x_ND)
    probs_NE = (x_ND @ router.weight.T).softmax(dim=-1)
    top_NK, experts_NK = probs_NE.topk(K, dim=-1)
    assert torch.equal(routing.experts_NK, experts_NK)
    torch.testing.assert_close(routing.weights_NK, top_NK / top_NK.sum(dim=-1, keepdim=True))
    torch.testing.assert_close(routing.probs_sum_E, probs_NE.sum(dim=0))


def test_counts_are_slots_per_expert(router, x_ND):
    routing = router(x_ND)
    assert routing.counts_E.tolist() == torch.bincount(routing.experts_NK.flatten(), minlength=E).tolist()
    assert int(routing.counts_E.sum()) == N * K
    assert not routing.counts_E.requires_grad


def test_routing_is_fp32_under_autocast(router, x_ND):
    plain = router(x_ND)
    with torch.autocast("cpu", torch.bfloat16):
        routing = router(x_ND)
    assert torch.equal(routing.weights_NK, plain.weights_NK)
    assert routing.z_sum.dtype == torch.float32
    assert torch.equal(routing.z_sum, plain.z_sum)


def test_load_balancing_loss_is_one_when_balanced_and_e_when_collapsed():
    uniform = torch.full((E,), N / E)
    collapsed = torch.zeros(E).index_fill(0, torch.tensor([2]), float(N))
    assert load_balancing_loss(torch.full((E,), 10), uniform, N) == pytest.approx(1.0)
    assert load_balancing_loss(collapsed.long() * K, collapsed, N) == pytest.approx(E)


def test_entropy_is_between_zero_and_that_of_uniform_routing(router, x_ND):
    entropy = float(router(x_ND).entropy_sum) / N
    assert 0 < entropy < torch.tensor(float(E)).log()
    with torch.no_grad():
        router.weight.zero_()
    assert float(router(x_ND).entropy_sum) / N == pytest.approx(float(torch.tensor(float(E)).log()))


def test_load_balancing_gradient_flows_through_probabilities_only(router, x_ND):
    routing = router(x_ND)
    loss = load_balancing_loss(routing.counts_E, routing.probs_sum_E, N)
    (gradient,) = torch.autograd.grad(loss, router.weight)
    probs_NE = (x_ND @ router.weight.T).softmax(dim=-1)
    frequency_E = routing.counts_E / (N * K)
    (expected,) = torch.autograd.grad(E * (frequency_E * probs_NE.mean(dim=0)).sum(), router.weight)
    torch.testing.assert_close(gradient, expected)
