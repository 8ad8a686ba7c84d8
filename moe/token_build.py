"""Building a token cache: read, split, learn the tokenizer on train, tokenize, write.

Documents stream through: only what the tokenizer learns from is held in memory, and reading stops when every split
has the tokens it needs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from moe.copied_text import Copies, find_copies
from moe.corpus import SPLITS, CorpusConfig, CorpusSource, Document, SplitAssigner, SplitName
from moe.errors import CorpusError
from moe.tokenizer import TextTokenizer, TokenizerConfig, make_tokenizer

# Enough text for any vocabulary of this project; more of it changes few merges and costs memory.
BPE_TRAINING_BYTES = 16 * 2**20
# A held-out split of a few long documents says little of the corpus: reading goes on until there are this many, which
# is more than the 50 that the exam wants (method rule 4).
MIN_HELD_OUT_DOCUMENTS = 64
# Texts tokenized at once: large enough to keep all threads busy, small enough to report progress.
BATCH_BYTES = 4 * 2**20
LEFT_OUT_LIST = "left_out.txt"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a build is doing. ``total_bytes`` is None where the end is not known; ``message`` is for the user."""

    stage: str
    done_bytes: int = 0
    total_bytes: int | None = None
    message: str | None = None


OnProgress = Callable[[Progress], None]
Placed = tuple[SplitName, Document]


def build(
    folder: Path,
    *,
    source: CorpusSource,
    corpus: CorpusConfig,
    tokenizer: TokenizerConfig,
    train_tokens: int,
    held_out_tokens: int,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Writes tokens, document tables and tokenizer into ``folder``; returns the sidecar's facts and fingerprints.

    Raises:
        CorpusError: a split stays without a document.
    """
    copies = _find_copies(source, corpus, on_progress)
    placed = _placed(source, corpus, copies)
    # The first document comes before the tokenizer in any case: a corpus that cannot be had should be what is said.
    on_progress(Progress(stage="read"))
    held = _held(placed, train_bytes=BPE_TRAINING_BYTES if tokenizer.kind == "bpe" else 1)
    on_progress(Progress(stage="tokenizer"))
    made = make_tokenizer(tokenizer, (document.text for split, document in held if split == "train"))
    made.save(folder / "tokenizer")
    limits = None
    if not source.bounded:
        limits = {"train": train_tokens, "validation": held_out_tokens, "test": held_out_tokens}
    with ExitStack() as files:
        writer = _Writer(folder, files, made, limits=limits, total_bytes=source.total_bytes, on_progress=on_progress)
        exhausted = writer.write_all(_chained(held, placed))
    writer.write_document_tables(with_groups=corpus.group_column is not None)
    _require_every_split(writer, source, corpus)
    if copies is not None:
        copies.write_list(folder)
    if source.left_out:
        (folder / LEFT_OUT_LIST).write_text("\n".join(source.left_out) + "\n", encoding="utf-8")
    return {
        "corpus_fingerprint": writer.fingerprint(),
        "tokenizer_fingerprint": made.fingerprint,
        "vocab_size": made.vocab_size,
        "separator_id": made.separator_id,
        "dtype": writer.dtype,
        "facts": {
            "description": source.description,
            "read_to_its_end": exhausted,
            "documents": {split: len(writer.names[split]) for split in SPLITS},
            "tokens": dict(writer.n_tokens),
            **source.resolved,
            **({"left_out": len(source.left_out)} if source.left_out else {}),
            **({} if copies is None else {"copied_text": copies.counts}),
            **({} if made.commit is None else {"tokenizer_revision": made.commit}),
        },
    }


def _find_copies(source: CorpusSource, corpus: CorpusConfig, on_progress: OnProgress) -> Copies | None:
    """What documents share, where the corpus asks for it: all of it is read once more."""
    if corpus.duplicates == "refuse":
        return None
    on_progress(Progress(stage="look for copied text"))
    return find_copies((document for document in source.documents() if document.text), corpus)


def _placed(source: CorpusSource, corpus: CorpusConfig, copies: Copies | None) -> Iterator[Placed]:
    documents = (document for document in source.documents() if document.text)
    shares = {"validation_share": corpus.validation_share, "test_share": corpus.test_share}
    if copies is None:
        assigner = SplitAssigner(**shares)
        yield from ((assigner.assign(document), document) for document in documents)
        return
    # Shares are of all text: the less of it may be held out, the more of that is.
    more = 1 / max(copies.free_share, sum(shares.values()))
    assigner = SplitAssigner(**{name: more * share for name, share in shares.items()})
    for number, document in enumerate(documents):
        if number in copies.dropped:
            continue
        split = document.split or ("train" if number in copies.in_train else None)
        left = replace(document, text=copies.without_copies(number, document.text), split=split)
        yield assigner.assign(left), left


def _held(placed: Iterator[Placed], *, train_bytes: int) -> list[Placed]:
    """The first documents, until ``train_bytes`` of them train."""
    held: list[Placed] = []
    size = 0
    for split, document in placed:
        held.append((split, document))
        size += len(document.text) if split == "train" else 0
        if size >= train_bytes:
            break
    return held


def _chained(held: list[Placed], rest: Iterator[Placed]) -> Iterator[Placed]:
    held.reverse()
    while held:
        yield held.pop()
    yield from rest


def _require_every_split(writer: _Writer, source: CorpusSource, corpus: CorpusConfig) -> None:
    empty = [split for split in SPLITS if not writer.names[split]]
    if empty:
        n_documents = sum(len(names) for names in writer.names.values())
        remedy = "give more documents, larger validation_share and test_share, or a split column"
        if corpus.duplicates == "group":
            remedy = f"{remedy}; or, where nearly all documents share text, write corpus.duplicates=drop"
        raise CorpusError(
            f"{source.description} has {n_documents} documents and none for {' and '.join(empty)}; every split needs "
            f"at least one: {remedy}"
        )


class _Writer:
    """Tokenizes documents in batches and appends them to one file per split."""

    def __init__(
        self,
        folder: Path,
        files: ExitStack,
        tokenizer: TextTokenizer,
        *,
        limits: dict[str, int] | None,
        total_bytes: int | None,
        on_progress: OnProgress,
    ) -> None:
        self.dtype = "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"
        self.names: dict[SplitName, list[str]] = {split: [] for split in SPLITS}
        self._groups: dict[str, str] = {}
        self.n_tokens: dict[SplitName, int] = dict.fromkeys(SPLITS, 0)
        self._folder = folder
        self._tokenizer = tokenizer
        self._limits = limits
        self._total_bytes = total_bytes
        self._on_progress = on_progress
        self._starts: dict[SplitName, list[int]] = {split: [] for split in SPLITS}
        self._bytes: dict[SplitName, list[int]] = {split: [] for split in SPLITS}
        self._digest = hashlib.blake2b(digest_size=16)
        self._files: dict[SplitName, BinaryIO] = {
            split: files.enter_context((folder / f"{split}.tokens").open("wb")) for split in SPLITS
        }

    def write_all(self, placed: Iterator[Placed]) -> bool:
        """Writes until every split has its tokens (False) or the corpus ends (True)."""
        batch: list[Placed] = []
        batch_bytes = 0
        for split, document in placed:
            if self._full(split):
                continue
            batch.append((split, document))
            batch_bytes += len(document.text)
            if batch_bytes >= BATCH_BYTES:
                self._write(batch)
                batch, batch_bytes = [], 0
                if all(self._full(name) for name in SPLITS):
                    return False
        self._write(batch)
        return True

    def fingerprint(self) -> str:
        """Hash of the name, split and text of every document written, in order."""
        return self._digest.hexdigest()

    def write_document_tables(self, *, with_groups: bool) -> None:
        """Writes where documents begin, their bytes and names, beside the token files; groups of the test split."""
        if with_groups:
            groups = json.dumps(self._groups, ensure_ascii=False)
            (self._folder / "test.document_groups.json").write_text(groups, encoding="utf-8")
        for split in SPLITS:
            np.save(self._folder / f"{split}.document_starts.npy", np.asarray(self._starts[split], dtype=np.int64))
            np.save(self._folder / f"{split}.document_bytes.npy", np.asarray(self._bytes[split], dtype=np.int64))
            names = json.dumps(self.names[split], ensure_ascii=False)
            (self._folder / f"{split}.document_names.json").write_text(names, encoding="utf-8")

    def _full(self, split: SplitName) -> bool:
        if self._limits is None or self.n_tokens[split] < self._limits[split]:
            return False
        return split == "train" or len(self.names[split]) >= MIN_HELD_OUT_DOCUMENTS

    def _write(self, batch: list[Placed]) -> None:
        encoded = self._tokenizer.encode([document.text for _, document in batch])
        for (split, document), tokens in zip(batch, encoded, strict=True):
            if self._full(split):
                continue
            content = document.text.encode()
            self._digest.update(json.dumps([split, document.name, len(content)]).encode())
            self._digest.update(content)
            self.names[split].append(document.name)
            if split == "test" and document.group is not None:
                self._groups[document.name] = document.group
            self._starts[split].append(self.n_tokens[split])
            self._bytes[split].append(len(content))
            ended = np.append(tokens, np.uint32(self._tokenizer.separator_id)).astype(self.dtype)
            ended.tofile(self._files[split])
            self.n_tokens[split] += ended.size
        done = sum(sum(sizes) for sizes in self._bytes.values())
        self._on_progress(Progress(stage="tokenize", done_bytes=done, total_bytes=self._total_bytes))
