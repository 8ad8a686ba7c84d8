"""Small corpora that tests write: random words, so that no run of tokens repeats by chance."""

import json
import random
from pathlib import Path

import numpy as np

from moe.corpus import CorpusConfig
from moe.token_cache import TokenizedCorpus, prepare
from moe.token_file import TokenFile
from moe.tokenizer import TokenizerConfig

BYTES = TokenizerConfig(kind="bytes")
SYLLABLES = ("ka", "lo", "mi", "ter", "sun", "ba", "que", "vor", "ni", "sa", "do", "pel")


def prose(n_words: int, seed: int) -> str:
    """Words of two or three syllables."""
    rng = random.Random(seed)
    return " ".join("".join(rng.choices(SYLLABLES, k=rng.choice((2, 3)))) for _ in range(n_words))


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_with_splits(*, train: int = 12, validation: int = 3, test: int = 3, n_words: int = 300) -> list[dict]:
    """Rows of a jsonl corpus with a split column; every text is its own."""
    splits = ["train"] * train + ["validation"] * validation + ["test"] * test
    return [{"id": f"{split}-{i}", "split": split, "text": prose(n_words, i)} for i, split in enumerate(splits)]


def files_corpus(*paths: Path, **settings) -> CorpusConfig:
    return CorpusConfig(kind="files", paths=tuple(str(path) for path in paths), **settings)


def tokenized_rows(folder: Path, rows: list[dict], tokenizer: TokenizerConfig = BYTES, **settings) -> TokenizedCorpus:
    """``rows`` written to ``folder`` and tokenized there, every document of them."""
    path = write_jsonl(folder / "rows.jsonl", rows)
    config = files_corpus(path, **settings)
    return prepare(config, tokenizer, cache_dir=folder / "cache", train_tokens_needed=2**22)


def token_file(lengths: list[int], *, split: str = "train", vocab_size: int = 50_000, seed: int = 0) -> TokenFile:
    """Random tokens in documents of ``lengths`` tokens, in memory only."""
    starts = np.cumsum([0, *lengths[:-1]]).astype(np.int64)
    tokens = np.random.default_rng(seed).integers(0, vocab_size, sum(lengths)).astype(np.uint16)
    return TokenFile(
        folder=Path("nowhere"),
        split=split,
        tokens=tokens,
        document_starts=starts,
        document_bytes=np.asarray(lengths, dtype=np.int64) * 3,
        document_names=tuple(f"{split}-{i}" for i in range(len(lengths))),
    )


def corpus_of(*splits: TokenFile, vocab_size: int = 50_000, **settings) -> TokenizedCorpus:
    """Token files as a corpus that stands in no folder."""
    return TokenizedCorpus(
        folder=Path("nowhere"),
        corpus_fingerprint="c",
        tokenizer_fingerprint="t",
        fingerprint="f",
        vocab_size=vocab_size,
        separator_id=0,
        splits={split.split: split for split in splits},
        corpus=CorpusConfig(**settings),
        facts={},
    )
