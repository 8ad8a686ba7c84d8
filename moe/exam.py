"""The exam: held-out target tokens that every arm is scored on, the same for all.

A row has S+1 tokens (S is the longest arm's ``seq_len``), so S targets. Rows are cut from single documents; where too
few documents are long enough they are packed as in training: cut from the split's flat stream, documents joined by
the separator. Which rows are drawn depends on the corpus alone, never on a seed of the sweep.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moe.config import TrainConfig
from moe.errors import CorpusError
from moe.token_file import TokenFile
from moe.windows import Windows

if TYPE_CHECKING:
    from moe.token_cache import TokenizedCorpus

# Rows of single documents are kept where such documents hold at least half of the test split's tokens...
MIN_SINGLE_DOCUMENT_SHARE = 0.5
# ...and are at least this many (method rule 4).
MIN_SINGLE_DOCUMENTS = 50
_EXAM_STREAM = 20_200  # any number that is not a sweep's seed


@dataclass(frozen=True, kw_only=True)
class ExamRows:
    """Rows of one split. R rows, S targets each.

    ``tokens_RS`` is int32 [R, S+1]; ``documents_RS`` is int32 [R, S+1], the index of each token's document in
    ``document_names``; ``bytes_of_document`` is float64, bytes of text per token of each document.
    """

    split: str
    tokens_RS: npt.NDArray[np.int32]
    documents_RS: npt.NDArray[np.int32]
    document_names: Sequence[str]
    bytes_of_document: npt.NDArray[np.float64]

    @property
    def n_rows(self) -> int:
        """Rows of the exam."""
        return int(self.tokens_RS.shape[0])

    @property
    def block_len(self) -> int:
        """Targets of a row: S."""
        return int(self.tokens_RS.shape[1]) - 1

    @property
    def n_targets(self) -> int:
        """Targets of all rows together."""
        return self.n_rows * self.block_len

    @property
    def bytes_total(self) -> float:
        """Bytes of text of all targets, each counted at its document's bytes per token."""
        return float(self.bytes_of_document[self.documents_RS[:, 1:]].sum())

    def first(self, n_rows: int) -> ExamRows:
        """The first ``n_rows`` rows, spread over documents as all rows are."""
        return ExamRows(
            split=self.split,
            tokens_RS=self.tokens_RS[:n_rows],
            documents_RS=self.documents_RS[:n_rows],
            document_names=self.document_names,
            bytes_of_document=self.bytes_of_document,
        )


@dataclass(frozen=True, kw_only=True)
class Exam:
    """Validation and test rows. ``packed`` rows may hold several documents; ``common_len`` is the shortest length.

    ``single_documents`` and ``single_document_share`` say why rows are packed or not: how many test documents are long
    enough for a row, and which share of the test tokens they hold. ``eval_lens`` are the lengths of the table that is
    shown and never judged: they follow from the longest and the shortest arm and are no part of the fingerprint.
    """

    validation: ExamRows
    test: ExamRows
    block_len: int
    common_len: int
    eval_lens: tuple[int, ...]
    packed: bool
    single_documents: int
    single_document_share: float
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """All that a trainer needs to know of a corpus: its arm's windows, the exam, bytes of text per train token."""

    windows: Windows
    exam: Exam
    bytes_per_token: float


def training_data(tokenized: TokenizedCorpus, config: TrainConfig, exam: Exam) -> TrainingData:
    """The windows of ``config``'s arm and seed, with the exam that all arms sit."""
    windows = Windows(
        tokenized.splits["train"],
        block_len=config.block_len,
        budget_tokens=config.schedule.budget_tokens,
        seed=config.seed,
        batch=config.batch,
        arrangement=config.arrangement,
    )
    return TrainingData(windows=windows, exam=exam, bytes_per_token=tokenized.bytes_per_token)


def build_exam(
    tokenized: TokenizedCorpus,
    *,
    block_len: int,
    common_len: int,
    rows_validation: int,
    rows_test: int,
) -> Exam:
    """The exam of a corpus; deterministic.

    Raises:
        CorpusError: a split has too few tokens for the rows asked for.
    """
    assert block_len % common_len == 0
    test = tokenized.splits["test"]
    share = _long_share(test, block_len)
    count = int((test.document_lengths > block_len).sum())
    packed = min(share, _long_share(tokenized.splits["validation"], block_len)) < MIN_SINGLE_DOCUMENT_SHARE
    packed = packed or count < MIN_SINGLE_DOCUMENTS
    rows = {"validation": rows_validation, "test": rows_test}
    problems: list[str] = []
    drawn: dict[str, ExamRows] = {}
    for split in ("validation", "test"):
        file = tokenized.splits["validation" if split == "validation" else "test"]
        starts = _packed_starts(file, block_len) if packed else _single_document_starts(file, block_len)
        if starts.size < rows[split]:
            problems.append(_too_small(split, starts.size, rows[split], block_len, packed=packed))
        drawn[split] = _rows(file, starts[: rows[split]], block_len)
    if problems:
        raise CorpusError("; ".join(problems))
    return Exam(
        validation=drawn["validation"],
        test=drawn["test"],
        block_len=block_len,
        common_len=common_len,
        eval_lens=_eval_lens(common_len, block_len),
        packed=packed,
        single_documents=count,
        single_document_share=share,
        fingerprint=_fingerprint(drawn["validation"], drawn["test"], common_len),
    )


def _long_share(file: TokenFile, block_len: int) -> float:
    lengths = file.document_lengths
    return float(lengths[lengths > block_len].sum() / max(1, file.n_tokens))


def _eval_lens(common_len: int, block_len: int) -> tuple[int, ...]:
    """From the shortest to the longest length, doubling, or by fours where that would make many passes."""
    factor = 2 if block_len // common_len <= 8 else 4
    lengths = [common_len]
    while lengths[-1] * factor < block_len:
        lengths.append(lengths[-1] * factor)
    return tuple(sorted({*(length for length in lengths if block_len % length == 0), block_len}))


def _single_document_starts(file: TokenFile, block_len: int) -> npt.NDArray[np.int64]:
    """Row starts, document after document in turn, so that any first rows are spread over as many as possible."""
    size = block_len + 1
    generator = np.random.default_rng([_EXAM_STREAM, block_len])
    turns: list[tuple[int, int, int]] = []
    order = generator.permutation(file.n_documents)
    for place, document in enumerate(order):
        slots = int(file.document_lengths[document]) // size
        for turn, slot in enumerate(generator.permutation(slots)):
            turns.append((turn, place, int(file.document_starts[document]) + int(slot) * size))
    return np.asarray([start for _, _, start in sorted(turns)], dtype=np.int64)


def _packed_starts(file: TokenFile, block_len: int) -> npt.NDArray[np.int64]:
    size = block_len + 1
    generator = np.random.default_rng([_EXAM_STREAM, block_len])
    return generator.permutation(file.n_tokens // size).astype(np.int64) * size


def _rows(file: TokenFile, starts: npt.NDArray[np.int64], block_len: int) -> ExamRows:
    positions_RS = starts[:, None] + np.arange(block_len + 1, dtype=np.int64)
    return ExamRows(
        split=file.split,
        tokens_RS=file.tokens[positions_RS].astype(np.int32),
        documents_RS=file.documents_of(positions_RS).astype(np.int32),
        document_names=file.document_names,
        bytes_of_document=file.document_bytes / file.document_lengths,
    )


def _too_small(split: str, found: int, asked: int, block_len: int, *, packed: bool) -> str:
    kind = "packed rows" if packed else "rows of single documents"
    return (
        f"rows_{split}={asked} is more than the {found} {kind} of {block_len + 1} tokens that the {split} split has; "
        f"choose rows_{split} <= {found}, a shorter seq_len, a larger {split}_share or a larger corpus"
    )


def _fingerprint(validation: ExamRows, test: ExamRows, common_len: int) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for rows in (validation, test):
        digest.update(f"{rows.split} {rows.tokens_RS.shape} {common_len}".encode())
        digest.update(rows.tokens_RS.astype("<i4").tobytes())
        # Documents decide what the bootstrap resamples and, with document attention, what a token sees.
        digest.update(rows.documents_RS.astype("<i4").tobytes())
    return digest.hexdigest()
