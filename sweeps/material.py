"""What every cell of a sweep is trained and examined on: tokens and exam, built once per process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from search_spaces import Identity, Space
from sweeps.bridge import corpus_config, tokenizer_config
from sweeps.errors import BadInputError

if TYPE_CHECKING:
    from moe.corpus import CorpusConfig
    from moe.exam import Exam
    from moe.token_build import OnProgress
    from moe.token_cache import TokenizedCorpus
    from moe.tokenizer import TokenizerConfig

POOL_BUDGETS: Final = 4
"""A streamed corpus is read until it holds this many budgets of train tokens: fresh seeds shall draw other blocks."""
HELD_OUT_ROWS: Final = 4
"""Tokens of a streamed held-out split, in exams: rows are drawn from more documents than the exam has rows."""


@dataclass(frozen=True, kw_only=True)
class Material:
    """Token files and the exam cut from them."""

    tokens: TokenizedCorpus
    exam: Exam

    @property
    def identity(self) -> Identity:
        """The fingerprints that decide a cell's id."""
        return Identity(
            corpus_fingerprint=self.tokens.corpus_fingerprint,
            tokenizer_fingerprint=self.tokens.tokenizer_fingerprint,
            exam_fingerprint=self.exam.fingerprint,
        )

    @property
    def fingerprints(self) -> dict[str, str]:
        """The same by short names, as ``sweep.json`` holds them."""
        return {
            "corpus": self.identity.corpus_fingerprint,
            "tokenizer": self.identity.tokenizer_fingerprint,
            "exam": self.identity.exam_fingerprint,
        }


def cache_dir() -> Path:
    """Where token files are kept, shared by all sweeps: ``SWEEPS_CACHE_DIR``, else the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "moe-sweeps"
    return Path(os.environ.get("SWEEPS_CACHE_DIR", default)).expanduser()


def material_for(
    space: Space,
    *,
    expected: Mapping[str, Any] | None = None,
    on_progress: OnProgress | None = None,
) -> Material:
    """Tokens and exam of a space, from the cache where they are there.

    Raises BadInputError, naming both, where fingerprints differ from the ``expected`` ones of a sweep that is resumed.
    """
    material = _material(
        corpus_config(space),
        tokenizer_config(space),
        space.block_len,
        space.common_len,
        space.exam.rows_validation,
        space.exam.rows_test,
        POOL_BUDGETS * space.budget_tokens,
        _Progress(on_progress),
    )
    for name, found in material.fingerprints.items():
        if expected is not None and expected[name] != found:
            raise BadInputError(
                f"the {name} changed since the sweep began: its fingerprint was {expected[name]}, now it is {found}; "
                "bring the old one back, or start a new sweep under another name"
            )
    return material


class _Progress:
    """A progress callback that does not count when arguments are compared by the cache."""

    def __init__(self, show: OnProgress | None) -> None:
        self.show = show

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Progress)

    def __hash__(self) -> int:
        return 0


@lru_cache(maxsize=2)
def _material(
    corpus: CorpusConfig,
    tokenizer: TokenizerConfig,
    block_len: int,
    common_len: int,
    rows_validation: int,
    rows_test: int,
    train_tokens_needed: int,
    progress: _Progress,
) -> Material:
    from moe.exam import build_exam
    from moe.token_cache import prepare

    tokens = prepare(
        corpus,
        tokenizer,
        cache_dir=cache_dir(),
        train_tokens_needed=train_tokens_needed,
        held_out_tokens_needed=HELD_OUT_ROWS * max(rows_validation, rows_test) * (block_len + 1),
        on_progress=progress.show,
    )
    exam = build_exam(
        tokens,
        block_len=block_len,
        common_len=common_len,
        rows_validation=rows_validation,
        rows_test=rows_test,
    )
    return Material(tokens=tokens, exam=exam)
