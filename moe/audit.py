"""Is the corpus fit for the question, and does nothing of the exam stand in the training text?

Every finding has a rule, a value, a threshold and a level: ``ok``, ``warn`` (a caveat that the report repeats) or
``refuse`` (no sweep begins).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from moe.config import BatchConfig
from moe.corpus import CorpusConfig, SplitName
from moe.exam import MIN_SINGLE_DOCUMENT_SHARE, MIN_SINGLE_DOCUMENTS, Exam, ExamRows
from moe.near_duplicates import SHINGLE_TOKENS, near_duplicates
from moe.run_overlap import RunIndex, common_runs
from moe.token_cache import TokenizedCorpus
from moe.token_file import TokenFile

Level = Literal["ok", "warn", "refuse"]
OVERLAP_RUN_TOKENS = 64
# Run lengths mean tokens of a trained vocabulary, three bytes and more each; single bytes need four times as many to
# say the same.
SINGLE_BYTES_FACTOR = 4
SINGLE_BYTES_BELOW = 1.5  # bytes per token
# A quarter of what is refused is worth a caveat.
OVERLAP_WARN_FRACTION = 0.25
# Two documents that share a fifth of their 16-token shingles have a source in common; at half they are one text.
NEAR_DUPLICATE_WARN = 0.2
NEAR_DUPLICATE_REFUSE = 0.5
SHARED_TEXT_LIST = "shared_text.tsv"
# Beyond this share of straddling windows an arm is rather trained on joined documents than on long ones.
STRADDLE_WARN = 0.5


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One measured value against its rule. ``subject`` is a split, a pair of splits or an arm.

    ``message`` says what was found, ``remedy`` what can be done about it (empty where nothing need be).
    """

    rule: str
    subject: str
    value: float
    threshold: float
    level: Level
    message: str
    remedy: str


class SharedText(NamedTuple):
    """A held-out document and one of another split that has too much of its text."""

    document: str
    split: str
    also_in: str
    other_split: str
    amount: str


@dataclass(frozen=True, kw_only=True)
class Audit:
    """All findings, in a fixed order; ``shared`` lists every document that breaks a rule about common text."""

    findings: tuple[Finding, ...]
    shared: tuple[SharedText, ...] = ()

    @property
    def refusals(self) -> tuple[Finding, ...]:
        """Findings that forbid the sweep."""
        return tuple(finding for finding in self.findings if finding.level == "refuse")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """Findings that the report repeats as caveats."""
        return tuple(finding for finding in self.findings if finding.level == "warn")

    def as_dict(self) -> dict[str, Any]:
        """Plain dict, for ``sweep.json``: every finding."""
        return {"findings": [asdict(finding) for finding in self.findings]}

    def write_list(self, folder: Path) -> None:
        """Write ``shared`` to the file that remedies name (``SHARED_TEXT_LIST``)."""
        rows = [SharedText._fields, *self.shared]
        text = "".join("\t".join(" ".join(value.split()) for value in row) + "\n" for row in rows)
        unfinished = folder / f"{SHARED_TEXT_LIST}.{os.getpid()}"
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(folder / SHARED_TEXT_LIST)


def audit(tokenized: TokenizedCorpus, exam: Exam, *, arms: Mapping[str, BatchConfig], budget_tokens: int) -> Audit:
    """Measures leak and fitness for ``arms`` (by name) at ``budget_tokens``; under a second per million tokens."""
    config, splits = tokenized.corpus, tokenized.splits
    factor = SINGLE_BYTES_FACTOR if tokenized.bytes_per_token < SINGLE_BYTES_BELOW else 1
    run_len, limit = factor * OVERLAP_RUN_TOKENS, factor * config.max_common_run_tokens
    separate = _separate(tokenized)
    findings = [
        _overlap(rows, splits["train"], run_len=run_len, limit=config.max_overlap_share, remedy=separate)
        for rows in (exam.validation, exam.test)
    ]
    shared: list[SharedText] = []
    pairs: tuple[tuple[SplitName, SplitName], ...] = (
        ("validation", "train"),
        ("test", "train"),
        ("test", "validation"),
    )
    for held_out, other in pairs:
        common = _common_run(splits[held_out], splits[other], run_len=run_len, limit=limit, remedy=separate)
        near = _near_duplicate(splits[held_out], splits[other], shingle_tokens=factor * SHINGLE_TOKENS, remedy=separate)
        findings += [common[0], near[0]]
        shared += [*common[1], *near[1]]
    findings.append(_packing(exam))
    for name, arm in arms.items():
        findings.append(_straddling(name, arm, splits["train"], exam.block_len))
        findings.append(_lengths(name, arm, tokenized))
    findings.append(_epochs(splits["train"], exam.block_len, budget_tokens, config))
    return Audit(findings=tuple(findings), shared=tuple(shared))


def _separate(tokenized: TokenizedCorpus) -> str:
    """What can be done about text that stands in two splits."""
    config = tokenized.corpus
    remedy = f"remove one of each pair (full list: {tokenized.folder / SHARED_TEXT_LIST})"
    if config.kind != "files":
        return f"{remedy}, or keep related documents in one split with corpus.group_column"
    if config.duplicates == "refuse":
        return f"{remedy}, keep them in one split (--set corpus.duplicates=group), or keep one of them (=drop)"
    return f"{remedy}, or let no column split them (--set corpus.split_column=none)" if config.split_column else remedy


def _level(value: float, *, warn: float, refuse: float) -> Level:
    return "refuse" if value > refuse else "warn" if value > warn else "ok"


def _finding(
    rule: str, subject: str, value: float, threshold: float, level: Level, message: str, *, remedy: str
) -> Finding:
    return Finding(
        rule=rule,
        subject=subject,
        value=value,
        threshold=threshold,
        level=level,
        message=message,
        remedy="" if level == "ok" else remedy,
    )


def _overlap(rows: ExamRows, train: TokenFile, *, run_len: int, limit: float, remedy: str) -> Finding:
    inside_a_row = np.zeros(rows.tokens_RS.shape, dtype=np.bool_)
    inside_a_row[:, : max(0, rows.block_len + 2 - run_len)] = True
    # The same ids hash the same whatever their dtype.
    tokens = rows.tokens_RS.ravel().astype(np.uint32)
    index = RunIndex(tokens, run_len=run_len, usable=inside_a_row.ravel())
    found, _ = index.found_in(train.tokens)
    share = float(found.sum() / max(1, index.n_runs))
    message = f"{share:.2%} of the {run_len}-token runs of the {rows.split} exam stand in train"
    if share:
        worst = rows.document_names[int(np.bincount(rows.documents_RS.ravel()[found]).argmax())]
        message += f", most of them in {worst}"
    level = _level(share, warn=limit * OVERLAP_WARN_FRACTION, refuse=limit)
    message += f" (limit {limit:.2%})"
    return _finding("overlap_share", rows.split, share, limit, level, message, remedy=remedy)


def _common_run(
    held_out: TokenFile, other: TokenFile, *, run_len: int, limit: int, remedy: str
) -> tuple[Finding, list[SharedText]]:
    runs = common_runs(held_out, other, at_least=run_len)
    # Together these runs cover all that is shared, but each may be understated: one that is too long is asked for.
    too_long = common_runs(held_out, other, at_least=limit) if sum(run.length for run in runs) >= limit else []
    shared: dict[str, SharedText] = {}
    for run in [*too_long, *runs][: max(1, len(too_long))]:
        # A run may begin with the separator of the document before: its middle says whose it is.
        name = _name_at(held_out, run.start + run.length // 2)
        also_in = _name_at(other, run.other_start + run.length // 2)
        found = SharedText(name, held_out.split, also_in, other.split, f"{run.length:,} tokens in a row")
        shared.setdefault(name, found)
    length = max((run.length for run in (*too_long, *runs)), default=0)
    message = f"no run of {run_len} tokens stands in both {held_out.split} and {other.split}"
    if shared:
        worst = next(iter(shared.values()))
        shares = f"{other.split} and {held_out.split} share {'copied ' if too_long else ''}text"
        message = f"{shares}: {length:,} tokens of {worst.document} also stand in {worst.also_in} (limit {limit})"
        message += f", and {len(shared) - 1} more documents share too much" if len(shared) > 1 else ""
    finding = _finding(
        "common_run_tokens",
        f"{held_out.split}/{other.split}",
        length,
        limit,
        "refuse" if too_long else "ok",
        message,
        remedy=f"{remedy}, or accept shared boilerplate of that length with corpus.max_common_run_tokens",
    )
    return finding, list(shared.values()) if too_long else []


def _name_at(file: TokenFile, position: int) -> str:
    return file.document_names[int(file.documents_of(np.asarray(position)))]


def _near_duplicate(
    held_out: TokenFile, other: TokenFile, *, shingle_tokens: int, remedy: str
) -> tuple[Finding, list[SharedText]]:
    pairs = near_duplicates(held_out, other, shingle_tokens=shingle_tokens)
    value = pairs[0].containment if pairs else 0.0
    level = _level(value, warn=NEAR_DUPLICATE_WARN, refuse=NEAR_DUPLICATE_REFUSE)
    message = f"no document of {held_out.split} shares text with one of {other.split}"
    if pairs:
        close = sum(pair.containment > NEAR_DUPLICATE_WARN for pair in pairs)
        more = f" (and {close - 1} more are close to one)" if close > 1 else ""
        message = (
            f"{pairs[0].name} of {held_out.split} has {value:.1%} of its text in {pairs[0].other_name} of "
            f"{other.split}{more}; above {NEAR_DUPLICATE_REFUSE:.0%} is refused"
        )
    subject = f"{held_out.split}/{other.split}"
    shared = [
        SharedText(pair.name, held_out.split, pair.other_name, other.split, f"{pair.containment:.0%} of its text")
        for pair in pairs
        if pair.containment > NEAR_DUPLICATE_REFUSE
    ]
    return _finding("near_duplicate", subject, value, NEAR_DUPLICATE_REFUSE, level, message, remedy=remedy), shared


def _packing(exam: Exam) -> Finding:
    long = f"{exam.single_documents} test documents exceed {exam.block_len} tokens"
    message = f"every row of the exam is of one document: {long}"
    if exam.packed and exam.single_documents < MIN_SINGLE_DOCUMENTS:
        needed = f"{MIN_SINGLE_DOCUMENTS} are needed for one document per row"
        message = f"exam rows join several documents: only {long}, and {needed}"
    elif exam.packed:
        message = (
            f"exam rows join several documents: {long} and hold {exam.single_document_share:.0%} of the test tokens; "
            f"{MIN_SINGLE_DOCUMENT_SHARE:.0%} of these and of the validation tokens are needed for one document per row"
        )
    level: Level = "warn" if exam.packed else "ok"
    remedy = "hold more and longer documents out, or choose a shorter longest seq_len"
    return _finding("exam_rows", "test", exam.single_documents, MIN_SINGLE_DOCUMENTS, level, message, remedy=remedy)


def straddling_share(train: TokenFile, *, block_len: int, seq_len: int) -> float:
    """Share of all windows of ``seq_len`` that hold tokens of more than one document; 0 where there is no window."""
    blocks = np.arange(train.n_tokens // (block_len + 1), dtype=np.int64) * (block_len + 1)
    if not blocks.size:
        return 0.0
    starts = (blocks[:, None] + np.arange(0, block_len, seq_len)).ravel()
    return float(np.mean(train.documents_of(starts) != train.documents_of(starts + seq_len)))


def _straddling(name: str, arm: BatchConfig, train: TokenFile, block_len: int) -> Finding:
    share = straddling_share(train, block_len=block_len, seq_len=arm.seq_len)
    level: Level = "warn" if share > STRADDLE_WARN else "ok"
    message = f"{share:.1%} of the windows of {name} ({arm.seq_len} tokens) hold more than one document"
    remedy = "choose a corpus of longer documents or a shorter seq_len"
    return _finding("straddling_windows", name, share, STRADDLE_WARN, level, message, remedy=remedy)


def _lengths(name: str, arm: BatchConfig, tokenized: TokenizedCorpus) -> Finding:
    median = float(np.median(tokenized.splits["train"].document_lengths))
    longest = tokenized.longest_document_tokens
    level: Level = "warn" if median < arm.seq_len else "ok"
    message = (
        f"{name} has seq_len {arm.seq_len}; train documents have a median of {median:.0f} tokens, the longest of all "
        f"has {longest}"
    )
    if arm.seq_len > longest:
        level = "warn" if tokenized.corpus.allow_straddling else "refuse"
        message = f"seq_len={arm.seq_len} of {name} exceeds the longest document ({longest} tokens)"
    remedy = f"choose seq_len <= {longest} or a corpus of longer documents"
    return _finding("document_tokens", name, median, arm.seq_len, level, message, remedy=remedy)


def most_budget_tokens(tokenized: TokenizedCorpus, block_len: int) -> int:
    """The largest budget in tokens that the audit accepts: ``max_epochs`` of the train split."""
    return int(tokenized.corpus.max_epochs * _targets(tokenized.splits["train"], block_len))


def _targets(train: TokenFile, block_len: int) -> int:
    return train.n_tokens // (block_len + 1) * block_len


def _epochs(train: TokenFile, block_len: int, budget_tokens: int, config: CorpusConfig) -> Finding:
    targets = _targets(train, block_len)
    epochs = budget_tokens / max(1, targets)
    level = _level(epochs, warn=1.0, refuse=config.max_epochs)
    message = (
        f"the budget of {budget_tokens} tokens goes through the {targets} targets of train {epochs:.2f} times "
        f"(limit {config.max_epochs:g})"
    )
    most = targets if level == "warn" else int(config.max_epochs * targets)
    shorter = f"a budget <= {most} tokens" if targets else f"a longest seq_len < {train.n_tokens} tokens"
    remedy = f"choose {shorter} or a larger corpus"
    return _finding("epochs", "train", epochs, config.max_epochs, level, message, remedy=remedy)
