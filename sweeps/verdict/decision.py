"""The verdict: from a sweep's results to one of five outcomes, with its numbers, its sentence and its caveats.

``exploratory`` (too few confirm seeds) outranks ``withheld`` (edge, failed cells, unfinished sweep, a spike), which
outranks ``wins``, ``tie`` and ``undecided``. Pure functions of what the ledger holds: deciding again gives the same.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sweeps.ledger.results import SweepResults
from sweeps.verdict.blockers import Blocker, command_for
from sweeps.verdict.budgets import by_budget, by_rung
from sweeps.verdict.case import Case, ExamFacts
from sweeps.verdict.checks import checks
from sweeps.verdict.confirmed import DECIDED, FEWEST_SEEDS, Confirmed, Looks
from sweeps.verdict.evidence import Evidence, winner
from sweeps.verdict.findings import Findings
from sweeps.verdict.judgement import DRAW_SEED, Judgement, alpha_of, judge
from sweeps.verdict.leads import (
    common_context_leader,
    context_identity,
    context_used,
    controls,
    document_intervals,
    groups_of_documents,
)
from sweeps.verdict.pairs import leads_of, pair_rows
from sweeps.verdict.power import Needed, needed
from sweeps.verdict.rate_curve import tie_outlasts_better_rates
from sweeps.verdict.rows import PairResult
from sweeps.verdict.statement import compose, headline
from sweeps.verdict.strategy_rows import strategy_row
from sweeps.verdict.trend import trend_of
from sweeps.verdict.verdict import Verdict


def decide(results: SweepResults) -> Verdict:
    """Return the verdict of a sweep by the rules of docs/method.md; never raises for a sweep that is incomplete."""
    made = judge(results)
    confirmed, looks, seeds, evidence = made.confirmed, made.looks, made.seeds, made.evidence
    settling = _needed(made)
    command = command_for(made.blockers, results) or _command(results, settling, looks, len(confirmed.planned_seeds))
    at_chosen_rates = _tie_at_chosen_rates(made)
    exam = _exam(made)
    trend = trend_of(results, made)
    budgets = by_budget(results, confirmed, seeds, looks.alpha, trend, is_judged=made.is_judged)
    case = Case(
        results=results,
        outcome=made.outcome,
        best=made.best,
        leads=leads_of(confirmed, evidence, looks.alpha, made.optima, DRAW_SEED),
        n_seeds=len(seeds),
        n_runs={arm: len(confirmed.judged_seeds(arm, looks.seen_seeds)) for arm in confirmed.arms},
        looks=looks,
        margin=made.margin,
        confirmed=confirmed,
        exam=exam,
        trend=trend,
        equal_flops=budgets.flops,
        blockers=made.blockers,
        behind=made.behind,
        command=command,
        needed=settling,
        tie_p=made.tie_p,
        tie_at_chosen_rates=bool(at_chosen_rates),
        other_views=_other_views(made),
    )
    pairs = pair_rows(results.arm_names, confirmed, evidence, looks.alpha, made.outcome)
    split = controls(results, confirmed, seeds, looks.alpha)
    context = context_identity(confirmed, seeds, looks.alpha)
    next_seed = _next_seed(pairs, made.best)
    found = Findings(
        results=results,
        outcome=made.outcome,
        chosen=made.chosen,
        confirmed=confirmed,
        looks=looks,
        margin=made.margin,
        n_seeds=len(seeds),
        context=context,
        context_used=context_used(results, confirmed, seeds, looks.alpha),
        controls=split,
        by_budget=budgets,
        trend=trend,
        winner=made.winner,
        leading=made.best,
        next_seed=next_seed,
        exam=exam,
    )
    return Verdict(
        sweep=results.name,
        outcome=made.outcome,
        winner=made.winner,
        headline=headline(case),
        statement=compose(case),
        alpha=alpha_of(results),
        margin=made.margin,
        budget_tokens=results.budget_tokens,
        strategies=tuple(strategy_row(arm, made.chosen, confirmed, looks) for arm in results.arms),
        pairs=pairs,
        exam=exam,
        pairing=confirmed.pairing,
        tie_at_chosen_rates=at_chosen_rates,
        excluded=tuple(confirmed.excluded.values()),
        behind_at_edge=made.behind,
        last_decided=None if made.is_judged else _last_decided(results),
        seeds_needed=settling.seeds if settling else _fewest(made.blockers, confirmed),
        documents_needed=settling.documents if settling else None,
        looks=looks,
        context=context,
        controls=split,
        by_rung=by_rung(results, confirmed, seeds, looks.alpha),
        by_budget=budgets,
        trend=trend,
        checks=checks(found),
        objections=made.blockers,
        command=command,
        leading=made.best,
        choices=made.chosen,
        optima=made.optima,
        next_seed=next_seed,
        document_intervals=document_intervals(confirmed.arms, evidence, looks.alpha),
        other_views=case.other_views,
    )


def _tie_at_chosen_rates(made: Judgement) -> bool | None:
    """Whether better rates could undo a tie; None where there is none."""
    evidence, alpha = made.evidence, made.looks.alpha
    if made.outcome != "tie" or evidence is None or made.margin is None:
        return None
    first, second = (int(place) for place in evidence.means_A.argsort()[:2])
    found = [made.optima.get(made.confirmed.arms[place]) for place in (first, second)]
    if found[0] is None or found[1] is None:
        return True
    difference = evidence.pair(first, second).deciding(alpha)
    rng = np.random.default_rng([DRAW_SEED, 3, first, second])  # no optimum draws from it
    return not tie_outlasts_better_rates((found[0], found[1]), difference, made.margin.value, alpha, rng)


def _exam(made: Judgement) -> ExamFacts:
    """What the exam can support; nothing is said to win by seeds alone where nothing is judged."""
    evidence, alpha = made.evidence, made.looks.alpha
    if evidence is None or evidence.weights_D is None:
        return ExamFacts(unit=None, documents=None, effective=None, is_on_this_exam=True)
    over_seeds = int(winner(evidence.over_seeds_alone, alpha)) if made.is_judged else -1
    return ExamFacts(
        unit="group" if groups_of_documents(made.results) else "document",
        documents=int(evidence.weights_D.size),
        effective=evidence.n_documents,
        is_on_this_exam=evidence.is_on_this_exam,
        winner_over_seeds=made.confirmed.arms[over_seeds] if over_seeds >= 0 else None,
        tie_out_of_reach=made.margin is not None and _tie_out_of_reach(evidence, made.margin.value, alpha),
    )


def _tie_out_of_reach(evidence: Evidence, margin: float, alpha: float) -> bool:
    """Whether two equal arms could not be shown to tie with any number of seeds, so noisy are the documents."""
    from scipy import stats

    first, second = (int(place) for place in evidence.means_A.argsort()[:2]) if len(evidence.means_A) > 1 else (0, 0)
    tests = evidence.pair(first, second).tests
    of_documents = float(tests["documents"].variance - tests["seeds"].variance)
    df = (evidence.n_documents or 2.0) - 1
    return bool(stats.t.ppf(1 - alpha, df) * math.sqrt(max(of_documents, 0.0)) >= margin)


def _needed(made: Judgement) -> Needed | None:
    if made.outcome != "undecided" or made.evidence is None or not made.evidence.has_tests:
        return None
    next_alpha = made.looks.alpha if made.looks.used < made.looks.planned else made.looks.alpha / 2
    return needed(made.evidence, made.margin.value if made.margin else None, next_alpha)


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


def _other_views(made: Judgement) -> dict[str, tuple[str, bool]]:
    """Views of the exam that name another arm than own context does."""
    lengths = [arm.seq_len for arm in made.results.arms if arm.seq_len]
    name = f"on the common context of {min(lengths)} tokens" if lengths else "on the common context"
    found = common_context_leader(made.results, made.confirmed, made.seeds, made.looks.alpha)
    return {name: found} if found is not None and made.best is not None and found[0] != made.best else {}


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
