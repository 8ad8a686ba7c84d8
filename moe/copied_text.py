"""Text that several documents of a corpus share, found before any of it is held out.

A document is a row of fingerprints: hashes of 40 bytes, chosen by winnowing (Schleimer et al. 2003), which takes at
least one of every 24 that follow each other, and the same ones wherever the same text stands. Sorted, they tell what
stands in several documents in ``n log n``: no two documents are compared. Bytes and not tokens are looked at, so that
the splits of a corpus are the same for every tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moe.corpus import CorpusConfig, Document
from moe.errors import CorpusError
from moe.run_overlap import Hashes, run_hashes

FINGERPRINT_BYTES = 40  # about the 16 tokens that the audit's shingles have
WINDOW = 24
# Of a document's fingerprints. More than half stand elsewhere: a copy, as for Pomikalek 2011 ("onion").
DROPPED_ABOVE = 0.5
# The audit, which looks at one document of train at a time and refuses a half, must not come to another opinion...
TRAINS_ABOVE = 0.3
# ...and knows a small document (below about a kilobyte) by a few shingles only.
SURE_FROM_FINGERPRINTS = 64
FEWEST_BYTES_PER_TOKEN = 1.5  # of a trained vocabulary, in program text full of signs
COPIED_TEXT_LIST = "copied_text.tsv"
MAX_BYTES = 2**29  # of text; the search takes some seven bytes of memory for each
_CHUNK_BYTES = 2**18
Ids = npt.NDArray[np.int64] | npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]


class CopiedText(NamedTuple):
    """What was done with a document because of its copied text, and where else most of that, or its longest, stands."""

    document: str
    done: str
    copied_share: float
    longest_passage_bytes: int
    also_in: str


@dataclass(frozen=True, kw_only=True)
class Copies:
    """What is never held out, dropped, and cut, by number of document in reading order.

    ``cuts`` are ranges of bytes. ``free_share`` is the part of the text that is left which may be held out.
    """

    in_train: frozenset[int]
    dropped: frozenset[int]
    cuts: Mapping[int, Sequence[tuple[int, int]]]
    free_share: float
    rows: tuple[CopiedText, ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many documents were dropped, have lost passages, and are kept in train."""
        n_dropped, n_cut = len(self.dropped), len(self.cuts)
        return {"dropped": n_dropped, "cut": n_cut, "in_train": len(self.rows) - n_dropped - n_cut}

    def write_list(self, folder: Path) -> None:
        """Write every row as a line of ``COPIED_TEXT_LIST``."""
        lines = ["document\tdone\tcopied\tlongest passage (bytes)\talso in"]
        for row in self.rows:
            document, also_in = (" ".join(name.split()) for name in (row.document, row.also_in))
            measured = f"{row.copied_share:.0%}\t{row.longest_passage_bytes}"
            lines.append(f"{document}\t{row.done}\t{measured}\t{also_in}")
        (folder / COPIED_TEXT_LIST).write_text("\n".join(lines) + "\n", encoding="utf-8")

    def without_copies(self, number: int, text: str) -> str:
        """``text`` of that document without the passages that are cut from it, but for the words at their ends."""
        content = text.encode()
        pieces: list[bytes] = []
        kept_from = 0
        for start, end in self.cuts.get(number, ()):
            first, last = (_words(content[start:end], at) for at in (rb"\A\S*", rb"\S*\Z"))
            pieces.append(content[kept_from : start + first])
            kept_from = end - last
        return "\n".join(piece.decode(errors="ignore") for piece in (*pieces, content[kept_from:]))


def _words(passage: bytes, at: bytes) -> int:
    """Bytes of the part of a word at one end; none where words are as long as fingerprints."""
    found = re.search(at, passage)
    length = len(found.group()) if found else 0
    return length if length < FINGERPRINT_BYTES else 0


@dataclass(frozen=True, kw_only=True)
class _Fingerprints:
    """All fingerprints in reading order: which, where in its document (bytes), and in which document."""

    ids: Ids
    positions: Ids
    documents: Ids
    names: Sequence[str]
    units: Ids
    """Of each document: the first one of its group, or itself."""
    sizes: Ids
    """Of each document, in bytes."""

    @property
    def counts(self) -> Ids:
        """Fingerprints of each document."""
        return np.bincount(self.documents, minlength=self.sizes.size)

    def only(self, kept: Flags) -> _Fingerprints:
        """Those that ``kept`` marks."""
        ids, positions, documents = self.ids[kept], self.positions[kept], self.documents[kept]
        return replace(self, ids=ids, positions=positions, documents=documents)


class _Repeats(NamedTuple):
    """What documents lose to longer ones; ``left`` marks the fingerprints that remain."""

    left: Flags
    dropped: dict[int, CopiedText]
    cut: dict[int, CopiedText]
    cuts: dict[int, list[tuple[int, int]]]


def copies_identity(corpus: CorpusConfig) -> dict[str, Any]:
    """All that decides what ``find_copies`` finds in given documents; nothing where it is not asked."""
    if corpus.duplicates == "refuse":
        return {}
    thresholds = [DROPPED_ABOVE, TRAINS_ABOVE, SURE_FROM_FINGERPRINTS, _passage_bytes(corpus)]
    return {"copies": [corpus.duplicates, FINGERPRINT_BYTES, WINDOW, *thresholds]}


def _passage_bytes(corpus: CorpusConfig) -> int:
    return round(FEWEST_BYTES_PER_TOKEN * corpus.max_common_run_tokens)


def find_copies(documents: Iterable[Document], corpus: CorpusConfig) -> Copies:
    """Looks for text that stands in several documents (of several groups, where they have any).

    A document with a copied passage that may come to ``max_common_run_tokens``, or a third of whose text is copied,
    stays in train with all of its group. Where ``duplicates`` says "drop", copies go before that: of documents that are
    mostly copied the longest is kept, and from all others the passages are cut that stand in a longer one.

    Raises:
        CorpusError: there is more text than can be looked through.
    """
    prints = _fingerprints(documents)
    # A copied passage begins and ends with this many bytes or fewer outside its first and last fingerprint.
    shortest = _passage_bytes(corpus) - 2 * (WINDOW - 1)
    repeats = _Repeats(np.ones_like(prints.ids, dtype=np.bool_), {}, {}, {})
    if corpus.duplicates == "drop":
        _find_repeats(prints, shortest, repeats)
    shared = _shared(prints.only(repeats.left), shortest)
    units = prints.units[list(shared)]
    in_train = np.isin(prints.units, units) | (prints.counts == 0)  # nothing can be said of less than a fingerprint
    in_train[list(repeats.dropped)] = False
    sizes = prints.sizes.copy()
    sizes[list(repeats.dropped)] = 0
    for number, ranges in repeats.cuts.items():
        sizes[number] -= sum(end - start for start, end in ranges)
    rows = [*repeats.dropped.items(), *repeats.cut.items(), *shared.items()]
    return Copies(
        in_train=frozenset(np.flatnonzero(in_train).tolist()),
        dropped=frozenset(repeats.dropped),
        cuts=repeats.cuts,
        free_share=float(sizes[~in_train].sum() / max(1, sizes.sum())),
        rows=tuple(row for _, row in sorted(rows)),
    )


def _find_repeats(prints: _Fingerprints, shortest: int, found: _Repeats) -> None:
    """Fills ``found`` from the longest document to the shortest."""
    owners = np.full(int(prints.ids.max(initial=-1)) + 1, -1, dtype=np.int64)
    bounds = np.searchsorted(prints.documents, np.arange(prints.sizes.size + 1))
    for number in np.argsort(-prints.counts, kind="stable").tolist():
        mine = slice(bounds[number], bounds[number + 1])
        ids, positions = prints.ids[mine], prints.positions[mine]
        seen = owners[ids] >= 0
        owners[ids[~seen]] = number if seen.sum() <= DROPPED_ABOVE * seen.size else -1
        if not seen.any():
            continue
        firsts, lengths = _stretches(seen, positions, prints.documents[mine])
        owner, times = np.unique(owners[ids[seen]], return_counts=True)
        name, also_in = prints.names[number], prints.names[int(owner[times.argmax()])]
        share, longest = float(seen.mean()), int(lengths.max())
        if share > DROPPED_ABOVE:
            found.dropped[number] = CopiedText(name, "dropped", share, longest, also_in)
            found.left[mine] = False
        elif longest >= shortest:
            starts = positions[firsts][lengths >= shortest]
            ends = starts + lengths[lengths >= shortest]
            found.cuts[number] = list(zip(starts.tolist(), ends.tolist(), strict=True))
            done = f"lost {int((ends - starts).sum()):,} bytes"
            found.cut[number] = CopiedText(name, done, share, longest, also_in)
            # Number of the cut at or before each fingerprint; whether it reaches that far.
            at = np.searchsorted(starts, positions, side="right") - 1
            found.left[mine] = (at < 0) | (positions >= ends[at])


def _shared(prints: _Fingerprints, shortest: int) -> dict[int, CopiedText]:
    """The documents whose text stands in another one (in another group), by number."""
    copied, others = _elsewhere(prints)
    share = np.bincount(prints.documents, copied, minlength=prints.sizes.size) / np.maximum(1, prints.counts)
    most = TRAINS_ABOVE * np.minimum(1.0, prints.counts / SURE_FROM_FINGERPRINTS)
    firsts, lengths = _stretches(copied, prints.positions, prints.documents)
    longest, also_in = np.zeros_like(prints.sizes), np.zeros_like(prints.sizes)
    order = np.argsort(lengths, kind="stable")  # of several values for one place the last one stays
    longest[prints.documents[firsts[order]]] = lengths[order]
    also_in[prints.documents[firsts[order]]] = others[firsts[order]]
    return {
        number: CopiedText(
            prints.names[number], "in train", float(share[number]), int(longest[number]), prints.names[also_in[number]]
        )
        for number in np.flatnonzero((longest >= shortest) | (share > most)).tolist()
    }


def _elsewhere(prints: _Fingerprints) -> tuple[Flags, Ids]:
    """Which fingerprints stand in a document of another unit too, and in which one."""
    units = prints.units[prints.documents]
    order = np.lexsort((units, prints.ids))
    ids, units = prints.ids[order], units[order]
    is_first = np.ones(ids.size, dtype=np.bool_)
    is_first[1:] = ids[1:] != ids[:-1]
    starts = np.flatnonzero(is_first)
    ends = np.append(starts[1:], ids.size) - 1
    same = np.cumsum(is_first) - 1
    first, last = starts[same], ends[same]
    copied = np.zeros(ids.size, dtype=np.bool_)
    others = np.zeros(ids.size, dtype=np.int64)
    copied[order] = units[first] != units[last]
    others[order] = prints.documents[order][np.where(units[first] != units, first, last)]
    return copied, others


def _stretches(flags: Flags, positions: Ids, documents: Ids) -> tuple[Ids, Ids]:
    """Where marked fingerprints follow each other in one document: number of the first, and bytes to the last's end."""
    goes_on = np.zeros(flags.size + 1, dtype=np.bool_)
    goes_on[1:-1] = flags[1:] & flags[:-1] & (documents[1:] == documents[:-1])
    firsts = np.flatnonzero(flags & ~goes_on[:-1])
    lasts = np.flatnonzero(flags & ~goes_on[1:])
    return firsts, positions[lasts] - positions[firsts] + FINGERPRINT_BYTES


def _fingerprints(documents: Iterable[Document]) -> _Fingerprints:
    hashes: list[Hashes] = []
    positions: list[Ids] = []
    names: list[str] = []
    units: list[int] = []
    sizes: list[int] = []
    first_of_group: dict[str, int] = {}
    total_bytes = 0
    for number, document in enumerate(documents):
        content = document.text.encode()
        names.append(document.name)
        units.append(number if document.group is None else first_of_group.setdefault(document.group, number))
        sizes.append(len(content))
        total_bytes += len(content)
        if total_bytes > MAX_BYTES:
            raise CorpusError(
                f"more than {MAX_BYTES:,} bytes of text cannot be searched for copies; give fewer files, or remove "
                "copies by other means and set corpus.duplicates=refuse"
            )
        where, which = _chosen(np.frombuffer(content, dtype=np.uint8))
        positions.append(where.astype(np.int32))
        hashes.append(which)
    counts = [where.size for where in positions]
    together = np.concatenate([*hashes, np.empty(0, np.uint64)])
    hashes.clear()
    return _Fingerprints(
        ids=np.unique(together, return_inverse=True)[1].astype(np.int32),
        positions=np.concatenate([*positions, np.empty(0, np.int32)]),
        documents=np.repeat(np.arange(len(names), dtype=np.int32), counts),
        names=names,
        units=np.asarray(units, dtype=np.int64),
        sizes=np.asarray(sizes, dtype=np.int64),
    )


def _chosen(content: npt.NDArray[np.uint8]) -> tuple[Ids, Hashes]:
    """Where the fingerprints of one document stand, and the fingerprints."""
    places: list[Ids] = [np.empty(0, np.int64)]
    chosen: list[Hashes] = [np.empty(0, np.uint64)]
    n_positions = content.size - FINGERPRINT_BYTES + 1
    for first in range(0, max(n_positions - WINDOW + 1, min(1, n_positions)), _CHUNK_BYTES):
        piece = content[first : first + _CHUNK_BYTES + WINDOW + FINGERPRINT_BYTES - 2]
        hashes = run_hashes(piece, FINGERPRINT_BYTES)
        window = min(WINDOW, hashes.size)
        lowest = np.pad(_over_windows(np.minimum, hashes, window), window - 1)
        is_chosen = hashes == _over_windows(np.maximum, lowest, window)  # it is the lowest of a window that holds it
        is_chosen[1:] &= hashes[1:] != hashes[:-1]  # one of a long row of blanks
        where = np.flatnonzero(is_chosen)
        places.append(first + where)
        chosen.append(hashes[where])
    where, index = np.unique(np.concatenate(places), return_index=True)
    return where, np.concatenate(chosen)[index]


def _over_windows(extreme: np.ufunc, values: Hashes, window: int) -> Hashes:
    """The lowest or highest of every ``window`` values that follow each other."""
    width = 1
    while width < window:
        step = min(width, window - width)
        values = extreme(values[:-step], values[step:])
        width += step
    return values
