import json
import math
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from moe.errors import CorpusError
from moe.exam import build_exam
from moe.exam_views import score, score_all_views, sliding_losses, target_losses
from tests.moe.synthetic_corpora import corpus_of, token_file

S = 64
ROWS = {"rows_validation": 8, "rows_test": 12}


class CountingModel(torch.nn.Module):
    """Its loss is a number that tells how it was asked: context + token / 1000, and it keeps every call's shape."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.shapes = []
        self.documents = []
        self.autocast = []

    def token_losses(self, tokens_BT, targets_BT, *, document_ids_BT=None):
        assert not self.training
        assert not torch.is_grad_enabled()
        self.shapes.append(tuple(tokens_BT.shape))
        self.documents.append(document_ids_BT)
        self.autocast.append(torch.is_autocast_enabled("cpu"))
        assert torch.equal(tokens_BT[:, 1:], targets_BT[:, :-1])
        context_BT = torch.arange(1, tokens_BT.shape[1] + 1).expand_as(tokens_BT)
        return context_BT + targets_BT.float() / 1000

    @property
    def tokens_forwarded(self):
        return sum(rows * length for rows, length in self.shapes)


def small_corpus(test_lengths, validation_lengths=(200,) * 20):
    return corpus_of(
        token_file([1000], vocab_size=500),
        token_file(list(validation_lengths), split="validation", vocab_size=500, seed=1),
        token_file(list(test_lengths), split="test", vocab_size=500, seed=2),
        vocab_size=500,
    )


MANY_LONG = (150,) * 60


def exam_of(corpus, *, common_len=16, block_len=S, **rows):
    return build_exam(corpus, block_len=block_len, common_len=common_len, **{**ROWS, **rows})


def test_rows_are_disjoint_stretches_of_single_documents():
    corpus = small_corpus(MANY_LONG)
    exam = exam_of(corpus, rows_test=100)
    assert not exam.packed
    rows = exam.test
    assert rows.tokens_RS.shape == (100, S + 1)
    assert rows.tokens_RS.dtype == np.int32
    assert (rows.documents_RS == rows.documents_RS[:, :1]).all()
    file = corpus.splits["test"]
    places = set()
    for tokens, document in zip(rows.tokens_RS, rows.documents_RS[:, 0], strict=True):
        start = int(file.document_starts[document])
        slots = [start + slot * (S + 1) for slot in range(2)]
        (place,) = [slot for slot in slots if np.array_equal(file.tokens[slot : slot + S + 1], tokens)]
        places.add(place)
    assert len(places) == 100


def test_few_rows_come_from_as_many_documents():
    assert len(np.unique(exam_of(small_corpus(MANY_LONG), rows_test=40).test.documents_RS)) == 40


@pytest.mark.parametrize(
    ("test_lengths", "validation_lengths"),
    [
        ((150,) * 49, (200,) * 20),  # too few documents that are long enough
        ((70,) * 50 + (60,) * 100, (200,) * 20),  # enough, with too small a share of the tokens
        ((150,) * 60, (200,) * 2 + (50,) * 40),  # the same in validation
    ],
    ids=["few documents", "small share", "small share in validation"],
)
def test_rows_are_packed_where_single_documents_say_too_little(test_lengths, validation_lengths):
    exam = exam_of(small_corpus(test_lengths, validation_lengths))
    assert exam.packed
    starts = [np.flatnonzero(np.diff(documents)) for documents in exam.test.documents_RS]
    assert exam.test.tokens_RS.shape == (12, S + 1)
    assert any(boundaries.size for boundaries in starts)


def test_the_exam_is_the_same_every_time_and_for_every_length_in_between():
    corpus = small_corpus(MANY_LONG)
    one, other = exam_of(corpus), exam_of(corpus)
    assert one.fingerprint == other.fingerprint
    assert np.array_equal(one.test.tokens_RS, other.test.tokens_RS)
    assert exam_of(corpus, rows_test=13).fingerprint != one.fingerprint
    assert exam_of(corpus, common_len=8).fingerprint != one.fingerprint


def test_a_split_too_small_for_its_rows_is_refused_with_the_number_it_has():
    with pytest.raises(CorpusError) as error:
        exam_of(small_corpus(MANY_LONG), rows_test=121, rows_validation=61)
    message = str(error.value)
    assert "rows_test=121 is more than the 120 rows of single documents of 65 tokens that the test split has" in message
    assert "rows_validation=61 is more than the 60 rows" in message
    assert "choose rows_test <= 120, a shorter seq_len" in message


@pytest.mark.parametrize("chunk_len", [16, 32, 64])
@pytest.mark.parametrize("pass_tokens", [1, 5 * 16, 10_000])
def test_every_arm_scores_the_same_targets_each_once_from_an_empty_context(chunk_len, pass_tokens):
    rows = exam_of(small_corpus(MANY_LONG)).test
    losses_RS = target_losses(CountingModel(), rows, chunk_len=chunk_len, pass_tokens=pass_tokens)
    context = np.arange(S) % chunk_len + 1
    # fp32 holds these numbers to 1e-5.
    np.testing.assert_allclose(losses_RS, context + rows.tokens_RS[:, 1:] / 1000, atol=1e-5)


def test_a_score_is_the_mean_over_targets_and_its_bits_are_per_byte_of_text():
    rows = exam_of(small_corpus(MANY_LONG)).test
    got = score(CountingModel(), rows, chunk_len=16)
    expected = 8.5 + rows.tokens_RS[:, 1:].mean() / 1000
    assert got.loss == pytest.approx(expected, abs=1e-6)
    assert got.n_targets == 12 * S
    # The made-up documents have three bytes a token.
    assert got.bpb == pytest.approx(expected / math.log(2) / 3, abs=1e-6)


def test_the_sliding_window_scores_each_target_once_with_half_a_window_of_context():
    rows = exam_of(small_corpus(MANY_LONG)).test
    losses_RS = sliding_losses(CountingModel(), rows, window_len=16)
    assert losses_RS.shape == (12, S)
    context = np.concatenate([np.arange(1, 17), np.tile(np.arange(9, 17), 6)])
    np.testing.assert_allclose(losses_RS, context + rows.tokens_RS[:, 1:] / 1000, atol=1e-5)


def test_a_sliding_window_of_odd_length_misses_no_target():
    rows = exam_of(small_corpus(MANY_LONG), block_len=45, common_len=15).test
    losses_RS = sliding_losses(CountingModel(), rows, window_len=15)
    # Windows begin at 0, 7, 14, 21, 28 and, so that the last targets are in one, at 30.
    later = np.arange(9, 16)
    context = np.concatenate([np.arange(1, 16), later, later, later, later[:2], later])
    np.testing.assert_allclose(losses_RS, context + rows.tokens_RS[:, 1:] / 1000, atol=1e-5)


def test_scoring_is_fp32_under_autocast_and_gives_the_model_back_in_training():
    model = CountingModel()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        score(model, exam_of(small_corpus(MANY_LONG)).test, chunk_len=16)
    assert set(model.autocast) == {False}
    assert model.training


def test_documents_are_told_to_the_model_only_where_attention_keeps_to_them():
    rows = exam_of(small_corpus((150,) * 49)).test
    model = CountingModel()
    score(model, rows, chunk_len=16)
    assert all(ids is None for ids in model.documents)
    model = CountingModel()
    score(model, rows, chunk_len=16, document_attention=True)
    ids_BT = torch.cat(model.documents)
    assert np.array_equal(ids_BT.numpy().reshape(12, S), rows.documents_RS[:, :-1])


@pytest.fixture(scope="module")
def exam():
    return exam_of(small_corpus(MANY_LONG), rows_test=16)


@pytest.fixture(scope="module", params=[16, 32, 64])
def views(request, exam):
    model = CountingModel()
    scores = score_all_views(model, exam, seq_len=request.param)
    return SimpleNamespace(scores=scores, model=model, seq_len=request.param, exam=exam)


def test_own_and_common_context_are_scored_on_all_rows(views):
    tokens = views.exam.test.tokens_RS[:, 1:].mean() / 1000
    assert views.scores.test_loss == pytest.approx((views.seq_len + 1) / 2 + tokens, abs=1e-5)
    assert views.scores.common_context_loss == pytest.approx(8.5 + tokens, abs=1e-5)


def test_losses_by_position_cover_the_trained_length_and_average_to_the_whole(views):
    buckets = views.scores.loss_by_position
    assert buckets[0].first == 0
    assert buckets[-1].last == views.seq_len - 1
    assert all(here.last + 1 == after.first for here, after in pairwise(buckets))
    assert 16 in {bucket.last + 1 for bucket in buckets}
    assert sum(bucket.n_targets for bucket in buckets) == views.scores.n_targets
    mean = sum(bucket.loss * bucket.n_targets for bucket in buckets) / views.scores.n_targets
    assert mean == pytest.approx(views.scores.test_loss, abs=1e-6)
    for bucket in buckets:
        # The stand-in's loss is its context, plus at most half a nat of token.
        assert bucket.first + 1 <= bucket.loss <= bucket.last + 1 + 0.5


def test_losses_by_document_add_up_to_the_whole(views):
    for by_document, whole in (
        (views.scores.loss_by_document, views.scores.test_loss),
        (views.scores.common_loss_by_document, views.scores.common_context_loss),
    ):
        assert len(by_document) == 16
        assert sum(count for _, count in by_document.values()) == views.scores.n_targets
        total = sum(loss for loss, _ in by_document.values())
        assert total / views.scores.n_targets == pytest.approx(whole, abs=1e-6)


def test_the_use_of_context_compares_the_same_targets_beyond_the_short_length(views):
    use = views.scores.context_use
    if views.seq_len == 16:
        assert use is None
        return
    assert use.beyond_tokens == 16
    assert use.n_targets == views.scores.n_targets * (views.seq_len - 16) // views.seq_len
    # Both hold the same tokens: what differs is the context of the stand-in's loss.
    expected = np.arange(17, views.seq_len + 1).mean() - 8.5
    assert use.own_loss - use.common_loss == pytest.approx(expected, abs=1e-5)


def test_the_table_of_lengths_marks_what_lies_beyond_the_trained_one(views):
    table = {entry.eval_len: entry for entry in views.scores.loss_by_length}
    assert set(table) == {16, 32, 64}
    assert {length for length, entry in table.items() if entry.extrapolation} == {
        length for length in (16, 32, 64) if length > views.seq_len
    }
    few = views.exam.test.first(views.scores.secondary_rows)
    tokens = few.tokens_RS[:, 1:].mean() / 1000
    for length, entry in table.items():
        assert entry.loss == pytest.approx((length + 1) / 2 + tokens, abs=1e-5)


def test_all_views_together_cost_less_than_three_times_the_rows(views):
    # Own and common context on all rows, at most 2 + 1 more passes over a quarter of them.
    assert views.model.tokens_forwarded <= 2.75 * views.exam.test.n_targets


def test_scores_are_plain_data(views):
    again = json.loads(json.dumps(views.scores.as_dict()))
    assert again["test_loss"] == views.scores.test_loss
    name, (loss, count) = next(iter(again["loss_by_document"].items()))
    assert views.scores.loss_by_document[name] == (loss, count)


def test_a_longest_length_far_beyond_the_shortest_is_tabled_by_fours():
    corpus = small_corpus((2000,) * 60, (2000,) * 20)
    assert exam_of(corpus, common_len=64, block_len=1024).eval_lens == (64, 256, 1024)
    assert exam_of(corpus, common_len=256, block_len=1024).eval_lens == (256, 512, 1024)
    assert exam_of(corpus, common_len=1024, block_len=1024).eval_lens == (1024,)
