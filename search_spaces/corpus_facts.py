"""The second round of problems: what can be seen only once the corpus has been read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from search_spaces.problems import Problem
from search_spaces.space import Space


@dataclass(frozen=True, kw_only=True)
class CorpusFacts:
    """What a space must know about its corpus, in tokens of its tokenizer."""

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
    for strategy in space.strategies:
        if strategy.seq_len > longest and space.corpus.longer_windows == "refuse":
            yield Problem(
                where=f"strategies.{strategy.name}.seq_len",
                value=str(strategy.seq_len),
                rule=f"exceeds the longest document ({longest} tokens)",
                remedy=f'choose seq_len <= {longest}, another corpus, or corpus.longer_windows = "warn"',
            )


def _splits(space: Space, facts: CorpusFacts) -> Iterator[Problem]:
    row = space.block_len + 1
    if facts.train_tokens < row:
        yield Problem(
            where="corpus",
            value=f"{facts.train_tokens} train tokens",
            rule=f"holds not one block of {row} tokens",
            remedy="choose a larger corpus or shorter arms",
        )
    rows = {"validation": space.exam.rows_validation, "test": space.exam.rows_test}
    available = {"validation": facts.validation_tokens, "test": facts.test_tokens}
    for split, wanted in rows.items():
        possible = available[split] // row
        if possible < wanted:
            few = f"choose rows_{split} <= {possible}, " if possible else ""
            yield Problem(
                where=f"exam.rows_{split}",
                value=str(wanted),
                rule=f"asks for {wanted * row} tokens, and the {split} split has {available[split]}",
                remedy=f"{few}raise corpus.{split}_share or choose a larger corpus",
            )


def _vocabulary(space: Space, facts: CorpusFacts) -> Iterator[Problem]:
    wanted = space.tokenizer.vocab_size
    if space.tokenizer.kind == "bpe" and wanted is not None and facts.vocab_size < wanted:
        yield Problem(
            where="tokenizer.vocab_size",
            value=str(wanted),
            rule=f"is more than the train split yields ({facts.vocab_size} tokens)",
            remedy=f"choose vocab_size <= {facts.vocab_size} or a larger corpus",
        )
