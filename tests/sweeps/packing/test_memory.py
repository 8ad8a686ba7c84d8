"""Arms that fill the same memory, with predictions of known shape, and the prediction for a device."""

from __future__ import annotations

from math import lcm

import pytest

from moe.device import Device
from search_spaces import Space, SpaceErrors, load_space
from sweeps.packing.memory import EQUAL_MEMORY, Predict, fit_memory, fullest_step, largest_micro_batch, predicted_peaks

LENGTHS = {"large_batch": 256, "balanced": 512, "long_seq": 1024}
"""Of the arms of ``matched``; any other arm is called by its length."""


def tokens(arm: str, micro_batch_size: int) -> int:
    return micro_batch_size * (LENGTHS.get(arm) or int(arm))


def straight(arm: str, micro_batch_size: int) -> float:
    """Weights and optimizer, then bytes per token."""
    return 1.2 + tokens(arm, micro_batch_size) * 1.1e-4


def with_padding_steps(arm: str, micro_batch_size: int) -> float:
    """Segments are padded to multiples, so real predictions have small steps on the line."""
    return straight(arm, micro_batch_size) + 0.03 * -(-micro_batch_size // 16)


def saturating(arm: str, micro_batch_size: int) -> float:
    return float(straight(arm, micro_batch_size) ** 0.8)


def quadratic(arm: str, micro_batch_size: int) -> float:
    return 0.5 + (tokens(arm, micro_batch_size) / 40_000) ** 2


def matched(*more: str) -> Space:
    return load_space(preset="matched", path=None, overrides=more)


@pytest.mark.parametrize("predict", [straight, with_padding_steps, saturating, quadratic])
@pytest.mark.parametrize("seq_len", [64, 256, 1024, 4096])
@pytest.mark.parametrize("memory_gib", [2.0, 12.0, 23.7])
def test_the_largest_micro_batch_fits_and_the_next_one_does_not(
    predict: Predict, seq_len: int, memory_gib: float
) -> None:
    arm = str(seq_len)
    size = largest_micro_batch(arm, memory_gib, predict)
    assert predict(arm, size) <= memory_gib < predict(arm, size + 1)


def test_a_straight_line_takes_a_handful_of_predictions() -> None:
    asked: list[int] = []

    def counted(arm: str, micro_batch_size: int) -> float:
        asked.append(micro_batch_size)
        return straight(arm, micro_batch_size)

    assert largest_micro_batch("256", 12.0, counted) == 383
    assert len(set(asked)) <= 5


def test_a_flat_beginning_leads_to_no_micro_batch_that_takes_minutes_to_predict() -> None:
    asked: list[int] = []

    def flat_at_first(arm: str, micro_batch_size: int) -> float:
        asked.append(micro_batch_size)
        return max(3.0 + 1e-6 * micro_batch_size, straight(arm, micro_batch_size))

    size = largest_micro_batch("256", 24.0, flat_at_first)
    assert straight("256", size) <= 24.0 < straight("256", size + 1)
    assert max(asked) < 16 * size
    assert len(set(asked)) <= 9


def test_no_window_fits_gives_zero() -> None:
    assert largest_micro_batch("1024", 1.0, straight) == 0


def test_fitted_arms_have_equal_tokens_per_step_and_peaks_within_the_memory() -> None:
    fit = fit_memory(matched(), 12.0, straight)
    assert len({arm.tokens_per_step for arm in fit.space.strategies}) == 1
    assert min(fit.peaks_gib.values()) >= EQUAL_MEMORY * max(fit.peaks_gib.values())
    for arm in fit.space.strategies:
        assert fit.peaks_gib[arm.name] == straight(arm.micro_batch_size, arm.seq_len) <= 12.0


def test_a_budget_that_forbids_full_memory_is_told_the_one_that_allows_it() -> None:
    fit = fit_memory(matched(), 12.0, straight)
    [warning] = fit.warnings
    assert warning.startswith(
        "the arms fill 55% / 55% / 55% of 12 GiB, since tokens per step must divide budget and rungs"
    )
    largest = {arm.name: largest_micro_batch(arm.name, 12.0, straight) for arm in fit.space.strategies}
    step = fullest_step(fit.space.strategies, largest)
    assert f"multiples of {step} tokens would let them fill it" in warning
    whole = lcm(step, matched().strategies[0].tokens_per_step)  # what the preset's own steps divide too
    wider = [f"budget_tokens={100 * whole}", f"rungs_tokens=[{25 * whole}, {50 * whole}]"]
    followed = fit_memory(matched(*wider), 12.0, straight)
    assert followed.warnings == ()
    assert min(followed.peaks_gib.values()) >= EQUAL_MEMORY * 12.0


def test_unequal_peaks_are_said_to_support_no_claim() -> None:
    def shape_dependent(arm: str, micro_batch_size: int) -> float:
        return 1.0 + tokens(arm, micro_batch_size) * (1e-4 if arm != "long_seq" else 1.6e-4)

    fit = fit_memory(matched(), 12.0, shape_dependent)
    assert fit.warnings[-1].startswith("predicted peaks differ by more than 10%")


def test_a_length_that_does_not_fit_is_refused() -> None:
    with pytest.raises(SpaceErrors, match=r"is too long: not one window of it fits into the memory"):
        fit_memory(matched(), 1.3, straight)


def test_peaks_are_predicted_in_the_precision_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    matched = load_space(preset="matched", path=None, overrides=["model.n_layers=1"])
    space = matched.model_copy(update={"strategies": matched.strategies[:1]})
    gpu = Device(kind="cuda", name="a GPU", compute_capability=(8, 0))

    def peaks_gib(precision: str, device: Device) -> dict[str, float]:
        return predicted_peaks(space.model_copy(update={"precision": precision}), device, vocab_size=512)

    [halves], [whole] = peaks_gib("bf16", gpu).values(), peaks_gib("fp32", gpu).values()
    assert halves < whole
    assert peaks_gib("auto", gpu) == peaks_gib("bf16", gpu)
    assert peaks_gib("auto", Device(kind="cpu")) == peaks_gib("fp32", Device(kind="cpu"))
