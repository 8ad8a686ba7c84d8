"""The tables of a space's TOML file: their keys, their defaults, and what each value must be by itself.

What values must be together stands in ``rules``. Every count has an upper bound, so that a typing error is refused
before anything of that size is allocated.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import floor
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from search_spaces.fields import (
    ArmName,
    AutoOrPositive,
    AutoOrWorkers,
    ChangesTo,
    Count,
    CountOrZero,
    Fraction,
    FractionBelowOne,
    GpuShare,
    KeepShare,
    NonNegative,
    Positive,
    Rate,
    RateGrid,
    Section,
    Switch,
    Word,
)


class Rates(Section):
    """The learning rates that every arm is tried at.

    ``lr`` is Muon's rate. AdamW's is exactly one of: a ratio to ``lr``, a fixed number, or its own grid of absolute
    rates, crossed with ``lr``. ``max_widenings`` is how often an arm's grid may grow past its edge.
    """

    lr: RateGrid = ()
    adamw_ratio: Rate | None = None
    adamw_fixed: Rate | None = None
    adamw_grid: Annotated[RateGrid, Field(min_length=1)] | None = None
    max_widenings: CountOrZero = Field(default=1, le=10)  # ten steps past the edge: the grid was in the wrong place


class Seeds(Section):
    """How many seeds each phase runs. Explore seeds are numbered from 1, confirm seeds from 101."""

    explore: Count = Field(default=1, le=100)  # the numbers below those of the confirm seeds
    confirm: Count = Field(default=5, le=1_000)  # beyond a hundred an interval hardly narrows


class Model(Section):
    """The shape of the Mixture-of-Experts model that every cell trains; the vocabulary comes from the tokenizer.

    The bounds are several times those of the largest published models. ``n_kv_heads`` is ``n_heads`` where it is not
    given.
    """

    d_model: Count = Field(le=65_536)
    n_layers: Count = Field(le=512)
    n_heads: Count = Field(le=65_536)
    n_kv_heads: Count = Field(le=65_536)
    d_expert: Count = Field(le=262_144)
    n_experts: Count = Field(le=1_024)
    top_k: Count
    lb_loss_coef: NonNegative = 0.01
    z_loss_coef: NonNegative = 0.0
    rope_theta: Positive = 10_000.0
    norm_eps: Positive = 1e-6
    init_std: Positive = 0.02
    document_attention: Switch = False


class Optimizer(Section):
    """What Muon and AdamW share across all cells; their rates are the search's.

    ``kind`` is what trains the hidden matrices at ``lr``: Muon, or AdamW too. Momentum and betas are per step, so that
    arms with other tokens per step average over other numbers of tokens; with ``betas_at_tokens_per_step`` they are
    those of a step of so many tokens, and every arm has the same half-lives in tokens (arXiv 2507.07101).
    """

    kind: Literal["muon", "adamw"] = "muon"
    betas_at_tokens_per_step: Count | None = Field(default=None, le=10**12)
    muon_momentum: FractionBelowOne = 0.95
    muon_weight_decay: NonNegative = 0.0
    adamw_betas: tuple[FractionBelowOne, FractionBelowOne] = (0.9, 0.95)
    adamw_eps: Positive = 1e-8
    adamw_weight_decay: NonNegative = 0.0
    clip_grad_norm: Positive = 1.0


class Schedule(Section):
    """Linear warm-up, plateau, linear decay to zero, as shares of the budget."""

    warmup_share: FractionBelowOne = 0.05
    decay_share: Fraction = 0.2


SHAPE = ("micro_batch_size", "seq_len", "grad_accum_steps")
ARM_TABLES = ("model", "optimizer", "schedule", "rates")
"""The tables of a space of which an arm may have values of its own."""
ADAMW_RATES = ("adamw_ratio", "adamw_fixed", "adamw_grid")
"""AdamW's rate is decided by one of these."""


class Strategy(Section):
    """An arm: what one of its optimizer steps is made of, and what else sets it apart.

    ``model``, ``optimizer``, ``schedule`` and ``rates`` hold those keys of the space's tables of these names that the
    arm has another value for. ``windows`` says whether the arm's windows are shuffled, or stay grouped as they lie in
    the blocks of the longest arm. A ``control`` is trained as any arm and can neither win nor tie: it explains the lead
    of the arm that differs from it in ``windows`` alone.
    """

    name: ArmName
    micro_batch_size: Count = Field(le=65_536)
    seq_len: Count = Field(le=1_048_576)  # the longest contexts of today's models
    grad_accum_steps: Count = Field(default=1, le=65_536)
    model: Annotated[dict[str, Any], ChangesTo(Model)] = Field(default_factory=dict)
    optimizer: Annotated[dict[str, Any], ChangesTo(Optimizer)] = Field(default_factory=dict)
    schedule: Annotated[dict[str, Any], ChangesTo(Schedule)] = Field(default_factory=dict)
    rates: Annotated[dict[str, Any], ChangesTo(Rates, but=("max_widenings",))] = Field(default_factory=dict)
    windows: Literal["shuffled", "grouped"] = "shuffled"
    role: Literal["contender", "control"] = "contender"

    @model_serializer(mode="wrap")
    def _without_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """An arm that differs in its shape alone is written as its shape."""
        written: dict[str, Any] = serialize(self)
        plain: dict[str, Any] = {**{key: {} for key in ARM_TABLES}, "windows": "shuffled", "role": "contender"}
        return {key: value for key, value in written.items() if key not in plain or value != plain[key]}

    @property
    def tokens_per_step(self) -> int:
        """Target tokens of one optimizer step."""
        return self.micro_batch_size * self.seq_len * self.grad_accum_steps

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(micro_batch_size, seq_len, grad_accum_steps)``."""
        return (self.micro_batch_size, self.seq_len, self.grad_accum_steps)

    @property
    def is_control(self) -> bool:
        """Whether the arm can neither win nor tie."""
        return self.role == "control"


class GridSearch(Section):
    """Every arm is tried at every rate of ``rates``."""

    kind: Literal["grid"] = "grid"


class OptunaSearch(Section):
    """Every arm has its own study with the same number of trials; ``lr`` is drawn log-uniformly between bounds.

    With both ratio bounds the ratio of AdamW's rate to ``lr`` is searched too, and ``rates`` names none.
    """

    kind: Literal["optuna"]
    trials_per_arm: Count = Field(default=8, le=1_000)  # each suggestion fits a model to all results before it
    seed: CountOrZero = Field(default=0, le=2**63 - 1)
    lr_low: Rate
    lr_high: Rate
    adamw_ratio_low: Rate | None = None
    adamw_ratio_high: Rate | None = None

    @property
    def searches_adamw_ratio(self) -> bool:
        """Whether the ratio of AdamW's rate to ``lr`` is searched too."""
        return self.adamw_ratio_low is not None and self.adamw_ratio_high is not None


class EarlyStopping(Section):
    """Which cells of an arm pass each rung; in TOML a table, or ``"none"``.

    ``keep`` has one entry per rung: a count, or a fraction of the arm's explore cells.
    """

    kind: Literal["asha", "none"]
    keep: tuple[KeepShare, ...] = ()

    def keep_counts(self, n_cells: int) -> tuple[int, ...]:
        """How many of ``n_cells`` pass each rung."""
        return keep_counts(self.keep, n_cells)


def keep_counts(keep: Sequence[int | float], n_cells: int) -> tuple[int, ...]:
    """How many of ``n_cells`` pass each rung: at least one, a fraction rounded down."""
    # 0.29 * 100 is 28.999...: the small number undoes what binary fractions lose
    counts = (share if isinstance(share, int) else floor(share * n_cells + 1e-9) for share in keep)
    return tuple(max(1, min(n_cells, count)) for count in counts)


class Corpus(Section):
    """The text. In TOML a table, or shorthand: ``"embedded"``, ``"files:GLOB"``, ``"hub:ID"``, ``"hub:OWNER/ID/NAME"``.

    ``split_column`` is ``"auto"`` (a column named ``split``, when its values are names of splits), ``"none"`` or the
    name of a column. ``group_column`` keeps rows of one value in one split; ``"folder"`` is that of a file.
    ``duplicates`` decides about text that stands in several files: ``"refuse"`` it (beyond the audit's limits),
    ``"group"`` all documents that share any in train, or ``"drop"`` all but one copy first. ``longer_windows`` decides
    about an arm whose windows are longer than any document: ``"refuse"`` it, or ``"warn"`` and pack documents into
    them. The three limits are the audit's: the share of the exam's 64-token runs that may also occur in train, the
    longest common run, and how often the budget may repeat the corpus.
    """

    kind: Literal["embedded", "files", "hub"]
    paths: tuple[Word, ...] = ()
    text_column: Word = "text"
    split_column: Word = "auto"
    group_column: Word | None = None
    duplicates: Literal["refuse", "group", "drop"] = "refuse"
    dataset: Word | None = None
    name: Word | None = None
    split: Word = "train"
    revision: Word | None = None
    validation_share: Annotated[float, Field(strict=True, gt=0, lt=0.5)] = 0.06
    test_share: Annotated[float, Field(strict=True, gt=0, lt=0.5)] = 0.06
    longer_windows: Literal["refuse", "warn"] = "refuse"
    max_overlap_share: Fraction = 0.02
    max_common_run_tokens: Annotated[int, Field(strict=True, ge=64)] = 128
    max_epochs: Positive = 4.0


class Tokenizer(Section):
    """How text becomes tokens.

    In TOML a table, or shorthand: ``"bytes"``, ``"bpe:2048"``, ``"directory:PATH"``, ``"hub:ID"``.
    """

    kind: Literal["bpe", "bytes", "directory", "hub"]
    # at least 256 bytes and the separator; at most four times the largest vocabulary in use
    vocab_size: Annotated[int, Field(strict=True, ge=257, le=1_048_576)] | None = None
    path: Word | None = None
    id: Word | None = None
    revision: Word | None = None


class Exam(Section):
    """How many rows of S+1 tokens the exam has, S being the longest arm's ``seq_len``."""

    rows_validation: Count = Field(default=32, le=1_000_000)  # more would cost more than the training
    rows_test: Count = Field(default=64, le=1_000_000)


class Resources(Section):
    """What a trial takes and how many run at once. Of these only ``deterministic`` decides a number, and on a GPU only.

    With ``deterministic`` a GPU gives equal bits for equal inputs, so that a resumed cell ends as one that was never
    interrupted.
    """

    workers: AutoOrWorkers = "auto"
    threads_per_trial: Count = Field(default=1, le=1_024)  # a trial runs on one machine
    gpu_per_trial: GpuShare = "auto"
    declared_gpus: Annotated[int, Field(strict=True, ge=0, le=1_024)] | None = None
    deterministic: Switch = True


class VerdictRules(Section):
    """What is fixed before the verdict is seen. ``margin`` is in nats per token; ``looks`` divide ``alpha``."""

    alpha: Annotated[float, Field(strict=True, gt=0, lt=0.5)] = 0.05
    margin: AutoOrPositive = "auto"
    looks: Count = Field(default=1, le=1_000)
