"""What is remembered is found once: again where anything differs that decides it, and where the cache is no good."""

from pathlib import Path

import pytest

from sweeps.packing.remembered import remembered


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SWEEPS_CACHE_DIR", str(tmp_path))
    return tmp_path / "peaks"


class Finding:
    """Finds ever larger values."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> float:
        self.times += 1
        return float(self.times)


def test_a_value_is_found_once_for_all_that_decides_it(monkeypatch: pytest.MonkeyPatch) -> None:
    find = Finding()
    assert [remembered("peaks", "one", find), remembered("peaks", "one", find)] == [1.0, 1.0]
    assert remembered("peaks", "another", find) == 2.0
    monkeypatch.setattr("sweeps.packing.remembered.code_fingerprint", lambda: "of tomorrow")
    assert remembered("peaks", "one", find) == 3.0


def test_what_was_not_found_is_looked_for_again() -> None:
    find = Finding()
    assert remembered("peaks", "one", lambda: None) is None
    assert remembered("peaks", "one", find) == 1.0


def test_a_damaged_cache_costs_the_time_only(cache: Path) -> None:
    find = Finding()
    remembered("peaks", "one", find)
    for kept in cache.iterdir():
        kept.write_text("{")
    assert remembered("peaks", "one", find) == 2.0
    for kept in cache.iterdir():
        kept.unlink()
    cache.rmdir()
    cache.write_text("a file, where the folder should be")
    assert remembered("peaks", "one", find) == 3.0
