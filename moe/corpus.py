"""What a corpus is: named documents, each of which stands in exactly one split.

Documents are split before any window is cut. Where the corpus does not say which document is held out, whole groups
of documents are assigned by ``SplitAssigner``. ``moe.corpus_sources`` opens a corpus.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from moe.errors import CorpusError

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
# Values that a split column may hold, as corpora on the hub write them.
SPLIT_WORDS: dict[str, SplitName] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Which text is trained on, how it is split, and how much leak and repetition is accepted.

    ``split_column="auto"`` uses a column named ``split`` when its values name splits; None always assigns documents
    by share. ``group_column`` names a column whose equal values stay in one split (author, site, book); ``"folder"``
    is that of a file. ``duplicates`` decides about text that files share: ``"refuse"`` leaves it to the audit,
    ``"group"`` keeps all documents that share any in train, ``"drop"`` takes out all but one copy first. ``split`` is
    the hub's own name of the rows to read. ``max_overlap_share`` is the largest share of 64-token runs of the exam
    that may also stand in train, ``max_common_run_tokens`` the length from which one common run is refused,
    ``max_epochs`` how often the budget may repeat the corpus (Muennighoff et al. 2023, arXiv 2305.16264: up to four
    epochs train almost as well as fresh text). ``allow_straddling`` accepts a seq_len beyond the longest document.
    """

    kind: Literal["embedded", "files", "hub"] = "embedded"
    paths: tuple[str, ...] = ()
    text_column: str = "text"
    split_column: str | None = "auto"
    group_column: str | None = None
    duplicates: Literal["refuse", "group", "drop"] = "refuse"
    dataset: str | None = None
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    validation_share: float = 0.06
    test_share: float = 0.06
    max_overlap_share: float = 0.02
    max_common_run_tokens: int = 128
    max_epochs: float = 4.0
    allow_straddling: bool = False

    def __post_init__(self) -> None:
        problems = _problems(self)
        if problems:
            raise CorpusError("; ".join(problems))


def _problems(config: CorpusConfig) -> list[str]:
    problems: list[str] = []
    if config.kind == "files" and not config.paths:
        problems.append('corpus kind "files" has no paths; give at least one file, directory or glob')
    if config.kind == "hub" and not config.dataset:
        problems.append('corpus kind "hub" has no dataset; give its id, for example HuggingFaceTB/smollm-corpus')
    if config.kind != "files" and config.duplicates != "refuse":
        problems.append(f'duplicates="{config.duplicates}" looks through files; leave it out with kind "{config.kind}"')
    for name in ("validation_share", "test_share"):
        share = getattr(config, name)
        if not 0.0 < share < 0.5:
            problems.append(f"{name}={share} must lie between 0 and 0.5; 0.06 is the default")
    if config.max_common_run_tokens < 64:
        problems.append(f"max_common_run_tokens={config.max_common_run_tokens} must be at least 64; 128 is the default")
    if not 0.0 <= config.max_overlap_share <= 1.0:
        problems.append(f"max_overlap_share={config.max_overlap_share} must lie between 0 and 1; 0.02 is the default")
    if not config.max_epochs > 0.0:
        problems.append(f"max_epochs={config.max_epochs} must be above 0; 4.0 is the default")
    return problems


@dataclass(frozen=True, kw_only=True)
class Document:
    """One text with the name that messages call it by. ``split`` is None where the corpus leaves it to us."""

    name: str
    text: str
    split: SplitName | None = None
    group: str | None = None


@dataclass(frozen=True, kw_only=True)
class CorpusSource:
    """A corpus that can be read: ``documents()`` starts over at each call, in the same order on every machine.

    ``identity`` is JSON-able, decides the content and holds no absolute path. ``total_bytes`` (of files as they lie
    on disk) is None where nobody knows it before reading. ``bounded`` says that the whole corpus is small and is
    always read to its end, whatever the budget. ``left_out`` names files that are no text. ``resolved`` fills while
    documents are read, with what the source learned of itself (the hub's commit).
    """

    identity: dict[str, Any]
    description: str
    documents: Callable[[], Iterator[Document]]
    total_bytes: int | None
    bounded: bool = False
    left_out: tuple[str, ...] = ()
    resolved: dict[str, Any] = field(default_factory=dict)


def text_digest(text: str) -> str:
    """Content hash of one text: blake2b, 16 bytes, hex."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class SplitAssigner:
    """Assigns whole groups of documents to splits, in reading order, so that shares of bytes come out as asked.

    Each new group goes to the split that lags furthest behind its share (error diffusion). The decision depends only
    on the documents before it, so that reading further never moves a document. Documents of equal text count as one
    group, whatever their names.
    """

    def __init__(self, *, validation_share: float, test_share: float) -> None:
        self._shares: dict[SplitName, float] = {
            "train": 1.0 - validation_share - test_share,
            "validation": validation_share,
            "test": test_share,
        }
        self._bytes: dict[SplitName, int] = dict.fromkeys(SPLITS, 0)
        self._split_of_group: dict[str, SplitName] = {}

    def assign(self, document: Document) -> SplitName:
        """The split of ``document``: the one it states, its group's, or the one that lags furthest behind."""
        if document.split is not None:
            return document.split
        keys = [f"text:{text_digest(document.text)}"]
        if document.group is not None:
            keys.append(f"group:{document.group}")
        # A group outranks equal text: a text that stands in two groups is the audit's finding, not ours to hide.
        known = [self._split_of_group[key] for key in reversed(keys) if key in self._split_of_group]
        split = known[0] if known else self._furthest_behind(len(document.text))
        for key in keys:
            self._split_of_group.setdefault(key, split)
        self._bytes[split] += len(document.text)
        return split

    def _furthest_behind(self, size: int) -> SplitName:
        total = sum(self._bytes.values()) + size
        return max(SPLITS, key=lambda split: self._shares[split] * total - self._bytes[split])
