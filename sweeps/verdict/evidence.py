"""Losses by which arms are compared, and the three decisions on them: a win, a tie, and every pair.

The same code decides one sweep and thousands of simulated ones: leading axes are repeats.
"""

# S seeds, D documents, A arms

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sweeps.ledger.results import CellResult
from sweeps.verdict.statistics import (
    Comparison,
    Flags,
    Floats,
    MeanTest,
    effective_documents,
    over_documents,
    student,
    welch,
)

FEWEST_DOCUMENTS = 20
"""Below so many effective documents a claim is about this exam at most: a convention, for the formula holds with
fewer, but so few texts hardly stand for kinds of text that are not among them."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Losses of all arms in nats per token; at least one of ``losses_SA`` and ``runs`` is there.

    ``losses_SA`` [..., S, A] are paired by seed. ``documents_DA`` [..., D, A] are the same losses by document of the
    exam, the mean over seeds, and ``weights_D`` the documents' shares of the tokens; None where they are not known.
    ``runs`` holds each arm's own runs [..., S_a], where they are compared without pairing.
    """

    losses_SA: Floats | None
    documents_DA: Floats | None = None
    weights_D: Floats | None = None
    runs: tuple[Floats, ...] | None = None

    @property
    def means_A(self) -> Floats:
        """Mean loss [..., A] of each arm, over all its runs."""
        if self.runs is not None:
            return np.stack([runs_S.mean(axis=-1) for runs_S in self.runs], axis=-1)
        assert self.losses_SA is not None, "losses are paired or not"
        return np.asarray(self.losses_SA.mean(axis=-2))

    @property
    def best(self) -> NDArray[np.int64]:
        """Index [...] of the arm of lowest mean."""
        return np.asarray(self.means_A.argmin(axis=-1))

    @property
    def n_documents(self) -> float | None:
        """Effective number of documents, None where losses by document are not known."""
        return None if self.weights_D is None else effective_documents(self.weights_D)

    @property
    def is_on_this_exam(self) -> bool:
        """Whether documents are too few, or not known, for a claim beyond this exam."""
        return self.n_documents is None or self.n_documents < FEWEST_DOCUMENTS

    @property
    def has_tests(self) -> bool:
        """Whether there are seeds enough for an interval."""
        paired = self.losses_SA is None or len(self.losses_SA) > 1
        return paired and all(len(runs_S) > 1 for runs_S in self.runs or ())

    @property
    def over_seeds_alone(self) -> Evidence:
        """The same losses without their documents: what holds on this exam."""
        return replace(self, documents_DA=None, weights_D=None)

    def against(self, arm: NDArray[np.int64] | int) -> Comparison:
        """Compare one arm (an index [...]) with every arm: differences [..., A], arm minus other."""
        place = np.asarray(arm)[..., None]
        tests: dict[str, MeanTest] = {}
        if self.losses_SA is not None:
            own_S1 = np.take_along_axis(self.losses_SA, place[..., None], axis=-1)
            seeds = student(np.swapaxes(own_S1 - self.losses_SA, -1, -2))
            tests["seeds"] = seeds
            if self.documents_DA is not None and self.weights_D is not None:
                own_D1 = np.take_along_axis(self.documents_DA, place[..., None], axis=-1)
                differences_AD = np.swapaxes(own_D1 - self.documents_DA, -1, -2)
                tests["documents"] = over_documents(seeds, differences_AD, self.weights_D)
        if self.runs is not None:
            each = [student(runs_S) for runs_S in self.runs]
            arms = MeanTest(
                mean=np.stack([one.mean for one in each], axis=-1),
                variance=np.stack([one.variance for one in each], axis=-1),
                df=np.stack([one.df for one in each], axis=-1),
            )
            own = MeanTest(
                mean=np.take_along_axis(arms.mean, place, axis=-1),
                variance=np.take_along_axis(arms.variance, place, axis=-1),
                df=np.take_along_axis(arms.df, place, axis=-1),
            )
            tests["welch"] = welch(own, arms)
        return Comparison(tests=tests)

    def pair(self, first: int, second: int) -> Comparison:
        """Compare two arms: the difference first minus second."""
        found = self.against(first)
        return Comparison(
            tests={
                name: MeanTest(mean=test.mean[second], variance=test.variance[second], df=test.df[second])
                for name, test in found.tests.items()
            }
        )

    def seed_variance(self, first: int, second: int) -> float:
        """Variance of the difference of two arms from one seed to the next."""
        if self.losses_SA is not None:
            return float((self.losses_SA[:, first] - self.losses_SA[:, second]).var(ddof=1))
        assert self.runs is not None, "losses are paired or not"
        return float(self.runs[first].var(ddof=1) + self.runs[second].var(ddof=1))


def winner(evidence: Evidence, alpha: float) -> NDArray[np.int64]:
    """Return the index [...] of the arm that is better than every other one, or -1.

    The arm of lowest mean wins when every test separates it from each other arm at ``alpha``, two-sided. This is an
    intersection-union test (Berger 1982): it needs no correction for the number of rivals, because a false win needs
    the two tied best arms to differ, which one test does at rate ``alpha``.
    """
    best = evidence.best
    p_A = evidence.against(best).p_value.copy()
    np.put_along_axis(p_A, best[..., None], 0.0, axis=-1)
    return np.where((p_A <= alpha).all(axis=-1), best, -1)


def tie_p(evidence: Evidence, margin: float, alpha: float) -> Floats:
    """Return the p-value [...] of a tie within ``margin`` between the two arms of lowest mean.

    Of several rivals the nearest one was picked by the same losses, so its p-value is multiplied by the number of
    rivals that are not shown, each at ``alpha``, to lie beyond the margin. Without that a tie with one of two rivals at
    the margin itself is claimed in up to 8% of sweeps, with one of nine in 20% (see bench/calibration.py).
    """
    order = evidence.means_A.argsort(axis=-1)
    p_A = evidence.against(order[..., 0]).equivalence_p(margin)
    rivals_A = np.take_along_axis(p_A, order[..., 1:], axis=-1)
    return np.asarray(np.minimum(1.0, rivals_A[..., 0] * within_reach(rivals_A, alpha)))


def within_reach(p_A: Floats, alpha: float) -> NDArray[np.int64]:
    """How many rivals may lie inside the margin, from their p-values of two one-sided tests; the nearest always may."""
    return np.asarray(np.maximum(1, (p_A < 1 - alpha).sum(axis=-1)))


def tied(evidence: Evidence, margin: float, alpha: float) -> Flags:
    """Return whether the two arms of lowest mean are equivalent within ``margin`` at ``alpha``."""
    return np.asarray(tie_p(evidence, margin, alpha) <= alpha)


def paired_evidence(
    cells: Mapping[str, Sequence[CellResult]],
    losses_SA: Floats,
    groups: Mapping[str, str],
    view: str = "loss_by_document",
) -> Evidence:
    """Return losses paired by seed with what the cells of each arm scored by document, or by group of documents.

    Without documents where a cell did not record them, or where the exam has fewer than two.
    """
    by_arm = [_document_sums(found, groups, view) for found in cells.values()]
    shared = sorted(set.intersection(*(set(sums) for sums in by_arm))) if by_arm else []
    if len(shared) < 2 or len(losses_SA) < 2:
        return Evidence(losses_SA=losses_SA)
    tokens_D = np.asarray([by_arm[0][name][1] for name in shared])
    sums_DA = np.asarray([[sums[name][0] for sums in by_arm] for name in shared])
    return Evidence(losses_SA=losses_SA, documents_DA=sums_DA / tokens_D[:, None], weights_D=tokens_D / tokens_D.sum())


def _document_sums(cells: Sequence[CellResult], groups: Mapping[str, str], view: str) -> dict[str, tuple[float, float]]:
    """Loss sums per document or group (the mean over cells) and tokens; what a cell lacks is left out."""
    per_cell = [by_document(result.scores, groups, view) for result in cells]
    if not per_cell or not all(per_cell):
        return {}
    shared = set.intersection(*(set(found) for found in per_cell))
    return {name: (sum(found[name][0] for found in per_cell) / len(per_cell), per_cell[0][name][1]) for name in shared}


def by_document(
    scores: Mapping[str, object] | None, groups: Mapping[str, str], view: str = "loss_by_document"
) -> dict[str, tuple[float, float]]:
    """Return the exam's documents, or the groups they belong to, with summed loss (nats) and scored tokens."""
    part = (scores or {}).get(view)
    found: dict[str, tuple[float, float]] = {}
    for name, (loss, tokens) in part.items() if isinstance(part, Mapping) else ():
        if tokens:
            unit = groups.get(name, name)
            before = found.get(unit, (0.0, 0.0))
            found[unit] = (before[0] + float(loss), before[1] + float(tokens))
    return found
