"""The sections of a space: what each table of its TOML file may hold.

A section knows its own values. Rules between values, of one section or of several, stand in ``rules``.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import floor
from typing import Annotated, Any, Literal

from pydantic import Field

from search_spaces.values import (
    ArmName,
    AutoOrCount,
    AutoOrPositive,
    Count,
    Decay,
    GpuShare,
    KeepShare,
    NonEmptyText,
    NonNegative,
    Positive,
    Section,
    Share,
    Switch,
)


class Strategy(Section):
    """A shape: what one optimizer step of an arm is made of."""

    name: ArmName
    micro_batch_size: Count
    seq_len: Count
    grad_accum_steps: Count = 1

    @property
    def tokens_per_step(self) -> int:
        """Target tokens of one optimizer step."""
        return self.micro_batch_size * self.seq_len * self.grad_accum_steps

    @property
    def shape(self) -> tuple[int, int, int]:
        """What makes two strategies the same one: ``(micro_batch_size, seq_len, grad_accum_steps)``."""
        return (self.micro_batch_size, self.seq_len, self.grad_accum_steps)


class Rates(Section):
    """The learning rates that every arm is tried at.

    ``lr`` is Muon's rate. AdamW's is exactly one of: a ratio to ``lr``, a fixed number, or a grid of absolute rates
    of its own, crossed with ``lr``. ``max_widenings`` is how often an arm's grid may grow past its edge.
    """

    lr: tuple[Positive, ...] = ()
    adamw_ratio: Positive | None = None
    adamw_fixed: Positive | None = None
    adamw_grid: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    max_widenings: Annotated[int, Field(strict=True, ge=0)] = 1


class Seeds(Section):
    """How many seeds each phase runs. Explore seeds are numbered from 1, confirm seeds from 101."""

    explore: Annotated[int, Field(strict=True, ge=1, le=100)] = 1
    confirm: Count = 5


class Model(Section):
    """The shape of the Mixture-of-Experts model that every cell trains; the vocabulary comes from the tokenizer."""

    d_model: Count
    n_layers: Count
    n_heads: Count
    n_kv_heads: Count
    d_expert: Count
    n_experts: Count
    top_k: Count
    lb_loss_coef: NonNegative = 0.01
    z_loss_coef: NonNegative = 0.0
    rope_theta: Positive = 10_000.0
    norm_eps: Positive = 1e-6
    init_std: Positive = 0.02
    document_attention: Switch = False

    @classmethod
    def expand(cls, raw: Any) -> Any:
        """``n_kv_heads`` is ``n_heads`` unless it is given: no grouped-query attention."""
        if isinstance(raw, Mapping) and "n_heads" in raw:
            return {"n_kv_heads": raw["n_heads"], **raw}
        return raw


class Optimizer(Section):
    """What Muon and AdamW share across all cells; their rates are the search's."""

    muon_momentum: Decay = 0.95
    muon_weight_decay: NonNegative = 0.0
    adamw_betas: tuple[Decay, Decay] = (0.9, 0.95)
    adamw_eps: Positive = 1e-8
    adamw_weight_decay: NonNegative = 0.0
    clip_grad_norm: Positive = 1.0


class Schedule(Section):
    """Linear warm-up, plateau, linear decay to zero, as shares of the budget."""

    warmup_share: Share = 0.05
    decay_share: Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)] = 0.2


class GridSearch(Section):
    """Every arm is tried at every rate of ``rates``."""

    kind: Literal["grid"] = "grid"


class OptunaSearch(Section):
    """Every arm has a study of its own with the same number of trials, ``lr`` drawn log-uniformly between bounds.

    With both ratio bounds the ratio of AdamW's rate to ``lr`` is searched as well, and ``rates`` names none.
    """

    kind: Literal["optuna"]
    trials_per_arm: Count = 8
    seed: Annotated[int, Field(strict=True, ge=0)] = 0
    lr_low: Positive
    lr_high: Positive
    adamw_ratio_low: Positive | None = None
    adamw_ratio_high: Positive | None = None

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

    @classmethod
    def expand(cls, raw: Any) -> Any:
        """``"none"`` is ``{ kind = "none" }``."""
        return {"kind": raw} if isinstance(raw, str) else raw

    def keep_counts(self, n_cells: int) -> tuple[int, ...]:
        """How many of ``n_cells`` pass each rung: at least one, a fraction rounded down."""
        # 0.29 * 100 is 28.999...: the small number undoes what binary fractions lose
        counts = (share if isinstance(share, int) else floor(share * n_cells + 1e-9) for share in self.keep)
        return tuple(max(1, min(n_cells, count)) for count in counts)


class Corpus(Section):
    """The text. In TOML a table, or shorthand: ``"embedded"``, ``"files:GLOB"``, ``"hub:ID"``, ``"hub:OWNER/ID/NAME"``.

    ``split_column`` is ``"auto"`` (a column named ``split``, when its values are names of splits), ``"none"`` or the
    name of a column. ``longer_windows`` says what happens to an arm whose windows are longer than any document:
    ``"refuse"``, or ``"warn"`` and pack documents into them. The three limits are the audit's: beyond them it refuses
    the share of the exam's 64-token runs that also stand in train, the longest common run, and the number of times
    that the budget may repeat the corpus.
    """

    kind: Literal["embedded", "files", "hub"]
    paths: tuple[NonEmptyText, ...] = ()
    text_column: NonEmptyText = "text"
    split_column: NonEmptyText = "auto"
    group_column: NonEmptyText | None = None
    dataset: NonEmptyText | None = None
    name: NonEmptyText | None = None
    split: NonEmptyText = "train"
    revision: NonEmptyText | None = None
    validation_share: Annotated[float, Field(strict=True, gt=0, lt=1)] = 0.06
    test_share: Annotated[float, Field(strict=True, gt=0, lt=1)] = 0.06
    longer_windows: Literal["refuse", "warn"] = "refuse"
    max_overlap_share: Annotated[float, Field(strict=True, ge=0, le=1)] = 0.02
    max_common_run_tokens: Annotated[int, Field(strict=True, ge=64)] = 128
    max_epochs: Positive = 4.0

    @classmethod
    def expand(cls, raw: Any) -> Any:
        """Shorthand written out as a table."""
        if not isinstance(raw, str):
            return raw
        kind, _, rest = raw.partition(":")
        if not rest:
            return {"kind": kind}
        if kind == "files":
            return {"kind": kind, "paths": [rest]}
        owner, _, tail = rest.partition("/")
        dataset, _, name = tail.partition("/")
        table = {"kind": kind, "dataset": f"{owner}/{dataset}" if dataset else owner}
        return {**table, "name": name} if name else table


class Tokenizer(Section):
    """How text becomes tokens.

    In TOML a table, or shorthand: ``"bytes"``, ``"bpe:2048"``, ``"directory:PATH"``, ``"hub:ID"``.
    """

    kind: Literal["bpe", "bytes", "directory", "hub"]
    vocab_size: Annotated[int, Field(strict=True, ge=257)] | None = None
    path: NonEmptyText | None = None
    id: NonEmptyText | None = None
    revision: NonEmptyText | None = None

    @classmethod
    def expand(cls, raw: Any) -> Any:
        """Shorthand written out as a table."""
        if not isinstance(raw, str):
            return raw
        kind, _, rest = raw.partition(":")
        key = {"bpe": "vocab_size", "directory": "path", "hub": "id"}.get(kind)
        if not rest or key is None:
            return {"kind": kind}
        is_size = kind == "bpe" and rest.replace("_", "").isdigit()
        return {"kind": kind, key: int(rest) if is_size else rest}


class Exam(Section):
    """How many rows of S+1 tokens the exam has, S being the longest arm's ``seq_len``."""

    rows_validation: Count = 32
    rows_test: Count = 64


class Resources(Section):
    """What a trial takes and how many run at once. Nothing here decides a number."""

    workers: AutoOrCount = "auto"
    threads_per_trial: Count = 1
    gpu_per_trial: GpuShare = "auto"
    declared_gpus: Annotated[int, Field(strict=True, ge=0)] | None = None


class VerdictRules(Section):
    """What is fixed before the verdict is seen. ``margin`` is in nats per token; ``looks`` divide ``alpha``."""

    alpha: Annotated[float, Field(strict=True, gt=0, lt=0.5)] = 0.05
    margin: AutoOrPositive = "auto"
    looks: Count = 1
