"""A space on its way from the command line to a worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe.config import TrainConfig
from search_spaces import load_space
from sweeps.training_config import any_cell, corpus_config, train_config, with_absolute_paths


def test_a_path_that_was_relative_to_the_command_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    typed = ["corpus=files:texts/*.txt", "tokenizer=directory:my-tokenizer"]
    space = with_absolute_paths(load_space(preset="smoke", overrides=typed))
    monkeypatch.chdir("/")
    assert corpus_config(space).paths == (str(tmp_path / "texts" / "*.txt"),)
    assert space.tokenizer.path == str(tmp_path / "my-tokenizer")


def test_a_space_without_paths_stays_as_it_is() -> None:
    space = load_space(preset="smoke")
    assert with_absolute_paths(space) == space


def trained(arm: str, *overrides: str) -> TrainConfig:
    """The configuration of a cell of an arm of ``smoke``."""
    space = load_space(preset="smoke", overrides=list(overrides))
    return train_config(space, any_cell(space, arm), vocab_size=1_024)


def test_an_arm_trains_with_its_own_values() -> None:
    own = [
        "strategies.balanced.model.top_k=1",
        "strategies.balanced.optimizer.kind=adamw",
        "strategies.balanced.schedule.decay_share=0.5",
        "strategies.balanced.model.document_attention=true",
    ]
    config, other = trained("balanced", *own), trained("large_batch", *own)
    assert (config.model.top_k, config.optimizer.kind, config.document_attention) == (1, "adamw", True)
    assert config.schedule.decay_tokens == config.schedule.budget_tokens // 2
    assert other == trained("large_batch")


def test_momentum_and_betas_keep_their_half_lives_in_tokens_where_asked() -> None:
    half = trained("balanced", "optimizer.betas_at_tokens_per_step=2048").optimizer  # a step of balanced has 1,024
    assert half.muon_momentum == pytest.approx(0.95**0.5)
    assert half.adamw_betas == pytest.approx((0.9**0.5, 0.95**0.5))
    assert trained("balanced", "optimizer.betas_at_tokens_per_step=1024") == trained("balanced")


def test_a_control_trains_on_grouped_windows() -> None:
    assert trained("balanced_grouped", "controls=true").arrangement == "grouped"
    assert trained("balanced", "controls=true").arrangement == "shuffled"
