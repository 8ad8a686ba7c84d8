"""Runs of tokens that two texts have in common, found by hashing every position.

The hash of a run is made from the hashes of two runs of half its length, which overlap where it is no power of two,
so that all runs of 64 tokens cost six passes of whole-array arithmetic. What is reported is compared token by token: a
collision can hide nothing and invent nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe.token_file import TokenFile, Tokens

Hashes = npt.NDArray[np.uint64]
# Odd multipliers with well-spread bits: the finalizers of splitmix64 (Steele et al. 2014) and murmur3.
_LEFT = np.uint64(0xBF58476D1CE4E5B9)
_RIGHT = np.uint64(0x94D049BB133111EB)
_MIX = np.uint64(0xFF51AFD7ED558CCD)
_CHUNK_TOKENS = 2**16  # the hashes of a chunk stay in a core's cache: nearly twice as fast as 2**22
_FILTER_BITS = 22


@dataclass(frozen=True, kw_only=True)
class CommonRun:
    """``length`` tokens from ``start`` in the searched tokens that stand in the other text from ``other_start``."""

    start: int
    other_start: int
    length: int


def run_hashes(tokens: Tokens | npt.NDArray[np.uint8], run_len: int) -> Hashes:
    """uint64 hash of the run of ``run_len`` tokens that begins at each position; run_len - 1 fewer."""
    hashes = _mixed(tokens.astype(np.uint64) + np.uint64(1))
    width = 1
    while width < run_len and hashes.size:
        step = min(width, run_len - width)
        hashes = _mixed(hashes[:-step] * _LEFT + hashes[step:] * _RIGHT)
        width += step
    return hashes


def _mixed(hashes: Hashes) -> Hashes:
    hashes ^= hashes >> np.uint64(32)
    hashes *= _MIX
    hashes ^= hashes >> np.uint64(29)
    return hashes


class RunIndex:
    """All runs of ``run_len`` tokens of some searched text, to be looked for in other texts.

    ``tokens`` may hold several pieces one after the other (the exam's rows, a whole split); ``usable`` marks the
    positions where a run lies inside one piece.
    """

    def __init__(self, tokens: Tokens, *, run_len: int, usable: npt.NDArray[np.bool_] | None = None) -> None:
        self.run_len = run_len
        self._tokens = tokens
        hashes = run_hashes(tokens, run_len)
        positions = np.arange(hashes.size)
        if usable is not None:
            positions = positions[usable[: hashes.size]]
        order = np.argsort(hashes[positions], kind="stable")
        self._positions = positions[order]
        self._sorted = hashes[self._positions]
        # Most runs of another text are not here: one look into a small table spares them the search.
        self._filter = np.zeros(2**_FILTER_BITS, dtype=np.bool_)
        self._filter[self._short(self._sorted)] = True

    @property
    def n_runs(self) -> int:
        """Runs in the index, repeated ones counted each time."""
        return int(self._sorted.size)

    def found_in(self, other: Tokens) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
        """Which positions of the searched text begin a run that stands in ``other``, and where there (else -1)."""
        where = np.full(self._tokens.size, -1, dtype=np.int64)
        known = np.zeros(self.n_runs, dtype=np.bool_)
        for first, hashes in _hashes_by_chunk(other, self.run_len):
            candidates = np.flatnonzero(self._filter[self._short(hashes)])
            low = np.searchsorted(self._sorted, hashes[candidates], side="left")
            hits = np.flatnonzero(self._sorted[np.minimum(low, self.n_runs - 1)] == hashes[candidates])
            # A run that thousands of documents share is looked at once, or the work would grow with their square.
            low, fresh = np.unique(low[hits], return_index=True)
            new = ~known[low]
            low, candidates = low[new], candidates[hits[fresh[new]]]
            known[low] = True
            counts = np.searchsorted(self._sorted, self._sorted[low], side="right") - low
            # All entries of the index that equal each candidate, as one flat list.
            within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            where[self._positions[np.repeat(low, counts) + within]] = np.repeat(first + candidates, counts)
        return where >= 0, where

    @staticmethod
    def _short(hashes: Hashes) -> npt.NDArray[np.int64]:
        return (hashes >> np.uint64(64 - _FILTER_BITS)).astype(np.int64)


def _hashes_by_chunk(tokens: Tokens, run_len: int) -> Iterator[tuple[int, Hashes]]:
    """Hashes of all runs, a chunk at a time, so that memory stays bounded however long the text is."""
    for first in range(0, max(0, tokens.size - run_len + 1), _CHUNK_TOKENS):
        yield first, run_hashes(tokens[first : first + _CHUNK_TOKENS + run_len - 1], run_len)


def common_runs(file: TokenFile, other: TokenFile, *, at_least: int) -> list[CommonRun]:
    """Runs of ``at_least`` tokens and more that ``file`` and ``other`` share, the longest first.

    None is missed. Each is followed to its end in one place of ``other``, and a stretch of ``file`` is reported once:
    a run that begins inside a reported one, and is longer in another place, may be reported shorter than it is.
    """
    found, where = RunIndex(file.tokens, run_len=at_least).found_in(other.tokens)
    runs: list[CommonRun] = []
    end = -1
    for start in np.flatnonzero(found):
        # Positions inside a run that was followed already tell nothing new unless a longer one begins there.
        if start + at_least <= end:
            continue
        length = _equal_tokens(file.tokens, int(start), other.tokens, int(where[start]))
        if length >= at_least:
            runs.append(CommonRun(start=int(start), other_start=int(where[start]), length=length))
            end = int(start) + length
    return sorted(runs, key=lambda run: -run.length)


def _equal_tokens(tokens: Tokens, start: int, other: Tokens, other_start: int) -> int:
    limit = min(tokens.size - start, other.size - other_start)
    length, piece = 0, 256
    while length < limit:
        span = slice(length, min(length + piece, limit))
        differing = np.flatnonzero(tokens[start:][span] != other[other_start:][span])
        if differing.size:
            return length + int(differing[0])
        length, piece = span.stop, piece * 4
    return limit
