# B batch, T time

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from moe.config import BatchConfig, ModelConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from moe.device import Device
from moe.device_choices import choose
from moe.memory import GIB, PeakMemory, TensorBytes, predict_peak_gib, training_tensors
from moe.model import MoELanguageModel
from moe.optim import build_optimizers
from moe.precision import resolve_precision

LAPTOP = ModelConfig(
    vocab_size=2048, d_model=64, n_layers=3, n_heads=2, n_kv_heads=2, d_expert=128, n_experts=8, top_k=2
)
LAPTOP_ARMS = [(32, 64), (8, 256), (2, 1024)]
CPU = Device.resolve("cpu")


def make_config(micro_batch_size, seq_len, grad_accum_steps=1, model=LAPTOP):
    return TrainConfig(
        model=model,
        batch=BatchConfig(micro_batch_size=micro_batch_size, seq_len=seq_len, grad_accum_steps=grad_accum_steps),
        optimizer=OptimizerConfig(lr=0.01, adamw_lr=0.003),
        schedule=ScheduleConfig(budget_tokens=2**20, warmup_tokens=2**14, decay_tokens=2**14),
        seed=1,
        block_len=seq_len,
        device="cpu",
    )


def make_trainer_parts(config, precision):
    model = MoELanguageModel(config.model, seed=0)
    return model, build_optimizers(model.weight_groups(), config.optimizer, choose(CPU, precision))


def step(model, optimizers, config, precision):
    shape = config.batch.micro_batch_size, config.batch.seq_len
    for _ in range(config.batch.grad_accum_steps):
        tokens_BT = torch.randint(0, config.model.vocab_size, shape)
        with precision.autocast():
            loss = model.loss(tokens_BT, tokens_BT)
        (loss.ce_sum / loss.n_tokens + loss.lb_loss + loss.z_loss).backward()
    optimizers.step_or_skip(None, 1.0)
    optimizers.zero_grad()


@pytest.mark.parametrize("precision_name", ["fp32", "bf16"])
@pytest.mark.parametrize(("micro_batch_size", "seq_len"), LAPTOP_ARMS)
def test_prediction_is_within_ten_percent_of_the_measured_peak(micro_batch_size, seq_len, precision_name):
    config, precision = make_config(micro_batch_size, seq_len), resolve_precision(precision_name, CPU)
    model, optimizers = make_trainer_parts(config, precision)
    step(model, optimizers, config, precision)  # creates the optimizers' state
    with PeakMemory(CPU, training_tensors(model, optimizers)) as measured:
        step(model, optimizers, config, precision)
    assert predict_peak_gib(config, precision=precision_name) == pytest.approx(measured.peak_gib, rel=0.1)


def allocator_peak_bytes(run):
    """What torch's CPU allocator handed out at most, an operation's own buffers included, by torch's profiler."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    live = peak = 0
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@pytest.mark.parametrize(("micro_batch_size", "seq_len"), LAPTOP_ARMS)
def test_prediction_is_within_ten_percent_of_what_the_allocator_hands_out(micro_batch_size, seq_len):
    """The tracker sees tensors; the allocator also sees what an operation takes for itself, a few percent more."""
    config, precision = make_config(micro_batch_size, seq_len), resolve_precision("fp32", CPU)

    def build_and_step():
        model, optimizers = make_trainer_parts(config, precision)
        for _ in range(2):
            step(model, optimizers, config, precision)

    allocated = allocator_peak_bytes(build_and_step)
    assert predict_peak_gib(config, precision="fp32") == pytest.approx(allocated / GIB, rel=0.1)


def test_accumulation_adds_gradients_but_no_second_set_of_activations():
    once, often = (predict_peak_gib(make_config(8, 128, n), precision="fp32") for n in (1, 4))
    model = MoELanguageModel(LAPTOP, seed=0)
    gradients_gib = sum(parameter.numel() for parameter in model.parameters()) * 4 / GIB
    assert once < often < once + 1.05 * gradients_gib  # and a second micro-batch of tokens


def test_larger_micro_batches_need_more_memory_and_bf16_less():
    small, large = (predict_peak_gib(make_config(b, 128), precision="fp32") for b in (8, 32))
    assert small < predict_peak_gib(make_config(32, 128), precision="bf16") < large


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (9, 0)])
def test_a_gpu_is_planned_for_without_one_by_the_way_that_it_will_take(capability):
    """A GPU takes the logits of many tokens at once, and fp32 ones at that: 8,192 are all of this micro-batch's."""
    gpu = Device(kind="cuda", name="a GPU", compute_capability=capability)
    on_cpu, on_gpu = (predict_peak_gib(make_config(8, 256), precision="fp16", device=device) for device in (CPU, gpu))
    n_tokens, vocab = 8 * 256, LAPTOP.vocab_size
    logits_gib = n_tokens * vocab * (4 + 2) / GIB
    assert on_cpu < on_gpu < on_cpu + 1.1 * logits_gib


def test_a_peak_is_remembered_after_its_tensors_are_freed():
    before = torch.zeros(1000)
    with TensorBytes([before]) as watch:
        assert watch.live_bytes == 4000
        view = torch.ones(500, dtype=torch.float64)[10:]
        assert watch.live_bytes == 8000
        del view
        assert watch.live_bytes == 4000
        before.add_(1)
    assert watch.peak_bytes == 8000
