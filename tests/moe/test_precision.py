import pytest
import torch

from moe.device import Device
from moe.errors import ConfigError
from moe.precision import resolve_precision

CPU = Device(kind="cpu")
ZEN4 = Device(kind="cpu", bf16_instructions=("avx512_bf16",))
SAPPHIRE_RAPIDS = Device(kind="cpu", bf16_instructions=("avx512_bf16", "amx_bf16"))
TURING = Device(kind="cuda", name="Tesla T4", compute_capability=(7, 5))
AMPERE = Device(kind="cuda", name="A10", compute_capability=(8, 6))


@pytest.mark.parametrize(
    ("device", "name", "reason"),
    [
        (CPU, "fp32", "fp32, because the CPU has neither avx512_bf16 nor amx_bf16"),
        (ZEN4, "bf16", "bf16, because the CPU multiplies it natively (avx512_bf16)"),
        (SAPPHIRE_RAPIDS, "bf16", "bf16, because the CPU multiplies it natively (avx512_bf16 and amx_bf16)"),
        (TURING, "fp16", "fp16, because Tesla T4 has compute capability 7.5 (below 8.0: no bf16 units)"),
        (AMPERE, "bf16", "bf16, because A10 has compute capability 8.6 (8.0 or newer)"),
    ],
)
def test_auto_chooses_by_device_and_says_why(device, name, reason):
    precision = resolve_precision("auto", device)
    assert (precision.name, precision.reason) == (name, reason)


@pytest.mark.parametrize(("name", "needs_scaler"), [("fp32", False), ("bf16", False), ("fp16", True)])
def test_only_fp16_gets_a_scaler(name, needs_scaler):
    precision = resolve_precision(name, CPU)
    assert precision.needs_scaler is needs_scaler
    assert (precision.make_scaler() is not None) is needs_scaler


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_autocast_is_on_in_the_precision_inside_its_scope_only(name, dtype):
    with resolve_precision(name, CPU).autocast():
        assert torch.is_autocast_enabled("cpu")
        assert torch.get_autocast_dtype("cpu") == dtype
    assert not torch.is_autocast_enabled("cpu")


def test_fp32_trains_without_autocast():
    with resolve_precision("fp32", CPU).autocast():
        assert not torch.is_autocast_enabled("cpu")


def test_bf16_on_a_gpu_that_would_emulate_it_is_refused():
    with pytest.raises(ConfigError, match=r"Tesla T4 has 7\.5; choose precision='auto' or 'fp16'"):
        resolve_precision("bf16", TURING)


def test_an_unknown_precision_is_refused():
    with pytest.raises(ConfigError, match="precision='fp8' is unknown"):
        resolve_precision("fp8", CPU)
