"""The learning-rate schedule: linear warm-up, plateau, linear decay, all on the clock of tokens."""

from __future__ import annotations

from moe.config import ScheduleConfig


def lr_factor(schedule: ScheduleConfig, tokens_seen: int, tokens_per_step: int) -> float:
    """The share of the full learning rate, in [0, 1], at which the step that starts at ``tokens_seen`` is made.

    Warm-up counts the step's own tokens, so that the first step moves (1 / n of the rate for a warm-up of n steps).
    Decay counts the tokens that are left before the step, so that the last step of the budget moves too and the rate
    would be zero right after it (the trapezoidal schedule of Hägele et al. 2024, arXiv 2405.18392). A pure function:
    the horizon is ``budget_tokens``, whatever rung a run stops at.
    """
    factor = 1.0
    if schedule.warmup_tokens > 0:
        factor = min(factor, (tokens_seen + tokens_per_step) / schedule.warmup_tokens)
    if schedule.decay_tokens > 0:
        factor = min(factor, (schedule.budget_tokens - tokens_seen) / schedule.decay_tokens)
    return max(factor, 0.0)
