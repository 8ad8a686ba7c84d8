import pytest
import torch

from moe.accumulation import MicroBatch

SHAPES = {"8x1": (8, 1), "4x2": (4, 2), "2x4": (2, 4), "1x8": (1, 8)}


@pytest.fixture
def trainer_of(make_trainer):
    def of_shape(micro_batch_size, grad_accum_steps, **changes):
        shape = {"batch.micro_batch_size": micro_batch_size, "batch.grad_accum_steps": grad_accum_steps}
        return make_trainer(**shape, **changes)

    return of_shape


def gradient(trainer):
    """The gradient of the trainer's first step, one flat tensor, and the step's sums."""
    batch = trainer.config.batch
    micro_batches = [trainer._micro_batch(i) for i in range(batch.grad_accum_steps)]
    found = trainer.accumulation.backward(
        micro_batches, scaler=trainer.scaler, zero_grad=trainer.optimizers.zero_grad, tokens_seen=0
    )
    sums = found.on_host(found.means.tolist())
    return torch.cat([param.grad.flatten() for param in trainer.optimizers.params]), sums


def relative_difference(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("lb_loss_coef", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("shape", ["4x2", "2x4", "1x8"])
def test_accumulated_gradient_is_the_large_batchs(trainer_of, shape, lb_loss_coef):
    """Load balancing included, at a hundred times its usual weight too: it is counted over the whole step."""
    changes = {"model.lb_loss_coef": lb_loss_coef, "model.z_loss_coef": 0.01}
    large, large_sums = gradient(trainer_of(*SHAPES["8x1"], **changes))
    small, small_sums = gradient(trainer_of(*SHAPES[shape], **changes))
    # fp32 sums in another order.
    assert relative_difference(small, large) < 1e-5
    assert small_sums.train_loss == pytest.approx(large_sums.train_loss, rel=1e-6)
    assert small_sums.z_loss == pytest.approx(large_sums.z_loss, rel=1e-6)
    assert small_sums.router_entropy == pytest.approx(large_sums.router_entropy, rel=1e-6)
    assert torch.equal(small_sums.expert_counts_LE, large_sums.expert_counts_LE)
    if lb_loss_coef > 0.0:
        assert small_sums.lb_loss == pytest.approx(large_sums.lb_loss, rel=1e-6)


def test_load_balancing_counted_per_micro_step_would_be_noticed(trainer_of, monkeypatch):
    """The control of the test above: without the whole step's counts the gradients differ by far more than 1e-5."""
    large, _ = gradient(trainer_of(8, 1, **{"model.lb_loss_coef": 1.0}))
    trainer = trainer_of(1, 8, **{"model.lb_loss_coef": 1.0})
    monkeypatch.setattr(trainer.accumulation, "_count_later_parts", lambda *_: [])
    assert relative_difference(gradient(trainer)[0], large) > 1e-3


def update(trainer):
    """What the first step adds to the weights, Muon's and AdamW's, one flat tensor each."""
    groups = [optimizer.param_groups[0]["params"] for optimizer in (trainer.optimizers.hidden, trainer.optimizers.rest)]
    before = [flat(params) for params in groups]
    list(trainer.run(until_tokens=128))
    return [flat(params) - start for params, start in zip(groups, before, strict=True)]


def flat(params):
    return torch.cat([param.detach().flatten().clone() for param in params])


@pytest.mark.parametrize("shape", ["4x2", "2x4", "1x8"])
def test_accumulation_changes_no_update(trainer_of, shape):
    (muon, adamw), (large_muon, large_adamw) = update(trainer_of(*SHAPES[shape])), update(trainer_of(*SHAPES["8x1"]))
    assert relative_difference(adamw, large_adamw) < 1e-5
    # Newton-Schulz lifts what is small in a gradient, rounding errors of 1e-7 too, by 3.4 in each of five iterations.
    assert relative_difference(muon, large_muon) < 1e-4


@pytest.mark.parametrize("shape", ["4x2", "2x4", "1x8"])
def test_accumulation_changes_no_update_but_by_rounding(trainer_of, shape):
    """In float64 nothing but the rounding of float64 is left, at a hundred times the usual load balancing too."""

    def update_in_float64(shape):
        trainer = trainer_of(*shape, **{"model.lb_loss_coef": 1.0})
        trainer.model.double()
        trainer.optimizers.hidden.newton_schulz_dtype = torch.float64
        return torch.cat(update(trainer))

    assert relative_difference(update_in_float64(SHAPES[shape]), update_in_float64(SHAPES["8x1"])) < 1e-11


def test_no_weight_on_load_balancing_needs_no_counting(trainer_of, monkeypatch):
    trainer = trainer_of(4, 2, **{"model.lb_loss_coef": 0.0})
    monkeypatch.setattr(trainer.model, "count_experts", lambda *_, **__: pytest.fail("counted"))
    gradient(trainer)


@pytest.mark.parametrize("n_parts", [1, 2, 3, 5])
def test_a_micro_batch_splits_into_near_equal_parts(n_parts):
    tokens_BT = torch.arange(35).view(5, 7)
    whole = MicroBatch(tokens_BT=tokens_BT, targets_BT=tokens_BT + 1, document_ids_BT=tokens_BT + 2)
    parts = list(whole.split(n_parts))
    rows = [part.tokens_BT.shape[0] for part in parts]
    assert len(rows) == n_parts
    assert max(rows) - min(rows) <= 1
    for offset, name in enumerate(("tokens_BT", "targets_BT", "document_ids_BT")):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), tokens_BT + offset)


@pytest.mark.parametrize("n_parts", [2, 3, 5])
def test_unequal_parts_are_weighted_by_their_tokens(trainer_of, n_parts):
    """Five rows in two or three parts: weighting parts equally would be off by percents."""
    whole, whole_sums = gradient(trainer_of(5, 1, **{"schedule.budget_tokens": 2000}))
    trainer = trainer_of(5, 1, **{"schedule.budget_tokens": 2000})
    trainer.accumulation.n_parts = n_parts
    split, split_sums = gradient(trainer)
    assert relative_difference(split, whole) < 1e-5
    assert split_sums.train_loss == pytest.approx(whole_sums.train_loss, rel=1e-6)
    assert split_sums.lb_loss == pytest.approx(whole_sums.lb_loss, rel=1e-6)
