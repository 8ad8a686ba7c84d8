"""No output knows the future: to the last bit."""

# B batch, T time

import pytest
import torch

from moe.config import ModelConfig
from moe.model import MoELanguageModel

T, VOCAB = 40, 50


def make_model(d_model, d_expert, top_k=2):
    config = ModelConfig(
        vocab_size=VOCAB,
        d_model=d_model,
        n_layers=2,
        n_heads=2,
        n_kv_heads=1,
        d_expert=d_expert,
        n_experts=4,
        top_k=top_k,
        init_std=0.5,  # far from zero, so that a changed token changes where tokens are routed
    )
    return MoELanguageModel(config, seed=0)


@pytest.mark.parametrize(("d_model", "d_expert"), [(16, 24), (64, 128), (32, 512)])
@pytest.mark.parametrize("position", [0, 1, 7, 20, T - 1])
def test_a_changed_token_leaves_earlier_outputs_bitwise_equal(d_model, d_expert, position):
    """Also through the experts, whose products get other row counts when a later token goes elsewhere."""
    model = make_model(d_model, d_expert)
    generator = torch.Generator().manual_seed(position)
    tokens_BT = torch.randint(0, VOCAB, (3, T), generator=generator)
    with torch.no_grad():
        before = model(tokens_BT)
        changed_BT = tokens_BT.clone()
        changed_BT[1, position:] = (tokens_BT[1, position:] + 1 + torch.arange(T - position)) % VOCAB
        after = model(changed_BT)
    assert torch.equal(after[1, :position], before[1, :position])
    assert torch.equal(after[[0, 2]], before[[0, 2]])  # other rows of the batch see nothing at all
    assert not torch.equal(after[1, position], before[1, position])


def test_token_losses_before_a_changed_token_are_bitwise_equal():
    model = make_model(32, 64)
    generator = torch.Generator().manual_seed(3)
    tokens_BT = torch.randint(0, VOCAB, (2, T), generator=generator)
    targets_BT = torch.randint(0, VOCAB, (2, T), generator=generator)
    changed_BT = tokens_BT.clone()
    changed_BT[:, 25] = (changed_BT[:, 25] + 1) % VOCAB
    before, after = (model.token_losses(tokens, targets_BT) for tokens in (tokens_BT, changed_BT))
    assert torch.equal(before[:, :25], after[:, :25])
    assert not torch.equal(before[:, 25:], after[:, 25:])


def test_no_gradient_flows_from_the_past_to_the_future():
    model = make_model(16, 24)
    tokens_BT = torch.randint(0, VOCAB, (1, T), generator=torch.Generator().manual_seed(5))
    embedded = {}
    model.embed_tokens.register_forward_hook(lambda _, __, out: embedded.update(x=out.requires_grad_()))
    logits_BTV = model(tokens_BT)
    (gradient_ND,) = torch.autograd.grad(logits_BTV[0, 10].sum(), embedded["x"])
    assert gradient_ND[11:].count_nonzero() == 0
    assert gradient_ND[:11].count_nonzero() > 0
