import numpy as np
import pytest
import torch

from moe.config import BatchConfig
from moe.errors import ConfigError, CorpusError
from moe.windows import Windows
from tests.moe.synthetic_corpora import token_file

LAPTOP = {
    "block_len": 1024,
    "budget_tokens": 524_288,
    "arms": {
        "large_batch": BatchConfig(micro_batch_size=32, seq_len=64),
        "balanced": BatchConfig(micro_batch_size=8, seq_len=256),
        "long_seq": BatchConfig(micro_batch_size=2, seq_len=1024),
    },
}
# The tutorial's shapes at a 64th of its width: 512, 768 and 1,024 tokens per step.
UNEVEN = {
    "block_len": 128,
    "budget_tokens": 49_152,
    "arms": {
        "large_batch": BatchConfig(micro_batch_size=8, seq_len=32, grad_accum_steps=2),
        "balanced": BatchConfig(micro_batch_size=3, seq_len=64, grad_accum_steps=4),
        "long_seq": BatchConfig(micro_batch_size=1, seq_len=128, grad_accum_steps=8),
    },
}


@pytest.fixture(scope="module")
def train():
    return token_file([5_000, 300, 20_000, 60, 700_000, 9_000])


def windows(train, space, arm, **settings):
    batch = space["arms"][arm]
    options = {"block_len": space["block_len"], "budget_tokens": space["budget_tokens"], "seed": 1, **settings}
    return Windows(train, batch=batch, **options)


def targets_seen(loader, batch):
    """All targets that the loader hands out from first step to last, as they come."""
    parts = [
        loader.batch(step, micro_step).targets_BT
        for step in range(loader.n_steps)
        for micro_step in range(batch.grad_accum_steps)
    ]
    return torch.cat([part.flatten() for part in parts]).numpy()


@pytest.mark.parametrize("arrangement", ["shuffled", "grouped"])
@pytest.mark.parametrize("space", [LAPTOP, UNEVEN], ids=["laptop", "uneven"])
@pytest.mark.parametrize("n_train_tokens", [734_360, 30_000], ids=["corpus to spare", "several epochs"])
def test_at_full_budget_all_arms_have_trained_on_the_same_targets_equally_often(space, arrangement, n_train_tokens):
    train = token_file([n_train_tokens - 40, 40])
    seen = {}
    for arm, batch in space["arms"].items():
        loader = windows(train, space, arm, arrangement=arrangement)
        tokens = targets_seen(loader, batch)
        assert tokens.size == space["budget_tokens"]
        assert np.array_equal(np.sort(train.tokens[loader.target_positions()]), np.sort(tokens))
        seen[arm] = np.sort(loader.target_positions())
    assert np.array_equal(seen["large_batch"], seen["long_seq"])
    assert np.array_equal(seen["balanced"], seen["long_seq"])


def test_a_corpus_to_spare_is_never_repeated(train):
    positions = windows(train, LAPTOP, "large_batch").target_positions()
    assert np.unique(positions).size == positions.size


def test_a_short_corpus_repeats_every_target_about_equally_often():
    train = token_file([30_000])
    loader = windows(train, LAPTOP, "balanced")
    _, times = np.unique(loader.target_positions(), return_counts=True)
    assert times.max() - times.min() <= 1
    # 28 blocks of the corpus, 512 of the budget: 18 epochs and a part of another.
    assert times.max() == 19


@pytest.mark.parametrize("n_train_tokens", [734_360, 200_000, 30_000], ids=["to spare", "two epochs", "many epochs"])
def test_a_larger_budget_trains_on_the_targets_of_a_smaller_one_too(n_train_tokens):
    train = token_file([n_train_tokens])
    loaders = [windows(train, LAPTOP, "balanced", budget_tokens=budget) for budget in (131_072, 524_288)]
    smaller, larger = (np.bincount(loader.target_positions(), minlength=n_train_tokens) for loader in loaders)
    assert smaller.sum() == 131_072
    assert (smaller <= larger).all()


def test_targets_are_the_tokens_after_the_inputs(train):
    batch = windows(train, LAPTOP, "balanced").batch(7)
    assert batch.inputs_BT.shape == batch.targets_BT.shape == (8, 256)
    assert batch.inputs_BT.dtype == batch.targets_BT.dtype == torch.int64
    assert torch.equal(batch.inputs_BT[:, 1:], batch.targets_BT[:, :-1])
    assert batch.document_ids_BT is None


def test_a_batch_is_a_function_of_seed_and_step_alone(train):
    one, other = windows(train, UNEVEN, "balanced"), windows(train, UNEVEN, "balanced")
    for step in (40, 0, 17):
        other.batch(step, 3)
    assert torch.equal(one.batch(17, 2).targets_BT, other.batch(17, 2).targets_BT)
    assert not torch.equal(one.batch(17, 2).targets_BT, one.batch(17, 3).targets_BT)


def test_another_seed_draws_other_blocks_in_another_order(train):
    one, other = windows(train, UNEVEN, "long_seq"), windows(train, UNEVEN, "long_seq", seed=2)
    shared = np.intersect1d(one.target_positions(), other.target_positions()).size / UNEVEN["budget_tokens"]
    # A pool of 49,536 of 734,360 tokens: two independent draws share 7% of their targets.
    assert shared < 0.2
    assert not torch.equal(one.batch(0).targets_BT, other.batch(0).targets_BT)


def test_all_arms_draw_the_same_pool_and_its_order_differs_from_the_corpus(train):
    loader = windows(train, LAPTOP, "large_batch")
    starts = loader.target_positions()[::64]
    assert not np.array_equal(starts, np.sort(starts))


@pytest.mark.parametrize("n_train_tokens", [734_360, 200_000], ids=["corpus to spare", "several epochs"])
def test_grouped_windows_follow_the_blocks_in_the_order_of_the_longest_arm(n_train_tokens):
    train = token_file([n_train_tokens])
    longest = windows(train, LAPTOP, "long_seq").target_positions()
    for arm in ("large_batch", "balanced"):
        assert np.array_equal(windows(train, LAPTOP, arm, arrangement="grouped").target_positions(), longest)


def test_shuffled_windows_of_a_block_are_spread_over_the_pool(train):
    positions = windows(train, LAPTOP, "large_batch").target_positions()[::64]
    neighbours = np.mean(np.abs(np.diff(positions)) < 1024)
    assert neighbours < 0.05


def test_document_ids_count_the_documents_within_a_window():
    train = token_file([100] * 50)
    loader = Windows(
        train, block_len=128, budget_tokens=2560, seed=3, batch=BatchConfig(micro_batch_size=4, seq_len=64)
    )
    for step in range(loader.n_steps):
        batch = loader.batch(step, document_ids=True)
        assert batch.document_ids_BT is not None
        for inputs, ids in zip(batch.inputs_BT, batch.document_ids_BT, strict=True):
            assert ids[0] == 0
            assert set(torch.diff(ids).tolist()) <= {0, 1}
            boundaries = [index for index in range(1, 64) if ids[index] != ids[index - 1]]
            for index in boundaries:
                assert int(inputs[index]) in train.tokens[train.document_starts]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block_len": 100}, r"seq_len=64 does not divide the longest arm's seq_len 100"),
        (
            {"budget_tokens": 1000},
            r"budget_tokens=1000 is not a multiple of the tokens per step 128; choose 896 or 1024",
        ),
        ({"budget_tokens": 128, "block_len": 256}, r"is not a multiple of the longest seq_len 256; choose 256"),
    ],
)
def test_lengths_and_budgets_that_do_not_divide_are_refused(train, settings, message):
    options = {"block_len": 128, "budget_tokens": 1024, "seed": 1, **settings}
    with pytest.raises(ConfigError, match=message):
        Windows(train, batch=BatchConfig(micro_batch_size=2, seq_len=64), **options)


def test_a_train_split_shorter_than_a_block_is_refused():
    with pytest.raises(CorpusError, match="the train split has 1000 tokens, fewer than one block of 1025"):
        windows(token_file([1000]), LAPTOP, "long_seq")
