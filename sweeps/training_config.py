"""The only bridge from a space (``search_spaces``) to the configuration of one training (``moe``)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from search_spaces import Cell, Space

if TYPE_CHECKING:
    from moe.config import BatchConfig, ModelConfig, OptimizerConfig, TrainConfig
    from moe.corpus import CorpusConfig
    from moe.tokenizer import TokenizerConfig

REPORTS_PER_CELL = 64  # a report every second or two at laptop scale, and a checkpoint can be made at any of them


def with_absolute_paths(space: Space) -> Space:
    """The space with absolute paths of corpus and tokenizer: a worker, or a resume, may run in another folder."""
    corpus = space.corpus.model_copy(update={"paths": tuple(_absolute(path) for path in space.corpus.paths)})
    tokenizer = space.tokenizer
    if tokenizer.path is not None:
        tokenizer = tokenizer.model_copy(update={"path": _absolute(tokenizer.path)})
    return space.model_copy(update={"corpus": corpus, "tokenizer": tokenizer})


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def corpus_config(space: Space) -> CorpusConfig:
    """The space's corpus as ``moe`` reads it."""
    from moe.corpus import CorpusConfig

    fields = space.corpus.model_dump(exclude_none=True)
    fields["allow_straddling"] = fields.pop("longer_windows") == "warn"
    if fields["split_column"] == "none":
        fields["split_column"] = None
    fields["paths"] = tuple(_absolute(path) for path in space.corpus.paths)
    return CorpusConfig(**fields)


def tokenizer_config(space: Space) -> TokenizerConfig:
    """The space's tokenizer as ``moe`` reads it."""
    from moe.tokenizer import TokenizerConfig

    return TokenizerConfig(**space.tokenizer.model_dump(exclude_none=True))


def batch_configs(space: Space) -> dict[str, BatchConfig]:
    """Each arm's shape by its name."""
    from moe.config import BatchConfig

    return {
        strategy.name: BatchConfig(
            micro_batch_size=strategy.micro_batch_size,
            seq_len=strategy.seq_len,
            grad_accum_steps=strategy.grad_accum_steps,
        )
        for strategy in space.strategies
    }


def model_config(space: Space, strategy: str, *, vocab_size: int) -> ModelConfig:
    """An arm's model with the tokenizer's vocabulary."""
    from moe.config import ModelConfig

    model = space.of_arm(strategy).model
    return ModelConfig(vocab_size=vocab_size, **model.model_dump(exclude={"document_attention"}))


def optimizer_config(space: Space, cell: Cell) -> OptimizerConfig:
    """A cell's optimizers; momentum and betas hold their half-lives in tokens where the space asks for that."""
    from moe.config import OptimizerConfig

    assert cell.lr is not None, "a cell is trained once its rate is decided"
    assert cell.adamw_lr is not None, "AdamW's rate is decided with Muon's"
    fields = space.of_arm(cell.strategy).optimizer.model_dump()
    at_tokens = fields.pop("betas_at_tokens_per_step")
    if at_tokens is not None:
        steps = space.strategy(cell.strategy).tokens_per_step / at_tokens
        fields["muon_momentum"] **= steps
        fields["adamw_betas"] = tuple(beta**steps for beta in fields["adamw_betas"])
    return OptimizerConfig(lr=cell.lr, adamw_lr=cell.adamw_lr, **fields)


def train_config(space: Space, cell: Cell, *, vocab_size: int) -> TrainConfig:
    """Everything that decides one cell's numbers, with the schedule's horizon at the cell's own budget."""
    from moe.config import ScheduleConfig, TrainConfig

    own = space.of_arm(cell.strategy)
    batch = batch_configs(space)[cell.strategy]
    budget = cell.budget_tokens
    warmup_tokens = round(budget * own.schedule.warmup_share)
    return TrainConfig(
        model=model_config(space, cell.strategy, vocab_size=vocab_size),
        batch=batch,
        optimizer=optimizer_config(space, cell),
        schedule=ScheduleConfig(
            budget_tokens=budget,
            warmup_tokens=warmup_tokens,
            decay_tokens=min(round(budget * own.schedule.decay_share), budget - warmup_tokens),  # both may round up
        ),
        seed=cell.seed,
        block_len=space.block_len,
        precision=space.precision,
        document_attention=own.model.document_attention,
        arrangement=cell.arrangement,
        exam_at_tokens=(*space.rungs_at(budget), budget),
        report_every_tokens=_report_every(budget, batch.tokens_per_step),
        deterministic=space.resources.deterministic,
    )


def any_cell(space: Space, strategy: str) -> Cell:
    """A cell of an arm for a prediction or a probe, which do not depend on rates and seed."""
    return Cell(
        cell_id=None,
        phase="confirm",
        strategy=strategy,
        lr=0.01,
        adamw_lr=0.01,
        arrangement=space.strategy(strategy).windows,
        seed=0,
        budget_tokens=space.budget_tokens,
    )


def _report_every(budget_tokens: int, tokens_per_step: int) -> int:
    steps = max(1, budget_tokens // tokens_per_step // REPORTS_PER_CELL)
    return steps * tokens_per_step
