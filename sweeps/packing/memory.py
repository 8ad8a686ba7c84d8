"""Predicted peak memory of each arm, and arms made to fill a given memory (``sweeps new --fit``).

For every sequence length the search finds the largest micro-batch whose predicted peak fits;
``search_spaces.fitted_space`` then cuts one number of tokens per step into micro-batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING

from search_spaces import Space, Strategy, fitted_space
from sweeps.packing.remembered import remembered
from sweeps.training_config import any_cell, train_config

if TYPE_CHECKING:
    from moe.device import Device

Predict = Callable[[str, int], float]
"""Predicted peak in GiB of an arm, by name, at a micro-batch, with which it grows."""

FALLBACK_VOCAB_SIZE = 49_152
"""Where a tokenizer's size shows only once it is read: that of SmolLM's, the published study's."""

MOST_MICRO_BATCH = 2**20
LONGEST_LEAP = 16
"""A prediction for a micro-batch takes longer the larger it is: no trial is more times the largest that fits."""

EQUAL_MEMORY = 0.9
"""Peaks that differ by more than ten percent support no claim about memory (method, rule 10)."""

NEARLY_FULL = 0.95

MOST_ACCUMULATION = 8
"""How many of the largest micro-batches one optimizer step may be made of, in the search for a better budget."""


@dataclass(frozen=True, kw_only=True)
class MemoryFit:
    """``space`` with the shapes that were found, the predicted peak of each arm, and warnings."""

    space: Space
    peaks_gib: Mapping[str, float]
    warnings: tuple[str, ...]


def predicted_peaks(space: Space, device: Device, *, vocab_size: int) -> dict[str, float]:
    """Peak GiB of tensors of each arm's training on ``device``, predicted before it runs."""
    return {arm.name: _predicted_gib(space, arm, vocab_size, device) for arm in space.strategies}


def fit_arms(space: Space, memory_gib: float, device: Device, *, vocab_size: int) -> MemoryFit:
    """``fit_memory`` by predictions for a device."""

    def predict(name: str, micro_batch_size: int) -> float:
        tried = space.strategy(name).model_copy(update={"micro_batch_size": micro_batch_size, "grad_accum_steps": 1})
        return _predicted_gib(space, tried, vocab_size, device)

    return fit_memory(space, memory_gib, predict)


def _predicted_gib(space: Space, arm: Strategy, vocab_size: int, device: Device) -> float:
    from moe.memory import predict_peak_gib
    from moe.precision import resolve_precision

    precision = resolve_precision(space.precision, device).name
    one_step = {
        "strategies": (arm,),
        "budget_tokens": arm.tokens_per_step,
        "budgets_tokens": (arm.tokens_per_step,),
        "rungs_tokens": (),
    }
    shaped = space.model_copy(update=one_step)
    config = replace(train_config(shaped, any_cell(shaped, arm.name), vocab_size=vocab_size), block_len=space.block_len)
    predict = partial(predict_peak_gib, config, precision=precision, device=device)
    return float(remembered("peaks", (config, precision, device), predict))


def largest_micro_batch(arm: str, memory_gib: float, predict: Predict) -> int:
    """The largest micro-batch whose predicted peak is at most ``memory_gib``; 0 where not even one window fits.

    Peaks are nearly a straight line in the micro-batch, so a line through two predictions is tried first and its
    nearest values confirm it: five to ten predictions instead of twenty.
    """
    if predict(arm, 1) > memory_gib:
        return 0
    before, fits, too_large, stride = 1, 1, MOST_MICRO_BATCH + 1, 1
    while too_large - fits > 1:
        trial = _on_the_line(arm, before, fits, memory_gib, predict) if fits > 1 else 2
        if trial <= fits:  # the line says that this is the largest: try the next one, then farther ones
            trial = fits + stride
            stride *= 2
        if trial >= too_large:
            trial = (fits + too_large) // 2
        if predict(arm, trial) <= memory_gib:
            before, fits = fits, trial
        else:
            too_large = trial
    return fits


def fit_memory(space: Space, memory_gib: float, predict: Predict) -> MemoryFit:
    """Choose shapes with which the arms of a space fill ``memory_gib``; the lengths stay as they are.

    Takes five to ten predictions per arm.

    Raises:
        SpaceErrors: an arm has room for no window.
    """
    remembered = cache(predict)
    largest = {arm.name: largest_micro_batch(arm.name, memory_gib, remembered) for arm in space.strategies}
    fitted = fitted_space(space, largest)
    peaks_gib = {arm.name: remembered(arm.name, arm.micro_batch_size) for arm in fitted.strategies}
    warnings = []
    if min(peaks_gib.values()) < EQUAL_MEMORY * memory_gib:
        filled = " / ".join(f"{peak_gib / memory_gib:.0%}" for peak_gib in peaks_gib.values())
        tokens = fullest_step(fitted.strategies, largest)
        warnings.append(
            f"the arms fill {filled} of {memory_gib:g} GiB, since tokens per step must divide budget and rungs; "
            f"a budget and rungs that are multiples of {tokens} tokens would let them fill it"
        )
    if min(peaks_gib.values()) < EQUAL_MEMORY * max(peaks_gib.values()):
        warnings.append("predicted peaks differ by more than 10%: the report will make no claim about equal memory")
    return MemoryFit(space=fitted, peaks_gib=peaks_gib, warnings=tuple(warnings))


def fullest_step(arms: tuple[Strategy, ...], largest: Mapping[str, int]) -> int:
    """Tokens per step with which all arms come nearest to their largest micro-batches.

    The smallest number with which every micro-batch is at least ``NEARLY_FULL`` of its largest, otherwise the one whose
    emptiest arm is fullest.
    """
    unit = math.lcm(*(arm.seq_len for arm in arms))
    most = MOST_ACCUMULATION * max(largest[arm.name] * arm.seq_len for arm in arms)
    best = (0.0, unit)
    for tokens in range(unit, max(unit, most) + 1, unit):
        share = min(_divisor_up_to(tokens // arm.seq_len, largest[arm.name]) / largest[arm.name] for arm in arms)
        if share > best[0]:
            best = (share, tokens)
        if share >= NEARLY_FULL:
            break
    return best[1]


def _on_the_line(arm: str, before: int, fits: int, memory_gib: float, predict: Predict) -> int:
    """Where a line through the predictions at ``before`` and ``fits`` meets the memory, or a part of the way there.

    Small micro-batches may all have the peak of the optimizer's step, of which no line says where it ends.
    """
    fits_gib = predict(arm, fits)
    slope_gib = (fits_gib - predict(arm, before)) / (fits - before)
    farthest = min(fits * LONGEST_LEAP, MOST_MICRO_BATCH)
    return farthest if slope_gib <= 0 else min(fits + int((memory_gib - fits_gib) / slope_gib), farthest)


def _divisor_up_to(number: int, most: int) -> int:
    """The largest divisor of ``number`` that is at most ``most``."""
    return next(divisor for divisor in range(min(number, most), 0, -1) if number % divisor == 0)
