"""What a trainer does because its device is a GPU, seen on CPU tensors and without one."""

import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from moe.config import BatchConfig
from moe.device import Device
from moe.device_choices import choose
from moe.exam_views import target_losses
from moe.expert_products import BlockedProducts, ExpertByExpertProducts, GroupedProducts
from moe.memory import GIB, TensorBytes, predict_peak_gib, training_tensors
from moe.model import MoELanguageModel
from moe.optim import build_optimizers
from moe.precision import resolve_precision
from moe.trainer import Trainer
from moe.windows import Windows, WindowsOnDevice

H200 = Device(kind="cuda", name="NVIDIA H200", compute_capability=(9, 0), memory_bytes=141 * 2**30)
CPU = Device(kind="cpu")


@pytest.fixture
def with_a_gpu(monkeypatch, torch_settings):
    """A GPU is resolved, and its tensors are a CPU's."""
    monkeypatch.setattr(Device, "resolve", classmethod(lambda *_: H200))
    monkeypatch.setattr(Device, "torch_device", property(lambda _: torch.device("cpu")))


@pytest.mark.usefixtures("with_a_gpu")
@pytest.mark.parametrize("deterministic", [True, False])
def test_a_trainer_on_a_gpu_is_deterministic_as_its_config_says(make_trainer, deterministic):
    torch.use_deterministic_algorithms(not deterministic)
    make_trainer(precision="auto", deterministic=deterministic)
    assert torch.are_deterministic_algorithms_enabled() is deterministic
    assert torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction is False


def test_cublas_is_prepared_before_a_gpu_is_first_touched(monkeypatch):
    workspaces = []
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    answers = {
        "is_available": True,
        "get_device_name": H200.name,
        "get_device_capability": H200.compute_capability,
        "get_device_properties": SimpleNamespace(total_memory=H200.memory_bytes),
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, _answer=answer: _answer)
    monkeypatch.setattr(
        torch.cuda, "current_device", lambda: workspaces.append(os.environ["CUBLAS_WORKSPACE_CONFIG"]) or 0
    )
    assert Device.resolve("auto") == H200
    assert workspaces == [":4096:8"]


def trainer_under(make_config, make_data, device, **changes):
    config = make_config(**changes)
    return Trainer(config, make_data(config), choices=choose(device, resolve_precision("fp32", device)))


def test_a_gpu_gathers_windows_itself_and_a_cpu_reads_them_from_the_file(make_config, make_data):
    assert isinstance(trainer_under(make_config, make_data, H200)._tokens, WindowsOnDevice)
    assert isinstance(trainer_under(make_config, make_data, CPU)._tokens, Windows)


def test_windows_are_sent_to_a_gpu_from_pinned_memory_and_the_host_does_not_wait(make_config, make_data, monkeypatch):
    gathered = trainer_under(make_config, make_data, H200)._tokens
    gathered._device, done = torch.device("cuda"), []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: done.append("pinned") or tensor)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *to, **how: done.append((*to, how)) or tensor)
    gathered.batch(0)
    assert done == ["pinned", (torch.device("cuda"), {"non_blocking": True})]


def rows_of_passes(trainer, monkeypatch):
    rows, token_losses = [], trainer.model.token_losses
    monkeypatch.setattr(
        trainer.model,
        "token_losses",
        lambda tokens_BT, *a, **b: rows.append(len(tokens_BT)) or token_losses(tokens_BT, *a, **b),
    )
    trainer._validation_score(16)
    return rows


@pytest.mark.parametrize(("micro_batch_size", "passes"), [(1, [1, 1, 1]), (2, [2, 1]), (4, [3])])
def test_a_pass_of_an_exam_on_a_gpu_has_as_many_tokens_as_a_micro_step(
    make_config, make_data, monkeypatch, micro_batch_size, passes
):
    changes = {"batch.micro_batch_size": micro_batch_size}
    assert rows_of_passes(trainer_under(make_config, make_data, H200, **changes), monkeypatch) == passes
    assert rows_of_passes(trainer_under(make_config, make_data, CPU, **changes), monkeypatch) == [3]


def test_the_losses_of_an_exam_are_read_once_after_all_passes(make_config, make_data, monkeypatch):
    trainer = trainer_under(make_config, make_data, H200)
    read, cpu = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: read.append(tensor.shape) or cpu(tensor))
    target_losses(trainer.model, trainer.data.exam.test, chunk_len=8, pass_tokens=8)
    assert read == [(6, 8)]


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (9, 0)])
def test_a_pass_of_an_exam_on_a_gpu_needs_less_memory_than_a_step_of_training(make_config, capability):
    """It is fp32, and keeps nothing for a backward pass: what fits a step fits the exam."""
    gpu = replace(H200, compute_capability=capability)
    config = make_config(**{"model.d_model": 64, "model.d_expert": 256, "model.vocab_size": 2048, "block_len": 256})
    config = replace(config, batch=BatchConfig(micro_batch_size=32, seq_len=256))
    choices = choose(gpu, resolve_precision("auto", gpu))
    with FakeTensorMode(), torch.device("cpu"), torch.no_grad():
        model = MoELanguageModel(config.model, seed=0, choices=choices)
        optimizers = build_optimizers(model.weight_groups(), config.optimizer, choices)
        for param in model.parameters():
            param.grad = torch.empty_like(param)
        optimizers.step()
        optimizers.zero_grad()
        with TensorBytes(training_tensors(model, optimizers)) as watch:
            tokens_BT = torch.zeros(32, 256, dtype=torch.int64)
            model.token_losses(tokens_BT, tokens_BT)
    assert watch.peak_bytes / GIB < predict_peak_gib(config, precision="auto", device=gpu)


@pytest.mark.parametrize(
    ("device", "way"),
    [
        (CPU, BlockedProducts),
        (replace(H200, compute_capability=(7, 5)), ExpertByExpertProducts),
        (replace(H200, compute_capability=(8, 0)), ExpertByExpertProducts),
        (H200, GroupedProducts),
    ],
)
def test_memory_is_predicted_for_the_products_that_the_device_will_take(make_config, monkeypatch, device, way):
    taken = set()
    for each in (BlockedProducts, ExpertByExpertProducts, GroupedProducts):
        forward = each.forward
        monkeypatch.setattr(
            each, "forward", lambda self, *a, _forward=forward, **b: taken.add(type(self)) or _forward(self, *a, **b)
        )
    predict_peak_gib(make_config(), precision="auto", device=device)
    assert taken == {way}


def test_on_a_gpu_the_allocator_is_asked_for_the_peak_and_no_tensor_is_looked_up(make_trainer, monkeypatch):
    trainer = make_trainer()
    trainer.device = H200
    monkeypatch.setattr("moe.trainer.training_tensors", lambda *_: pytest.fail("a list of tensors that nobody reads"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * 2**30)
    with trainer._peak_memory():
        pass
    assert trainer.peak_mem_allocated_gib == 3.0
