"""The commands that a document shows, and a copy of the working tree in which they can be typed."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tests.integration.tracked_files import ROOT, copy_tracked

_INLINE = re.compile(r"(?:[A-Z_]+=\S+ )*(?:docker|git|kubectl|make|pip|ray|sweeps) [a-z].*")


def block_commands(name: str) -> list[str]:
    """Every line of the document's fenced blocks without its comment, in order."""
    text = (ROOT / name).read_text(encoding="utf-8")
    blocks = re.findall(r"^```\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = (line.partition(" #")[0].strip() for block in blocks for line in block.splitlines())
    return [line for line in lines if line]


def inline_commands(name: str) -> list[str]:
    """Every command that stands in backticks within the document's prose, once."""
    text = (ROOT / name).read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    spans = (re.sub(r"\s+", " ", span) for span in re.findall(r"`([^`]+)`", prose))
    return [span for span in dict.fromkeys(spans) if _INLINE.fullmatch(span)]


def copy_working_tree(folder: Path) -> None:
    """The tracked files as they are in the working tree, and this environment as theirs."""
    for copied in copy_tracked(folder):
        os.utime(copied, (0, 0))  # older than the environment, so that make finds it ready
    (folder / ".venv").symlink_to(ROOT / ".venv")
