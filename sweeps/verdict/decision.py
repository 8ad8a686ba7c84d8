"""The verdict: from a sweep's results to one of five outcomes, with its numbers, its sentence and its caveats.

``exploratory`` (too few confirm seeds) outranks ``withheld`` (edge, failed cells, unfinished sweep, a spike), which
outranks ``wins``, ``tie`` and ``undecided``. Pure functions of what the ledger holds: deciding again gives the same.
"""

# S seeds, A arms

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sweeps.ledger.results import SweepResults, finite
from sweeps.verdict.best_rate import Choice, choices
from sweeps.verdict.blockers import Blocker, blockers, command_for, spike_blocker
from sweeps.verdict.budgets import by_budget, by_rung
from sweeps.verdict.case import Case, ExamFacts
from sweeps.verdict.checks import checks
from sweeps.verdict.confirmed import DECIDED, FEWEST_SEEDS, Confirmed, Looks, count_looks, gather, test_loss
from sweeps.verdict.evidence import Evidence, tie_p, winner
from sweeps.verdict.exclusions import behind_at_edge
from sweeps.verdict.findings import Findings
from sweeps.verdict.leads import (
    common_context_leader,
    context_identity,
    context_used,
    controls,
    document_intervals,
    evidence_of,
    groups_of_documents,
)
from sweeps.verdict.margin import Margin, margin_of
from sweeps.verdict.pairs import has_tests, leads_of, pair_rows
from sweeps.verdict.power import Needed, needed
from sweeps.verdict.rate_curve import Optimum, locate, tie_outlasts_better_rates
from sweeps.verdict.rows import PairResult
from sweeps.verdict.spikes import spike_of
from sweeps.verdict.statement import compose, headline
from sweeps.verdict.strategy_rows import strategy_row
from sweeps.verdict.verdict import Verdict

DRAW_SEED = 20_260_712


@dataclass(frozen=True, kw_only=True)
class _Decision:
    """An outcome with the arm of lowest mean, what blocks a verdict, and the p-value of a tie."""

    outcome: str
    best: str | None
    blockers: tuple[Blocker, ...]
    tie_p: float | None = None


def decide(results: SweepResults) -> Verdict:
    """Return the verdict of a sweep by the rules of docs/method.md; never raises for a sweep that is incomplete."""
    chosen = choices(results)
    confirmed = gather(results, chosen)
    looks = _looks(results, confirmed)
    seeds = tuple(seed for seed in confirmed.complete_seeds if seed not in looks.seen_seeds)
    evidence = _evidence(results, confirmed, seeds, looks)
    margin = margin_of(results)
    means = dict(zip(confirmed.arms, map(float, evidence.means_A), strict=True)) if evidence is not None else {}
    behind = behind_at_edge(results, {arm: chosen[arm] for arm in confirmed.arms if arm in chosen}, means)
    against = blockers(results, chosen, confirmed, looks, [found.edge for found in behind])
    made = _decide(results, chosen, confirmed, evidence, margin, looks, against)
    is_judged = made.outcome in DECIDED
    optima = _optima(chosen, confirmed)
    settling = _needed(made.outcome, evidence, margin, looks)
    views = _other_views(results, confirmed, seeds, looks.alpha, made.best)
    command = command_for(made.blockers, results) or _command(results, settling, looks, len(confirmed.planned_seeds))
    at_chosen_rates = _tie_at_chosen_rates(made, confirmed, evidence, margin, optima, looks)
    exam = _exam(results, confirmed, evidence, margin, looks, is_judged=is_judged)
    pairs = pair_rows(results.arm_names, confirmed, evidence, looks.alpha, made.outcome)
    case = Case(
        results=results,
        outcome=made.outcome,
        best=made.best,
        leads=leads_of(confirmed, evidence, looks.alpha, optima, DRAW_SEED),
        n_seeds=len(seeds),
        n_runs={arm: len(confirmed.judged_seeds(arm, looks.seen_seeds)) for arm in confirmed.arms},
        looks=looks,
        margin=margin,
        confirmed=confirmed,
        exam=exam,
        blockers=made.blockers,
        behind=behind,
        command=command,
        needed=settling,
        tie_p=made.tie_p,
        tie_at_chosen_rates=bool(at_chosen_rates),
        other_views=views,
    )
    budgets = by_budget(results, confirmed, seeds, looks.alpha, is_judged=is_judged)
    rungs = by_rung(results, confirmed, seeds, looks.alpha)
    split = controls(results, confirmed, seeds, looks.alpha)
    context = context_identity(confirmed, seeds, looks.alpha)
    next_seed = _next_seed(pairs, made.best)
    found = Findings(
        results=results,
        outcome=made.outcome,
        chosen=chosen,
        confirmed=confirmed,
        looks=looks,
        margin=margin,
        n_seeds=len(seeds),
        context=context,
        context_used=context_used(results, confirmed, seeds, looks.alpha),
        controls=split,
        by_budget=budgets,
        winner=made.best if made.outcome == "wins" else None,
        leading=made.best,
        next_seed=next_seed,
        exam=exam,
    )
    return Verdict(
        sweep=results.name,
        outcome=made.outcome,
        winner=found.winner,
        headline=headline(case),
        statement=compose(case),
        alpha=_alpha(results),
        margin=margin,
        budget_tokens=results.budget_tokens,
        strategies=tuple(strategy_row(arm, chosen, confirmed, looks) for arm in results.arms),
        pairs=pairs,
        exam=exam,
        pairing=confirmed.pairing,
        tie_at_chosen_rates=at_chosen_rates,
        excluded=tuple(confirmed.excluded.values()),
        behind_at_edge=behind,
        last_decided=None if is_judged else _last_decided(results),
        seeds_needed=settling.seeds if settling else _fewest(made.blockers, confirmed),
        documents_needed=settling.documents if settling else None,
        looks=looks,
        context=context,
        controls=split,
        by_rung=rungs,
        by_budget=budgets,
        checks=checks(found),
        objections=made.blockers,
        command=command,
        leading=made.best,
        choices=chosen,
        optima=optima,
        next_seed=next_seed,
        document_intervals=document_intervals(confirmed.arms, evidence, looks.alpha),
        other_views=views,
    )


def _alpha(results: SweepResults) -> float:
    return float(results.rule("verdict", "alpha", 0.05))


def _looks(results: SweepResults, confirmed: Confirmed) -> Looks:
    return count_looks(results, confirmed, _alpha(results), int(results.rule("verdict", "looks", 1)))


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


def _decide(
    results: SweepResults,
    chosen: Mapping[str, Choice],
    confirmed: Confirmed,
    evidence: Evidence | None,
    margin: Margin | None,
    looks: Looks,
    against: tuple[Blocker, ...],
) -> _Decision:
    """The outcome and the arm of lowest mean; the winner is that arm, for no other can win."""
    best = None if evidence is None else confirmed.arms[int(evidence.best)]
    if against:
        return _Decision(outcome=against[0].outcome, best=best, blockers=against)
    assert evidence is not None and best is not None, "a sweep without blockers has complete seeds"
    if winner(evidence, looks.alpha) >= 0:
        spike = spike_of(results, confirmed, chosen.get(best), best)
        if spike is not None:
            blocker = spike_blocker(spike, len(confirmed.judged_seeds(best, looks.seen_seeds)))
            return _Decision(outcome=blocker.outcome, best=best, blockers=(blocker,))
        return _Decision(outcome="wins", best=best, blockers=())
    p_tie = float(tie_p(evidence, margin.value, looks.alpha)) if margin is not None else None
    is_tie = p_tie is not None and p_tie <= looks.alpha
    return _Decision(outcome="tie" if is_tie else "undecided", best=best, blockers=(), tie_p=p_tie)


def _tie_at_chosen_rates(
    made: _Decision,
    confirmed: Confirmed,
    evidence: Evidence | None,
    margin: Margin | None,
    optima: Mapping[str, Optimum],
    looks: Looks,
) -> bool | None:
    """Whether better rates could undo a tie; None where there is none."""
    if made.outcome != "tie" or evidence is None or margin is None:
        return None
    first, second = (int(place) for place in evidence.means_A.argsort()[:2])
    found = [optima.get(confirmed.arms[place]) for place in (first, second)]
    if found[0] is None or found[1] is None:
        return True
    difference = evidence.pair(first, second).deciding(looks.alpha)
    rng = np.random.default_rng([DRAW_SEED, first, second])
    return not tie_outlasts_better_rates((found[0], found[1]), difference, margin.value, looks.alpha, rng)


def _exam(
    results: SweepResults,
    confirmed: Confirmed,
    evidence: Evidence | None,
    margin: Margin | None,
    looks: Looks,
    *,
    is_judged: bool,
) -> ExamFacts:
    """What the exam can support; nothing is said to win by seeds alone where nothing is judged."""
    if evidence is None or evidence.weights_D is None:
        return ExamFacts(unit=None, documents=None, effective=None, is_on_this_exam=True)
    over_seeds = int(winner(evidence.over_seeds_alone, looks.alpha)) if is_judged else -1
    return ExamFacts(
        unit="group" if groups_of_documents(results) else "document",
        documents=int(evidence.weights_D.size),
        effective=evidence.n_documents,
        is_on_this_exam=evidence.is_on_this_exam,
        winner_over_seeds=confirmed.arms[over_seeds] if over_seeds >= 0 else None,
        tie_out_of_reach=margin is not None and _tie_out_of_reach(evidence, margin.value, looks.alpha),
    )


def _tie_out_of_reach(evidence: Evidence, margin: float, alpha: float) -> bool:
    """Whether two equal arms could not be shown to tie with any number of seeds, so noisy are the documents."""
    from scipy import stats

    first, second = (int(place) for place in evidence.means_A.argsort()[:2]) if len(evidence.means_A) > 1 else (0, 0)
    tests = evidence.pair(first, second).tests
    of_documents = float(tests["documents"].variance - tests["seeds"].variance)
    df = (evidence.n_documents or 2.0) - 1
    return bool(stats.t.ppf(1 - alpha, df) * math.sqrt(max(of_documents, 0.0)) >= margin)


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


def _needed(outcome: str, evidence: Evidence | None, margin: Margin | None, looks: Looks) -> Needed | None:
    if outcome != "undecided" or evidence is None or not has_tests(evidence):
        return None
    next_alpha = looks.alpha if looks.used < looks.planned else looks.alpha / 2
    return needed(evidence, margin.value if margin else None, next_alpha)


def _fewest(against: tuple[Blocker, ...], confirmed: Confirmed) -> int | None:
    """The seeds that an exploratory verdict is short of, None where seeds are not what is missing."""
    missing = bool(against) and against[0].outcome == "exploratory" and bool(against[0].extend)
    return confirmed.fewest if missing else None


def _command(results: SweepResults, settling: Needed | None, looks: Looks, n_seeds: int) -> str | None:
    """The command that would settle an undecided verdict; a look that was not planned needs its seeds on top."""
    if settling is None or settling.seeds is None or results.folder is None:
        return None
    planned = looks.used < looks.planned
    total = max(settling.seeds, n_seeds + 1) if planned else n_seeds + max(settling.seeds, FEWEST_SEEDS)
    return f"sweeps extend {results.name} --seeds {total}"


def _other_views(
    results: SweepResults, confirmed: Confirmed, seeds: tuple[int, ...], alpha: float, best: str | None
) -> dict[str, tuple[str, bool]]:
    """Views of the exam that name another arm than own context does."""
    lengths = [arm.seq_len for arm in results.arms if arm.seq_len]
    name = f"on the common context of {min(lengths)} tokens" if lengths else "on the common context"
    found = common_context_leader(results, confirmed, seeds, alpha)
    return {name: found} if found is not None and best is not None and found[0] != best else {}


def _next_seed(pairs: tuple[PairResult, ...], best: str | None) -> dict[str, float]:
    """By rival, the chance that the best arm ends below it on one more seed."""
    if best is None:
        return {}
    chances = {pair.rival_of(best): pair.chance_of(best) for pair in pairs if best in pair}
    return {rival: chance for rival, chance in chances.items() if chance is not None}


def _last_decided(results: SweepResults) -> dict[str, Any] | None:
    """The newest earlier verdict that decided something, for a sweep that is being extended."""
    for number, verdict in reversed(list(enumerate(results.earlier_verdicts, start=1))):
        if verdict.get("outcome") in DECIDED:
            kept = {key: verdict.get(key) for key in ("outcome", "winner", "statement")}
            return {**kept, "verdict": f"verdicts/{number:04d}.json"}
    return None
