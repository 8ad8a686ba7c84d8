"""Peaks measured by a short real run before fractions are given out, and remembered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from moe.gpu_criteria import StepFacts
from search_spaces import Space, load_space
from sweeps.cluster.connection import local_ray
from sweeps.cluster.machines import Machines, Node
from sweeps.trial.probe import ProbedPeaks, Run, ShortRun, calibrated_peaks, probed_peaks, run_in_ray, what_decides

GPU = Machines(nodes=(Node(cpus=8, gpus=1, gpu_gib=24.0),), gpu_name="a GPU", compute_capability=(8, 0))
PREDICTED_GIB = {"large_batch": 4.0, "balanced": 4.0, "long_seq": 4.0}


class Measuring:
    """Answers as a GPU would, and remembers that it was asked."""

    def __init__(self, error: str | None = None) -> None:
        self.asked: list[str] = []
        self.error = error

    def run(self, short_run: ShortRun) -> StepFacts:
        self.asked.append(short_run.arm)
        return StepFacts(arm=short_run.arm, precision="bf16", peak_gib=4.5, error=self.error)


def matched(*overrides: str) -> Space:
    return load_space(preset="matched", path=None, overrides=overrides)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SWEEPS_CACHE_DIR", str(tmp_path))


def probed(space: Space, run: Run) -> ProbedPeaks:
    return probed_peaks(space, PREDICTED_GIB, precision="bf16", device_name="a GPU", run=run)


def test_measured_peaks_replace_predicted_ones_and_are_asked_for_once() -> None:
    gpu = Measuring()
    assert probed(matched(), gpu.run).peaks_gib == dict.fromkeys(PREDICTED_GIB, 4.5)
    again = probed(matched("rates.lr=[0.01, 0.02]", "seeds.confirm=3"), gpu.run)
    assert again.peaks_gib == dict.fromkeys(PREDICTED_GIB, 4.5)
    assert gpu.asked == list(PREDICTED_GIB), "rates and seeds change no peak"


def test_an_arm_that_cannot_be_probed_keeps_its_prediction_with_a_note() -> None:
    found = probed(matched(), Measuring("CUDA out of memory").run)
    assert found.peaks_gib == PREDICTED_GIB
    assert found.notes[0] == "large_batch could not be probed (CUDA out of memory) on a GPU; its peak is predicted"
    assert probed(matched(), Measuring().run).peaks_gib["large_batch"] == 4.5, "a failure is not remembered"


def test_another_model_vocabulary_or_shape_is_probed_again() -> None:
    order = ShortRun(space={}, arm="large_batch", precision="bf16", steps=2, lr=0.01)
    table = matched().resolved()
    table["strategies"][0].update(micro_batch_size=32, grad_accum_steps=4)
    others = [matched("model.d_expert=768"), matched("tokenizer.vocab_size=4096"), Space.from_resolved(table)]
    decides = {repr(what_decides(order, space, "a GPU")) for space in (matched(), *others)}
    assert len(decides) == 4


def test_another_device_is_probed_again() -> None:
    order = ShortRun(space={}, arm="large_batch", precision="bf16", steps=2, lr=0.01)
    assert what_decides(order, matched(), "a GPU") != what_decides(order, matched(), "another GPU")


def test_a_damaged_memory_of_a_probe_is_measured_again(tmp_path: Path) -> None:
    probed(matched(), Measuring().run)
    for kept in (tmp_path / "peaks").iterdir():
        kept.write_text("{")
    gpu = Measuring()
    probed(matched(), gpu.run)
    assert gpu.asked == list(PREDICTED_GIB)


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Measuring:
    """This machine pretends to have a GPU on which every arm has the same peak."""
    gpu = Measuring()
    monkeypatch.setattr("sweeps.trial.probe.run_in_ray", gpu.run)
    return gpu


@pytest.fixture
def rays(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What became of the Rays that would have been started on this machine."""
    told: list[str] = []

    @contextmanager
    def pretended(**_: object) -> Iterator[None]:
        told.append("started")
        monkeypatch.setattr("ray.is_initialized", lambda: True)
        yield
        told.append("ended")

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("sweeps.trial.probe.local_ray", pretended)
    return told


def test_a_sweep_measures_its_peaks_on_a_gpu_that_is_here_on_one_ray_for_all_arms(
    on_a_gpu: Measuring, rays: list[str]
) -> None:
    for _ in range(2):
        assert calibrated_peaks(matched(), PREDICTED_GIB, GPU).peaks_gib == dict.fromkeys(PREDICTED_GIB, 4.5)
    assert on_a_gpu.asked == list(PREDICTED_GIB)
    assert rays == ["started", "ended"], "none where the measurements are remembered"


def test_a_sweep_measures_its_peaks_on_a_gpu_that_is_up_in_its_cluster(on_a_gpu: Measuring, rays: list[str]) -> None:
    cluster = replace(GPU, address="auto")
    assert calibrated_peaks(matched(), PREDICTED_GIB, cluster).peaks_gib == dict.fromkeys(PREDICTED_GIB, 4.5)
    assert rays == []


@pytest.mark.slow
def test_a_probe_trains_in_a_worker_and_what_goes_wrong_there_is_in_its_facts() -> None:
    space = load_space(preset="smoke")
    arm = space.strategies[0].name
    short_run = ShortRun(space=space.resolved(), arm=arm, precision="fp32", steps=4, lr=0.01)
    with local_ray(cpus=1, declared_gpus=None):
        facts = run_in_ray(short_run, gpus=0.0)
        wrong = run_in_ray(replace(short_run, arm="unknown"), gpus=0.0)
    assert facts.error is None
    assert facts.gpu_gib is None
    assert facts.losses[-1] < facts.losses[0]
    assert facts.predicted_peak_gib == pytest.approx(facts.peak_gib, rel=0.1)
    assert wrong.error == "KeyError: 'unknown'"


def test_nothing_is_probed_where_no_gpu_is_up_or_shares_are_given(on_a_gpu: Measuring) -> None:
    still_to_start = replace(GPU, nodes=(Node(cpus=4),), growth=GPU.nodes, address="auto")
    assert calibrated_peaks(matched(), PREDICTED_GIB, still_to_start).peaks_gib == PREDICTED_GIB
    assert calibrated_peaks(matched("resources.gpu_per_trial=0.5"), PREDICTED_GIB, GPU).peaks_gib == PREDICTED_GIB
    assert calibrated_peaks(matched("resources.declared_gpus=2"), PREDICTED_GIB, GPU).peaks_gib == PREDICTED_GIB
    assert on_a_gpu.asked == []


def test_on_a_cpu_predictions_stand() -> None:
    assert calibrated_peaks(matched(), PREDICTED_GIB, Machines.of(cpus=2)).peaks_gib == PREDICTED_GIB
