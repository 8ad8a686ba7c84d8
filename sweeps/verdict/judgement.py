"""One budget judged: which outcome the rules give, and all that it rests on."""

# S seeds, A arms

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sweeps.ledger.results import SweepResults, finite
from sweeps.verdict.best_rate import Choice, choices
from sweeps.verdict.blockers import Blocker, blockers, spike_blocker
from sweeps.verdict.confirmed import DECIDED, Confirmed, Looks, count_looks, gather, test_loss
from sweeps.verdict.evidence import Evidence, tie_p, winner
from sweeps.verdict.exclusions import BehindAtEdge, behind_at_edge
from sweeps.verdict.leads import evidence_of
from sweeps.verdict.margin import Margin, margin_of
from sweeps.verdict.rate_curve import Optimum, locate
from sweeps.verdict.spikes import spike_of

DRAW_SEED = 20_260_712


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The outcome at the budget at which ``results`` are seen, with what it rests on.

    ``best`` is the judged arm of lowest mean, the only one that can win; ``seeds`` are complete in every arm and were
    in no decision before; ``tie_p`` is the p-value of a tie where there is no winner.
    """

    results: SweepResults
    chosen: Mapping[str, Choice]
    confirmed: Confirmed
    looks: Looks
    seeds: tuple[int, ...]
    evidence: Evidence | None
    margin: Margin | None
    optima: Mapping[str, Optimum]
    behind: tuple[BehindAtEdge, ...]
    outcome: str
    best: str | None
    blockers: tuple[Blocker, ...] = ()
    tie_p: float | None = None

    @property
    def is_judged(self) -> bool:
        """Whether the arms were judged: neither exploratory nor withheld."""
        return self.outcome in DECIDED

    @property
    def winner(self) -> str | None:
        """The arm that is better than every other one."""
        return self.best if self.outcome == "wins" else None

    @property
    def budget_tokens(self) -> int:
        """The budget that was judged."""
        return self.results.budget_tokens


def judge(results: SweepResults, looks: Looks | None = None) -> Judgement:
    """Apply the rules of docs/method.md at one budget; ``looks`` are counted at the largest one."""
    chosen = choices(results)
    confirmed = gather(results, chosen)
    looks = _looks(results, confirmed) if looks is None else looks
    seeds = tuple(seed for seed in confirmed.complete_seeds if seed not in looks.seen_seeds)
    evidence = _evidence(results, confirmed, seeds, looks)
    margin = margin_of(results)
    means = dict(zip(confirmed.arms, map(float, evidence.means_A), strict=True)) if evidence is not None else {}
    behind = behind_at_edge(results, {arm: chosen[arm] for arm in confirmed.arms if arm in chosen}, means)
    against = blockers(results, chosen, confirmed, looks, [found.edge for found in behind])
    best = None if evidence is None else confirmed.arms[int(evidence.best)]
    p_tie = None
    if not against:
        assert evidence is not None and best is not None, "a sweep without blockers has complete seeds"
        outcome, against, p_tie = _outcome(results, chosen, confirmed, evidence, margin, looks, best)
    else:
        outcome = against[0].outcome
    return Judgement(
        results=results,
        chosen=chosen,
        confirmed=confirmed,
        looks=looks,
        seeds=seeds,
        evidence=evidence,
        margin=margin,
        optima=_optima(chosen, confirmed),
        behind=behind,
        outcome=outcome,
        best=best,
        blockers=against,
        tie_p=p_tie,
    )


def alpha_of(results: SweepResults) -> float:
    """The level that the space states, before looks divide it."""
    return float(results.rule("verdict", "alpha", 0.05))


def _looks(results: SweepResults, confirmed: Confirmed) -> Looks:
    return count_looks(results, confirmed, alpha_of(results), int(results.rule("verdict", "looks", 1)))


def _evidence(results: SweepResults, confirmed: Confirmed, seeds: tuple[int, ...], looks: Looks) -> Evidence | None:
    """The losses that the verdict rests on, None while there are none in every arm."""
    losses = confirmed.losses(seeds)
    if confirmed.pairing == "seeds":
        return None if losses is None else evidence_of(results, confirmed.cells_on(seeds), losses)
    runs = []
    for arm in confirmed.arms:
        cells = [confirmed.cells[arm][seed] for seed in confirmed.judged_seeds(arm, looks.seen_seeds)]
        runs.append(np.asarray([loss for cell in cells if (loss := test_loss(cell)) is not None]))
    if not runs or any(runs_S.size == 0 for runs_S in runs):
        return None
    return Evidence(losses_SA=losses if confirmed.pairing == "both" else None, runs=tuple(runs))


def _outcome(
    results: SweepResults,
    chosen: Mapping[str, Choice],
    confirmed: Confirmed,
    evidence: Evidence,
    margin: Margin | None,
    looks: Looks,
    best: str,
) -> tuple[str, tuple[Blocker, ...], float | None]:
    """The outcome where nothing stands in the way, what a spike puts there after all, and the p-value of a tie."""
    if winner(evidence, looks.alpha) >= 0:
        spike = spike_of(results, confirmed, chosen.get(best), best)
        if spike is None:
            return "wins", (), None
        blocker = spike_blocker(spike, len(confirmed.judged_seeds(best, looks.seen_seeds)))
        return blocker.outcome, (blocker,), None
    p_tie = float(tie_p(evidence, margin.value, looks.alpha)) if margin is not None else None
    return ("tie" if p_tie is not None and p_tie <= looks.alpha else "undecided"), (), p_tie


def _optima(chosen: Mapping[str, Choice], confirmed: Confirmed) -> dict[str, Optimum]:
    """Each arm's optimum, its noise taken from the spread of the arm's confirm seeds: other seeds than were fitted.

    Every arm draws from a stream of its own: gains that are drawn alike would hide in a difference.
    """
    found: dict[str, Optimum] = {}
    for place, (arm, choice) in enumerate(chosen.items()):
        cells = [result for result in confirmed.cells[arm].values() if result.reached_budget]
        values = [loss for r in cells if (loss := finite(r.val_loss)) is not None]
        values = (
            values if len(values) == len(cells) else [loss for r in cells if (loss := finite(r.test_loss)) is not None]
        )
        if len(values) < 2:
            continue
        noise_sd = float(np.std(values, ddof=1))
        optimum = locate(choice.curve, noise_sd, len(values) - 1, np.random.default_rng([DRAW_SEED, 1, place]))
        if optimum is not None:
            found[arm] = optimum
    return found
