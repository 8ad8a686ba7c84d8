"""Documents of one split that stand, whole or mostly, in another under any name.

A document is its set of 16-token shingles, sampled by hash (one in eight, the same everywhere: FracMinHash, Irber et
al. 2022), and the measure is containment: the share of the held-out document's shingles that stand in one other
document. It sees what a long common run does not: a text with a word changed in every sentence.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe.run_overlap import Hashes, run_hashes
from moe.token_file import TokenFile

SHINGLE_TOKENS = 16
SAMPLED_ONE_IN = 8
_KEPT_BELOW = np.uint64(2**64 // SAMPLED_ONE_IN)
# A header that thousands of documents share would make the work grow with their square: a shingle counts for the first
# documents that have it. Documents that are mostly alike share most of these.
MOST_DOCUMENTS_OF_A_SHINGLE = 64
_CHUNK_TOKENS = 2**16
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class NearDuplicate:
    """``containment`` of the document's sampled shingles stand in ``other_name``."""

    name: str
    other_name: str
    containment: float


def near_duplicates(
    held_out: TokenFile, other: TokenFile, *, shingle_tokens: int = SHINGLE_TOKENS
) -> list[NearDuplicate]:
    """Each document of ``held_out`` that shares anything with one of ``other``, with its closest, the closest first."""
    hashes, documents = _distinct(*_sampled(held_out, 0, held_out.n_tokens, shingle_tokens))
    sizes = np.bincount(documents, minlength=held_out.n_documents)
    shared: dict[tuple[int, int], int] = {}
    times_met = np.zeros(hashes.size, dtype=np.int64)
    for first, last in _chunks_of_documents(other):
        sampled = _sampled(other, first, last, shingle_tokens)
        for pair, count in _shared_shingles(hashes, documents, *sampled, times_met).items():
            shared[pair] = shared.get(pair, 0) + count
    closest: dict[int, tuple[int, int]] = {}
    for (document, other_document), count in sorted(shared.items()):
        if count > closest.get(document, (0, 0))[0]:
            closest[document] = (count, other_document)
    pairs = [
        NearDuplicate(
            name=held_out.document_names[document],
            other_name=other.document_names[other_document],
            containment=count / int(sizes[document]),
        )
        for document, (count, other_document) in closest.items()
    ]
    return sorted(pairs, key=lambda pair: (-pair.containment, pair.name))


def _chunks_of_documents(file: TokenFile) -> list[tuple[int, int]]:
    """Stretches of whole documents of about a chunk's size, so that a document's shingles are counted at once."""
    ends = np.append(file.document_starts[1:], file.n_tokens)
    chunks: list[tuple[int, int]] = []
    first = 0
    for end in ends:
        if end - first >= _CHUNK_TOKENS or end == file.n_tokens:
            chunks.append((first, int(end)))
            first = int(end)
    return chunks


def _sampled(file: TokenFile, first: int, last: int, shingle_tokens: int) -> tuple[Hashes, Ids]:
    """Sampled shingles of a stretch, each with its document; those that straddle documents are left out."""
    hashes = run_hashes(file.tokens[first:last], shingle_tokens)
    kept = np.flatnonzero(hashes < _KEPT_BELOW)
    begins = file.documents_of(first + kept)
    inside = begins == file.documents_of(first + kept + shingle_tokens - 1)
    return hashes[kept[inside]], begins[inside]


def _distinct(hashes: Hashes, documents: Ids) -> tuple[Hashes, Ids]:
    """Each shingle once per document, ordered by hash."""
    order = np.lexsort((documents, hashes))
    hashes, documents = hashes[order], documents[order]
    new = np.ones(hashes.size, dtype=np.bool_)
    new[1:] = (hashes[1:] != hashes[:-1]) | (documents[1:] != documents[:-1])
    return hashes[new], documents[new]


def _shared_shingles(
    hashes: Hashes, documents: Ids, others: Hashes, other_documents: Ids, times_met: Ids
) -> dict[tuple[int, int], int]:
    """How many shingles each pair of documents shares; counts in ``times_met`` in how many others each one stood."""
    others, other_documents = _distinct(others, other_documents)
    low = np.searchsorted(hashes, others, side="left")
    counts = np.searchsorted(hashes, others, side="right") - low
    low, counts, other_documents = (values[counts > 0] for values in (low, counts, other_documents))
    earlier = times_met[low] + np.arange(low.size) - np.searchsorted(low, low, side="left")
    np.add.at(times_met, low, 1)
    counts = np.where(earlier < MOST_DOCUMENTS_OF_A_SHINGLE, counts, 0)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    pairs = np.stack([documents[np.repeat(low, counts) + within], np.repeat(other_documents, counts)], axis=1)
    found, times = np.unique(pairs, axis=0, return_counts=True)
    return {(int(pair[0]), int(pair[1])): int(count) for pair, count in zip(found, times, strict=True)}
