"""The GPU check, rehearsed on a CPU with small shapes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from moe import gpu_check as checks
from moe.__main__ import main
from moe.config import BatchConfig, ModelConfig
from moe.device import Device
from moe.gpu_check import GpuCheck, Row, Shape, line_of, read_corpus

ROOT = Path(__file__).resolve().parents[2]
SMALL = Shape(
    name="small",
    model=ModelConfig(
        vocab_size=257, d_model=32, n_layers=2, n_heads=2, n_kv_heads=2, d_expert=32, n_experts=4, top_k=2
    ),
    batch=BatchConfig(micro_batch_size=4, seq_len=32),
)


def test_every_row_is_measured_and_passes_on_a_cpu():
    rows = list(GpuCheck(Device.resolve("cpu"), read_corpus(None), shapes=[SMALL], steps=4).rows())
    checks_made = [row.check for row in rows]
    assert "small, fp32: step" in checks_made
    assert "small: loss in fp16 against fp32" in checks_made
    assert [row for row in rows if row.passed is False] == []
    by_check = {row.check: row for row in rows}
    assert by_check["small: saved, loaded, trained on"].found == "equal to the last bit"
    assert by_check["small: attention"].found.startswith("flash for CPU (expected flash for CPU)")


def test_a_run_that_resumes_to_other_bits_fails(monkeypatch):
    check = GpuCheck(Device.resolve("cpu"), read_corpus(None), shapes=[SMALL], steps=4)
    monkeypatch.setattr(checks.Trainer, "load", lambda self, folder: None)  # begins again: trains half as long
    monkeypatch.setattr(checks, "_weights", lambda trainer, calls=[]: calls.append(1) or torch.tensor(len(calls)))
    row = check._resume(SMALL)
    assert (row.found, row.passed) == ("another result", False)
    assert line_of(row).endswith("FAILED")
    assert line_of(Row(check="a", found="b")).split() == ["a", "b"]


def test_without_cuda_it_says_what_it_would_do_and_exits_4(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["gpu-check", "--out", str(tmp_path / "found.json")]) == 4
    said = capsys.readouterr().out
    assert "sees no CUDA device. With one this would train 12 steps of tutorial, published, matched" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("passed", "code"), [(True, 0), (False, 3)])
def test_with_a_gpu_the_table_is_written_and_a_failed_row_is_exit_code_3(monkeypatch, tmp_path, passed, code):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    gpu = Device(kind="cuda", name="NVIDIA H200", compute_capability=(9, 0))
    monkeypatch.setattr(Device, "resolve", lambda _: gpu)
    monkeypatch.setattr(GpuCheck, "rows", lambda _: iter([Row(check="a", found="b", passed=passed)]))
    out = tmp_path / "gpu-check.json"
    assert main(["gpu-check", "--out", str(out)]) == code
    found = json.loads(out.read_text())
    assert (found["device"], found["rows"]) == ("NVIDIA H200", [{"check": "a", "found": "b", "passed": passed}])


def test_it_needs_nothing_but_torch_and_numpy():
    forbidden = ("ray", "pydantic", "datasets", "tokenizers", "transformers", "mlflow", "filelock")
    code = f"import sys\nfor name in {forbidden!r}: sys.modules[name] = None\nimport moe.gpu_check"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
