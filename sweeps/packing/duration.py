"""How long a sweep will take on this machine: tokens of training and exams, at a measured speed where possible."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from search_spaces import Space, planned_cells
from sweeps.cluster.machines import Machines
from sweeps.cluster.matmul_rate import matmul_flops_per_s
from sweeps.cluster.speed import seconds_per_token, seconds_per_token_on_cluster
from sweeps.packing.shares import Packing
from sweeps.plan.forecast import explore_tokens_per_arm
from sweeps.training_config import model_config
from sweeps.verdict.token_costs import costlier_arms

if TYPE_CHECKING:
    from sweeps.training_data import TrainingData

SHARE_OF_MATMUL: Final = 0.35
"""Of the machine's matmul rate that a training step reaches: what `make bench ONLY=step` finds on CPUs."""
LONGEST_PROBED_STEP_S: Final = 2.0
"""A few steps that each take longer would delay a plan; they are estimated from FLOPs."""
FORWARD_SHARE: Final = 1 / 3
"""Of a training step: a backward pass is two forward passes."""
BUSY_SHARE: Final = 0.96
"""Of workers' time in training and exams, as measured in sweeps of ``laptop`` on two cores; the rest is waiting."""
WIDENINGS: Final = 0.5
"""Cells beyond the edge of an arm's grid at each budget, where the grid may widen: 3 at 6 places in ``laptop``."""
OUTSIDE_S: Final = 25.0
"""Before the first worker trains and after the last one has ended: Ray, imports, verdict and report, on two cores."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Seconds of training per token of each arm while ``processes`` trials run at once, and where they are from."""

    seconds_per_token: Mapping[str, float]
    processes: int
    source: str


def find_speed(space: Space, data: TrainingData, packing: Packing, machines: Machines) -> Speed | None:
    """How fast each arm trains on these machines; None on GPUs on which no step could be timed.

    Trials that share a GPU take turns on it. On CPUs, steps that would take too long are estimated from FLOPs.
    """
    on_gpus = any(packing.gpu_fraction.values())
    processes = min(machines.gpus, packing.workers) if on_gpus else packing.workers
    from_flops = None if on_gpus else _from_flops(space, data.tokens.vocab_size, packing.threads)
    measured = None
    if from_flops is None or _slowest_step_s(space, from_flops) < LONGEST_PROBED_STEP_S:
        if machines.address is None:
            measured = seconds_per_token(space, processes=processes, on_gpus=on_gpus)
        else:
            measured = seconds_per_token_on_cluster(space, processes=processes, gpus=1 if on_gpus else 0)
    if measured is not None:
        return Speed(seconds_per_token=measured, processes=processes, source="measured by some steps of each arm")
    if from_flops is not None:
        return Speed(seconds_per_token=from_flops, processes=processes, source="from this machine's matmul rate")
    return None


def expected_seconds(space: Space, data: TrainingData, speed: Speed) -> float:
    """The wall time of a whole sweep at this speed."""
    return OUTSIDE_S + _worker_seconds(space, data, speed.seconds_per_token) / (speed.processes * BUSY_SHARE)


def expected_tokens(space: Space, *, vocab_size: int) -> dict[str, int]:
    """Tokens of training per arm: explore with early stopping and some widening, confirm, the view at equal FLOPs."""
    found = dict.fromkeys((arm.name for arm in space.strategies), 0)
    brackets: Counter[tuple[str, int, int]] = Counter()
    for cell in planned_cells(space):
        if cell.phase == "explore":
            brackets[cell.strategy, cell.seed, cell.budget_tokens] += 1
        else:
            found[cell.strategy] += cell.budget_tokens
    for (strategy, _, budget), n_cells in brackets.items():
        found[strategy] += explore_tokens_per_arm(space, n_cells, budget)
        found[strategy] += round(WIDENINGS * budget) if space.rates.max_widenings else 0
    for strategy, tokens in flops_view_tokens(space, vocab_size=vocab_size).items():
        found[strategy] += tokens
    return found


def flops_view_tokens(space: Space, *, vocab_size: int) -> dict[str, int]:
    """Tokens of training in the view at equal FLOPs, of each arm that has cells there."""
    if not space.flops_view:
        return {}
    compared = [arm.name for arm in space.strategies if not arm.is_control]
    costs = costlier_arms({arm: cost for arm, cost in _flops_per_token(space, vocab_size).items() if arm in compared})
    return {arm: round(space.seeds.confirm * space.budget_tokens / cost) for arm, cost in costs.items()}


def _from_flops(space: Space, vocab_size: int, threads: int) -> dict[str, float]:
    """Seconds of training per token of each arm, estimated from FLOPs and the rate of matrix products."""
    rate = matmul_flops_per_s() * SHARE_OF_MATMUL * threads
    return {arm: flops / rate for arm, flops in _flops_per_token(space, vocab_size).items()}


def _flops_per_token(space: Space, vocab_size: int) -> dict[str, float]:
    """Training FLOPs per token of each arm."""
    from moe.flops import flops_per_token

    return {
        arm.name: flops_per_token(model_config(space, arm.name, vocab_size=vocab_size), arm.seq_len)
        for arm in space.strategies
    }


def _slowest_step_s(space: Space, seconds: Mapping[str, float]) -> float:
    return max(seconds[arm.name] * arm.tokens_per_step for arm in space.strategies)


def _worker_seconds(space: Space, data: TrainingData, seconds: Mapping[str, float]) -> float:
    """Training and exams of all cells, if one worker did them."""
    trained = expected_tokens(space, vocab_size=data.tokens.vocab_size)
    return sum(
        seconds[arm] * (tokens + FORWARD_SHARE * _exam_tokens(space, data, arm)) for arm, tokens in trained.items()
    )


def _exam_tokens(space: Space, data: TrainingData, strategy: str) -> float:
    """Tokens of an arm's forward passes in exams: validation at rungs and end, every view of the test."""
    from moe.exam_views import forward_tokens

    cells = [cell for cell in planned_cells(space) if cell.strategy == strategy]
    judged = sum(cell.phase != "explore" for cell in cells)
    validations = len(cells) * (len(space.rungs_tokens) + 1)
    test_tokens = forward_tokens(data.exam, seq_len=space.strategy(strategy).seq_len)
    return validations * data.exam.validation.n_targets + judged * test_tokens
