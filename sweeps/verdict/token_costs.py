"""What a token costs the arms in training FLOPs, where their models differ (rule 15 of the method)."""

from __future__ import annotations

from collections.abc import Mapping

from sweeps.ledger.results import SweepResults

SAME_FLOPS = 1.02
"""Costs that differ by no more count as equal."""


def flops_of_tokens(results: SweepResults) -> dict[str, float]:
    """Return each compared arm's training FLOPs per token; empty where some are not known."""
    known = {arm.name: arm.flops_per_token for arm in results.arms if arm.flops_per_token}
    return known if len(known) == len(results.arms) else {}


def costlier_arms(flops: Mapping[str, float]) -> dict[str, float]:
    """Return the arms whose tokens cost more than the cheapest arm's, with how many times as much."""
    least = min(flops.values(), default=0.0)
    return {arm: cost / least for arm, cost in flops.items() if cost > SAME_FLOPS * least}
