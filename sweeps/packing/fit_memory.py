"""Arms that fill the same memory (``fit_memory_gib``): the study's own question, asked properly.

For every sequence length the largest micro-batch whose predicted peak fits; ``search_spaces.fitted_space`` then cuts
one number of tokens per step into micro-batches. Pure search: the prediction is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

from search_spaces import Space, Strategy, fitted_space

Predict = Callable[[int, int], float]
"""Predicted peak in GiB of ``(micro_batch_size, seq_len)``; grows with the micro-batch."""

MOST_MICRO_BATCH = 2**20

EQUAL_MEMORY = 0.9
"""Peaks that differ by more than ten percent support no claim about memory (method, rule 10)."""

NEARLY_FULL = 0.95

MOST_ACCUMULATION = 8
"""How many of the largest micro-batches one optimizer step may be made of, in the search for a better budget."""


@dataclass(frozen=True, kw_only=True)
class MemoryFit:
    """``space`` with the shapes that the planner made, the predicted peak of each arm, and what must be said."""

    space: Space
    largest_micro_batches: Mapping[str, int]
    peaks_gib: Mapping[str, float]
    warnings: tuple[str, ...]

    @property
    def peaks_are_equal(self) -> bool:
        """Whether the smallest predicted peak is within ten percent of the largest."""
        return min(self.peaks_gib.values()) >= EQUAL_MEMORY * max(self.peaks_gib.values())


def largest_micro_batch(seq_len: int, memory_gib: float, predict: Predict) -> int:
    """The largest micro-batch whose predicted peak is at most ``memory_gib``; 0 where not even one window fits.

    Peaks are nearly a straight line in the micro-batch, so a line through two predictions is tried first and its
    neighbours confirm it: about five predictions instead of twenty.
    """
    if predict(1, seq_len) > memory_gib:
        return 0
    fits, too_large, stride = 1, MOST_MICRO_BATCH + 1, 1
    while too_large - fits > 1:
        trial = _on_the_line(seq_len, fits, memory_gib, predict) if fits > 1 else 2
        if trial <= fits:  # the line says that this is the largest: ask its neighbour, then farther ones
            trial = fits + stride
            stride *= 2
        if trial >= too_large:
            trial = (fits + too_large) // 2
        if predict(trial, seq_len) <= memory_gib:
            fits = trial
        else:
            too_large = trial
    return fits


def fit_memory(space: Space, predict: Predict) -> MemoryFit:
    """Choose the shapes of a space that asks for ``fit_memory_gib`` and has none yet (``space.needs_fitting``).

    Takes about five predictions per arm.

    Raises:
        SpaceErrors: an arm has room for no window.
    """
    assert space.fit_memory_gib is not None, "only a space with fit_memory_gib has memory to fit"
    memory_gib = space.fit_memory_gib
    remembered = cache(predict)
    largest = {arm.name: largest_micro_batch(arm.seq_len, memory_gib, remembered) for arm in space.strategies}
    fitted = fitted_space(space, largest)
    peaks_gib = {arm.name: remembered(arm.micro_batch_size, arm.seq_len) for arm in fitted.strategies}
    fit = MemoryFit(space=fitted, largest_micro_batches=largest, peaks_gib=peaks_gib, warnings=())
    warnings = []
    if min(peaks_gib.values()) < EQUAL_MEMORY * memory_gib:
        filled = " / ".join(f"{peak_gib / memory_gib:.0%}" for peak_gib in peaks_gib.values())
        tokens = fullest_step(fitted.strategies, largest)
        warnings.append(
            f"the arms fill {filled} of {memory_gib:g} GiB, since tokens per step must divide budget and rungs; "
            f"a budget and rungs that are multiples of {tokens} tokens would let them fill it"
        )
    if not fit.peaks_are_equal:
        warnings.append("predicted peaks differ by more than 10%: the report will make no claim about equal memory")
    return MemoryFit(space=fitted, largest_micro_batches=largest, peaks_gib=peaks_gib, warnings=tuple(warnings))


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


def _on_the_line(seq_len: int, fits: int, memory_gib: float, predict: Predict) -> int:
    """Where a line through the predictions at 1 and at ``fits`` meets the budget."""
    base_gib = predict(1, seq_len)
    slope_gib = (predict(fits, seq_len) - base_gib) / (fits - 1)
    if slope_gib <= 0:
        return min(fits * 2, MOST_MICRO_BATCH)
    return min(1 + int((memory_gib - base_gib) / slope_gib), MOST_MICRO_BATCH)


def _divisor_up_to(number: int, most: int) -> int:
    """The largest divisor of ``number`` that is at most ``most``."""
    return next(divisor for divisor in range(min(number, most), 0, -1) if number % divisor == 0)
