"""How often the verdict is wrong, by simulation: its own rules run on sweeps whose truth is known.

Losses are drawn around arms' true means with noise between seeds and between documents of the exam, crossed; a claim is
about new seeds and new documents. Rows cover tied arms with equal and unequal noise, unpaired runs, planned looks,
rates that one noisy explore seed has chosen, and arms whose seeds are skewed or spike.
"""

# R repeats, S seeds, D documents, A arms, P rates of a grid

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sweeps.verdict.evidence import Evidence, tied, winner
from sweeps.verdict.rate_curve import (
    Optimum,
    RateCurve,
    lead_outlasts_better_rate,
    locate,
    tie_outlasts_better_rates,
)
from sweeps.verdict.spikes import has_spike
from sweeps.verdict.statistics import Floats

ALPHA = 0.05
FAR = 60.0
"""How far behind an arm is that no test confuses with the best, in units of the smallest seed noise."""
LEAD = 3 * math.sqrt(2)
"""The lead whose power is stated: three standard deviations of paired differences, 0.04 nats at laptop's noise."""
DOCUMENT_NOISE = 4.2
"""Spread of an arm's loss over documents, beyond what all arms share: smoke and laptop have standard errors of 0.006
from 5 seeds and of 0.010 from 32 documents."""
INTERACTION = 2.0
"""Noise of one seed on one document."""
GRID_STEPS = (-2, -1, 0, 1, 2)
"""Rates of the grid in steps from the true optimum: inside, as after the edge rule."""
CURVATURES = (0.1, 1.0, 4.0)
"""What one step of the grid away from the optimum costs, in units of the smallest noise: flat, middling, steep."""
CHUNK = 250
"""Repeats that are drawn at a time: the noise of seeds crossed with documents is the largest array."""

Shape = Literal["normal", "skewed", "spikes in 10%", "spikes in 20%"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One row: true means at the best rates, seed noise per arm, correlation of arms within a seed, seeds of one look.

    ``documents`` is None where none are recorded (and none are noisy: the claim is about this exam), ``uneven`` gives
    them lognormal shares of the tokens. ``shape`` is that of the first arm's seeds, of mean zero. ``runs`` are unpaired
    runs per arm instead of seeds. ``curvature`` is None where every arm runs at its best rate, else the rate is chosen
    from one noisy explore seed.
    """

    means: tuple[float, ...] = (0.0, 0.0, FAR)
    noise: tuple[float, ...] = (1.0, 1.0, 1.0)
    correlation: float = 0.0
    seeds: int = 5
    looks: int = 1
    documents: int | None = 32
    uneven: bool = False
    shape: Shape = "normal"
    runs: tuple[int, ...] | None = None
    curvature: float | None = None


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What explore did in R repeats: noisy losses [R, A, P], the chosen place [R, A], what the choice costs [R, A]."""

    explored: Floats
    chosen: NDArray[np.int64]
    regret: Floats

    @property
    def at_edge(self) -> NDArray[np.bool_]:
        """Repeats in which some arm's best rate lies at the end of its grid: withheld."""
        return np.asarray(((self.chosen == 0) | (self.chosen == len(GRID_STEPS) - 1)).any(axis=1))


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Repeats of one setting: losses of all looks, with one more run of each arm at its rate, as explore has it."""

    losses_RSA: Floats
    interaction_RSDA: Floats | None
    documents_RDA: Floats | None
    weights_D: Floats | None
    explored_RA: Floats
    truth_RA: Floats
    at_rates_RA: Floats
    rates: Rates | None

    def evidence(self, setting: Setting, n_seeds: int, first: int = 0) -> Evidence:
        """The losses of some seeds, with or without documents, or as unpaired runs."""
        losses_RSA = self.losses_RSA[:, first : first + n_seeds]
        if setting.runs is not None:
            return Evidence(losses_SA=None, runs=tuple(losses_RSA[:, :n, arm] for arm, n in enumerate(setting.runs)))
        if self.documents_RDA is None or self.interaction_RSDA is None:
            return Evidence(losses_SA=losses_RSA)
        own_RDA = self.documents_RDA + self.interaction_RSDA[:, first : first + n_seeds].mean(axis=1)
        return Evidence(losses_SA=losses_RSA, documents_DA=own_RDA, weights_D=self.weights_D)


def rates_of(setting: Setting, repeats: int, rng: np.random.Generator) -> dict[str, float]:
    """Return how often a win was claimed that is not true, and how well intervals cover, over the repeats.

    ``false_wins`` counts statements: a win "at the chosen rates" is false when the arm is not best at these rates, any
    other when it is not best at the best rates. ``by_seeds`` are false wins by the test over seeds alone;
    ``caught`` is the share of them all that the rule on spikes withholds; ``coverage`` is that of the interval that
    decides.
    """
    counts: list[dict[str, float]] = []
    for size in _chunks(repeats):
        counts.append({name: value * size for name, value in _rates_of(setting, size, rng).items()})
    total = {name: sum(count[name] for count in counts) / repeats for name in counts[0]}
    claimed = total.pop("claimed")
    return {**total, "caught": (claimed - total["false_wins"]) / claimed if claimed else 0.0}


def _rates_of(setting: Setting, repeats: int, rng: np.random.Generator) -> dict[str, float]:
    drawn = draw(setting, repeats, rng)
    alpha = ALPHA / setting.looks
    won_R, by_seeds_R = np.full(repeats, -1), np.full(repeats, -1)
    n_seeds_R = np.full(repeats, setting.seeds)
    for look in range(1, setting.looks + 1):
        evidence = drawn.evidence(setting, look * setting.seeds)
        n_seeds_R[won_R < 0] = look * setting.seeds
        won_R = np.where(won_R < 0, winner(evidence, alpha), won_R)
        by_seeds_R = np.where(by_seeds_R < 0, winner(evidence.over_seeds_alone, alpha), by_seeds_R)
    counted_R = np.ones(repeats, dtype=bool) if drawn.rates is None else ~drawn.rates.at_edge
    false_R = np.zeros(repeats, dtype=bool)
    for repeat in np.flatnonzero((won_R >= 0) & counted_R):
        false_R[repeat] = _is_false(drawn, setting, int(repeat), int(won_R[repeat]), int(n_seeds_R[repeat]), alpha)
    spiked_R = _spiked(drawn, setting, won_R)
    return {
        "false_wins": float((false_R & ~spiked_R).mean()),
        "claimed": float(false_R.mean()),
        "by_seeds": float(_not_best(by_seeds_R, drawn.truth_RA).mean()),
        "coverage": _coverage(drawn.evidence(setting, setting.seeds), drawn.at_rates_RA),
    }


def power(setting: Setting, repeats: int, rng: np.random.Generator) -> dict[str, float]:
    """Return how often the first arm wins when it leads every other by ``LEAD``: by V, by seeds alone.

    ``alarms`` is the share of its wins that the rule on spikes withholds.
    """
    scale = min(setting.noise) * math.sqrt(1 - setting.correlation)
    ahead = replace(setting, means=(-LEAD * scale, *(max(0.0, mean) for mean in setting.means[1:])), curvature=None)
    found = np.zeros(3)
    for size in _chunks(repeats):
        drawn = draw(ahead, size, rng)
        evidence = drawn.evidence(ahead, ahead.seeds * ahead.looks)
        won_R = winner(evidence, ALPHA / ahead.looks) == 0
        seeds_R = winner(evidence.over_seeds_alone, ALPHA / ahead.looks) == 0
        spiked_R = _spiked(drawn, ahead, np.zeros(size, dtype=np.int64))
        found += [(won_R & ~spiked_R).sum(), seeds_R.sum(), (won_R & spiked_R).sum()]
    wins = found[0] + found[2]
    return {
        "power": found[0] / repeats,
        "power_by_seeds": found[1] / repeats,
        "alarms": float(found[2] / wins) if wins else 0.0,
    }


def tie_rates(setting: Setting, margin: float, repeats: int, rng: np.random.Generator) -> dict[str, float]:
    """Return how often the outcome is a tie within ``margin``, how often "at the chosen rates", and how often a win.

    With rates that explore chose, ``ties`` without that limit must outlast what better rates could gain.
    """
    found = np.zeros(3)
    for size in _chunks(repeats):
        drawn = draw(setting, size, rng)
        evidence = drawn.evidence(setting, setting.seeds)
        wins_R = winner(evidence, ALPHA) >= 0
        ties_R = ~wins_R & tied(evidence, margin, ALPHA)
        if drawn.rates is not None:
            ties_R &= ~drawn.rates.at_edge
        limited_R = np.zeros(size, dtype=bool)
        for repeat in np.flatnonzero(ties_R) if drawn.rates is not None else ():
            limited_R[repeat] = not _tie_stands(drawn, setting, int(repeat), margin)
        found += [(ties_R & ~limited_R).sum(), limited_R.sum(), wins_R.sum()]
    return dict(zip(("ties", "ties_at_chosen_rates", "wins"), (found / repeats).tolist(), strict=True))


def repeated_extensions(setting: Setting, attempts: int, repeats: int, rng: np.random.Generator) -> dict[str, float]:
    """Return the rate of false wins when undecided sweeps are extended again and again, by three ways to count.

    ``pooled``: all seeds each time at the full level, which is what one would do without a rule. ``fresh``: the new
    seeds alone at the full level. ``rule``: the new seeds alone, the k-th unplanned look at alpha / 2^k. All meet the
    same exam.
    """
    won = dict.fromkeys(("pooled", "fresh", "rule"), 0.0)
    several = replace(setting, looks=attempts)
    for size in _chunks(repeats):
        drawn = draw(several, size, rng)
        any_R = {way: np.zeros(size, dtype=bool) for way in won}
        for attempt in range(attempts):
            all_seeds = drawn.evidence(several, (attempt + 1) * setting.seeds)
            fresh = drawn.evidence(several, setting.seeds, first=attempt * setting.seeds)
            any_R["pooled"] |= winner(all_seeds, ALPHA) >= 0
            any_R["fresh"] |= winner(fresh, ALPHA) >= 0
            any_R["rule"] |= winner(fresh, ALPHA / 2**attempt) >= 0
        for way, found_R in any_R.items():
            won[way] += float(found_R.sum())
    return {way: count / repeats for way, count in won.items()}


def selection_bias(setting: Setting, repeats: int, rng: np.random.Generator) -> dict[str, float]:
    """Return the mean error of the explore loss at the chosen rate and of the confirm mean, in units of the noise."""
    drawn = draw(replace(setting, documents=None), repeats, rng)
    assert drawn.rates is not None, "bias comes from choosing among rates"
    explored_RA = np.take_along_axis(drawn.rates.explored, drawn.rates.chosen[..., None], axis=2)[..., 0]
    scale_A = np.asarray(setting.noise)
    return {
        "explore": float(((explored_RA - drawn.at_rates_RA) / scale_A).mean()),
        "confirm": float(((drawn.losses_RSA.mean(axis=1) - drawn.at_rates_RA) / scale_A).mean()),
    }


def symmetric_settings() -> Iterator[tuple[str, Setting]]:
    """Yield the rows in which noise is symmetric and the best arms are tied: false wins must stay at alpha."""
    for seeds, documents in itertools.product((3, 5, 10), (20, 32, 50, 128)):
        yield "two of three tied", Setting(seeds=seeds, documents=documents)
    yield "thirty seeds", Setting(seeds=30, documents=50)
    yield "two arms", Setting(means=(0.0, 0.0), noise=(1.0, 1.0))
    yield "three equal", Setting(means=(0.0, 0.0, 0.0))
    yield "two of eight tied", Setting(means=(0.0, 0.0, *[FAR] * 6), noise=(1.0,) * 8)
    yield "eight equal", Setting(means=(0.0,) * 8, noise=(1.0,) * 8)
    for seeds, noise in itertools.product((3, 5), (3.0, 8.0)):
        yield f"noise 1 to {noise:g}", Setting(noise=(1.0, noise, 1.0), seeds=seeds)
    yield "correlated", Setting(correlation=0.5)
    yield "uneven documents", Setting(documents=64, uneven=True)
    yield "two looks", Setting(looks=2)
    for seeds in (3, 5):
        yield "no documents", Setting(seeds=seeds, documents=None)
    for runs, noise in (((5, 5), 1.0), ((8, 30), 1.0), ((5, 30), 3.0), ((30, 5), 3.0)):
        yield (
            f"unpaired, {runs[0]} and {runs[1]} runs, noise 1 to {noise:g}",
            Setting(means=(0.0, 0.0), noise=(1.0, noise), seeds=max(runs), runs=runs, documents=None),
        )
    for curvature in CURVATURES:
        yield f"rates chosen, curvature {curvature:g}", Setting(curvature=curvature)


def asymmetric_settings() -> Iterator[tuple[str, Setting]]:
    """Yield the rows in which one arm's seeds are skewed or spike: they are published as they come out."""
    shapes: tuple[Shape, ...] = ("skewed", "spikes in 10%", "spikes in 20%")
    for shape, seeds in itertools.product(shapes, (3, 5, 10)):
        yield shape, Setting(shape=shape, seeds=seeds)


def monte_carlo_bound(level: float, repeats: int, comparisons: int) -> float:
    """Return the highest rate that so many rows at exactly ``level`` would show together in 99 of 100 benches."""
    from scipy import stats

    return float(stats.binom.ppf(0.99 ** (1 / comparisons), repeats, level)) / repeats


def draw(setting: Setting, repeats: int, rng: np.random.Generator) -> Drawn:
    """Draw the losses of all looks of a setting."""
    n_arms, n_seeds = len(setting.means), setting.seeds * setting.looks
    rates = _explore(setting, repeats, rng) if setting.curvature is not None else None
    truth_RA = np.broadcast_to(np.asarray(setting.means), (repeats, n_arms))
    at_rates_RA = truth_RA if rates is None else truth_RA + rates.regret
    noise_RSA = _noise(setting, (repeats, n_seeds + 1), rng)
    losses_RSA = at_rates_RA[:, None, :] + noise_RSA
    weights_D, documents_RDA, interaction_RSDA = None, None, None
    if setting.documents is not None:
        weights_D = np.exp(rng.standard_normal(setting.documents)) if setting.uneven else np.ones(setting.documents)
        weights_D /= weights_D.sum()
        documents_RDA = DOCUMENT_NOISE * rng.standard_normal((repeats, setting.documents, n_arms))
        interaction_RSDA = INTERACTION * rng.standard_normal((repeats, n_seeds, setting.documents, n_arms))
        losses_RSA[:, :n_seeds] += np.einsum("rsda,d->rsa", interaction_RSDA, weights_D)
        losses_RSA += np.einsum("rda,d->ra", documents_RDA, weights_D)[:, None, :]
    return Drawn(
        losses_RSA=losses_RSA[:, :n_seeds],
        interaction_RSDA=interaction_RSDA,
        documents_RDA=documents_RDA,
        weights_D=weights_D,
        explored_RA=losses_RSA[:, n_seeds],
        truth_RA=truth_RA,
        at_rates_RA=at_rates_RA,
        rates=rates,
    )


def _chunks(repeats: int) -> Iterator[int]:
    for start in range(0, repeats, CHUNK):
        yield min(CHUNK, repeats - start)


def _noise(setting: Setting, shape: tuple[int, int], rng: np.random.Generator) -> Floats:
    """Noise of seeds [R, S, A], of mean zero; the first arm's has the setting's shape."""
    n_arms = len(setting.noise)
    shared = rng.standard_normal((*shape, 1)) * math.sqrt(setting.correlation)
    own = rng.standard_normal((*shape, n_arms)) * math.sqrt(1 - setting.correlation)
    noise_RSA = np.asarray((shared + own) * np.asarray(setting.noise))
    if setting.shape == "skewed":
        noise_RSA[..., 0] = 3 * (rng.standard_exponential(shape) - 1) * setting.noise[0]
    elif setting.shape != "normal":
        share = 0.1 if setting.shape == "spikes in 10%" else 0.2
        noise_RSA[..., 0] += 10 * setting.noise[0] * ((rng.random(shape) < share) - share)
    return noise_RSA


def _explore(setting: Setting, repeats: int, rng: np.random.Generator) -> Rates:
    """One explore seed per arm: losses on a parabola in log lr plus the arm's noise, the lowest one chosen."""
    assert setting.curvature is not None, "without curvature no rate is chosen"
    cost_P = setting.curvature * min(setting.noise) * np.asarray(GRID_STEPS) ** 2.0
    noise_A1 = np.asarray(setting.noise)[:, None]
    shared = rng.standard_normal((repeats, len(setting.noise), 1)) * math.sqrt(setting.correlation)
    own = rng.standard_normal((repeats, len(setting.noise), len(GRID_STEPS))) * math.sqrt(1 - setting.correlation)
    explored_RAP = np.asarray(setting.means)[:, None] + cost_P + noise_A1 * (shared + own)
    chosen_RA = explored_RAP.argmin(axis=2)
    return Rates(explored=explored_RAP, chosen=chosen_RA, regret=cost_P[chosen_RA])


def _spiked(drawn: Drawn, setting: Setting, won_R: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Repeats in which the arm that wins has a spike among its confirm seeds and the explore run at its rate."""
    spiked_R = np.zeros(won_R.shape, dtype=bool)
    n_of = setting.runs or (setting.seeds * setting.looks,) * len(setting.means)
    runs = [drawn.losses_RSA[:, :n, arm] for arm, n in enumerate(n_of)]
    for arm, own_RS in enumerate(runs):
        own_RC = np.concatenate([own_RS, drawn.explored_RA[:, arm, None]], axis=1)
        rivals = [rival_RS for other, rival_RS in enumerate(runs) if other != arm]
        spiked_R |= (won_R == arm) & has_spike(own_RC, rivals)
    return spiked_R


def _not_best(won_R: NDArray[np.int64], truth_RA: Floats) -> NDArray[np.bool_]:
    """Repeats whose winner has a rival at least as good in truth."""
    own_R1 = np.take_along_axis(truth_RA, np.maximum(won_R, 0)[:, None], axis=1)
    rivals_R = (truth_RA <= own_R1).sum(axis=1) - 1
    return (won_R >= 0) & (rivals_R > 0)


def _is_false(drawn: Drawn, setting: Setting, repeat: int, won: int, n_seeds: int, alpha: float) -> bool:
    truth_A, at_rates_A = drawn.truth_RA[repeat], drawn.at_rates_RA[repeat]
    others = [arm for arm in range(len(truth_A)) if arm != won]
    if drawn.rates is not None:
        evidence = _alone(drawn, setting, repeat, n_seeds)
        for rival in others:
            rng = np.random.default_rng([repeat, rival])
            lead = evidence.pair(rival, won).deciding(alpha)
            optimum = _optimum(drawn, repeat, rival, n_seeds, rng)
            if not lead_outlasts_better_rate(optimum, lead, alpha, rng):
                return any(at_rates_A[won] >= at_rates_A[other] for other in others)
    return any(truth_A[won] >= truth_A[rival] for rival in others)


def _tie_stands(drawn: Drawn, setting: Setting, repeat: int, margin: float) -> bool:
    """Whether the statement would not read "at the chosen rates", as the verdict decides it."""
    evidence = _alone(drawn, setting, repeat, setting.seeds)
    first, second = (int(place) for place in evidence.means_A.argsort()[:2])
    rng = np.random.default_rng([repeat, first, second])
    optima = tuple(_optimum(drawn, repeat, arm, setting.seeds, rng) for arm in (first, second))
    difference = evidence.pair(first, second).deciding(ALPHA)
    return tie_outlasts_better_rates((optima[0], optima[1]), difference, margin, ALPHA, rng)


def _alone(drawn: Drawn, setting: Setting, repeat: int, n_seeds: int) -> Evidence:
    """One repeat's evidence."""
    evidence = drawn.evidence(setting, n_seeds)
    assert evidence.losses_SA is not None, "rates are chosen in sweeps, which are paired"
    documents_DA = None if evidence.documents_DA is None else evidence.documents_DA[repeat]
    return Evidence(losses_SA=evidence.losses_SA[repeat], documents_DA=documents_DA, weights_D=evidence.weights_D)


def _optimum(drawn: Drawn, repeat: int, arm: int, n_seeds: int, rng: np.random.Generator) -> Optimum:
    assert drawn.rates is not None, "without rates there is no optimum to find"
    curve = RateCurve(
        log_lrs=tuple(step * math.log(2) for step in GRID_STEPS),
        losses=tuple(drawn.rates.explored[repeat, arm]),
        chosen=int(drawn.rates.chosen[repeat, arm]),
        n_seeds=1,
    )
    own_S = drawn.losses_RSA[repeat, :n_seeds, arm]
    optimum = locate(curve, float(own_S.std(ddof=1)), own_S.size - 1, rng, draws=400)
    assert optimum is not None, "a grid of five rates can be fitted"
    return optimum


def _coverage(evidence: Evidence, truth_RA: Floats) -> float:
    """Share of intervals that decide, at 95%, over repeats and pairs, that hold the true difference."""
    held: list[Any] = []
    for a, b in itertools.combinations(range(truth_RA.shape[1]), 2):
        tests = evidence.against(np.full(truth_RA.shape[0], a)).tests
        reach_R = np.max([test.reach(ALPHA)[:, b] for test in tests.values()], axis=0)
        mean_R = next(iter(tests.values())).mean[:, b]
        held.append(np.abs(mean_R - (truth_RA[:, a] - truth_RA[:, b])) <= reach_R)
    return float(np.mean(held))
