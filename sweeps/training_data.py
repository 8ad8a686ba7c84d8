"""What every cell of a sweep is trained and evaluated on: tokens and exam, built once per process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from search_spaces import CorpusFacts, Identity, Space, SpaceErrors, check_against_corpus
from sweeps.errors import BadInputError, StorageError
from sweeps.training_config import corpus_config, tokenizer_config

if TYPE_CHECKING:
    from moe.config import TrainConfig
    from moe.corpus import CorpusConfig
    from moe.exam import Exam
    from moe.token_build import OnProgress
    from moe.token_cache import HubCommits, TokenizedCorpus
    from moe.tokenizer import TokenizerConfig
    from moe.trainer import Trainer

POOL_BUDGETS: Final = 4
"""A streamed corpus is read until it holds this many budgets of train tokens: fresh seeds must draw other blocks."""
HELD_OUT_ROWS: Final = 4
"""Tokens of a streamed held-out split, in exams: rows are drawn from more documents than the exam has rows."""


@dataclass(frozen=True, kw_only=True)
class TrainingData:
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

    def trainer(self, config: TrainConfig) -> Trainer:
        """A trainer of one cell, at zero tokens."""
        from moe.exam import training_data
        from moe.trainer import Trainer

        return Trainer(config, training_data(self.tokens, config, self.exam))


def corpus_facts(tokens: TokenizedCorpus) -> CorpusFacts:
    """What the rules of a space need to know of its corpus."""
    return CorpusFacts(
        longest_document_tokens=tokens.longest_document_tokens,
        train_tokens=tokens.splits["train"].n_tokens,
        validation_tokens=tokens.splits["validation"].n_tokens,
        test_tokens=tokens.splits["test"].n_tokens,
        vocab_size=tokens.learned_vocab_size,
    )


def cache_dir() -> Path:
    """Where token files are kept, shared by all sweeps: ``SWEEPS_CACHE_DIR``, else the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "moe-sweeps"
    return Path(os.environ.get("SWEEPS_CACHE_DIR", default)).expanduser()


def load_training_data(
    space: Space,
    *,
    beginning: Mapping[str, Any] | None = None,
    on_progress: OnProgress | None = None,
) -> TrainingData:
    """Tokens and exam of a space, from the cache where they are there.

    With the ``beginning`` of a sweep they are the ones that it began with: what is from the hub is read at the commits
    that stand there, whatever is newest now.

    Raises:
        CorpusError: the corpus or the tokenizer cannot be read.
        SpaceErrors: every problem of a new space (no ``beginning``) with its corpus, before the exam is cut.
        BadInputError: the cache's folder cannot be used, the exam cannot be cut, or fingerprints differ from those of
            the beginning (both are named).
        StorageError: the cache cannot be written.
    """
    from moe.token_cache import HubCommits

    held_out_tokens = HELD_OUT_ROWS * max(space.exam.rows_validation, space.exam.rows_test) * (space.block_len + 1)
    tokens = _TokenRequest(
        corpus=corpus_config(space),
        tokenizer=tokenizer_config(space),
        train_tokens=POOL_BUDGETS * (space.budget_tokens if beginning is None else beginning["space"]["budget_tokens"]),
        held_out_tokens=held_out_tokens,
        progress=_Progress(on_progress),
        commits=None if beginning is None else HubCommits.of(beginning.get("corpus_facts", {})),
    )
    if beginning is None:
        problems = check_against_corpus(space, corpus_facts(_tokens(tokens)))
        if problems:
            raise SpaceErrors(problems, source="the space with its corpus")
    data = _training_data(tokens, space.block_len, space.common_len, space.exam.rows_validation, space.exam.rows_test)
    expected = data.fingerprints if beginning is None else beginning["fingerprints"]
    for name, found in data.fingerprints.items():
        if expected[name] != found:
            raise BadInputError(
                f"the {name} changed since the sweep began: its fingerprint was {expected[name]}, now it is {found}; "
                "restore the old one, or start a new sweep under another name"
            )
    return data


class _Progress:
    """A progress callback that does not count when arguments are compared by the cache."""

    def __init__(self, show: OnProgress | None) -> None:
        self.show = show

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Progress)

    def __hash__(self) -> int:
        return 0


@dataclass(frozen=True, kw_only=True)
class _TokenRequest:
    """What decides the token files of a space."""

    corpus: CorpusConfig
    tokenizer: TokenizerConfig
    train_tokens: int
    held_out_tokens: int
    progress: _Progress
    commits: HubCommits | None


@lru_cache(maxsize=2)
def _tokens(request: _TokenRequest) -> TokenizedCorpus:
    from moe.token_cache import prepare

    folder = cache_dir()
    try:
        return prepare(
            request.corpus,
            request.tokenizer,
            cache_dir=folder,
            train_tokens_needed=request.train_tokens,
            held_out_tokens_needed=request.held_out_tokens,
            on_progress=request.progress.show,
            commits=request.commits,
        )
    except (NotADirectoryError, FileExistsError, PermissionError) as error:
        raise BadInputError(
            f"the token cache cannot be kept in {folder} ({error.strerror}: {error.filename}); "
            "set SWEEPS_CACHE_DIR to a folder that can be written"
        ) from error
    except OSError as error:
        raise StorageError(f"the token cache cannot be written: {error}; free space or set SWEEPS_CACHE_DIR") from error


@lru_cache(maxsize=2)
def _training_data(
    request: _TokenRequest, block_len: int, common_len: int, rows_validation: int, rows_test: int
) -> TrainingData:
    from moe.errors import CorpusError
    from moe.exam import build_exam

    tokens = _tokens(request)
    try:
        exam = build_exam(
            tokens,
            block_len=block_len,
            common_len=common_len,
            rows_validation=rows_validation,
            rows_test=rows_test,
        )
    except CorpusError as error:
        raise BadInputError(str(error)) from error
    return TrainingData(tokens=tokens, exam=exam)
