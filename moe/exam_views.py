"""How a model is scored on the exam: every view of it, in fp32, at a bounded cost.

Own context (the primary metric) cuts a row of S targets into consecutive chunks of the arm's ``seq_len`` and starts
each from an empty context. Common context does the same at the shortest arm's length. Both are scored on all rows and
kept per target, so that loss by position, by document and the use of context cost nothing more. The sliding window
and the table of evaluation lengths run on the first quarter of the rows (Press et al. 2021, Shortformer,
arXiv 2012.15832, on what a short evaluation context hides).
"""

# R rows, S targets of a row, W windows of a forward pass, T chunk_len

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from moe.device import is_out_of_memory, release_cached_memory
from moe.exam import Exam, ExamRows

if TYPE_CHECKING:
    from moe.model import MoELanguageModel

Losses = npt.NDArray[np.float64]
# The table and the sliding window are never judged: a quarter of the rows keeps the exam's cost under a tenth.
SECONDARY_SHARE = 0.25
_ROWS_OF_A_PASS = 4  # of S tokens, where no number of tokens is given: a CPU is no faster with more


@dataclass(frozen=True, kw_only=True)
class Score:
    """``loss`` in nats per token, ``bpb`` in bits per byte of text."""

    loss: float
    bpb: float
    n_targets: int


@dataclass(frozen=True, kw_only=True)
class PositionLoss:
    """Mean loss of the targets that see ``first`` + 1 to ``last`` + 1 tokens of context."""

    first: int
    last: int
    loss: float
    n_targets: int


@dataclass(frozen=True, kw_only=True)
class ContextUse:
    """The same targets, those with at least the shortest arm's length of context: what the longer context gained."""

    beyond_tokens: int
    own_loss: float
    common_loss: float
    n_targets: int


@dataclass(frozen=True, kw_only=True)
class LengthLoss:
    """Loss with chunks of ``eval_len`` tokens; ``extrapolation`` marks lengths beyond the trained one."""

    eval_len: int
    loss: float
    extrapolation: bool


@dataclass(frozen=True, kw_only=True)
class ExamScores:
    """Every view of one model on the test rows; losses in nats per token.

    ``sliding_loss``, ``sliding_own_loss`` (own context on the same targets) and ``loss_by_length`` are on the first
    ``secondary_rows`` rows. ``loss_by_document`` and ``common_loss_by_document`` map a document's name to the sum of
    its losses and its number of targets. ``context_use`` is None for the shortest arm.
    """

    test_loss: float
    bpb: float
    common_context_loss: float
    sliding_loss: float
    sliding_own_loss: float
    loss_by_position: tuple[PositionLoss, ...]
    loss_by_length: tuple[LengthLoss, ...]
    context_use: ContextUse | None
    loss_by_document: dict[str, tuple[float, int]]
    common_loss_by_document: dict[str, tuple[float, int]]
    seq_len: int
    n_targets: int
    secondary_rows: int

    def as_dict(self) -> dict[str, Any]:
        """Plain nested dict, for JSON."""
        return asdict(self)


def score(
    model: MoELanguageModel,
    rows: ExamRows,
    *,
    chunk_len: int,
    pass_tokens: int | None = None,
    document_attention: bool = False,
) -> Score:
    """Mean loss over all targets of ``rows``, cut into chunks of ``chunk_len`` that start from an empty context."""
    losses_RS = target_losses(
        model, rows, chunk_len=chunk_len, pass_tokens=pass_tokens, document_attention=document_attention
    )
    return Score(loss=float(losses_RS.mean()), bpb=_bpb(losses_RS, rows), n_targets=rows.n_targets)


def score_all_views(
    model: MoELanguageModel,
    exam: Exam,
    *,
    seq_len: int,
    pass_tokens: int | None = None,
    document_attention: bool = False,
) -> ExamScores:
    """Every view of ``model``, trained at ``seq_len``, on the test rows; views of equal chunk length share a pass."""
    rows = exam.test
    few = rows.first(_secondary_rows(rows))

    def losses_of(subset: ExamRows, chunk_len: int) -> Losses:
        return target_losses(
            model,
            subset,
            chunk_len=chunk_len,
            pass_tokens=pass_tokens,
            document_attention=document_attention,
        )

    own_RS = losses_of(rows, seq_len)
    common_RS = own_RS if exam.common_len == seq_len else losses_of(rows, exam.common_len)
    done = {seq_len: own_RS[: few.n_rows], exam.common_len: common_RS[: few.n_rows]}
    lengths = sorted({*exam.eval_lens, seq_len, exam.common_len})
    by_length = tuple(
        LengthLoss(
            eval_len=length,
            loss=float((done[length] if length in done else losses_of(few, length)).mean()),
            extrapolation=length > seq_len,
        )
        for length in lengths
    )
    sliding_RS = own_RS[: few.n_rows]
    if seq_len < exam.block_len:
        sliding_RS = sliding_losses(
            model, few, window_len=seq_len, pass_tokens=pass_tokens, document_attention=document_attention
        )
    return ExamScores(
        test_loss=float(own_RS.mean()),
        bpb=_bpb(own_RS, rows),
        common_context_loss=float(common_RS.mean()),
        sliding_loss=float(sliding_RS.mean()),
        sliding_own_loss=float(own_RS[: few.n_rows].mean()),
        loss_by_position=_by_position(own_RS, seq_len, exam.common_len),
        loss_by_length=by_length,
        context_use=_context_use(own_RS, common_RS, seq_len, exam.common_len),
        loss_by_document=_by_document(own_RS, rows),
        common_loss_by_document=_by_document(common_RS, rows),
        seq_len=seq_len,
        n_targets=rows.n_targets,
        secondary_rows=few.n_rows,
    )


def forward_tokens(exam: Exam, *, seq_len: int) -> int:
    """Tokens that ``score_all_views`` sends through a model trained at ``seq_len``: what its cost grows with."""
    rows, few = exam.test.n_rows, _secondary_rows(exam.test)
    full = len({seq_len, exam.common_len})
    table = len(set(exam.eval_lens) - {seq_len, exam.common_len})
    sliding = 2 if seq_len < exam.block_len else 0  # windows overlap by half
    return exam.block_len * (rows * full + few * (table + sliding))


def _secondary_rows(rows: ExamRows) -> int:
    return max(1, math.ceil(rows.n_rows * SECONDARY_SHARE))


def target_losses(
    model: MoELanguageModel,
    rows: ExamRows,
    *,
    chunk_len: int,
    pass_tokens: int | None = None,
    document_attention: bool = False,
) -> Losses:
    """Cross-entropy of every target, nats, [R, S]: each row cut into chunks that start from an empty context."""
    assert rows.block_len % chunk_len == 0
    starts = np.arange(0, rows.block_len, chunk_len)
    return _window_losses(
        model,
        rows,
        starts=starts,
        window_len=chunk_len,
        pass_tokens=pass_tokens,
        document_attention=document_attention,
    ).reshape(rows.n_rows, rows.block_len)


def sliding_losses(
    model: MoELanguageModel,
    rows: ExamRows,
    *,
    window_len: int,
    pass_tokens: int | None = None,
    document_attention: bool = False,
) -> Losses:
    """As `target_losses`, with windows that overlap by half: all but a row's first see at least half a window."""
    half = max(1, window_len // 2)
    last = rows.block_len - window_len
    starts = np.unique([*range(0, last, half), last])
    losses = _window_losses(
        model,
        rows,
        starts=starts,
        window_len=window_len,
        pass_tokens=pass_tokens,
        document_attention=document_attention,
    )
    sliding_RS = np.empty((rows.n_rows, rows.block_len))
    sliding_RS[:, :window_len] = losses[:, 0]
    for window, start in enumerate(starts[1:], start=1):
        sliding_RS[:, start + window_len - half : start + window_len] = losses[:, window, window_len - half :]
    return sliding_RS


def _window_losses(
    model: MoELanguageModel,
    rows: ExamRows,
    *,
    starts: npt.NDArray[np.int64],
    window_len: int,
    pass_tokens: int | None,
    document_attention: bool,
) -> Losses:
    """Losses [R, windows of a row, T] of the windows that begin at ``starts`` in every row."""
    device = next(model.parameters()).device
    positions = starts[:, None] + np.arange(window_len)
    inputs_WT = torch.from_numpy(rows.tokens_RS[:, positions].reshape(-1, window_len).astype(np.int64))
    targets_WT = torch.from_numpy(rows.tokens_RS[:, positions + 1].reshape(-1, window_len).astype(np.int64))
    documents_WT = torch.from_numpy(rows.documents_RS[:, positions].reshape(-1, window_len).astype(np.int64))
    per_pass = max(1, (pass_tokens or _ROWS_OF_A_PASS * rows.block_len) // window_len)

    def losses_of(some: slice) -> torch.Tensor:
        ids_WT = documents_WT[some].to(device) if document_attention else None
        return model.token_losses(inputs_WT[some].to(device), targets_WT[some].to(device), document_ids_BT=ids_WT)

    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            losses_WT = _in_passes(losses_of, inputs_WT.shape[0], per_pass)
    finally:
        model.train(was_training)
    losses = losses_WT.cpu().double().numpy()  # read once, after all passes
    return np.asarray(losses, dtype=np.float64).reshape(rows.n_rows, starts.size, window_len)


def _in_passes(losses_of: Callable[[slice], torch.Tensor], n_windows: int, per_pass: int) -> torch.Tensor:
    """The losses of all windows, in passes of half the size from where memory has run out on.

    Raises:
        RuntimeError, MemoryError: there is no memory for a single window, or something else is wrong.
    """
    pieces: list[torch.Tensor] = []
    first = 0
    while first < n_windows:
        try:
            pieces.append(losses_of(slice(first, first + per_pass)))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or per_pass == 1:
                raise
            ran_out = True
        else:
            first += per_pass
            ran_out = False
        if ran_out:  # outside of the handler: the error's traceback keeps the pass's tensors alive
            per_pass //= 2
            release_cached_memory()
    return torch.cat(pieces)


def _bpb(losses_RS: Losses, rows: ExamRows) -> float:
    return float(losses_RS.sum() / (math.log(2) * rows.bytes_total))


def _by_position(own_RS: Losses, seq_len: int, common_len: int) -> tuple[PositionLoss, ...]:
    """Buckets that double in width, with an edge at the shortest arm's length."""
    mean_T = own_RS.reshape(-1, seq_len).mean(axis=0)
    n_chunks = own_RS.size // seq_len
    powers = {2**exponent for exponent in range(seq_len.bit_length()) if 2**exponent < seq_len}
    edges = sorted({0, seq_len, min(common_len, seq_len), *powers})
    return tuple(
        PositionLoss(first=low, last=high - 1, loss=float(mean_T[low:high].mean()), n_targets=n_chunks * (high - low))
        for low, high in pairwise(edges)
    )


def _context_use(own_RS: Losses, common_RS: Losses, seq_len: int, common_len: int) -> ContextUse | None:
    if seq_len <= common_len:
        return None
    own = own_RS.reshape(-1, seq_len)[:, common_len:]
    common = common_RS.reshape(-1, seq_len)[:, common_len:]
    return ContextUse(
        beyond_tokens=common_len,
        own_loss=float(own.mean()),
        common_loss=float(common.mean()),
        n_targets=own.size,
    )


def _by_document(losses_RS: Losses, rows: ExamRows) -> dict[str, tuple[float, int]]:
    """Sum of losses and number of targets of every document that the rows touch, by the target's document."""
    documents = rows.documents_RS[:, 1:].ravel()
    found, inverse = np.unique(documents, return_inverse=True)
    sums = np.bincount(inverse, weights=losses_RS.ravel())
    counts = np.bincount(inverse)
    return {
        rows.document_names[document]: (float(total), int(count))
        for document, total, count in zip(found, sums, counts, strict=True)
    }
