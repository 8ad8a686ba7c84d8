import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moe.checkpoint import STATE_FILE
from moe.device import Device, device_identity
from moe.errors import CheckpointError

# Four epochs of 512 tokens in a budget of 2048: every point but two is in the middle of one.
SHORT_CORPUS_TOKENS = 544
EXAMS = (1024, 2048)
TIMES = ("tokens_per_s", "train_time_s", "counting_time_s", "exam_time_s", "timestamp_s", "peak_mem_allocated_gib")

RESUME = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
from conftest import build_trainer
from test_resume import CASES, EXAMS, SHORT_CORPUS_TOKENS
for case, changes in CASES.items():
    trainer = build_trainer(n_tokens=SHORT_CORPUS_TOKENS, exam_at_tokens=EXAMS, **changes)
    folder = Path(sys.argv[2]) / case
    trainer.load(folder / "half")
    list(trainer.run())
    trainer.save(folder / "resumed")
"""

CASES = {
    "fp32": {},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "accumulation": {"batch.micro_batch_size": 2, "batch.grad_accum_steps": 2},
    "bf16 with accumulation": {"precision": "bf16", "batch.micro_batch_size": 1, "batch.grad_accum_steps": 4},
}


@pytest.fixture
def trainer_of(make_trainer):
    return lambda changes: make_trainer(n_tokens=SHORT_CORPUS_TOKENS, exam_at_tokens=EXAMS, **changes)


def leaves(value, path=""):
    """Every leaf of a nested state with its path; times are left out."""
    if isinstance(value, dict):
        for name, child in value.items():
            if name not in TIMES:
                yield from leaves(child, f"{path}/{name}")
    elif isinstance(value, list | tuple):
        for i, child in enumerate(value):
            yield from leaves(child, f"{path}/{i}")
    else:
        yield path, value


def assert_bitwise_equal(folder_a: Path, folder_b: Path):
    a, b = (dict(leaves(torch.load(folder / STATE_FILE, weights_only=True))) for folder in (folder_a, folder_b))
    assert a.keys() == b.keys()
    assert any("momentum_buffer" in path for path in a)
    assert any("exp_avg_sq" in path for path in a)
    assert any("train_loss" in path for path in a)
    for path, value in a.items():
        same = torch.equal(value, b[path]) if isinstance(value, torch.Tensor) else value == b[path]
        assert same, path


def stop_at(trainer, tokens, folder):
    """A run that is abandoned at a report, as by a kill: saved there, never heard of again."""
    for report in trainer.run():
        if report.tokens_seen >= tokens:
            break
    trainer.save(folder)


@pytest.fixture(scope="module")
def resumed_elsewhere(make_trainer, tmp_path_factory):
    """A folder per case: one run to the end, one stopped half way, and that one resumed in a new process."""
    root = tmp_path_factory.mktemp("resumed")
    torch.set_num_threads(1)
    for case, changes in CASES.items():
        for name in ("whole", "half", "resumed"):
            (root / case / name).mkdir(parents=True)
        whole, half = (make_trainer(n_tokens=SHORT_CORPUS_TOKENS, exam_at_tokens=EXAMS, **changes) for _ in range(2))
        list(whole.run())
        whole.save(root / case / "whole")
        stop_at(half, 768, root / case / "half")
    here = Path(__file__).parent
    subprocess.run([sys.executable, "-c", RESUME, str(here), str(root)], check=True, cwd=here.parents[1])
    return root


@pytest.mark.parametrize("case", CASES)
def test_a_run_resumed_in_a_new_process_is_bitwise_the_uninterrupted_one(resumed_elsewhere, case):
    assert_bitwise_equal(resumed_elsewhere / case / "whole", resumed_elsewhere / case / "resumed")


@pytest.mark.parametrize("tokens", range(256, 2048, 256))
def test_a_run_can_be_stopped_and_resumed_at_every_report(resumed_elsewhere, trainer_of, tokens, tmp_path):
    (tmp_path / "resumed").mkdir()
    stop_at(trainer_of({}), tokens, tmp_path)
    resumed = trainer_of({})
    resumed.load(tmp_path)
    assert resumed.tokens_seen == tokens
    list(resumed.run())
    resumed.save(tmp_path / "resumed")
    assert_bitwise_equal(resumed_elsewhere / "fp32" / "whole", tmp_path / "resumed")


def test_times_and_records_go_on_where_they_stopped(trainer_of, tmp_path):
    trainer = trainer_of({})
    list(trainer.run(until_tokens=1024))
    trainer.save(tmp_path)
    resumed = trainer_of({})
    resumed.load(tmp_path)
    assert resumed.records == trainer.records
    assert resumed.train_time_s == trainer.train_time_s
    assert resumed.exam_time_s == trainer.exam_time_s > 0.0
    report = next(iter(resumed.run()))
    assert report.train_time_s > trainer.train_time_s
    assert resumed.peak_mem_allocated_gib >= trainer.peak_mem_allocated_gib


def test_a_checkpoint_is_not_changed_by_training_on(trainer_of, tmp_path):
    trainer = trainer_of({})
    list(trainer.run(until_tokens=256))
    trainer.save(tmp_path)
    before = (tmp_path / STATE_FILE).read_bytes()
    list(trainer.run())
    assert (tmp_path / STATE_FILE).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]


def test_a_checkpoint_of_another_config_is_refused_and_every_difference_named(trainer_of, tmp_path):
    trainer_of({}).save(tmp_path)
    other = trainer_of({"optimizer.lr": 0.5, "seed": 9, "precision": "bf16"})
    with pytest.raises(CheckpointError) as caught:
        other.load(tmp_path)
    message = str(caught.value)
    assert "optimizer.lr was 0.02 and is now 0.5" in message
    assert "seed was 1 and is now 9" in message
    assert "precision was 'fp32' and is now 'bf16'" in message
    assert "first micro-batch was" in message


def test_a_checkpoint_of_other_data_is_refused(trainer_of, make_trainer, tmp_path):
    trainer_of({}).save(tmp_path)
    other = make_trainer(n_tokens=4096, exam_at_tokens=EXAMS)
    with pytest.raises(CheckpointError, match="first micro-batch was"):
        other.load(tmp_path)


def test_when_to_report_may_change_between_runs(trainer_of, tmp_path):
    trainer_of({}).save(tmp_path)
    other = trainer_of({"report_every_tokens": 512})
    other.load(tmp_path)
    assert other.tokens_seen == 0


def test_a_missing_or_damaged_checkpoint_is_refused(trainer_of, tmp_path):
    with pytest.raises(CheckpointError, match=r"state.pt is missing; choose a folder that holds a complete checkpoint"):
        trainer_of({}).load(tmp_path)
    trainer_of({}).save(tmp_path)
    path = tmp_path / STATE_FILE
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"state.pt cannot be read .* go on from an older checkpoint"):
        trainer_of({}).load(tmp_path)


def test_a_checkpoint_is_read_into_host_memory(trainer_of, tmp_path, monkeypatch):
    """Beside the live model a GPU may have no room for a second one."""
    asked, load = [], torch.load
    trainer_of({}).save(tmp_path)
    monkeypatch.setattr(torch, "load", lambda *a, **b: asked.append(b["map_location"]) or load(*a, **b))
    trainer_of({}).load(tmp_path)
    assert asked == ["cpu"]


GPU = Device(kind="cuda", name="NVIDIA H200", compute_capability=(9, 0))


def test_bits_of_a_gpu_belong_to_its_kind_and_to_the_versions_of_torch_and_cuda():
    identity = device_identity(GPU)
    assert identity == {
        "deterministic": "yes",
        "GPU": "NVIDIA H200",
        "torch": torch.__version__,
        "CUDA": str(torch.version.cuda),
    }
    assert device_identity(Device(kind="cpu")) == {}


@pytest.mark.parametrize("deterministic", [True, False])
def test_only_where_equal_bits_are_required_is_another_gpu_refused(trainer_of, tmp_path, monkeypatch, deterministic):
    def on(name):
        trainer = trainer_of({"deterministic": deterministic})
        trainer.device = replace(GPU, name=name)
        return trainer

    on("NVIDIA H200").save(tmp_path)
    other = on("NVIDIA L4")
    monkeypatch.setattr(Device, "torch_device", property(lambda _: torch.device("cpu")))
    if deterministic:
        with pytest.raises(CheckpointError, match="GPU was 'NVIDIA H200' and is now 'NVIDIA L4'"):
            other.load(tmp_path)
    else:
        other.load(tmp_path)
