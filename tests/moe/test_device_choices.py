"""The table of choices, and every GPU's row of it carried out on CPU tensors against the fp32 reference."""

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from moe.device import Device
from moe.device_choices import choices_of, choose
from moe.expert_products import ExpertByExpertProducts, GroupedProducts
from moe.precision import resolve_precision
from moe.trainer import Trainer
from moe.windows import WindowsOnDevice

CAPABILITIES = [(7, 0), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)]
GIB = 2**30

TABLE = """\
device               experts           attention                  head rows  Newton-Schulz       autocast
CPU with bf16        blocks            fp32 flash for CPU                64  bf16 to      0.5 M  bf16
CPU without          blocks            fp32 flash for CPU                64  fp32 to      0.5 M  fp32
CUDA 7.0, 24 GiB     expert by expert  fp16 memory-efficient           8192  fp32 to    134.2 M  fp16 scaled
CUDA 7.5, 24 GiB     expert by expert  fp16 memory-efficient           8192  fp32 to    134.2 M  fp16 scaled
CUDA 8.0, 24 GiB     expert by expert  bf16 flash                      8192  bf16 to    134.2 M  bf16
CUDA 8.6, 24 GiB     expert by expert  bf16 flash                      8192  bf16 to    134.2 M  bf16
CUDA 8.9, 24 GiB     expert by expert  bf16 flash                      8192  bf16 to    134.2 M  bf16
CUDA 9.0, 24 GiB     grouped           bf16 flash or cuDNN             8192  bf16 to    134.2 M  bf16
CUDA 10.0, 24 GiB    grouped           bf16 flash or cuDNN             8192  bf16 to    134.2 M  bf16
CUDA 12.0, 24 GiB    expert by expert  bf16 flash                      8192  bf16 to    134.2 M  bf16"""

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", None: "fp32"}


def gpu(capability, memory_gib=24):
    return Device(kind="cuda", name="a GPU", compute_capability=capability, memory_bytes=memory_gib * GIB)


def row(name, device):
    choices = choose(device, resolve_precision("auto", device))
    attention = f"{NAMES[choices.attention_dtype]} {choices.attention_kernel}"
    elements = f"{choices.newton_schulz_elements / 1e6:.1f} M"
    autocast = f"{NAMES[choices.autocast_dtype]}{' scaled' if choices.needs_scaler else ''}"
    return (
        f"{name:<20} {choices.products_way(torch.bfloat16):<17} {attention:<26} {choices.head_rows(49_152):>9}  "
        f"{NAMES[choices.newton_schulz_dtype]} to {elements:>10}  {autocast}"
    )


def test_the_table_of_choices():
    devices = {
        "CPU with bf16": Device(kind="cpu", bf16_instructions=("amx_bf16",)),
        "CPU without": Device(kind="cpu"),
        **{f"CUDA {a}.{b}, 24 GiB": gpu((a, b)) for a, b in CAPABILITIES},
    }
    heads = ("device", "experts", "attention", "head rows", "Newton-Schulz", "autocast")
    head = "{:<20} {:<17} {:<26} {:>9}  {:<18}  {}".format(*heads)
    found = "\n".join([head, *(row(name, device) for name, device in devices.items())])
    print(found)
    assert found == TABLE


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_table_of_mixed_precision_leaves_fp32_alone(capability):
    """The exam runs in fp32 under a GPU's choices, as training in fp32 does."""
    device = gpu(capability)
    choices = choose(device, resolve_precision("fp32", device))
    assert (choices.autocast_dtype, choices.attention_dtype) == (None, torch.float32)
    assert choices.products_way(torch.float32) == "expert by expert"


def trainer_under(make_config, make_data, device, precision, **changes):
    config = make_config(precision=precision, **changes)
    choices = choose(device, resolve_precision(precision, device))
    return Trainer(config, make_data(config), choices=choices)


def gradient(trainer):
    n_micro_steps = trainer.config.batch.grad_accum_steps
    trainer.accumulation.backward(
        [trainer._micro_batch(i) for i in range(n_micro_steps)],
        scaler=trainer.scaler,
        zero_grad=trainer.optimizers.zero_grad,
        tokens_seen=0,
    )
    trainer.optimizers.look(trainer.scaler)  # unscales
    return {name: param.grad.clone() for name, param in trainer.model.named_parameters()}


# Some roundings of 2^-9 (bf16) or 2^-12 (fp16) relative each, added at random; fp32 differs in the order of sums.
TOLERANCES = {"fp32": 1e-5, "bf16": 5e-2, "fp16": 1e-2}


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("precision", ["fp32", "16 bits"])
def test_a_gpus_choices_give_the_gradients_of_the_fp32_reference(make_config, make_data, capability, precision):
    device = gpu(capability)
    name = precision if precision == "fp32" else resolve_precision("auto", device).name
    changes = {"batch.micro_batch_size": 2, "batch.grad_accum_steps": 2}
    wanted = gradient(trainer_under(make_config, make_data, Device(kind="cpu"), "fp32", **changes))
    found = gradient(trainer_under(make_config, make_data, device, name, **changes))
    for weight, grad in wanted.items():
        assert float((found[weight] - grad).norm()) < TOLERANCES[name] * float(grad.norm()), weight


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_model_learns_under_a_gpus_choices_as_the_reference_does(make_config, make_data, capability, monkeypatch):
    """Attention in 16 bits, the GPU's products and head, stacked Newton-Schulz: all of a step, on CPU tensors."""
    types, ways = set(), set()
    attend = functional.scaled_dot_product_attention
    monkeypatch.setattr(
        functional, "scaled_dot_product_attention", lambda q, *a, **b: types.add(q.dtype) or attend(q, *a, **b)
    )
    for way in (ExpertByExpertProducts, GroupedProducts):
        forward = way.forward
        monkeypatch.setattr(
            way, "forward", lambda self, *a, _forward=forward, **b: ways.add(type(self)) or _forward(self, *a, **b)
        )
    device = gpu(capability)
    precision = resolve_precision("auto", device)
    reference = list(trainer_under(make_config, make_data, Device(kind="cpu"), "fp32").run())
    assert (types, ways) == ({torch.float32}, set())
    types.clear()
    trainer = trainer_under(make_config, make_data, device, precision.name)
    reports = list(trainer.run())
    assert types == {precision.autocast_dtype}
    assert ways == {GroupedProducts if capability in {(9, 0), (10, 0)} else ExpertByExpertProducts}
    # 32 steps, from 3.5 to 1.5 nats; seeds differ by 0.05.
    assert reports[-1].train_loss == pytest.approx(reference[-1].train_loss, abs=0.05)
    assert reports[-1].skipped_steps <= 1


@pytest.mark.parametrize("document_ids", [False, True])
def test_windows_gathered_on_the_device_are_the_windows(make_config, make_data, document_ids):
    config = make_config(**{"batch.micro_batch_size": 2, "batch.seq_len": 8, "batch.grad_accum_steps": 2})
    windows = make_data(config).windows
    gathered = WindowsOnDevice(windows, torch.device("cpu"))
    for step in range(windows.n_steps):
        for micro_step in range(2):
            wanted = windows.batch(step, micro_step, document_ids=document_ids)
            found = gathered.batch(step, micro_step, document_ids=document_ids)
            assert torch.equal(found.inputs_BT, wanted.inputs_BT)
            assert torch.equal(found.targets_BT, wanted.targets_BT)
            if document_ids:
                assert torch.equal(found.document_ids_BT, wanted.document_ids_BT)
    assert document_ids or found.document_ids_BT is None


class UnorderedAdditions(TorchDispatchMode):
    """Notes the operations that add with atomics on CUDA, in an order that differs from run to run."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(name in str(func) for name in ("scatter_add", "index_add", "bincount", "histc", "scatter_reduce")):
            self.found.add(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (9, 0)])
def test_no_operation_of_a_step_adds_in_an_order_that_a_gpu_may_choose(make_config, make_data, capability):
    device = gpu(capability)
    trainer = trainer_under(make_config, make_data, device, resolve_precision("auto", device).name)
    with UnorderedAdditions() as watch:
        list(trainer.run(until_tokens=128))
    assert watch.found == set()


def test_a_model_without_choices_takes_those_of_its_device():
    with torch.autocast("cpu", torch.bfloat16):
        found = choices_of(torch.empty(0))
    assert found == choose(Device(kind="cpu"), resolve_precision("bf16", Device(kind="cpu")))
