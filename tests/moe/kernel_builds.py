"""The C kernels as a test wants them built, and what ``kernels.load`` makes of the library."""

import importlib.util
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from moe import kernels

SOURCES = Path(__file__).parents[2] / "moe" / "kernels"


def build(path: Path, sources: Sequence[Path], *flags: str) -> Path:
    """Compile a library, or skip the test if there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    subprocess.run([compiler, *flags, "-shared", "-fPIC", "-o", path, *sources, "-lm"], check=True)
    return path


def load_from(origin: Path | None) -> kernels.Loaded:
    """What ``kernels.load`` makes of a library, or of none."""
    with pytest.MonkeyPatch.context() as patch:
        spec = None if origin is None else SimpleNamespace(origin=str(origin))
        patch.setattr(importlib.util, "find_spec", lambda _: spec)
        return kernels.load.__wrapped__()
