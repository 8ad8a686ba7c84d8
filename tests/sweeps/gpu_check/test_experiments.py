"""The experiments of ``sweeps gpu-check``, rehearsed on a CPU at tiny size; once on a real Ray.

In quick tests the engine trains in this process, one segment after another, and the allocator of the GPU is played.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from moe.device import Device
from moe.gpu_criteria import ContestFacts, Row, StepFacts
from moe.gpu_experiments import Bench, Shape
from moe.model import MoELanguageModel
from search_spaces import Space, load_space
from sweeps.commands.gpu_check import run_check
from sweeps.gpu_check import experiments
from sweeps.gpu_check.experiments import GpuCheck, Target, presets_to_check
from sweeps.gpu_check.segments import Handout, Laboratory, Order
from sweeps.packing.shares import Share, allocator_share
from sweeps.running.ray_tune import SegmentSource, Trainable
from sweeps.training_data import load_training_data
from sweeps.trial.trainable import SegmentJob, run_segment

GPU_GIB = 24.0
ON_CPU = Target(device=Device(kind="cpu"), gpu_gib=None, occupied_gib=0.0, cpus=2)
ON_GPU = replace(ON_CPU, gpu_gib=GPU_GIB)  # with the memory of a GPU, which the tests play
TINY = ("exam.rows_validation=2", "exam.rows_test=4", "model.d_model=32", "model.d_expert=32")


class Killed(BaseException):
    """Stands for SIGKILL, of which nothing is caught."""


class InProcess:
    """An engine that trains in this process and remembers with which shares."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[Share, int]] = []
        self.reports: list[dict[str, Any]] = []

        send = os.kill

        def kill(pid: int, number: int) -> None:
            if number == signal.SIGKILL:
                raise Killed
            send(pid, number)

        monkeypatch.setattr("ray.tune.report", self.reports.append)
        monkeypatch.setattr(os, "kill", kill)
        monkeypatch.setattr("sweeps.gpu_check.segments.GATE_DEADLINE_S", 0.0)

    def __call__(
        self, source: SegmentSource, share: Share, *, slots: int, storage_uri: str | None, trainable: Trainable
    ) -> None:
        self.asked.append((share, slots))
        while isinstance(job := source.take(), SegmentJob):
            try:
                trainable(vars(job))
                source.done(job.cell_id, self.reports[-1])
            except Killed:
                source.done(job.cell_id, None)


@pytest.fixture(scope="module")
def tiny() -> Space:
    return load_space(preset="smoke", overrides=list(TINY))


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> InProcess:
    return InProcess(monkeypatch)


@pytest.fixture
def check(tiny: Space, engine: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GpuCheck:
    """All experiments on one preset; what looks into a step runs in this process too."""
    monkeypatch.setattr(experiments, "in_a_worker", lambda function, *arguments, gpus, deadline_s: function(*arguments))
    laboratory = Laboratory(folder=tmp_path, engine=engine)
    return GpuCheck(target=ON_CPU, laboratory=laboratory, presets={"matched": tiny}, steps=8, packed_steps=6)


def named(rows: Iterator[Row]) -> dict[str, Row]:
    return {row.what: row for row in rows}


def two_arms(space: Space) -> Space:
    """The fewest that a space holds."""
    return space.model_copy(update={"strategies": space.strategies[:2]})


def trained_before(check: GpuCheck) -> StepFacts:
    """Let it be known of the first arm that it was trained, which other experiments build on."""
    order = check._order("matched", check.presets["matched"].strategies[0].name, "fp32")
    facts = StepFacts(arm=order.name, precision="fp32", losses=(7.0, 6.0), peak_gib=0.1, predicted_peak_gib=0.1)
    check._orders, check.trials = [order], [facts]
    return facts


def test_every_arm_is_trained_as_a_sweep_does_and_the_first_in_every_precision(check: GpuCheck) -> None:
    rows = named(check.training())
    arms = ("matched large_batch", "matched balanced", "matched long_seq")
    trained = {(facts.arm, facts.precision): facts for facts in check.trials}
    assert set(trained) == {*((arm, "fp32") for arm in arms), (arms[0], "fp16")}
    assert [row.what for row in rows.values() if row.held is False] == []
    for arm in arms:
        facts = trained[arm, "fp32"]
        assert len(facts.losses) == 8
        assert facts.exam_s > 0
        assert rows[f"{arm}, fp32: loss falls"].held
        assert rows[f"{arm}, fp32: peak memory"].held
        assert "s of training" in rows[f"{arm}, fp32: exams"].found
    assert rows["matched large_batch: loss in fp16 against fp32"].held
    assert rows["loss in bf16"].found == "not measured: cpu has no bf16 units"


def test_a_trial_that_fails_is_a_row_with_its_reason(check: GpuCheck, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: no kernel image is available")

    monkeypatch.setattr(MoELanguageModel, "loss", broken)
    rows = list(check.training())
    assert {row.held for row in rows if "loss falls" in row.what} == {False}
    assert rows[0].found == "RuntimeError: CUDA error: no kernel image is available"
    with pytest.raises(LookupError, match="no arm could be trained alone"):
        list(check.kill_and_resume())


def test_what_looks_into_a_step_runs_on_the_first_arm(check: GpuCheck, monkeypatch: pytest.MonkeyPatch) -> None:
    check.steps = 2

    def compiled(_bench: Bench, shape: Shape) -> ContestFacts:  # really in the tests of ``moe``: it takes half a minute
        return ContestFacts(arm=shape.name, ours_ms=60.0, others_ms={"torch.compile": 54.0})

    monkeypatch.setattr(experiments, "compiled", compiled)
    rows = named(check.profiles())
    assert rows["matched large_batch: attention"].held
    assert next(check.determinism()).what == "matched large_batch: cost of determinism"
    assert next(check.overflow()).held
    assert next(check.contests()).what == "matched large_batch: against transformers"
    assert "instead of" in next(check.compilation()).found
    assert next(check.memory()).found.startswith("not measured: a CPU has no context")
    kept = {"profile_step", "determinism", "overflow", "against_transformers", "compiled", "as_trained"}
    assert check.measured.keys() == kept


def test_a_worker_is_killed_once_and_its_cell_resumed_to_the_same_bits(check: GpuCheck, tmp_path: Path) -> None:
    trained_before(check)
    [row] = check.kill_and_resume()
    assert (row.what, row.found) == (
        "matched large_batch: killed -9 and resumed",
        "4 steps after it, equal to the last bit",
    )
    assert row.held
    assert len(list(tmp_path.glob("*/killed"))) == 1


def test_a_resume_from_damaged_weights_is_seen(check: GpuCheck, monkeypatch: pytest.MonkeyPatch) -> None:
    from moe.trainer import Trainer

    load = Trainer.load

    def damaged(self: Trainer, folder: Path) -> None:
        load(self, folder)
        with torch.no_grad():
            self.model.norm.weight[0] += 1e-3

    trained_before(check)
    monkeypatch.setattr(Trainer, "load", damaged)
    [row] = check.kill_and_resume()
    assert (row.found, row.held) == ("another result: losses, validation loss, weights", False)


def test_a_worker_that_was_never_killed_shows_nothing(check: GpuCheck, monkeypatch: pytest.MonkeyPatch) -> None:
    trained_before(check)
    monkeypatch.setattr(experiments, "killed_once", lambda *_: run_segment)
    [row] = check.kill_and_resume()
    assert (row.found, row.held) == ("it ended before it was killed", False)


def test_a_share_that_is_too_small_splits_the_micro_batches_of_the_heaviest_arm(
    check: GpuCheck, engine: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[float] = []
    loss = MoELanguageModel.loss

    def limited(self: MoELanguageModel, tokens_BT: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if limits and tokens_BT.shape[0] > 8 and not isinstance(tokens_BT, FakeTensor):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return loss(self, tokens_BT, *args, **kwargs)

    facts = trained_before(check)
    [alone] = check.laboratory.run(check._orders, share=check._share(1))
    losses_alone = tuple(record["train_loss"] for record in alone.result.records)
    check.trials, check.target = [replace(facts, losses=losses_alone, peak_gib=8.0)], ON_GPU
    monkeypatch.setattr("moe.device.device_memory_gib", lambda: GPU_GIB)
    monkeypatch.setattr("moe.device.limit_memory", limits.append)
    monkeypatch.setattr(MoELanguageModel, "loss", limited)
    split, losses = check.shortage()
    share, _ = engine.asked[-1]
    assert limits == [allocator_share(share.gpu_fraction, GPU_GIB)] == [pytest.approx(0.75 * 8.0 / GPU_GIB)]
    assert (split.found, split.held, losses.held) == ("micro-batch split 1 times", True, True)
    monkeypatch.setattr(MoELanguageModel, "loss", loss)
    assert next(check.shortage()).held is False, "nothing was split"


def test_memory_that_cannot_be_limited_is_not_measured(check: GpuCheck) -> None:
    trained_before(check)
    [row] = check.shortage()
    assert row.found == "not measured: the allocator of a CPU cannot be limited"
    check.target = replace(ON_GPU, gpu_gib=1000.0)
    [row] = check.shortage()
    assert "fits the smallest share of this GPU" in row.found


def test_trials_are_packed_with_equal_shares_as_far_as_memory_and_cpus_go(check: GpuCheck, engine: InProcess) -> None:
    trained_before(check)
    check.target = replace(ON_GPU, cpus=4, gpu_gib=2.0)
    rows = named(check.packing(with_mps=False))
    assert [(share.gpu_fraction, slots) for share, slots in engine.asked] == [(1.0, 1), (1 / 2, 2)]
    assert rows["1 x matched large_batch: throughput"].held
    assert rows["1 x matched large_batch: losses as alone"].held
    # one after another in this process
    assert rows["2 x matched large_batch: throughput"].found == "they did not train at the same time"
    assert rows["4 x matched large_batch"].found.startswith("not measured: 4 trials need 3.1")
    assert rows["8 x matched large_batch"].found == "not measured: this machine has 4 CPUs, one a trial"


def test_the_presets_are_those_for_gpus_on_text_that_is_here() -> None:
    presets = presets_to_check()
    assert list(presets) == ["tutorial", "published", "matched"]
    assert {space.corpus.kind for space in presets.values()} == {"embedded"}
    assert [space.tokenizer.vocab_size for space in presets.values()] == [46_080, 46_080, 8192]


@pytest.mark.slow
@pytest.mark.parametrize("preset", presets_to_check())
def test_every_preset_has_text_and_exams_enough(preset: str) -> None:
    space = presets_to_check()[preset]
    data = load_training_data(space)
    assert data.tokens.vocab_size == space.tokenizer.vocab_size
    assert data.exam.test.n_rows == space.exam.rows_test


def test_an_order_has_whole_blocks_and_a_rung_half_way() -> None:
    order = Order(preset="published", space=presets_to_check()["published"], arm="large_batch", steps=11)
    assert order.tokens_per_step == 104 * 256
    assert order.budget_tokens == 12 * 104 * 256, "4,096 tokens are a block, 6.5 of which are a step"
    assert order.half_tokens == 6 * 104 * 256


def test_a_segment_that_takes_too_long_is_ended_and_the_next_of_its_cell_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = SegmentJob(
        runs_uri="",
        sweep="",
        cell_id="a",
        until_tokens=1,
        threads=1,
        checkpoint_every_s=60.0,
        gpu_fraction=0.0,
        stop_request="stop.json",
    )
    ended: list[tuple[str, object]] = []
    handout = Handout([job, replace(job, until_tokens=2)], lambda cell_id, last: ended.append((cell_id, last)))
    assert handout.take() == job
    assert handout.take() == "wait"
    assert handout.hung(["a"]) == []
    monkeypatch.setattr("sweeps.gpu_check.segments.SEGMENT_DEADLINE_S", -1.0)
    assert handout.hung(["a"]) == ["a"]
    handout.done("a", None)
    assert ended == [], "another segment of the cell is left"
    assert handout.take() == replace(job, until_tokens=2)
    handout.done("a", {"ended": "done"})
    assert (ended, handout.take()) == ([("a", {"ended": "done"})], "finished")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_check_on_a_real_ray(tiny: Space, tmp_path: Path) -> None:
    """The way of a sweep: Ray Tune, its trainable, fractions, reused workers. Only the GPU's memory is played."""
    check = GpuCheck(
        target=ON_GPU,
        laboratory=Laboratory(folder=tmp_path),
        presets={"matched": two_arms(tiny)},
        steps=8,
        packed_steps=40,
    )
    said: list[str] = []
    rows, took_s = run_check(check, said.append)
    by_name = {row.what: row for row in rows}
    speeds = ("throughput", "cost of determinism", "against transformers", "exams")  # of this machine: not judged here
    assert [row for row in rows if row.held is False and not row.what.endswith(speeds)] == []
    assert len(said) == len(took_s) == 11
    two = next(facts for facts in check.measured["packing"] if facts.n_trials == 2)
    assert two.error is None
    assert two.least_concurrent == 2
    assert by_name["2 x matched large_batch: losses as alone"].held
    assert by_name["4 x matched large_batch"].found == "not measured: this machine has 2 CPUs, one a trial"
    assert by_name["packing with MPS"].held is None
    assert by_name["matched large_batch: killed -9 and resumed"].found == "4 steps after it, equal to the last bit"
    assert by_name["matched balanced: short of memory"].found.startswith("not measured: its peak of")
    assert by_name["matched large_batch: attention"].held
    assert by_name["matched large_batch: overflow in fp16"].held
    assert "times as long" in by_name["matched large_batch: against transformers"].found
    assert any(name.startswith("matched large_batch: torch.compile") for name in by_name)
