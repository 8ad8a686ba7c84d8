"""What the data costs: tokenizing the embedded corpus, random windows, the loader's and the exam's share of training.

    python bench/loader.py [--steps 30]

writes ``bench/loader.json``. Seconds are processor time of one core, which other work on the machine changes little;
microseconds of a window are the median of a thousand by the wall clock.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))
for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import numpy as np  # noqa: E402
import torch  # noqa: E402

from bench.results import write_json  # noqa: E402
from moe.audit import audit  # noqa: E402
from moe.config import BatchConfig  # noqa: E402
from moe.corpus_sources import open_corpus  # noqa: E402
from moe.exam import Exam, build_exam, training_data  # noqa: E402
from moe.exam_views import score  # noqa: E402
from moe.token_cache import TokenizedCorpus, prepare  # noqa: E402
from moe.token_file import TokenFile  # noqa: E402
from moe.tokenizer import train_bpe  # noqa: E402
from moe.trainer import Trainer  # noqa: E402
from moe.windows import Windows  # noqa: E402
from search_spaces import load_space  # noqa: E402
from sweeps.training_config import any_cell, batch_configs, corpus_config, tokenizer_config, train_config  # noqa: E402

SPACE = load_space(preset="laptop")
ARMS = batch_configs(SPACE)
VOCAB_SIZE = SPACE.tokenizer.vocab_size or 0
LARGE_FILE_TOKENS = 2**26


def seconds(work: Callable[[], Any]) -> float:
    """Processor seconds of one call."""
    started_s = time.process_time()
    work()
    return time.process_time() - started_s


def wall_us(work: Callable[[], Any]) -> float:
    """Wall microseconds of one call."""
    started_s = time.perf_counter()
    work()
    return (time.perf_counter() - started_s) * 1e6


def tokenizing(cache_dir: Path) -> tuple[TokenizedCorpus, dict[str, float]]:
    """The preset's corpus and tokenizer (embedded, a BPE of 2048), and what each part of building it takes."""
    config, tokenizer = corpus_config(SPACE), tokenizer_config(SPACE)
    read_s = seconds(lambda: list(open_corpus(config).documents()))
    documents = list(open_corpus(config).documents())
    texts = [document.text for document in documents]
    train_texts = [document.text for document in documents if document.split == "train"]
    bpe = train_bpe(train_texts, vocab_size=VOCAB_SIZE)
    encode_s = seconds(lambda: bpe.encode(texts))
    n_bytes = sum(len(text.encode()) for text in texts)

    def prepared() -> TokenizedCorpus:
        return prepare(config, tokenizer, cache_dir=cache_dir, train_tokens_needed=SPACE.budget_tokens)

    build_s = seconds(prepared)
    return prepared(), {
        "corpus_mb": n_bytes / 1e6,
        "read_s": read_s,
        "train_bpe_s": seconds(lambda: train_bpe(train_texts, vocab_size=VOCAB_SIZE)),
        "encode_s": encode_s,
        "encode_mb_per_s": n_bytes / 1e6 / encode_s,
        "whole_build_s": build_s,
        "open_and_verify_s": seconds(prepared),
    }


def large_file(folder: Path) -> TokenFile:
    """A train split of 128 MB of random tokens in 64 documents."""
    generator = np.random.default_rng(0)
    generator.integers(0, VOCAB_SIZE, LARGE_FILE_TOKENS, dtype=np.uint16).tofile(folder / "train.tokens")
    starts = np.arange(0, LARGE_FILE_TOKENS, LARGE_FILE_TOKENS // 64)
    np.save(folder / "train.document_starts.npy", starts)
    np.save(folder / "train.document_bytes.npy", np.full(starts.size, 3 * LARGE_FILE_TOKENS // 64))
    (folder / "train.document_names.json").write_text(json.dumps([f"d{number}" for number in range(starts.size)]))
    return TokenFile.open(folder, "train", dtype="uint16")


def batch_us(train: TokenFile, batch: BatchConfig, *, document_ids: bool = False) -> float:
    """Median microseconds of one call for a micro-batch, in random order of steps."""
    block_len = max(SPACE.block_len, batch.seq_len)
    windows = Windows(train, block_len=block_len, budget_tokens=SPACE.budget_tokens, seed=1, batch=batch)
    steps = np.random.default_rng(0).integers(0, windows.n_steps, 1000)
    times = [wall_us(partial(windows.batch, int(step), document_ids=document_ids)) for step in steps]
    return float(np.median(times))


def windows_table(embedded: TokenFile, large: TokenFile) -> list[dict[str, Any]]:
    """Microseconds of one random window, by length, from the embedded corpus and from a file of 128 MB."""
    return [
        {
            "seq_len": seq_len,
            "embedded_us": batch_us(embedded, BatchConfig(micro_batch_size=1, seq_len=seq_len)),
            "large_file_us": batch_us(large, BatchConfig(micro_batch_size=1, seq_len=seq_len)),
            "with_document_ids_us": batch_us(
                embedded, BatchConfig(micro_batch_size=1, seq_len=seq_len), document_ids=True
            ),
        }
        for seq_len in (64, 256, 1024, 2048, 4096)
    ]


def shares(tokens: TokenizedCorpus, exam: Exam, arm: str, n_steps: int) -> dict[str, Any]:
    """The loader's share of a step, and the exam's of an explore and of a confirm cell at full budget."""
    batch = ARMS[arm]
    cell = replace(any_cell(SPACE, arm), lr=0.02, adamw_lr=0.006, seed=1)
    config = replace(
        train_config(SPACE, cell, vocab_size=tokens.vocab_size),
        device="cpu",
        exam_at_tokens=(),
        report_every_tokens=n_steps * batch.tokens_per_step,
    )
    trainer = Trainer(config, training_data(tokens, config, exam))
    reports = trainer.run()
    next(reports)  # warm
    step_s = seconds(lambda: next(reports)) / n_steps
    view_s = {
        length: seconds(partial(score, trainer.model, exam.validation, chunk_len=length))
        for length in {batch.seq_len, exam.common_len}
    }
    # The common view is sat once, at the end of the budget, where it is not the arm's own.
    validation_s = len(SPACE.rungs_tokens) * view_s[batch.seq_len] + sum(view_s.values())
    test_s = seconds(trainer.test_scores)
    training_s = step_s * SPACE.budget_tokens / batch.tokens_per_step
    loader_us = batch_us(tokens.splits["train"], batch)
    return {
        "arm": arm,
        "step_ms": step_s * 1e3,
        "batch_us": loader_us,
        "loader_share_pct": loader_us / 1e6 / step_s * 100,
        "validation_exams_s": validation_s,
        "test_exam_s": test_s,
        "exam_share_explore_pct": validation_s / training_s * 100,
        "exam_share_confirm_pct": (validation_s + test_s) / training_s * 100,
    }


def main() -> None:
    """Measure every part, print it, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "loader.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        tokens, built = tokenizing(Path(folder) / "cache")
        train = tokens.splits["train"]
        exam = build_exam(tokens, block_len=SPACE.block_len, common_len=SPACE.common_len, **SPACE.exam.model_dump())
        audit_s = seconds(lambda: audit(tokens, exam, arms=ARMS, budget_tokens=SPACE.budget_tokens))
        found = {
            "python": platform.python_version(),
            "tokenizing": built,
            "audit_s": audit_s,
            "random_windows": windows_table(train, large_file(Path(folder))),
            "laptop": [shares(tokens, exam, arm, options.steps) for arm in ARMS],
        }
    write_json(options.out, rounded(found))
    print(options.out.read_text(), end="")


def rounded(value: Any) -> Any:
    """Every float to four significant digits."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
