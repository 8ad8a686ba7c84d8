"""A space on its way from the command line to a worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from search_spaces import load_space
from sweeps.training_config import corpus_config, with_absolute_paths


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
