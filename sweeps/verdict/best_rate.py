"""Which learning rate each arm is judged at: chosen on explore cells alone.

The chosen rate is the one of lowest validation loss among cells that reached the full budget, the mean over explore
seeds. Rates that ran on fewer explore seeds than the arm's best-covered ones are not compared with means of more.
A best rate at the edge of its grid (``sweeps.verdict.grid_edge``) is widened by ``sweeps.plan.phases``, and where that
is over the verdict is withheld by ``sweeps.verdict.blockers``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sweeps.ledger.results import CellResult, SweepResults, finite
from sweeps.verdict.grid_edge import Edge, TriedRate, edges_of, tried_rates
from sweeps.verdict.rate_curve import RateCurve


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The rate at which an arm is judged, and what speaks for it."""

    strategy: str
    lr: float
    adamw_lr: float | None
    val_loss: float
    n_seeds: int
    edges: tuple[Edge, ...]
    tried: tuple[TriedRate, ...]
    curve: RateCurve
    """Loss against rate around the chosen one, for the optimum's interval and for what a better rate could gain."""

    @property
    def at_edge(self) -> bool:
        """Whether the best rate lies at an end of what was tried."""
        return bool(self.edges)

    def is_rate_of(self, result: CellResult) -> bool:
        """Whether a cell was trained at the chosen rate."""
        return same_rate((result.cell.lr, result.cell.adamw_lr), (self.lr, self.adamw_lr))


def same_rate(one: tuple[float | None, float | None], other: tuple[float | None, float | None]) -> bool:
    """Whether two pairs of ``lr`` and AdamW's rate are the same point; an AdamW rate that is not known is no other."""
    (lr, adamw_lr), (other_lr, other_adamw_lr) = one, other
    if lr is None or other_lr is None:
        return lr is other_lr
    if not math.isclose(lr, other_lr, rel_tol=1e-9):
        return False
    return adamw_lr is None or other_adamw_lr is None or math.isclose(adamw_lr, other_adamw_lr, rel_tol=1e-9)


def choose(results: SweepResults, strategy: str) -> Choice | None:
    """Return the chosen rate of one arm, or None while no explore cell of it reached the full budget."""
    cells = results.of("explore", strategy)
    tried = tried_rates(cells)
    covered = max((len(rate.losses) for rate in tried), default=0)
    if covered == 0:
        return None
    finalists = [rate for rate in tried if len(rate.losses) == covered]
    best = min(finalists, key=lambda rate: (rate.mean, rate.lr))
    assert best.mean is not None
    return Choice(
        strategy=strategy,
        lr=best.lr,
        adamw_lr=best.adamw_lr,
        val_loss=best.mean,
        n_seeds=covered,
        edges=tuple(edges_of(results, strategy, best, tried)),
        tried=tried,
        curve=_curve(cells, best, finalists),
    )


def choices(results: SweepResults) -> dict[str, Choice]:
    """Return the chosen rate of every arm that has one, in the order of the arms."""
    found = {name: choose(results, name) for name in results.arm_names}
    return {name: choice for name, choice in found.items() if choice is not None}


def edges(results: SweepResults) -> tuple[Edge, ...]:
    """Return the arms whose best rate lies at the end of what was tried, once all their explore cells are terminal.

    A sweep widens these arms (rule 7 of the method): by the grid's own ratio, one rate beyond the edge.
    """
    found: list[Edge] = []
    searched = dict.fromkeys(r.cell.strategy for r in results.seen if r.cell.phase == "explore")
    for strategy in searched:
        if all(result.outcome is not None for result in results.of("explore", strategy)):
            choice = choose(results, strategy)
            found += choice.edges if choice else ()
    return tuple(found)


def failed_candidates(choice: Choice) -> tuple[TriedRate, ...]:
    """Return the rates whose failed cells leave open which rate of the arm is best.

    That is the best rate by the cells that exist, where it failed on another seed, and a rate without any evidence
    that stands next to the chosen one. Behind a rate that was finished the best one cannot be, loss being convex in
    log lr.
    """
    best = min((rate for rate in choice.tried if rate.mean is not None), key=lambda rate: (rate.mean, rate.lr))
    chosen = (choice.lr, choice.adamw_lr or 0.0)

    def is_shielded(rate: TriedRate) -> bool:
        axis = 0 if rate.lr != choice.lr else 1
        low, high = sorted([chosen[axis], (rate.lr, rate.adamw_lr or 0.0)[axis]])
        evidence = [other for other in choice.tried if other.is_evidence and (axis == 0 or other.lr == choice.lr)]
        places = [(other.lr, other.adamw_lr or 0.0)[axis] for other in evidence]
        return any(low < place < high for place in places)

    return tuple(
        rate
        for rate in choice.tried
        if rate.has_failed and (rate is best or (not rate.is_evidence and not is_shielded(rate)))
    )


def _curve(cells: tuple[CellResult, ...], best: TriedRate, finalists: list[TriedRate]) -> RateCurve:
    """Loss against ``lr``, AdamW's rate following: at the chosen ratio, at the chosen rate, or the best of each lr."""
    known = {rate.lr: rate.mean for rate in sorted(finalists, key=lambda r: -(r.mean or 0.0)) if rate.mean is not None}
    if best.mean is not None:
        known[best.lr] = best.mean
    stopped: dict[float, float] = {}
    for lr, loss in _carried_to_budget(cells).items():
        if lr not in known:
            stopped[lr] = loss
    points = sorted([*known.items(), *stopped.items()])
    return RateCurve(
        log_lrs=tuple(math.log(lr) for lr, _ in points),
        losses=tuple(loss for _, loss in points),
        chosen=[lr for lr, _ in points].index(best.lr),
        n_seeds=len(best.losses),
        n_carried=len(stopped),
    )


def _carried_to_budget(cells: tuple[CellResult, ...]) -> dict[float, float]:
    """Losses that early-stopped rates would have had, each raised by what finished ones gained from there (a guess).

    Early stopping leaves too few finished rates for a curve. The guess serves the curve only, never the choice.
    """
    finished = [r for r in cells if r.reached_budget and finite(r.val_loss) is not None]
    at_rung = [{record.get("tokens_seen"): finite(record.get("val_loss")) for record in r.records} for r in finished]
    carried: dict[float, list[float]] = {}
    for result in cells:
        loss = finite(result.val_loss)
        if result.outcome != "stopped_early" or loss is None or result.cell.lr is None:
            continue
        gains = [
            float(done.val_loss or 0.0) - then
            for done, seen in zip(finished, at_rung, strict=True)
            if (then := seen.get(result.tokens_seen)) is not None
        ]
        if gains:
            carried.setdefault(result.cell.lr, []).append(loss + sum(gains) / len(gains))
    return {lr: sum(losses) / len(losses) for lr, losses in carried.items()}
