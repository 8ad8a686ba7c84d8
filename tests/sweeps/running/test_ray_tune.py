"""Ray Tune at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sweeps.packing.shares import Share
from sweeps.running.ray_tune import run_trials

OF_A_TRIAL_WITHOUT_A_FOLDER = "Should not access `trial_fs_path` without setting `trial_dir_name`"


class NoSegments:
    """A source that is never asked."""


@pytest.mark.parametrize(("said", "is_raised"), [(OF_A_TRIAL_WITHOUT_A_FOLDER, False), ("no node is left", True)])
def test_a_trial_that_never_had_a_folder_does_not_end_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, is_raised: bool
) -> None:
    def fit(_: Any) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr("ray.tune.Tuner.fit", fit)
    source: Any = NoSegments()
    share = Share(threads=1, gpu_fraction=0.0)

    def run() -> None:
        run_trials(source, share, slots=1, storage_uri=str(tmp_path))

    if is_raised:
        with pytest.raises(RuntimeError, match=said):
            run()
    else:
        run()
