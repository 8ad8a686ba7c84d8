"""A space small enough to read at a glance: two arms of 64 tokens per step, two rates."""

from __future__ import annotations

import pytest

from search_spaces import Identity, Space, parse_space

TINY = """
budget_tokens = 4096
rungs_tokens = [1024, 2048]
early_stopping = { kind = "asha", keep = [2, 1] }
corpus = "embedded"
tokenizer = "bpe:512"

[[strategies]]
name = "large_batch"
micro_batch_size = 8
seq_len = 8

[[strategies]]
name = "long_seq"
micro_batch_size = 1
seq_len = 64

[rates]
lr = [0.01, 0.02]
adamw_ratio = 0.3

[seeds]
explore = 1
confirm = 3

[model]
d_model = 16
n_layers = 1
n_heads = 2
d_expert = 16
n_experts = 4
top_k = 2
"""


@pytest.fixture
def tiny_text() -> str:
    return TINY


@pytest.fixture
def tiny() -> Space:
    return parse_space(TINY)


@pytest.fixture
def identity() -> Identity:
    return Identity(corpus_fingerprint="corpus", tokenizer_fingerprint="tokenizer", exam_fingerprint="exam")
