"""The second round: what a space asks of its corpus is checked all at once."""

from __future__ import annotations

from dataclasses import replace

from search_spaces import CorpusFacts, Space, check_against_corpus, corpus_warnings, with_overrides

ENOUGH = CorpusFacts(
    longest_document_tokens=64, train_tokens=10_000, validation_tokens=32 * 65, test_tokens=64 * 65, vocab_size=512
)


def test_a_corpus_that_suffices_raises_no_problem(tiny: Space) -> None:
    assert check_against_corpus(tiny, ENOUGH) == []
    assert corpus_warnings(tiny, ENOUGH) == []


def test_every_problem_with_a_corpus_is_told_at_once(tiny: Space) -> None:
    poor = CorpusFacts(
        longest_document_tokens=50, train_tokens=60, validation_tokens=130, test_tokens=10, vocab_size=300
    )
    assert [str(problem) for problem in check_against_corpus(tiny, poor)] == [
        "strategies.long_seq.seq_len=64 exceeds the longest document (50 tokens); "
        'choose seq_len <= 50, another corpus, or corpus.longer_windows = "warn"',
        "corpus=60 train tokens is less than one block of 65 tokens; choose a larger corpus or shorter arms",
        "exam.rows_validation=32 needs 2080 tokens, and the validation split has 130; "
        "choose rows_validation <= 2, raise corpus.validation_share or choose a larger corpus",
        "exam.rows_test=64 needs 4160 tokens, and the test split has 10; "
        "raise corpus.test_share or choose a larger corpus",
        "tokenizer.vocab_size=512 is more than the train split yields (300 tokens); "
        "choose vocab_size <= 300 or a larger corpus",
    ]


def test_where_grouping_copies_leaves_too_little_to_hold_out_dropping_them_is_named(tiny: Space) -> None:
    space = with_overrides(tiny, ["corpus=files:texts", "corpus.duplicates=group"])
    [problem] = check_against_corpus(space, replace(ENOUGH, test_tokens=10))
    assert str(problem).endswith('choose a larger corpus, or drop copies instead: corpus.duplicates = "drop"')


def test_longer_windows_can_be_allowed_and_then_carry_a_warning(tiny: Space) -> None:
    space = with_overrides(tiny, ["corpus.longer_windows=warn"])
    short = replace(ENOUGH, longest_document_tokens=63)
    assert check_against_corpus(space, short) == []
    assert corpus_warnings(space, short) == [
        "long_seq: seq_len=64 exceeds the longest document (63 tokens), so every window of it holds several documents"
    ]
