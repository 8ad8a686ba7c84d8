"""The same seeds at several budgets: losses of all arms, and what linear combinations of them show.

How a lead changes, where it ends and how well smaller budgets predict it are all weighted sums of losses over budgets
and arms, so one test serves them: Student's t over seeds, and over seeds and documents (``statistics.over_documents``).
"""

# X points at which something is asked, K budgets, S seeds, D documents, A arms

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sweeps.verdict.evidence import Evidence
from sweeps.verdict.judgement import Judgement
from sweeps.verdict.leads import evidence_of
from sweeps.verdict.statistics import Comparison, Floats, over_documents, student

POINTS = 481
"""Places at which a range is searched: over a factor of sixteen they lie 0.6% apart."""


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """Test losses in nats per token of ``arms`` on ``seeds`` that every one of ``budgets_tokens`` (ascending) has.

    ``documents_KDA`` are the same by document of the exam, the mean over seeds, and ``weights_D`` the documents' shares
    of the tokens; None where they are not known at every budget.
    """

    arms: tuple[str, ...]
    budgets_tokens: tuple[int, ...]
    seeds: tuple[int, ...]
    losses_KSA: Floats
    documents_KDA: Floats | None = None
    weights_D: Floats | None = None

    @property
    def log_budgets_K(self) -> Floats:
        """Natural logarithms of the budgets."""
        return np.log(np.asarray(self.budgets_tokens, dtype=np.float64))

    def weights(self, arm: int, over_K: Floats) -> Floats:
        """Weights [..., K, A] that take the losses of one arm with ``over_K`` [..., K]."""
        weights = np.zeros((*over_K.shape, len(self.arms)))
        weights[..., arm] = over_K
        return weights

    def lead(self, a: int, b: int, over_K: Floats) -> Floats:
        """Weights [..., K, A] of b's loss minus a's, summed over budgets with ``over_K`` [..., K]."""
        return self.weights(b, over_K) - self.weights(a, over_K)

    def contrast(self, weights_XKA: Floats) -> Comparison:
        """Test sums of losses with these weights against zero."""
        values_XS = np.einsum("...ka,ksa->...s", weights_XKA, self.losses_KSA)
        seeds = student(values_XS)
        tests = {"seeds": seeds}
        if self.documents_KDA is not None and self.weights_D is not None:
            by_document_XD = np.einsum("...ka,kda->...d", weights_XKA, self.documents_KDA)
            tests["documents"] = over_documents(seeds, by_document_XD, self.weights_D)
        return Comparison(tests=tests)

    def at(self, place: int) -> Floats:
        """Weights [K] that take the loss at one budget."""
        return np.asarray(np.arange(len(self.budgets_tokens)) == place, dtype=np.float64)

    def slope(self) -> Floats:
        """Weights [K] of the least-squares slope in the natural logarithm of the budget."""
        centred_K = self.log_budgets_K - self.log_budgets_K.mean()
        return np.asarray(centred_K / (centred_K**2).sum())

    def line_at(self, log_tokens_X: Floats) -> Floats:
        """Weights [X, K] of the least-squares line's value at budgets given by their natural logarithms."""
        away_X = np.asarray(log_tokens_X) - self.log_budgets_K.mean()
        return np.asarray(1 / len(self.budgets_tokens) + away_X[..., None] * self.slope())

    def below(self, n_budgets: int) -> Ladder:
        """The first ``n_budgets`` of the ladder."""
        documents = self.documents_KDA
        return Ladder(
            arms=self.arms,
            budgets_tokens=self.budgets_tokens[:n_budgets],
            seeds=self.seeds,
            losses_KSA=self.losses_KSA[:n_budgets],
            documents_KDA=None if documents is None else documents[:n_budgets],
            weights_D=self.weights_D,
        )


def ladder_of(judged: Sequence[Judgement]) -> Ladder | None:
    """Return the losses of the arms that can win at every budget, on the seeds that all of these share.

    None for fewer than two budgets, arms or seeds, and where losses are not paired by seed.
    """
    arms = tuple(arm for arm in judged[-1].confirmed.arms if all(arm in each.confirmed.arms for each in judged))
    seeds = sorted(set.intersection(*(set(each.seeds) for each in judged)))
    paired = all(each.confirmed.pairing == "seeds" for each in judged)
    if len(judged) < 2 or len(arms) < 2 or len(seeds) < 2 or not paired:
        return None
    found: list[Evidence] = []
    for each in judged:
        cells = {arm: [each.confirmed.cells[arm][seed] for seed in seeds] for arm in arms}
        losses_SA = np.asarray(
            [[cells[arm][place].test_loss for arm in arms] for place in range(len(seeds))], dtype=float
        )
        found.append(evidence_of(each.results, cells, losses_SA))
    first = found[0].weights_D
    by_document = [each.documents_DA for each in found if each.documents_DA is not None]
    same = first is not None and all(
        each.weights_D is not None and np.array_equal(first, each.weights_D) for each in found
    )
    return Ladder(
        arms=arms,
        budgets_tokens=tuple(each.budget_tokens for each in judged),
        seeds=tuple(seeds),
        losses_KSA=np.stack([each.losses_SA for each in found if each.losses_SA is not None]),
        documents_KDA=np.stack(by_document) if same else None,
        weights_D=first if same else None,
    )
