"""Exporting a model from a ledger."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from moe.checkpoint import write_state
from moe.model import MoELanguageModel
from search_spaces import load_space
from sweeps.ledger.cell_folder import CellWriter
from sweeps.ledger.results import CellResult, SweepResults
from sweeps.ledger.storage import Storage
from sweeps.ledger.sweep_folder import Ledger
from sweeps.running.winner import write_checkpoint
from sweeps.training_config import any_cell, train_config


def test_a_model_is_exported_whatever_windows_it_was_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version 0.1 drew other ones: its checkpoints cannot be trained on, and their weights are as good."""
    space = load_space(preset="smoke", overrides=["model.d_model=16", "model.d_expert=16", "precision=fp32"])
    cell = replace(any_cell(space, "balanced"), cell_id="c0ffee")
    config = train_config(space, cell, vocab_size=60)
    model = MoELanguageModel(config.model, seed=7)
    ledger = Ledger(Storage(str(tmp_path / "runs")), "first")
    writer = CellWriter(ledger.cell_folder("c0ffee"), "000001-cafe")
    state = {"model": model.state_dict()}
    writer.save(100, lambda folder: write_state(folder, state, config, {"first micro-batch": "of other windows"}))

    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    data = SimpleNamespace(tokens=SimpleNamespace(vocab_size=60, tokenizer_dir=tokenizer))
    monkeypatch.setattr("sweeps.running.winner.load_training_data", lambda *_, **__: data)
    monkeypatch.setattr(Ledger, "beginning", lambda _: {})
    monkeypatch.setattr("sweeps.running.winner.as_trained", lambda space, _: space)
    results = SweepResults(name="first", beginning={"space": space.resolved()}, cells=())
    write_checkpoint(ledger, results, CellResult(cell=cell), tmp_path / "model")

    from safetensors.torch import load_file

    mask = os.umask(0)
    os.umask(mask)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()}
    assert set(modes.values()) == {0o666 & ~mask}, "whoever may read other new files may read the model"
    (weights,) = (tmp_path / "model").glob("*.safetensors")
    exported = load_file(weights)["model.embed_tokens.weight"]
    assert torch.equal(exported, model.embed_tokens.weight.detach())
