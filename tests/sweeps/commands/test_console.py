"""Output on terminals and disks that take less than others, and folders of the environment that do not exist."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps.commands.console import require_usable_environment
from sweeps.errors import BadInputError


def test_a_locale_without_the_signs_of_the_table_gets_others(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    require_usable_environment()
    print("\u2713 done", flush=True)
    assert written.getvalue() == b"? done\n"


def test_a_folder_for_temporary_files_that_does_not_exist_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/nowhere")
    with pytest.raises(BadInputError, match=r"^TMPDIR=/nowhere is not a folder; create it, or unset TMPDIR$"):
        require_usable_environment()


def run(words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "PYTHON": sys.executable}
    return subprocess.run(
        ["/bin/sh", "-c", words], cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full stands for a full disk")
@pytest.mark.parametrize("words", ["status", "status --json"])
def test_a_full_disk_under_standard_output_is_one_message(tmp_path: Path, words: str) -> None:
    done = run(f'"$PYTHON" -m sweeps {words} > /dev/full', tmp_path)
    assert done.returncode == 2
    assert "No space left on device" in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_a_working_folder_that_was_deleted_is_one_message(tmp_path: Path) -> None:
    done = run('mkdir gone && cd gone && rmdir ../gone && "$PYTHON" -m sweeps status', tmp_path)
    assert done.returncode == 2
    assert done.stderr == "sweeps: the working folder was deleted; change to one that exists\n"
