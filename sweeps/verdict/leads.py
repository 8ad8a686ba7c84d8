"""Why an arm leads: what context gives each model, what batch diversity gives, and whether this exam alone says so.

A lead of a over b is b's loss minus a's: above zero when a is better, the opposite sign of a pair's difference.
"""

# S seeds, A arms, D documents

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from sweeps.ledger.results import CellResult, SweepResults, finite
from sweeps.verdict.confirmed import Confirmed, test_loss
from sweeps.verdict.rows import ContextSplit, ContextUse, ControlSplit, Estimate
from sweeps.verdict.selection import choose
from sweeps.verdict.statistics import Floats, mean_interval, resampled_documents, winner

BOOTSTRAP_SEED = 20_260_711


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


def view_leader(confirmed: Confirmed, seeds: tuple[int, ...], view: str, alpha: float) -> tuple[str, bool] | None:
    """Return the arm of lowest mean in one view of the exam and whether it wins there, or None without that view."""
    losses = confirmed.losses(seeds, view)
    if losses is None:
        return None
    wins = len(seeds) > 1 and bool(winner(losses, alpha) >= 0)
    return confirmed.arms[int(losses.mean(axis=0).argmin())], wins


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
    parts = [(confirmed.cells[long.name][seed].scores or {}).get("context_use") for seed in seeds]
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
    with_control = [arm for arm in results.arms if results.of("control", arm.name, "grouped")]
    if not with_control or any(arm.seq_len is None for arm in results.arms):
        return None
    long = max(results.arms, key=lambda arm: arm.seq_len or 0).name
    found = [_control_split(results, confirmed, arm.name, long, seeds, alpha) for arm in with_control]
    return tuple(entry for entry in found if entry is not None) or None


def _control_split(
    results: SweepResults, confirmed: Confirmed, arm: str, long: str, seeds: tuple[int, ...], alpha: float
) -> ControlSplit | None:
    choice = choose(results, arm, "grouped")
    grouped = {r.cell.seed: r for r in results.of("control", arm, "grouped") if choice is None or choice.is_rate_of(r)}
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


def document_intervals(
    confirmed: Confirmed, seeds: tuple[int, ...], alpha: float
) -> dict[tuple[str, str], tuple[float, float]]:
    """Return per pair the interval of a - b under resampling of the exam's documents, seeds averaged.

    Empty where losses by document were not recorded, or where the exam has fewer than two documents.
    """
    sums = {arm: _document_sums([confirmed.cells[arm][seed] for seed in seeds]) for arm in confirmed.arms}
    if len(sums) < 2 or not seeds or any(not found for found in sums.values()):
        return {}
    documents = sorted(set.intersection(*(set(found) for found in sums.values())))
    if len(documents) < 2:
        return {}
    pairs = list(combinations(confirmed.arms, 2))
    column = {arm: np.asarray([found[document][0] for document in documents]) for arm, found in sums.items()}
    loss_sums_DP = np.stack([column[a] - column[b] for a, b in pairs], axis=1)
    tokens_D = np.asarray([sums[confirmed.arms[0]][document][1] for document in documents])
    low_P, high_P = resampled_documents(loss_sums_DP, tokens_D, alpha, np.random.default_rng(BOOTSTRAP_SEED))
    return {pair: (float(low), float(high)) for pair, low, high in zip(pairs, low_P, high_P, strict=True)}


def _document_sums(cells: Sequence[CellResult]) -> dict[str, tuple[float, float]]:
    """Loss sums per document (the mean over cells) and their tokens; documents that a cell lacks are left out."""
    per_cell = [by_document(result.scores) for result in cells]
    if not per_cell or not all(per_cell):
        return {}
    shared = set.intersection(*(set(found) for found in per_cell))
    return {
        document: (sum(found[document][0] for found in per_cell) / len(per_cell), per_cell[0][document][1])
        for document in shared
    }


def by_document(scores: Mapping[str, Any] | None) -> dict[str, tuple[float, float]]:
    """Return the exam's documents with their summed loss (nats) and number of scored tokens."""
    part = (scores or {}).get("loss_by_document")
    rows = part.items() if isinstance(part, Mapping) else ()
    return {str(name): (float(pair[0]), float(pair[1])) for name, pair in rows if pair[1]}
