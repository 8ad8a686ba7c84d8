"""When the C kernels are used, and why they are not."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from moe import kernels
from moe.norm import RmsNorm
from tests.moe.kernel_builds import SOURCES, build, load_from


@pytest.fixture
def installed():
    loaded = kernels.load()
    if not loaded.functions:
        pytest.skip(loaded.found)


def test_kernels_are_built_where_they_can_be():
    """Their build is optional: without this test a mistake in the C would only skip the others."""
    if shutil.which("gcc") is None or platform.machine() != "x86_64":
        pytest.skip("kernels are for x86-64 and built by GCC")
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    if "avx2" not in flags:
        pytest.skip("this processor has no AVX2")
    functions, found = kernels.load()
    assert functions, found
    version = subprocess.run(["gcc", "-dumpversion"], capture_output=True, text=True, check=True).stdout
    if "amx_bf16" in flags and int(version.partition(".")[0]) >= 11:
        assert "multiply" in functions, found


def assert_norm_equals_torch():
    x_RD = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(RmsNorm(8, 1e-6)(x_RD), functional.rms_norm(x_RD, (8,), eps=1e-6))


def test_kernels_work_on_fp32_with_numbers_on_a_cpu_with_one_thread(installed, monkeypatch):
    x = torch.zeros(2, 2)
    assert kernels.available(x)
    assert not kernels.available(x.double())
    assert not kernels.available(x.bfloat16())
    assert not kernels.available(x.to("meta"))
    with FakeTensorMode():
        assert not kernels.available(torch.zeros(2, 2))
    with kernels.switched_off():
        assert not kernels.available(x)
    with pytest.raises(ZeroDivisionError), kernels.switched_off():
        raise ZeroDivisionError
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert not kernels.available(x)


def test_memory_is_predicted_as_if_fake_tensors_had_numbers(installed):
    with FakeTensorMode():
        assert kernels.fit(torch.zeros(2, 2))
        assert not kernels.fit(torch.zeros(2, 2).double())


@pytest.mark.parametrize(("head_dim", "is_attended"), [(24, False), (32, True), (48, False), (96, True)])
def test_kernels_attend_for_heads_of_a_multiple_of_32(installed, head_dim, is_attended):
    assert kernels.attends(torch.zeros(1), head_dim) == is_attended
    assert not kernels.attends(torch.zeros(1, dtype=torch.float64), head_dim)


def test_without_a_library_torch_computes_everything(monkeypatch):
    loaded = load_from(None)
    assert loaded == ({}, "not built: no GCC was found when the project was installed")
    monkeypatch.setattr(kernels, "load", lambda: loaded)
    assert not kernels.available(torch.zeros(1))
    assert not kernels.attends(torch.zeros(1), 32)
    assert_norm_equals_torch()


def test_a_file_that_is_no_library_is_a_reason_not_an_error(tmp_path):
    (tmp_path / "damaged.so").write_bytes(b"not ELF")
    loaded = load_from(tmp_path / "damaged.so")
    assert not loaded.functions
    assert loaded.found.startswith("built for another machine, or damaged: ")


@pytest.mark.parametrize(
    ("interface", "widths", "reason"),
    [
        (999, 3, "install the project again"),
        (kernels._INTERFACE, 3, "undefined symbol: swiglu"),
        (kernels._INTERFACE, 0, "they are for x86-64 with AVX2"),
    ],
)
def test_a_library_of_other_sources_or_for_other_processors_is_not_used(tmp_path, interface, widths, reason):
    source = tmp_path / "other.c"
    numbers = {"kernels_interface": interface, "kernels_instructions": widths}
    source.write_text("".join(f"long {name}(void) {{ return {number}; }}\n" for name, number in numbers.items()))
    loaded = load_from(build(tmp_path / "other.so", [source]))
    assert not loaded.functions
    assert reason in loaded.found


def test_another_compiler_than_gcc_builds_a_library_without_kernels(tmp_path):
    loaded = load_from(build(tmp_path / "elsewhere.so", [SOURCES / "kernels.c"], "-D__clang__"))
    assert loaded == ({}, "none: they are for x86-64 with AVX2, built by GCC")
