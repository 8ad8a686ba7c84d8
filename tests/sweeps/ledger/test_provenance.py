"""Where numbers come from: what counts as the code that trains."""

import shutil
from pathlib import Path

import pytest

import moe
from sweeps.ledger.provenance import code_fingerprint


def test_a_change_to_any_source_of_training_is_another_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "moe"
    shutil.copytree(Path(moe.__path__[0]), folder, ignore=shutil.ignore_patterns("__pycache__"))
    before = code_fingerprint()
    monkeypatch.setattr(moe, "__path__", [str(folder)])
    assert code_fingerprint() == before, "where the sources are does not count"
    source = folder / "model.py"
    source.write_text(source.read_text() + "\n")
    assert code_fingerprint() != before
