"""The problems of a space that show only once its corpus has been read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from search_spaces.problems import Problem, problem_at
from search_spaces.space import Space


@dataclass(frozen=True, kw_only=True)
class CorpusFacts:
    """What the check of a space needs from its corpus, in tokens of its tokenizer."""

    longest_document_tokens: int
    train_tokens: int
    validation_tokens: int
    test_tokens: int
    vocab_size: int


def check_against_corpus(space: Space, facts: CorpusFacts) -> list[Problem]:
    """Every problem of ``space`` with this corpus, in the order of the space's file."""
    return [*_lengths(space, facts), *_splits(space, facts), *_vocabulary(space, facts)]


def corpus_warnings(space: Space, facts: CorpusFacts) -> list[str]:
    """What this corpus weakens in the answer although it is allowed, one sentence each."""
    if space.corpus.longer_windows == "refuse":
        return []
    return [
        f"{strategy.name}: seq_len={strategy.seq_len} exceeds the longest document "
        f"({facts.longest_document_tokens} tokens), so every window of it holds several documents"
        for strategy in space.strategies
        if strategy.seq_len > facts.longest_document_tokens
    ]


def _lengths(space: Space, facts: CorpusFacts) -> Iterator[Problem]:
    longest = facts.longest_document_tokens
    for arm in space.strategies:
        if arm.seq_len > longest and space.corpus.longer_windows == "refuse":
            remedy = f'choose seq_len <= {longest}, another corpus, or corpus.longer_windows = "warn"'
            rule = f"exceeds the longest document ({longest} tokens)"
            yield problem_at(f"strategies.{arm.name}.seq_len", arm.seq_len, rule, remedy)


def _splits(space: Space, facts: CorpusFacts) -> Iterator[Problem]:
    row = space.block_len + 1
    if facts.train_tokens < row:
        yield Problem(
            where="corpus",
            value=f"{facts.train_tokens} train tokens",
            rule=f"is less than one block of {row} tokens",
            remedy="choose a larger corpus or shorter arms",
        )
    splits = {
        "validation": (space.exam.rows_validation, facts.validation_tokens),
        "test": (space.exam.rows_test, facts.test_tokens),
    }
    for split, (rows, tokens) in splits.items():
        if rows * row > tokens:
            rule = f"needs {rows * row} tokens, and the {split} split has {tokens}"
            fewer = f"choose rows_{split} <= {tokens // row}, " if tokens >= row else ""
            remedy = f"{fewer}raise corpus.{split}_share or choose a larger corpus"
            if space.corpus.duplicates == "group":  # what shares text is not held out
                remedy += ', or drop copies instead: corpus.duplicates = "drop"'
            yield problem_at(f"exam.rows_{split}", rows, rule, remedy)


def _vocabulary(space: Space, facts: CorpusFacts) -> Iterator[Problem]:
    size = space.tokenizer.vocab_size
    if space.tokenizer.kind == "bpe" and size is not None and facts.vocab_size < size:
        rule = f"is more than the train split yields ({facts.vocab_size} tokens)"
        yield problem_at(
            "tokenizer.vocab_size", size, rule, f"choose vocab_size <= {facts.vocab_size} or a larger corpus"
        )
