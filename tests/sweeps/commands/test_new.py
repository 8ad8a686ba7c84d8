"""``sweeps new``: a template, a preset, and arms that fill a memory."""

from pathlib import Path

import pytest

from search_spaces import SpaceErrors, load_space, parse_space, template_text
from sweeps.commands.new import new_space
from sweeps.errors import BadInputError
from sweeps.packing import memory


@pytest.fixture
def straight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peaks are weights and optimizer, then bytes per token."""
    monkeypatch.setattr(memory, "_predicted_gib", lambda _, arm, *__: 1.2 + arm.micro_batch_size * arm.seq_len * 1.1e-4)


def test_the_template_or_a_preset_is_written_as_it_is(tmp_path: Path) -> None:
    new_space(tmp_path / "plain.toml", None, None, print)
    assert (tmp_path / "plain.toml").read_text() == template_text()
    new_space(tmp_path / "in" / "a" / "folder.toml", "laptop", None, print)
    assert load_space(path=tmp_path / "in" / "a" / "folder.toml") == load_space(preset="laptop")


def test_arms_are_written_that_fill_the_memory(tmp_path: Path, straight: None) -> None:
    path = tmp_path / "fitted.toml"
    said: list[str] = []
    new_space(path, "matched", 12.0, said.append)
    space = load_space(path=path)
    assert len({arm.tokens_per_step for arm in space.strategies}) == 1
    assert all(1.2 + arm.micro_batch_size * arm.seq_len * 1.1e-4 <= 12.0 for arm in space.strategies)
    assert any(f"large_batch {space.strategies[0].micro_batch_size} x 256" in line for line in said)
    assert any("would let them fill it" in line for line in said), "the budget's steps forbid full memory"
    plain = parse_space((tmp_path / "fitted.toml").read_text()).model_dump(exclude={"strategies"})
    assert plain == load_space(preset="matched").model_dump(exclude={"strategies"})


def test_what_cannot_be_fitted_leaves_no_file(tmp_path: Path, straight: None) -> None:
    path = tmp_path / "fitted.toml"
    with pytest.raises(SpaceErrors, match="not one window of it fits into the memory"):
        new_space(path, None, 1.0, print)
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(BadInputError, match="must be a number of GiB above 0"):
            new_space(path, None, wrong, print)
    assert not path.exists()
