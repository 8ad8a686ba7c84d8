"""One training run from the command line: data, trainer, printed curve, checkpoints in one folder."""

from __future__ import annotations

import json
import math
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

from moe.checkpoint import STATE_FILE, read_model
from moe.config import BatchConfig, ModelConfig, OptimizerConfig, ScheduleConfig, TrainConfig, check_config
from moe.corpus import CorpusConfig
from moe.device import set_threads
from moe.errors import CheckpointError, ConfigError
from moe.exam import TrainingData, build_exam, training_data
from moe.export import export_checkpoint
from moe.report import Report
from moe.token_build import Progress
from moe.token_cache import TokenizedCorpus, prepare
from moe.tokenizer import TokenizerConfig
from moe.trainer import Trainer

_RUN_FILE, _RECORDS_FILE, _SCORES_FILE = "run.json", "records.json", "scores.json"
_CHECKPOINT_PREFIX, _TOKENIZER_FOLDER = "checkpoint-", "tokenizer"
_ADAMW_RATIO = 0.3
_BAR_WIDTH = 40


def train(options: Namespace) -> None:
    """Trains to the end of the budget, from the newest checkpoint of ``options.out`` where there is one."""
    _require_sound(options)
    set_threads(options.threads)
    corpus, tokenizer = parse_corpus(options.corpus), parse_tokenizer(options.tokenizer)
    # All but the vocabulary can be checked before a corpus is read, which may take minutes.
    check_config(config_from(options, vocab_size=1))
    tokenized = prepare(
        corpus,
        tokenizer,
        cache_dir=options.cache_dir,
        train_tokens_needed=options.budget_tokens,
        held_out_tokens_needed=options.exam_tokens,
        on_progress=_print_progress,
    )
    config = config_from(options, vocab_size=tokenized.vocab_size)
    trainer = Trainer(config, _data(tokenized, config, options.exam_tokens))
    _print_beginning(trainer, tokenized)
    if options.out is not None:
        _begin_or_resume(trainer, options.out, tokenized.tokenizer_dir)
    for report in trainer.run():
        print(report_line(report, vocab_size=config.model.vocab_size), flush=True)
        if options.out is not None:
            _keep(trainer, options.out)
    scores = trainer.test_scores()
    print(
        f"\ntest loss {scores.test_loss:.4f} nats per token, {scores.bpb:.4f} bits per byte; "
        f"trained {trainer.tokens_seen:,} tokens in {trainer.train_time_s:.1f} s"
    )
    if options.out is not None:
        _write_json(options.out / _SCORES_FILE, scores.as_dict())


def export(options: Namespace) -> None:
    """Writes the newest weights of the run in ``options.run`` as a Qwen3-MoE checkpoint, with the tokenizer."""
    checkpoint = newest_checkpoint(options.run)
    if checkpoint is None:
        raise CheckpointError(f"{options.run} holds no checkpoint; name the --out folder of a training run")
    model_config, weights = read_model(checkpoint)
    export_checkpoint(weights, model_config, options.run / _TOKENIZER_FOLDER, options.out)
    print(f"wrote {options.out} from {checkpoint}")


def _require_sound(options: Namespace) -> None:
    """Raises `ConfigError` for options that are no part of a config, or that none can be made of."""
    problems = [
        f"{name}={getattr(options, name)} must be at least 1; choose a positive integer"
        for name in ("threads", "exam_tokens")
        if getattr(options, name) < 1
    ]
    problems += [
        f"{name}={getattr(options, name)} must lie between 0 and 1; choose one such as 0.1"
        for name in ("warmup_share", "decay_share")
        if not 0.0 <= getattr(options, name) <= 1.0
    ]
    if problems:
        raise ConfigError("; ".join(problems))


def config_from(options: Namespace, *, vocab_size: int) -> TrainConfig:
    """The config that the command line asks for; exams at each quarter of the budget."""
    batch = BatchConfig(
        micro_batch_size=options.micro_batch_size,
        seq_len=options.seq_len,
        grad_accum_steps=options.grad_accum_steps,
    )
    budget, step = options.budget_tokens, max(batch.tokens_per_step, 1)
    quarters = {budget * quarter // 4 // step * step for quarter in (1, 2, 3)}
    return TrainConfig(
        model=ModelConfig(
            vocab_size=vocab_size,
            d_model=options.d_model,
            n_layers=options.n_layers,
            n_heads=options.n_heads,
            n_kv_heads=options.n_heads if options.n_kv_heads is None else options.n_kv_heads,
            d_expert=options.d_expert,
            n_experts=options.n_experts,
            top_k=options.top_k,
            lb_loss_coef=options.lb_loss_coef,
            z_loss_coef=options.z_loss_coef,
        ),
        batch=batch,
        optimizer=OptimizerConfig(
            lr=options.lr, adamw_lr=_ADAMW_RATIO * options.lr if options.adamw_lr is None else options.adamw_lr
        ),
        schedule=ScheduleConfig(
            budget_tokens=budget,
            warmup_tokens=int(options.warmup_share * budget),
            decay_tokens=int(options.decay_share * budget),
        ),
        seed=options.seed,
        block_len=options.seq_len if options.block_len is None else options.block_len,
        precision=options.precision,
        device=options.device,
        document_attention=options.document_attention,
        exam_at_tokens=tuple(sorted({*quarters, budget} - {0})),
        report_every_tokens=options.report_every_tokens,
    )


def parse_corpus(text: str) -> CorpusConfig:
    """The corpus that ``embedded``, ``files:GLOB`` or ``hub:ID[/NAME]`` stands for (an ID is OWNER/DATASET)."""
    kind, _, rest = text.partition(":")
    if kind == "embedded" and not rest:
        return CorpusConfig(kind="embedded")
    if kind == "files" and rest:
        return CorpusConfig(kind="files", paths=(rest,))
    if kind == "hub" and rest:
        owner, _, names = rest.partition("/")
        dataset, _, name = names.partition("/")
        return CorpusConfig(kind="hub", dataset=f"{owner}/{dataset}" if dataset else owner, name=name or None)
    raise ConfigError(f"corpus={text!r} is not understood; write embedded, files:GLOB or hub:ID[/NAME]")


def parse_tokenizer(text: str) -> TokenizerConfig:
    """The tokenizer that ``bpe:VOCAB``, ``bytes``, ``directory:PATH`` or ``hub:ID`` stands for."""
    kind, _, rest = text.partition(":")
    if kind == "bpe" and rest.isdecimal():
        return TokenizerConfig(kind="bpe", vocab_size=int(rest))
    if kind == "bytes" and not rest:
        return TokenizerConfig(kind="bytes")
    if kind == "directory" and rest:
        return TokenizerConfig(kind="directory", path=rest)
    if kind == "hub" and rest:
        return TokenizerConfig(kind="hub", id=rest)
    raise ConfigError(f"tokenizer={text!r} is not understood; write bpe:VOCAB, bytes, directory:PATH or hub:ID")


def report_line(report: Report, *, vocab_size: int) -> str:
    """One line of the curve: tokens, losses, and a bar whose full width is ln(vocabulary), the loss of guessing."""
    bar = "█" * round(_BAR_WIDTH * min(report.train_loss / math.log(vocab_size), 1.0))
    validation = " " * 10 if report.val_loss is None else f"{report.val_loss:10.4f}"
    return (
        f"{report.tokens_seen:>12,} {report.train_loss:8.4f} {validation} {report.lr:9.5f} "
        f"{report.tokens_per_s:>9,.0f}  {bar}"
    )


def _data(tokenized: TokenizedCorpus, config: TrainConfig, exam_tokens: int) -> TrainingData:
    rows = max(1, exam_tokens // config.block_len)
    exam = build_exam(
        tokenized,
        block_len=config.block_len,
        common_len=config.batch.seq_len,
        rows_validation=rows,
        rows_test=rows,
    )
    return training_data(tokenized, config, exam)


def _print_progress(progress: Progress) -> None:
    if progress.message is not None:
        print(progress.message, flush=True)


def _print_beginning(trainer: Trainer, tokenized: TokenizedCorpus) -> None:
    config = trainer.config
    n_weights = sum(param.numel() for param in trainer.model.parameters())
    print(f"corpus     {tokenized.corpus.kind}, {tokenized.splits['train'].n_tokens:,} train tokens in the cache")
    print(f"model      {n_weights:,} weights, vocabulary {config.model.vocab_size:,}")
    print(
        f"batch      {config.batch.micro_batch_size} x {config.batch.seq_len} x {config.batch.grad_accum_steps} = "
        f"{config.batch.tokens_per_step:,} tokens a step"
    )
    print(f"precision  {trainer.precision.reason}")
    print(f"guessing   {math.log(config.model.vocab_size):.4f} nats per token\n")
    print(f"{'tokens_seen':>12} {'train':>8} {'validation':>10} {'lr':>9} {'tokens/s':>9}")


def _begin_or_resume(trainer: Trainer, folder: Path, tokenizer_dir: Path) -> None:
    checkpoint = newest_checkpoint(folder)
    if checkpoint is not None:
        trainer.load(checkpoint)
        for record in trainer.records:
            print(report_line(Report(**record), vocab_size=trainer.config.model.vocab_size))
        print(f"resumed at {trainer.tokens_seen:,} tokens")
    elif folder.is_file():
        raise CheckpointError(f"{folder} is a file; choose another --out")
    elif folder.exists() and any(folder.iterdir()) and not (folder / _RUN_FILE).exists():
        raise CheckpointError(f"{folder} is not empty and is no training run; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(tokenizer_dir, folder / _TOKENIZER_FOLDER, dirs_exist_ok=True)
    _write_json(folder / _RUN_FILE, {"config": trainer.config.as_dict()})


def _keep(trainer: Trainer, folder: Path) -> None:
    """A checkpoint of now, after which the older ones may go."""
    newest = folder / f"{_CHECKPOINT_PREFIX}{trainer.tokens_seen}"
    newest.mkdir(exist_ok=True)
    trainer.save(newest)
    for other in folder.glob(f"{_CHECKPOINT_PREFIX}*"):
        if other != newest:
            shutil.rmtree(other)
    _write_json(folder / _RECORDS_FILE, trainer.records)


def newest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint of the most tokens in a run's folder, or None."""
    complete = [path.parent for path in folder.glob(f"{_CHECKPOINT_PREFIX}*/{STATE_FILE}")]
    tokens_of = {path: path.name.removeprefix(_CHECKPOINT_PREFIX) for path in complete}
    ours = [path for path in complete if tokens_of[path].isdecimal()]
    return max(ours, key=lambda path: int(tokens_of[path]), default=None)


def _write_json(path: Path, content: Any) -> None:
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(json.dumps(content, indent=1))
    unfinished.replace(path)
