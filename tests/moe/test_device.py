import os
from pathlib import Path

import pytest
import torch

from moe.device import (
    BF16_CPU_INSTRUCTIONS,
    Device,
    is_out_of_memory,
    prepare_cublas,
    set_arithmetic,
    set_threads,
)
from moe.errors import ConfigError, DeviceMissing


def test_auto_takes_cuda_where_there_is_one_and_the_cpu_elsewhere():
    assert Device.resolve("auto").kind == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    ("capabilities", "instructions"),
    [
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, ()),
        ({"architecture": "aarch64", "neon": True}, ()),
        ({"avx512_bf16": True, "amx_bf16": False, "cpu_name": "AMD EPYC"}, ("avx512_bf16",)),
        ({"amx_bf16": True}, ("amx_bf16",)),
    ],
    ids=["AVX2", "ARM", "AVX-512 BF16", "AMX"],
)
def test_a_cpu_has_fast_bf16_where_it_has_an_instruction_for_it(monkeypatch, capabilities, instructions):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    device = Device.resolve("cpu")
    assert device.torch_device == torch.device("cpu")
    assert device.bf16_instructions == instructions
    assert device.has_fast_bf16 is bool(instructions)


def test_torch_names_the_instructions_that_linux_lists():
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.exists() else []
    if "avx2" not in flags:
        pytest.skip("this is no x86 CPU under Linux")
    assert Device.resolve("cpu").bf16_instructions == tuple(name for name in BF16_CPU_INSTRUCTIONS if name in flags)


def test_cuda_asked_for_on_a_machine_without_it_names_the_remedy(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceMissing, match=r"device='cuda' was asked for .* choose device='auto' or 'cpu'"):
        Device.resolve("cuda")


def test_an_unknown_device_is_refused():
    with pytest.raises(ConfigError, match="device='tpu' is unknown; choose auto, cpu or cuda"):
        Device.resolve("tpu")


@pytest.mark.parametrize(("capability", "fast"), [((7, 5), False), ((8, 0), True), ((8, 6), True), ((10, 0), True)])
def test_bf16_units_are_known_from_the_compute_capability(capability, fast):
    assert Device(kind="cuda", name="a GPU", compute_capability=capability).has_fast_bf16 is fast


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: not enough memory: you tried"), True),
        (RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried to allocate"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("not enough memory"), False),
    ],
)
def test_memory_errors_are_told_from_other_errors(error, expected):
    assert is_out_of_memory(error) is expected


def test_a_real_allocation_beyond_all_memory_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_a_thread_count_below_one_is_refused():
    with pytest.raises(ConfigError, match="threads=0 must be at least 1"):
        set_threads(0)


GPU = Device(kind="cuda", name="a GPU", compute_capability=(9, 0))


@pytest.mark.usefixtures("torch_settings")
@pytest.mark.parametrize("deterministic", [True, False])
def test_a_gpu_adds_in_a_fixed_order_if_so_required_and_sums_in_fp32_always(deterministic):
    set_arithmetic(GPU, deterministic=deterministic)
    assert torch.are_deterministic_algorithms_enabled() is deterministic
    assert torch.utils.deterministic.fill_uninitialized_memory is False
    assert torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction is False
    assert torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction is False


@pytest.mark.usefixtures("torch_settings")
def test_a_cpu_leaves_torchs_settings_alone():
    torch.use_deterministic_algorithms(False)
    set_arithmetic(Device(kind="cpu"), deterministic=True)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("before", "after"), [(None, ":4096:8"), (":16:8", ":16:8"), (":4096:8", ":4096:8"), (":0:0", ":4096:8")]
)
def test_cublas_gets_reproducible_workspaces_before_a_device_is_used(monkeypatch, before, after):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    if before is not None:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", before)
    prepare_cublas()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == after
