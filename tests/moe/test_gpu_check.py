"""The bare GPU check, rehearsed on a CPU with small shapes; the criteria are in ``test_gpu_criteria.py``."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from moe import gpu_check as checks
from moe import gpu_experiments as experiments
from moe.__main__ import main
from moe.config import BatchConfig, ModelConfig
from moe.device import Device
from moe.gpu_check import EXPERIMENTS, line_of, rows_of
from moe.gpu_criteria import Row, contest_row, shortage_rows
from moe.gpu_experiments import Bench, Shape, counted, read_corpus
from moe.model import MoELanguageModel

ROOT = Path(__file__).resolve().parents[2]
SMALL = Shape(
    name="small",
    model=ModelConfig(
        vocab_size=257, d_model=32, n_layers=2, n_heads=2, n_kv_heads=2, d_expert=32, n_experts=4, top_k=2
    ),
    batch=BatchConfig(micro_batch_size=4, seq_len=32),
)
CPU_BENCH = Bench(device=Device.resolve("cpu"), corpus=read_corpus(), steps=4)
GPU = Device(kind="cuda", name="NVIDIA H200", compute_capability=(9, 0))


@pytest.fixture
def no_compiler(monkeypatch):
    """torch.compile without its code generator, which takes a C++ compiler and half a minute."""
    compile_with = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile_with(function, backend="eager"))


def test_every_experiment_runs_on_a_cpu(no_compiler):
    rows = list(rows_of(CPU_BENCH, [SMALL]))
    by_name = {row.what: row for row in rows}
    speeds = ("small: cost of determinism", "small: against transformers")  # no test judges those of this machine
    assert [row for row in rows if row.held is False and row.what not in speeds] == []
    assert {
        "small, fp32: loss falls",
        "small, fp32: peak memory",
        "small: loss in fp16 against fp32",
        "small: launches a step",
        "small: host reads a step",
        "small: cost of determinism",
        "small: overflow in fp16",
        "small: short of memory",
        "small: against transformers",
        "small: torch.compile",
    } <= by_name.keys()
    assert by_name["small: saved, loaded, trained on"].found == "2 steps after it, equal to the last bit"
    assert by_name["small: attention"].found == "flash for CPU"
    assert by_name["small: short of memory"].found == "not measured: the allocator of a CPU cannot be limited"
    assert "ms instead of" in by_name["small: torch.compile"].found


def test_the_ways_of_transformers_compute_the_same_loss_and_are_timed():
    pytest.importorskip("transformers")
    facts = experiments.against_transformers(CPU_BENCH, SMALL)
    assert facts.failures == {}
    assert {"transformers eager, fp32 weights", "transformers grouped_mm, fp32 weights"} <= facts.others_ms.keys()
    assert contest_row(facts).held is not None


def test_weights_in_16_bits_are_stepped_on_in_fp32():
    pytest.importorskip("transformers")
    native = Device(kind="cpu", bf16_instructions=("avx512_bf16",))
    facts = experiments.against_transformers(replace(CPU_BENCH, device=native), SMALL)
    assert facts.failures == {}
    assert set(facts.others_ms) == {
        f"transformers {experts}, {dtype} weights" for experts in ("eager", "grouped_mm") for dtype in ("fp32", "bf16")
    }


def test_a_contestant_that_fails_or_computes_something_else_is_named_and_not_timed(monkeypatch):
    def large():
        raise RuntimeError("CUDA out of memory\nTried to allocate")

    monkeypatch.setattr(experiments, "ours", lambda *_: (20.0, 5.6))  # milliseconds and loss
    monkeypatch.setattr(experiments, "_timed", lambda bench, shape, make: make())
    makers = {"large": large, "good": lambda: (10.0, 5.6), "wrong": lambda: (1.0, 9.0)}
    facts = experiments._contest(CPU_BENCH, SMALL, makers)
    assert (facts.ours_ms, facts.others_ms) == (20.0, {"good": 10.0})
    assert facts.failures == {"large": "CUDA out of memory", "wrong": "another loss: 9.000, ours 5.600"}


def test_a_run_that_resumes_from_another_state_is_seen(monkeypatch):
    load = experiments.Trainer.load

    def damaged(self, folder):
        load(self, folder)
        with torch.no_grad():
            self.model.norm.weight[0] += 1e-3

    monkeypatch.setattr(experiments.Trainer, "load", damaged)
    assert experiments.resume(CPU_BENCH, SMALL).differences == ("losses", "weights")


def test_a_shortage_of_memory_splits_the_step(monkeypatch):
    """The allocator is played: while it is limited a forward pass of more than two rows finds no memory."""
    limits = [1.0]
    loss = MoELanguageModel.loss

    def limited(self, tokens_BT, *args, **kwargs):
        if limits[-1] < 1.0 and tokens_BT.shape[0] > 2 and not isinstance(tokens_BT, FakeTensor):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return loss(self, tokens_BT, *args, **kwargs)

    facts_of = experiments.facts_of
    monkeypatch.setattr(experiments, "limit_memory", limits.append)
    monkeypatch.setattr(MoELanguageModel, "loss", limited)
    monkeypatch.setattr(experiments, "facts_of", lambda *a, **k: replace(facts_of(*a, **k), gpu_gib=24.0))
    alone, short = experiments.shortage(CPU_BENCH, SMALL)
    assert limits[1] == pytest.approx(0.5 * alone.peak_gib / 24.0)
    assert limits[-1] == 1.0
    assert [row.held for row in shortage_rows(alone, short)] == [True, True]


def test_launches_host_reads_and_kernels_are_counted_by_the_names_of_a_profile():
    events = {
        "cudaLaunchKernel": 1200,
        "cuLaunchKernelEx": 30,
        "cudaLaunchKernelExC": 7,
        "Memcpy DtoH (Device -> Pageable)": 1,
        "Memcpy HtoD (Pinned -> Device)": 3,
        "aten::_scaled_dot_product_flash_attention": 6,
        "aten::_scaled_dot_product_flash_attention_backward": 6,
        "aten::mm": 100,
    }
    assert counted(events) == {"launches": 1237, "host_reads": 1, "attention": ("flash",)}


def test_a_device_without_bf16_units_says_so_and_is_checked_in_the_others():
    old = Device(kind="cuda", name="Tesla T4", compute_capability=(7, 5))
    assert experiments.precisions_of(old) == ("fp32", "fp16")
    assert experiments.precisions_of(GPU) == ("fp32", "bf16", "fp16")


def test_an_experiment_that_fails_is_a_row_that_fails_and_the_next_one_begins(monkeypatch):
    def broken(bench, shapes):
        yield Row(what="first", found="well", held=True)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    good = replace(EXPERIMENTS[0], does="another", rows=lambda bench, shapes: iter([Row(what="second", found="well")]))
    monkeypatch.setattr(checks, "EXPERIMENTS", (replace(EXPERIMENTS[0], does="do it", rows=broken), good))
    first, failed, second = rows_of(CPU_BENCH, [SMALL])
    assert (first.what, second.what) == ("first", "second")
    assert (failed.what, failed.held) == ("do it", False)
    assert failed.found == "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert line_of(failed).endswith("FAILED: it runs")
    assert line_of(second).split() == ["second", "well"]


def test_without_cuda_it_says_what_it_would_do_and_exits_4(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["gpu-check", "--out", str(tmp_path / "found.json")]) == 4
    said = capsys.readouterr().out
    assert "sees no CUDA device. With one this would, in 12 steps each of tutorial, published, matched:" in said
    assert all(experiment.does in said for experiment in EXPERIMENTS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("held", "code"), [(True, 0), (None, 0), (False, 3)])
def test_with_a_gpu_the_table_is_written_and_a_failed_row_is_exit_code_3(monkeypatch, tmp_path, held, code):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(Device, "resolve", lambda _: GPU)
    monkeypatch.setattr(checks, "rows_of", lambda _: iter([Row(what="a", found="b", criterion="c", held=held)]))
    out = tmp_path / "gpu-check.json"
    assert main(["gpu-check", "--out", str(out)]) == code
    found = json.loads(out.read_text())
    assert found["device"] == "NVIDIA H200"
    assert found["rows"] == [{"check": "a", "found": "b", "criterion": "c", "passed": held}]


def test_it_needs_nothing_but_torch_and_numpy():
    forbidden = ("ray", "pydantic", "datasets", "tokenizers", "transformers", "mlflow", "filelock", "sympy", "psutil")
    code = f"import sys\nfor name in {forbidden!r}: sys.modules[name] = None\nimport moe.gpu_check"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
