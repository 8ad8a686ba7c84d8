"""Why an arm leads: what context gives each model, what batch diversity gives, and whether this exam alone says so.

A lead of a over b is b's loss minus a's: above zero when a is better, the opposite sign of a pair's difference.
"""

# S seeds, A arms

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from sweeps.ledger.results import CellResult, SweepResults, finite, settings_of
from sweeps.verdict.best_rate import choose
from sweeps.verdict.confirmed import Confirmed, test_loss
from sweeps.verdict.evidence import Evidence, paired_evidence, winner
from sweeps.verdict.rows import ContextSplit, ContextUse, ControlSplit, Estimate, PairDifference
from sweeps.verdict.statistics import Floats, mean_interval


def estimate(values_S: Floats, alpha: float) -> Estimate:
    """Return a mean over seeds with its interval."""
    mean, low, high = mean_interval(values_S, alpha)
    return Estimate(mean=mean, low=finite(low), high=finite(high))


def context_identity(confirmed: Confirmed, seeds: tuple[int, ...], alpha: float) -> tuple[ContextSplit, ...] | None:
    """Return per pair: own lead = common-context lead + context gain, each with its paired interval, else None.

    An arm's context gain is its loss on chunks of the shortest arm's length minus its loss on chunks of its own
    length; the pair's is a's gain minus b's. ``views_agree`` says whether both views put the same arm ahead.
    """
    own, common = confirmed.losses(seeds), confirmed.losses(seeds, "common_context_loss")
    if own is None or common is None:
        return None
    entries: list[ContextSplit] = []
    for a, b in combinations(range(len(confirmed.arms)), 2):
        own_lead_S = own[:, b] - own[:, a]
        common_lead_S = common[:, b] - common[:, a]
        entries.append(
            ContextSplit(
                a=confirmed.arms[a],
                b=confirmed.arms[b],
                own_lead=estimate(own_lead_S, alpha),
                common_lead=estimate(common_lead_S, alpha),
                context_gain=estimate(own_lead_S - common_lead_S, alpha),
                views_agree=bool(own_lead_S.mean() * common_lead_S.mean() >= 0),
            )
        )
    return tuple(entries)


def common_context_leader(
    results: SweepResults, confirmed: Confirmed, seeds: tuple[int, ...], alpha: float
) -> tuple[str, bool] | None:
    """Return the arm of lowest mean on the common context and whether it wins there, None without that view."""
    losses = confirmed.losses(seeds, "common_context_loss")
    if losses is None:
        return None
    cells = confirmed.cells_on(seeds)
    evidence = evidence_of(results, cells, losses, "common_loss_by_document")
    wins = len(seeds) > 1 and bool(winner(evidence, alpha) >= 0)
    return confirmed.arms[int(evidence.best)], wins


def context_used(
    results: SweepResults, confirmed: Confirmed, seeds: tuple[int, ...], alpha: float
) -> ContextUse | None:
    """Return whether the longest arm uses its context, or None where that was not scored.

    It does when, on targets beyond the shortest arm's length, its loss with its own context is below its loss on the
    same targets with no more context than the shortest arm has, in a paired interval over seeds: until then nothing
    may be said of length (rule 11 of the method).
    """
    shaped = [arm for arm in results.arms if arm.seq_len is not None]
    if not shaped:
        return None
    long = max(shaped, key=lambda arm: arm.seq_len or 0)
    cells = [confirmed.cells[long.name].get(seed) for seed in seeds]
    parts = [(result.scores or {}).get("context_use") if result else None for result in cells]
    if not parts or not all(isinstance(part, Mapping) for part in parts):
        return None
    gains_S = np.asarray([part["common_loss"] - part["own_loss"] for part in parts if part is not None])
    beyond = next(int(part["beyond_tokens"]) for part in parts if part is not None)
    return ContextUse(arm=long.name, beyond_tokens=beyond, gain=estimate(gains_S, alpha))


def controls(
    results: SweepResults, confirmed: Confirmed, seeds: tuple[int, ...], alpha: float
) -> tuple[ControlSplit, ...] | None:
    """Return per short arm how its lead over the longest arm splits into batch diversity and length, else None.

    None too where lengths are not known: nothing says which arm is the long one.

    The control is the short arm on windows that stay grouped as in the long arm's blocks, at the best rate of its own
    search. Diversity is what the short arm loses by grouping; length is the rest: the grouped arm's lead over the
    long one, whose windows are such blocks.
    """
    if not results.controls or any(arm.seq_len is None for arm in results.arms):
        return None
    longest = max(arm.seq_len or 0 for arm in results.arms)
    arms = {arm.name: arm for arm in results.arms}
    found = [
        _control_split(results, confirmed, subject, control.name, long.name, seeds, alpha)
        for subject, control in results.controls.items()
        # of the arms of that length the one that differs from the short arm in its shape alone
        for long in results.arms
        if long.seq_len == longest and settings_of(long)[1] == settings_of(arms[subject])[1]
    ]
    return tuple(entry for entry in found if entry is not None) or None


def _control_split(
    results: SweepResults,
    confirmed: Confirmed,
    arm: str,
    control: str,
    long: str,
    seeds: tuple[int, ...],
    alpha: float,
) -> ControlSplit | None:
    choice = choose(results, control)
    grouped = {r.cell.seed: r for r in results.of("confirm", control) if choice is None or choice.is_rate_of(r)}
    paired = [
        (own, loss, far)
        for seed in seeds
        if (own := test_loss(confirmed.cells[arm].get(seed))) is not None
        and (loss := test_loss(grouped.get(seed))) is not None
        and (far := test_loss(confirmed.cells[long].get(seed))) is not None
    ]
    if not paired or arm == long:
        return None
    own_S, grouped_S, long_S = np.asarray(paired, dtype=np.float64).T
    lead_S, diversity_S = long_S - own_S, grouped_S - own_S
    lead, diversity = estimate(lead_S, alpha), estimate(diversity_S, alpha)
    return ControlSplit(
        a=arm,
        b=long,
        seeds=len(paired),
        lr=choice.lr if choice else None,
        lead=lead,
        diversity=diversity,
        length=estimate(lead_S - diversity_S, alpha),
        # A share of a lead that may be zero is noise over noise.
        diversity_share=diversity.mean / lead.mean if lead.is_clear else None,
        at_edge=bool(choice and choice.at_edge),
    )


def pair_differences(arms: tuple[str, ...], evidence: Evidence, alpha: float) -> tuple[PairDifference, ...]:
    """Return every pair's difference with the interval of the test that decides, which a single seed does not have."""
    found: list[PairDifference] = []
    for a, b in combinations(range(len(arms)), 2):
        difference, low, high = float(evidence.means_A[a] - evidence.means_A[b]), None, None
        if evidence.has_tests:
            deciding = evidence.pair(a, b).deciding(alpha)
            difference, (low, high) = float(deciding.mean), map(float, deciding.interval(alpha))
        found.append(PairDifference(a=arms[a], b=arms[b], difference=difference, ci_low=low, ci_high=high))
    return tuple(found)


def evidence_of(
    results: SweepResults,
    cells: Mapping[str, Sequence[CellResult]],
    losses_SA: Floats,
    view: str = "loss_by_document",
) -> Evidence:
    """Return losses of arms, paired by seed, with their documents; groups of documents where the corpus names them."""
    return paired_evidence(cells, losses_SA, groups_of_documents(results), view)


def groups_of_documents(results: SweepResults) -> Mapping[str, str]:
    """Return the exam's documents with their groups (author, site), empty where the corpus names no group column."""
    exam = results.beginning.get("exam")
    groups = exam.get("document_groups") if isinstance(exam, Mapping) else None
    return groups if isinstance(groups, Mapping) else {}


def document_intervals(
    arms: tuple[str, ...], evidence: Evidence | None, alpha: float
) -> dict[tuple[str, str], tuple[float, float]]:
    """Return per pair the interval of a - b over new seeds and new documents; empty without losses by document."""
    if evidence is None or evidence.documents_DA is None:
        return {}
    found: dict[tuple[str, str], tuple[float, float]] = {}
    for a, b in combinations(range(len(arms)), 2):
        low, high = evidence.pair(a, b).tests["documents"].interval(alpha)
        found[arms[a], arms[b]] = float(low), float(high)
    return found
