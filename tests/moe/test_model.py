# B batch, T time, L layers, E experts, V vocabulary

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from moe.config import ModelConfig
from moe.model import MoELanguageModel

CONFIG = ModelConfig(
    vocab_size=60, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_expert=48, n_experts=4, top_k=2, init_std=0.1
)
B, T = 4, 24


def make_model(config=CONFIG, seed=0):
    return MoELanguageModel(config, seed=seed)


@pytest.fixture
def model():
    return make_model()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 60, (2, B, T), generator=generator).unbind()


def gradient(model, total):
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, list(model.parameters()))])


def test_loss_is_the_sum_of_the_logits_cross_entropies(model, batch):
    tokens_BT, targets_BT = batch
    logits_BTV = model(tokens_BT)
    assert logits_BTV.dtype == torch.float32
    expected = functional.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), reduction="none")
    loss = model.loss(tokens_BT, targets_BT)
    assert loss.n_tokens == B * T
    torch.testing.assert_close(loss.ce_sum, expected.sum(), rtol=1e-6, atol=0)
    torch.testing.assert_close(model.token_losses(tokens_BT, targets_BT).flatten(), expected, rtol=1e-5, atol=1e-5)


def test_gradient_of_the_loss_is_that_of_the_logits_cross_entropy(model, batch):
    tokens_BT, targets_BT = batch
    expected = functional.cross_entropy(model(tokens_BT).flatten(0, 1), targets_BT.flatten(), reduction="sum")
    found, wanted = gradient(model, model.loss(tokens_BT, targets_BT).ce_sum), gradient(model, expected)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_token_losses_are_fp32_whatever_autocast_says(model, batch, dtype):
    plain = model.token_losses(*batch)
    with torch.autocast("cpu", dtype):
        assert torch.equal(model.token_losses(*batch), plain)
    assert not plain.requires_grad


def test_a_seed_gives_the_same_model_and_another_seed_another():
    first, second, other = make_model(), make_model(), make_model(seed=1)
    for (name, a), b, c in zip(first.named_parameters(), second.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c) == ("norm" in name)


def test_what_two_models_have_in_common_starts_equal():
    """Each parameter is drawn for itself: a shape that differs shifts no other draw."""
    one = dict(make_model().named_parameters())
    other = dict(make_model(replace(CONFIG, n_experts=6)).named_parameters())
    for name, weight in one.items():
        if "mlp" not in name:
            assert torch.equal(weight, other[name]), name
    name = "layers.0.self_attn.q_proj.weight"
    assert not torch.equal(one[name], one["layers.1.self_attn.q_proj.weight"])
    assert not torch.equal(one[name], make_model(seed=1).get_parameter(name))


def test_initialisation_has_the_documented_spreads():
    model = make_model(replace(CONFIG, d_model=128, d_expert=128, init_std=0.02))
    residual_std = 0.02 / (2 * CONFIG.n_layers) ** 0.5
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert torch.all(parameter == 1)
        else:
            std = residual_std if "o_proj" in name or "down_proj" in name else 0.02
            assert float(parameter.detach().std()) == pytest.approx(std, rel=0.1)  # of at least 512 draws


def test_every_parameter_is_in_exactly_one_weight_group_by_role(model):
    groups = model.weight_groups()
    names = [name for name, _ in groups.muon + groups.adamw]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    by_name = dict(model.named_parameters())
    assert all(by_name[name] is parameter for name, parameter in groups.muon + groups.adamw)
    roles = {name.split(".", 2)[2] for name, _ in groups.muon}
    assert roles == {
        "self_attn.q_proj.weight",
        "self_attn.k_proj.weight",
        "self_attn.v_proj.weight",
        "self_attn.o_proj.weight",
        "mlp.experts.gate_up_proj",
        "mlp.experts.down_proj",
    }


def test_counts_and_entropy_are_those_of_all_layers(model, batch):
    loss = model.loss(*batch)
    assert loss.expert_counts_LE.shape == (CONFIG.n_layers, CONFIG.n_experts)
    assert loss.expert_counts_LE.sum(dim=1).tolist() == [B * T * CONFIG.top_k] * CONFIG.n_layers
    assert torch.equal(model.count_experts(batch[0]), loss.expert_counts_LE)
    assert 0 < float(loss.router_entropy) < torch.tensor(float(CONFIG.n_experts)).log()
    assert not loss.router_entropy.requires_grad


@pytest.mark.parametrize("n_parts", [2, 4])
def test_parts_of_a_step_add_up_to_the_undivided_step(model, batch, n_parts):
    """Load balancing included, because every part uses the whole step's frequencies. fp32 sums in another order."""

    def total(loss):
        return (loss.ce_sum + (0.5 * loss.lb_loss + 0.1 * loss.z_loss) * loss.n_tokens) / (B * T)

    whole = total(model.loss(*batch))
    parts = list(zip(*(tensor.chunk(n_parts) for tensor in batch), strict=True))
    counts = [model.count_experts(tokens_BT) for tokens_BT, _ in parts]
    summands = [
        total(model.loss(tokens_BT, targets_BT, other_counts_LE=sum(counts) - own))
        for (tokens_BT, targets_BT), own in zip(parts, counts, strict=True)
    ]
    torch.testing.assert_close(sum(summands), whole, rtol=1e-6, atol=0)
    found, wanted = sum(gradient(model, summand) for summand in summands), gradient(model, whole)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5


def test_own_counts_alone_would_make_accumulation_another_loss(model, batch):
    """The control: without the other parts' counts, parts add up to the whole only when the coefficient is zero."""
    parts = list(zip(*(tensor.chunk(4) for tensor in batch), strict=True))
    losses = [model.loss(tokens_BT, targets_BT) for tokens_BT, targets_BT in parts]
    whole = model.loss(*batch)
    assert float((sum(loss.lb_loss for loss in losses) / 4 - whole.lb_loss).detach().abs()) > 1e-4
    found, wanted = gradient(model, sum(loss.ce_sum for loss in losses)), gradient(model, whole.ce_sum)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_the_same_step_gives_the_same_bits(batch, dtype):
    def step():
        model = make_model()
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            loss = model.loss(*batch)
        return gradient(model, loss.ce_sum + loss.lb_loss + loss.z_loss)

    assert torch.equal(step(), step())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_mixed_precision_gradients_are_fp32_and_near_the_exact_ones(model, batch, dtype, tolerance):
    """Relative error of the whole gradient: roundings of 2^-9 (2^-12) through two layers."""
    exact = gradient(model, model.loss(*batch).ce_sum)
    with torch.autocast("cpu", dtype):
        loss = model.loss(*batch)
    found = gradient(model, loss.ce_sum)
    assert loss.ce_sum.dtype == found.dtype == torch.float32
    assert float((found - exact).norm() / exact.norm()) < tolerance


def test_fp16_under_a_grad_scaler_unscales_to_the_plain_gradient(model, batch):
    exact = gradient(model, model.loss(*batch).ce_sum / (B * T))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with torch.autocast("cpu", torch.float16):
        loss = model.loss(*batch)
    scaler.scale(loss.ce_sum / (B * T)).backward()
    scaler.unscale_(optimizer)
    found = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    assert float((found - exact).norm() / exact.norm()) < 0.01


def test_documents_in_one_row_do_not_see_each_other(model):
    tokens_BT = torch.randint(0, 60, (1, T), generator=torch.Generator().manual_seed(1))
    ids_BT = torch.tensor([[5] * 10 + [6] * (T - 10)])
    changed_BT = tokens_BT.clone()
    changed_BT[0, :10] = (changed_BT[0, :10] + 1) % 60
    before, after = (model(tokens, document_ids_BT=ids_BT) for tokens in (tokens_BT, changed_BT))
    assert torch.equal(before[:, 10:], after[:, 10:])
    assert not torch.equal(model(tokens_BT)[:, 10:], model(changed_BT)[:, 10:])


def test_a_tiny_model_overfits_one_batch(batch):
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = model.loss(*batch)
        optimizer.zero_grad()
        (loss.ce_sum / loss.n_tokens).backward()
        optimizer.step()
    assert float(model.loss(*batch).ce_sum.detach()) / (B * T) < 0.1
