"""What a token costs the arms in training FLOPs, where their models differ (rule 15 of the method)."""

from __future__ import annotations

from sweeps.ledger.results import SweepResults

SAME_FLOPS = 1.02
"""Costs that differ by no more count as equal."""


def token_costs(results: SweepResults) -> dict[str, float] | None:
    """Return each arm's training FLOPs per token over those of the cheapest arm; None where some are not known."""
    known = {arm.name: arm.flops_per_token for arm in results.arms if arm.flops_per_token}
    if len(known) < len(results.arms) or not known:
        return None
    least = min(known.values())
    return {arm: cost / least for arm, cost in known.items()}
