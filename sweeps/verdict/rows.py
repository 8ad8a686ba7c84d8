"""What a verdict holds beside its sentence: arms, pairs of arms and views of them, typed; ``as_json`` writes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from sweeps.ledger.results import Arm

NOT_JUDGED = "not_judged"


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over seeds in nats per token with the ends of its interval, which are None for a single seed."""

    mean: float
    low: float | None = None
    high: float | None = None

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low is not None and self.high is not None and self.low * self.high > 0

    def __neg__(self) -> Estimate:
        """The same difference seen from the other side."""
        low, high = (None if end is None else -end for end in (self.high, self.low))
        return Estimate(mean=-self.mean, low=low, high=high)


@dataclass(frozen=True, kw_only=True)
class ArmResult:
    """What came out for one arm, over the seeds that are judged. Losses are nats per token.

    ``seeds`` and ``losses`` belong together; ``diverged`` counts confirm cells; an arm that is ``excluded``
    has a diverged one, so it can neither win nor tie.
    """

    arm: Arm
    best_lr: float | None
    best_lr_at_edge: bool | None
    seeds: tuple[int, ...]
    losses: tuple[float, ...]
    mean: float | None
    ci_low: float | None
    ci_high: float | None
    bpb: float | None
    common_context_loss: float | None
    tokens_per_s: float | None
    peak_mem_allocated_gib: float | None
    diverged: int
    excluded: bool = False

    @property
    def name(self) -> str:
        """The name of the strategy."""
        return self.arm.name

    @property
    def loss_of_seed(self) -> dict[int, float]:
        """Test loss by confirm seed."""
        return dict(zip(self.seeds, self.losses, strict=True))


@dataclass(frozen=True, kw_only=True)
class PairDifference:
    """The loss of ``a`` minus that of ``b`` in nats per token, paired by seed: below zero, a is better."""

    a: str
    b: str
    difference: float | None
    ci_low: float | None
    ci_high: float | None

    def __contains__(self, arm: object) -> bool:
        """Whether an arm is one of the two."""
        return arm in (self.a, self.b)

    def rival_of(self, arm: str) -> str:
        """Return the other arm."""
        return self.b if arm == self.a else self.a

    def above(self, arm: str) -> Estimate | None:
        """Return the rival's loss minus that of ``arm``: its lead, None where nothing was measured."""
        if self.difference is None:
            return None
        found = Estimate(mean=self.difference, low=self.ci_low, high=self.ci_high)
        return -found if arm == self.a else found


@dataclass(frozen=True, kw_only=True)
class PairTest:
    """One test of a pair, by name: over seeds alone, or over new documents too. No p-value where nothing is judged."""

    test: str
    difference: float
    ci_low: float
    ci_high: float
    standard_error: float
    df: float
    p_value: float | None


@dataclass(frozen=True, kw_only=True)
class PairResult(PairDifference):
    """A pair with its tests; its interval is that of the test that decides.

    ``p_adjusted`` is Holm's over all pairs, and decides: ``decision`` is ``ARM is better``, ``tie``, ``undecided`` or
    ``not_judged``. ``passes_win_test`` is None for a pair without the arm of lowest mean.
    """

    p_value: float | None = None
    p_adjusted: float | None = None
    probability_a_better: float | None = None
    decision: str = NOT_JUDGED
    passes_win_test: bool | None = None
    tests: tuple[PairTest, ...] = ()

    @property
    def better(self) -> str | None:
        """The arm that the verdict decided for."""
        return next((arm for arm in (self.a, self.b) if self.decision == f"{arm} is better"), None)

    def chance_of(self, arm: str) -> float | None:
        """Return the probability that ``arm`` beats its rival on a further seed."""
        if self.probability_a_better is None:
            return None
        return self.probability_a_better if arm == self.a else 1 - self.probability_a_better


@dataclass(frozen=True, kw_only=True)
class ContextSplit:
    """A lead of a over b in own context: the lead at the common context plus what context gains a more than b."""

    a: str
    b: str
    own_lead: Estimate
    common_lead: Estimate
    context_gain: Estimate
    views_agree: bool

    def from_ahead(self) -> ContextSplit:
        """Return the same from the side of the arm that is ahead in its own context."""
        if self.own_lead.mean >= 0:
            return self
        return ContextSplit(
            a=self.b,
            b=self.a,
            own_lead=-self.own_lead,
            common_lead=-self.common_lead,
            context_gain=-self.context_gain,
            views_agree=self.views_agree,
        )


@dataclass(frozen=True, kw_only=True)
class ControlSplit:
    """A short arm's lead over the long one, split by a control with grouped windows into diversity and length.

    ``lr`` and ``at_edge`` are the control's rate; ``diversity_share`` is None unless the lead's interval excludes zero.
    """

    a: str
    b: str
    seeds: int
    lr: float | None
    lead: Estimate
    diversity: Estimate
    length: Estimate
    diversity_share: float | None
    at_edge: bool


@dataclass(frozen=True, kw_only=True)
class ContextUse:
    """What context beyond the shortest arm's length gains the longest arm on the targets that have it."""

    arm: str
    beyond_tokens: int
    gain: Estimate

    @property
    def is_used(self) -> bool:
        """Whether the gain's whole interval lies above zero."""
        return self.gain.low is not None and self.gain.low > 0


@dataclass(frozen=True, kw_only=True)
class RungView:
    """Validation losses at one point of the budget; ``label`` says whether the schedule had ended there."""

    tokens: int
    metric: str
    label: str
    means: Mapping[str, float]
    pairs: tuple[PairDifference, ...]


@dataclass(frozen=True, kw_only=True)
class View:
    """Mean losses by arm in one view; ``means`` is empty where no seed is complete in it."""

    means: Mapping[str, float]
    lowest: str | None
    winner: str | None
    pairs: tuple[PairDifference, ...]


@dataclass(frozen=True, kw_only=True)
class TokensToTarget:
    """The share of its tokens, and of its training time, with which ``a`` reaches the loss of ``b``.

    ``ci_low`` is None where nothing bounds the share from below. Times are the shares at the arms' measured speeds,
    which count as known; None where the speeds do not compare. ``device_hours`` is what one run of ``b`` takes of its
    device's time, a GPU's or without one the machine's, where it shares that with as many trials as were counted.
    """

    a: str
    b: str
    share: float
    ci_low: float | None
    ci_high: float
    is_upper_bound: bool
    time_share: float | None
    time_ci_low: float | None
    time_ci_high: float | None
    device_hours: float | None


@dataclass(frozen=True, kw_only=True)
class TokensView(View):
    """Test losses at equal tokens."""

    budget_tokens: int
    to_target: tuple[TokensToTarget, ...] | None


@dataclass(frozen=True, kw_only=True)
class FlopsView(View):
    """Test losses at equal training FLOPs, each arm with a budget of its own in tokens."""

    budgets_tokens: Mapping[str, int]
    seeds: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class TimeView(FlopsView):
    """Test losses in equal time; ``comparable`` says whether the arms' speeds were measured under one load."""

    comparable: bool


@dataclass(frozen=True, kw_only=True)
class UpdatesView(View):
    """Validation losses after equally many optimizer steps, by arm labelled with the state of the schedule."""

    updates: int
    metric: str
    labels: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class BudgetViews:
    """The arms at equal tokens, FLOPs, time and updates; None for a view that was not measured."""

    tokens: TokensView | None
    flops: FlopsView | None
    time: TimeView | None
    updates: UpdatesView | None


def as_json(value: Any) -> Any:
    """Return rows as JSON values: an arm's shape beside its results, an estimate as ``NAME``, ``NAME_ci_low``, ..."""
    if is_dataclass(value):
        found: dict[str, Any] = {}
        for field in fields(value):
            entry = getattr(value, field.name)
            if isinstance(entry, Arm):
                found |= as_json(entry)
            elif isinstance(entry, Estimate):
                found |= {field.name: entry.mean}
                found |= {f"{field.name}_ci_low": entry.low, f"{field.name}_ci_high": entry.high}
            else:
                found[field.name] = as_json(entry)
        return found
    if isinstance(value, Mapping):
        return {key: as_json(entry) for key, entry in value.items()}
    return [as_json(entry) for entry in value] if isinstance(value, tuple | list) else value
