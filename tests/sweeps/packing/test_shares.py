"""Peaks are predicted for the device that trials will train on, wherever the driver sits."""

from __future__ import annotations

import pytest

from search_spaces import Space, load_space
from sweeps.packing.shares import predicted_peaks

VOCAB_SIZE = 512


@pytest.fixture
def space(monkeypatch: pytest.MonkeyPatch) -> Space:
    """One arm that is large enough for 16 bits to take less memory than 32, on a machine without bf16 or a GPU."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cpu.get_capabilities", dict)
    matched = load_space(preset="matched", path=None, overrides=["model.n_layers=1"])
    return matched.model_copy(update={"strategies": matched.strategies[:1]})


def in_precision(space: Space, name: str) -> Space:
    return space.model_copy(update={"precision": name})


@pytest.mark.parametrize("gpus", [True, False])
def test_a_driver_without_a_gpu_predicts_for_the_gpus_of_its_cluster(
    space: Space, monkeypatch: pytest.MonkeyPatch, gpus: bool
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr("sweeps.packing.shares.cluster_has_gpu", lambda: gpus)
    halves = predicted_peaks(in_precision(space, "bf16"), vocab_size=VOCAB_SIZE)
    whole = predicted_peaks(in_precision(space, "fp32"), vocab_size=VOCAB_SIZE)
    assert all(halves[arm] < whole[arm] for arm in whole)
    assert predicted_peaks(space, vocab_size=VOCAB_SIZE) == (halves if gpus else whole)


def test_without_a_cluster_nobody_is_asked_for_a_gpu(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("sweeps.packing.shares.cluster_has_gpu", lambda: 1 / 0)
    whole = predicted_peaks(in_precision(space, "fp32"), vocab_size=VOCAB_SIZE)
    assert predicted_peaks(space, vocab_size=VOCAB_SIZE) == whole
