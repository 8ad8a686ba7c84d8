"""A ledger in a folder of its own."""

from pathlib import Path

import pytest

from sweeps.ledger.storage import Storage
from sweeps.ledger.sweep_folder import Ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(Storage(str(tmp_path)), "first")
