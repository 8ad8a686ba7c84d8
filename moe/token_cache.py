"""The token cache: a corpus as one flat file of token ids per split, built once and read by every trial.

A cache folder is named by what it was asked for (source, tokenizer, tokens needed), is built in a temporary folder by
one process while others wait for its lock, and is moved into place whole. Its sidecar holds a hash of every file, and
every process checks them once: a damaged folder is built again, with a message. The fingerprints are hashes of
content only, equal on every machine and for every number of threads.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from moe.copied_text import COPIED_TEXT_LIST, copies_identity
from moe.corpus import SPLITS, CorpusConfig, CorpusSource, SplitName
from moe.corpus_sources import open_corpus
from moe.errors import CorpusError
from moe.token_build import LEFT_OUT_LIST, OnProgress, Progress, build
from moe.token_file import TokenFile, file_digest
from moe.tokenizer import TokenizerConfig, tokenizer_identity

SCHEMA = 1
SIDECAR = "sidecar.json"
TOKENIZER_FOLDER = "tokenizer"
# Rounding up what is read lets budgets of similar size share one cache; 2^22 tokens take seconds.
MIN_TOKENS_READ = 2**22


@dataclass(frozen=True, kw_only=True)
class TokenizedCorpus:
    """A corpus in tokens. ``splits`` holds the flat files; fingerprints are hashes of content, hex.

    ``facts`` are for people and for ``sweep.json``: description, documents read, whether the source was read to its
    end, and the commits of the hub that corpus (``revision``) and tokenizer (``tokenizer_revision``) were read at.
    """

    folder: Path
    corpus_fingerprint: str
    tokenizer_fingerprint: str
    fingerprint: str
    vocab_size: int
    separator_id: int
    splits: Mapping[SplitName, TokenFile]
    corpus: CorpusConfig
    facts: Mapping[str, Any]

    @property
    def tokenizer_dir(self) -> Path:
        """A directory that ``AutoTokenizer`` loads."""
        return self.folder / TOKENIZER_FOLDER

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out and how copied text was dealt with before splitting, one sentence each."""
        notes: list[str] = []
        left_out = self.facts.get("left_out")
        if left_out:
            files = "1 file is" if left_out == 1 else f"{left_out:,} files are"
            notes.append(f"{files} no text (UTF-8 without NUL) and left out (full list: {self.folder / LEFT_OUT_LIST})")
        copied = self.facts.get("copied_text")
        if copied is not None and any(copied.values()):
            done = (("dropped", "{} dropped"), ("cut", "{} cut"), ("in_train", "{} kept in train"))
            counts = ", ".join(words.format(f"{copied[key]:,}") for key, words in done if copied[key])
            notes.append(f"documents that share text: {counts} (full list: {self.folder / COPIED_TEXT_LIST})")
        return tuple(notes)

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text per token of the train split, separators counted as tokens."""
        return self.splits["train"].bytes_total / self.splits["train"].n_tokens

    @property
    def learned_vocab_size(self) -> int:
        """Tokens that the tokenizer has, which may be fewer than ``vocab_size``: a small corpus has few merges."""
        from tokenizers import Tokenizer

        return int(Tokenizer.from_file(str(self.tokenizer_dir / "tokenizer.json")).get_vocab_size())

    @property
    def longest_document_tokens(self) -> int:
        """Tokens of the longest document of any split, its separator included."""
        return max(int(file.document_lengths.max(initial=0)) for file in self.splits.values())


@dataclass(frozen=True, kw_only=True)
class HubCommits:
    """The commits of the hub that corpus and tokenizer are to be read at; None for what is not pinned."""

    corpus: str | None = None
    tokenizer: str | None = None

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> HubCommits:
        """Those that ``TokenizedCorpus.facts`` name."""
        return cls(corpus=facts.get("revision"), tokenizer=facts.get("tokenizer_revision"))

    def allow(self, facts: Mapping[str, Any]) -> bool:
        """Whether token files with these facts were made at these commits, as far as it is known."""
        found = HubCommits.of(facts)
        pairs = ((self.corpus, found.corpus), (self.tokenizer, found.tokenizer))
        return all(None in pair or pair[0] == pair[1] for pair in pairs)


def prepare(
    corpus: CorpusConfig,
    tokenizer: TokenizerConfig,
    *,
    cache_dir: Path,
    train_tokens_needed: int,
    held_out_tokens_needed: int = 0,
    on_progress: OnProgress | None = None,
    commits: HubCommits | None = None,
) -> TokenizedCorpus:
    """The tokenized corpus, from the cache or built now, by one process while the others wait.

    Reading stops once ``train_tokens_needed`` and ``held_out_tokens_needed`` (of each held-out split) are there, both
    rounded up to a power of two; a small bounded corpus is read whole. ``on_progress`` is called with what is being
    done and how far it is, and with a message when a damaged cache is built again. With ``commits`` a cache of other
    ones does not serve, and a new one is built at these.

    Raises:
        CorpusError: the corpus or the tokenizer cannot be had, or a split is empty.
    """
    report = on_progress or _silent
    source = open_corpus(corpus)
    limits = {"train": _round_up(train_tokens_needed, least=MIN_TOKENS_READ)}
    limits["held_out"] = _round_up(held_out_tokens_needed, least=MIN_TOKENS_READ // 32)
    request = _request(corpus, tokenizer, source, limits)
    folder = cache_dir / _hash(request)[:24]
    if commits is not None and not (folder.is_dir() and _is_at(folder, commits)):
        return prepare(
            replace(corpus, revision=commits.corpus or corpus.revision),
            replace(tokenizer, revision=commits.tokenizer or tokenizer.revision),
            cache_dir=cache_dir,
            train_tokens_needed=train_tokens_needed,
            held_out_tokens_needed=held_out_tokens_needed,
            on_progress=on_progress,
        )
    if folder.is_dir():
        try:
            return open_tokenized(folder, corpus=corpus)
        except CorpusError:
            pass  # looked at again, and said, by whoever holds the lock
    locks = cache_dir / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with _locked(locks / f"{folder.name}.lock", report):
        if folder.is_dir():
            try:
                return open_tokenized(folder, corpus=corpus)
            except CorpusError as damage:
                report(Progress(stage="rebuild", message=f"{damage}; building it again"))
                shutil.rmtree(folder)
        _build_into(folder, source=source, corpus=corpus, tokenizer=tokenizer, request=request, report=report)
        return open_tokenized(folder, corpus=corpus)


@contextmanager
def _locked(path: Path, report: OnProgress) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report(Progress(stage="wait for another process that builds it"))
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def open_tokenized(folder: Path, *, corpus: CorpusConfig) -> TokenizedCorpus:
    """The tokenized corpus in ``folder``, after checking every file against the sidecar's hashes (about 1 s per GB).

    Raises:
        CorpusError: a file is missing or differs, named with what was found.
    """
    sidecar = _read_sidecar(folder)
    for name, expected in sidecar["files"].items():
        path = folder / name
        if not path.is_file():
            raise CorpusError(f"the token cache {folder} is damaged: {name} is missing")
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise CorpusError(f"the token cache {folder} is damaged: {name} has {size} bytes, not {expected['bytes']}")
        if file_digest(path) != expected["blake2b"]:
            raise CorpusError(f"the token cache {folder} is damaged: the content of {name} does not match its hash")
    return TokenizedCorpus(
        folder=folder,
        corpus_fingerprint=sidecar["corpus_fingerprint"],
        tokenizer_fingerprint=sidecar["tokenizer_fingerprint"],
        fingerprint=sidecar["fingerprint"],
        vocab_size=sidecar["vocab_size"],
        separator_id=sidecar["separator_id"],
        splits={split: TokenFile.open(folder, split, dtype=sidecar["dtype"]) for split in SPLITS},
        corpus=corpus,
        facts=sidecar["facts"],
    )


def _build_into(
    folder: Path,
    *,
    source: CorpusSource,
    corpus: CorpusConfig,
    tokenizer: TokenizerConfig,
    request: dict[str, Any],
    report: OnProgress,
) -> None:
    # The lock is held: whatever an earlier builder of this folder left behind is nobody's.
    for leftover in folder.parent.glob(f"{folder.name}.building-*"):
        shutil.rmtree(leftover)
    temporary = folder.with_name(f"{folder.name}.building-{uuid.uuid4().hex[:8]}")
    temporary.mkdir()
    try:
        built = build(
            temporary,
            source=source,
            corpus=corpus,
            tokenizer=tokenizer,
            train_tokens=request["limits"]["train"],
            held_out_tokens=request["limits"]["held_out"],
            on_progress=report,
        )
        sidecar = {"schema": SCHEMA, "request": request, **built, "files": _file_table(temporary)}
        sidecar["fingerprint"] = _hash({name: sidecar["files"][name]["blake2b"] for name in sorted(sidecar["files"])})
        sidecar["sidecar"] = _hash(sidecar)
        (temporary / SIDECAR).write_text(json.dumps(sidecar, indent=1, sort_keys=True) + "\n")
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _file_table(folder: Path) -> dict[str, dict[str, Any]]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "blake2b": file_digest(path)}
        for path in paths
    }


def _is_at(folder: Path, commits: HubCommits) -> bool:
    try:
        return commits.allow(_read_sidecar(folder)["facts"])
    except CorpusError:
        return False


def _read_sidecar(folder: Path) -> dict[str, Any]:
    try:
        sidecar: dict[str, Any] = json.loads((folder / SIDECAR).read_bytes())
        stated = sidecar.pop("sidecar")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CorpusError(f"the token cache {folder} is damaged: {SIDECAR} cannot be read") from error
    if _hash(sidecar) != stated:
        raise CorpusError(f"the token cache {folder} is damaged: the content of {SIDECAR} does not match its hash")
    return sidecar


def _request(
    corpus: CorpusConfig, tokenizer: TokenizerConfig, source: CorpusSource, limits: dict[str, int]
) -> dict[str, Any]:
    """What decides the cache's content, and nothing else: neither where files lie nor which rules the audit has."""
    groups = {} if corpus.group_column is None else {"document_groups": True}
    return {
        **groups,
        **copies_identity(corpus),
        "schema": SCHEMA,
        "source": source.identity,
        "shares": None if source.bounded else [corpus.validation_share, corpus.test_share],
        "tokenizer": tokenizer_identity(tokenizer),
        "limits": {"train": 0, "held_out": 0} if source.bounded else limits,
    }


def _round_up(tokens: int, *, least: int) -> int:
    return max(least, 1 << max(0, tokens - 1).bit_length())


def _hash(content: Any) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def _silent(progress: Progress) -> None:
    del progress
