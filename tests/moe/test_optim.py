import copy
import math
import subprocess
import sys

import pytest
import torch

from moe.adamw import AdamW
from moe.config import OptimizerConfig
from moe.device import Device
from moe.device_choices import choose
from moe.model import WeightGroups
from moe.muon import Muon, shape_factor
from moe.newton_schulz import orthogonalise
from moe.optim import build_optimizers
from moe.precision import resolve_precision

CPU = Device(kind="cpu")
FP32 = resolve_precision("fp32", CPU)
CONFIG = OptimizerConfig(lr=0.02, adamw_lr=0.01)
SHAPES = [(64, 64), (256, 64), (64, 128), (3, 96, 24), (3, 24, 96), (4, 16, 16)]


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reference_newton_schulz(matrix):
    """The iteration as Jordan et al. print it, one matrix, float64."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.double()
    x = x.T if matrix.shape[0] > matrix.shape[1] else x
    x = x / max(float(x.norm()), 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


@pytest.mark.parametrize("shape", SHAPES)
def test_every_matrix_of_a_stack_is_orthogonalised_by_itself(shape):
    stack = randn(*shape).view(-1, *shape[-2:])
    expected = torch.stack([reference_newton_schulz(matrix) for matrix in stack])
    # fp32 rounding (6e-8) through five iterations whose slope at zero is 3.4 each: 3.4^5 * 6e-8 = 3e-5.
    torch.testing.assert_close(orthogonalise(stack).double(), expected, atol=3e-5, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_end_near_one(shape):
    values = torch.linalg.svdvals(orthogonalise(randn(*shape, seed=1).view(-1, *shape[-2:])))
    # Jordan et al. state about [0.7, 1.2]; smallest values of a square random matrix may not have risen all the way.
    assert values.max() < 1.25
    assert values.median() > 0.65


@pytest.mark.parametrize("rank", [1, 8])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_matrices_of_low_rank_and_any_scale_stay_finite_and_exact(rank, scale):
    matrix = scale * randn(256, rank) @ randn(rank, 64, seed=1)
    actual = orthogonalise(matrix[None])[0].double()
    # As above; a null space, where the Gram matrix holds only rounding errors, adds nothing beyond that.
    torch.testing.assert_close(actual, reference_newton_schulz(matrix), atol=1e-4, rtol=0)


def test_a_matrix_of_zeros_stays_zero_beside_others():
    stack = randn(3, 32, 64)
    stack[1] = 0.0
    result = orthogonalise(stack)
    assert torch.equal(result[1], torch.zeros(32, 64))
    assert result[0].norm() > 1.0


def test_newton_schulz_in_fp16_is_refused():
    with pytest.raises(ValueError, match="Newton-Schulz in float16 is refused"):
        orthogonalise(randn(1, 4, 4), dtype=torch.float16)
    with pytest.raises(ValueError, match="newton_schulz_dtype=float16 is refused"):
        Muon([torch.nn.Parameter(randn(4, 4))], lr=0.1, newton_schulz_dtype=torch.float16)


def test_muon_makes_the_steps_of_torchs_muon_on_plain_matrices():
    ours, theirs = (
        [
            torch.nn.Parameter(randn(*shape, seed=i))
            for i, shape in enumerate([(64, 64), (256, 64), (64, 128), (64, 64)])
        ]
        for _ in range(2)
    )
    mine = Muon(ours, lr=0.02, momentum=0.9, weight_decay=0.1, newton_schulz_dtype=torch.bfloat16)
    other = torch.optim.Muon(theirs, lr=0.02, momentum=0.9, weight_decay=0.1)
    for step in range(3):
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            a.grad = randn(*a.shape, seed=10 * step + i)
            b.grad = a.grad.clone()
        mine.step()
        other.step()
    for a, b in zip(ours, theirs, strict=True):
        # Both iterate in bf16 (relative precision 2^-8); one step moves an entry by about 0.02 / 8 at most.
        torch.testing.assert_close(a, b, atol=3 * 0.02 * 2**-7, rtol=0)


def test_a_stack_moves_as_its_matrices_do_alone():
    stack = torch.nn.Parameter(randn(3, 64, 16))
    alone = [torch.nn.Parameter(matrix.clone()) for matrix in stack.detach()]
    stacked, single = Muon([stack], lr=0.02), Muon(alone, lr=0.02)
    for step in range(2):
        stack.grad = randn(3, 64, 16, seed=step)
        for i, param in enumerate(alone):
            param.grad = stack.grad[i].clone()
        stacked.step()
        single.step()
    # The same products in another batch: fp32 rounding only.
    torch.testing.assert_close(stack.detach(), torch.stack([p.detach() for p in alone]), atol=1e-6, rtol=0)


def test_the_rate_of_tall_matrices_grows_with_the_root_of_their_ratio():
    assert shape_factor(256, 64) == 2.0
    assert shape_factor(64, 256) == 1.0
    assert shape_factor(64, 64) == 1.0


def test_muon_refuses_vectors():
    with pytest.raises(ValueError, match=r"not shape \(8,\); give the parameter to AdamW"):
        Muon([torch.nn.Parameter(torch.ones(8))], lr=0.1)


def test_muon_leaves_parameters_without_a_gradient_alone():
    moved, still = torch.nn.Parameter(randn(8, 8)), torch.nn.Parameter(randn(8, 8))
    before = still.detach().clone()
    moved.grad = randn(8, 8, seed=1)
    Muon([moved, still], lr=0.1).step()
    assert torch.equal(still.detach(), before)


def test_large_groups_are_orthogonalised_in_several_batches():
    def stepped(batch_elements):
        params = [torch.nn.Parameter(randn(16, 16, seed=i)) for i in range(5)]
        for i, param in enumerate(params):
            param.grad = randn(16, 16, seed=10 + i)
        Muon(params, lr=0.1, batch_elements=batch_elements).step()
        return torch.stack([param.detach() for param in params])

    # The same products in another batch: fp32 rounding only.
    torch.testing.assert_close(stepped(2 * 256), stepped(2**20), atol=1e-6, rtol=0)


def test_a_gpu_stacks_all_matrices_of_one_shape(monkeypatch):
    """Twenty calls of Newton-Schulz a step, as before, are some 400 launches where three are 60."""
    calls = []
    monkeypatch.setattr(
        "moe.muon.orthogonalise", lambda stack, **options: calls.append(tuple(stack.shape)) or stack.clone()
    )
    shapes = [(384, 384)] * 24 + [(8, 3072, 384)] * 6 + [(8, 384, 1536)] * 6
    params = [torch.nn.Parameter(torch.empty(shape, device="meta")) for shape in shapes]
    for param in params:
        param.grad = torch.empty_like(param)
    gpu = Device(kind="cuda", name="a GPU", compute_capability=(8, 0), memory_bytes=24 * 2**30)
    choices = choose(gpu, resolve_precision("auto", gpu))
    Muon(params, lr=0.1, batch_elements=choices.newton_schulz_elements).step()
    assert calls == [(24, 384, 384), (48, 3072, 384), (48, 384, 1536)]


def two_optimizers(config=CONFIG):
    hidden, vector = torch.nn.Parameter(randn(8, 8)), torch.nn.Parameter(randn(8, seed=1))
    groups = WeightGroups(muon=[("hidden", hidden)], adamw=[("vector", vector)])
    return build_optimizers(groups, config, choose(CPU, FP32)), hidden, vector


def snapshot(*params):
    return [param.detach().clone() for param in params]


def test_gradients_are_clipped_to_the_norm_over_all_optimizers():
    optimizers, hidden, vector = two_optimizers()
    hidden.grad, vector.grad = torch.full((8, 8), 3.0), torch.full((8,), 4.0)
    norm = math.sqrt(64 * 9 + 8 * 16)
    outcome = optimizers.step_or_skip(None, 1.0)
    assert outcome.grad_norm == pytest.approx(norm, rel=1e-6)
    assert not outcome.skipped
    torch.testing.assert_close(vector.grad, torch.full((8,), 4.0 / norm))


def test_small_gradients_are_not_scaled_up_by_clipping():
    optimizers, hidden, vector = two_optimizers()
    hidden.grad, vector.grad = torch.full((8, 8), 1e-3), torch.zeros(8)
    optimizers.step_or_skip(None, 1.0)
    assert torch.equal(hidden.grad, torch.full((8, 8), 1e-3))


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("where", ["hidden", "vector"])
def test_without_a_scaler_a_gradient_that_is_not_finite_moves_no_weight(bad, where):
    optimizers, hidden, vector = two_optimizers()
    hidden.grad, vector.grad = torch.ones(8, 8), torch.ones(8)
    (hidden if where == "hidden" else vector).grad.view(-1)[3] = bad
    before = snapshot(hidden, vector)
    outcome = optimizers.step_or_skip(None, 1.0)
    assert outcome.skipped
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(hidden, vector), strict=True))
    assert not optimizers.hidden.state
    assert not optimizers.rest.state


def test_hidden_matrices_can_be_adamws_at_their_own_rate():
    hidden, vector = torch.nn.Parameter(randn(8, 8)), torch.nn.Parameter(randn(8))
    groups = WeightGroups(muon=[("hidden", hidden)], adamw=[("vector", vector)])
    optimizers = build_optimizers(groups, OptimizerConfig(lr=0.02, adamw_lr=0.01, kind="adamw"), choose(CPU, FP32))
    before = snapshot(hidden, vector)
    hidden.grad, vector.grad = randn(8, 8, seed=1), randn(8, seed=2)
    optimizers.step_or_skip(None, math.inf)
    # the first step of Adam moves every weight by its rate, up to eps
    for param, old, lr in zip((hidden, vector), before, (0.02, 0.01), strict=True):
        torch.testing.assert_close((param - old).abs(), torch.full_like(old, lr), atol=1e-6, rtol=1e-4)
    assert set(optimizers.state_dict()) == {"hidden", "adamw"}
    again = build_optimizers(groups, OptimizerConfig(lr=0.02, adamw_lr=0.01, kind="adamw"), choose(CPU, FP32))
    again.load_state_dict(optimizers.state_dict())
    assert torch.equal(again.hidden.state[hidden]["exp_avg"], optimizers.hidden.state[hidden]["exp_avg"])


def adamw_steps(optimizer, param, steps):
    for step in steps:
        param.grad = randn(*param.shape, seed=step)
        optimizer.step()
    return param.detach().clone()


def test_adamw_moves_weights_as_torchs_does_and_goes_on_from_its_state():
    settings = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    ours, theirs = (torch.nn.Parameter(randn(6, 5)) for _ in range(2))
    own, other = AdamW([ours], **settings), torch.optim.AdamW([theirs], **settings, fused=True)
    assert torch.equal(adamw_steps(own, ours, range(1, 4)), adamw_steps(other, theirs, range(1, 4)))
    resumed = torch.nn.Parameter(ours.detach().clone())
    again = AdamW([resumed], **settings)
    again.load_state_dict(copy.deepcopy(other.state_dict()))
    assert torch.equal(adamw_steps(again, resumed, range(4, 6)), adamw_steps(other, theirs, range(4, 6)))


def test_a_step_does_not_import_torchs_compiler():
    """It takes a second, in every worker."""
    script = """
import sys, torch
from moe.adamw import AdamW
from moe.device import Device
from moe.memory import PeakMemory
from moe.muon import Muon
hidden, vector = torch.nn.Parameter(torch.ones(8, 8)), torch.nn.Parameter(torch.ones(8))
hidden.grad, vector.grad = torch.ones(8, 8), torch.ones(8)
with PeakMemory(Device(kind="cpu")):  # as a cell's first two steps are
    Muon([hidden], lr=0.1).step()
    AdamW([vector], lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1).step()
print(sorted(name for name in ("sympy", "torch._dynamo") if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_finite_gradients_whose_squares_overflow_are_still_clipped():
    optimizers, hidden, vector = two_optimizers()
    hidden.grad, vector.grad = torch.full((8, 8), 1e30), torch.zeros(8)
    outcome = optimizers.step_or_skip(None, 1.0)
    assert not outcome.skipped
    assert outcome.grad_norm == pytest.approx(8e30, rel=1e-5)
    torch.testing.assert_close(hidden.grad, torch.full((8, 8), 1 / 8))


def scaler_at(scale):
    return torch.amp.GradScaler("cpu", init_scale=scale)


def scaled_backward(scaler, hidden, vector):
    scaler.scale(hidden.sum() + vector.sum()).backward()


@pytest.mark.parametrize(
    ("in_hidden", "in_vector"),
    [(math.inf, None), (None, math.inf), (math.nan, None), (None, math.nan), (math.inf, math.nan)],
)
def test_an_overflow_in_either_optimizer_skips_both_and_shrinks_the_scale_once(in_hidden, in_vector):
    optimizers, hidden, vector = two_optimizers()
    scaler = scaler_at(1024.0)
    scaled_backward(scaler, hidden, vector)
    if in_hidden is not None:
        hidden.grad[2, 3] = in_hidden
    if in_vector is not None:
        vector.grad[4] = in_vector
    before = snapshot(hidden, vector)
    outcome = optimizers.step_or_skip(scaler, 1.0)
    assert outcome.skipped
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(hidden, vector), strict=True))
    assert scaler.get_scale() == 512.0

    optimizers.zero_grad()
    scaled_backward(scaler, hidden, vector)
    recovered = optimizers.step_or_skip(scaler, 1.0)
    assert not recovered.skipped
    assert scaler.get_scale() == 512.0
    assert not any(torch.equal(a, b) for a, b in zip(before, snapshot(hidden, vector), strict=True))


def test_gradients_are_unscaled_before_the_norm_is_taken():
    optimizers, hidden, vector = two_optimizers()
    scaler = scaler_at(2.0**16)
    scaled_backward(scaler, hidden, vector)
    assert optimizers.step_or_skip(scaler, 1e9).grad_norm == pytest.approx(math.sqrt(72), rel=1e-6)


def test_one_factor_scales_both_rates():
    optimizers, *_ = two_optimizers()
    optimizers.set_lr(0.5)
    assert (optimizers.lr, optimizers.adamw_lr) == (0.01, 0.005)
    optimizers.set_lr(1.0)
    assert (optimizers.lr, optimizers.adamw_lr) == (0.02, 0.01)


def test_optimizers_go_on_from_their_state_to_the_last_bit():
    def grads(step):
        return randn(8, 8, seed=100 + step), randn(8, seed=200 + step)

    optimizers, hidden, vector = two_optimizers()
    for step in range(2):
        hidden.grad, vector.grad = grads(step)
        optimizers.step_or_skip(None, 1.0)
    other, hidden_2, vector_2 = two_optimizers()
    with torch.no_grad():
        hidden_2.copy_(hidden)
        vector_2.copy_(vector)
    other.load_state_dict(copy.deepcopy(optimizers.state_dict()))
    for both in ((optimizers, hidden, vector), (other, hidden_2, vector_2)):
        both[1].grad, both[2].grad = grads(2)
        both[0].step_or_skip(None, 1.0)
    assert torch.equal(hidden, hidden_2)
    assert torch.equal(vector, vector_2)
