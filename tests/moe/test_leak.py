"""Nothing of the exam stands in the training text: planted leaks are found, named and refused."""

import random

import numpy as np
import pytest

import moe.near_duplicates as near_duplicates_module
from moe.audit import audit
from moe.config import BatchConfig
from moe.corpus import CorpusConfig
from moe.exam import build_exam
from moe.near_duplicates import near_duplicates
from moe.run_overlap import RunIndex, common_runs, run_hashes
from moe.token_cache import prepare
from moe.tokenizer import TokenizerConfig
from tests.moe.synthetic_corpora import prose, rows_with_splits, token_file, tokenized_rows

BPE = TokenizerConfig(vocab_size=400)
ARMS = {"short": BatchConfig(micro_batch_size=4, seq_len=32), "long": BatchConfig(micro_batch_size=1, seq_len=128)}


def audited(folder, rows, tokenizer=BPE, **settings):
    tokens = tokenized_rows(folder, rows, tokenizer, **settings)
    exam = build_exam(tokens, block_len=128, common_len=32, rows_validation=4, rows_test=4)
    return audit(tokens, exam, arms=ARMS, budget_tokens=1024)


def found(result, rule, subject):
    (finding,) = [finding for finding in result.findings if (finding.rule, finding.subject) == (rule, subject)]
    return finding


@pytest.fixture
def rows():
    return rows_with_splits(train=20, validation=5, test=5)


def of_split(rows, split, number=0):
    return [row for row in rows if row["split"] == split][number]


def test_a_clean_corpus_passes(rows, tmp_path):
    result = audited(tmp_path, rows)
    assert result.refusals == ()
    assert found(result, "overlap_share", "test").value == 0.0
    assert found(result, "common_run_tokens", "test/train").value == 0


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_held_out_document_repeated_in_train_is_refused_and_named(rows, tmp_path, split):
    planted = of_split(rows, split, 2)
    rows.append({"id": "the copy", "split": "train", "text": planted["text"]})
    result = audited(tmp_path, rows)
    for rule in ("common_run_tokens", "near_duplicate"):
        finding = found(result, rule, f"{split}/train")
        assert finding.level == "refuse"
        assert f"({planted['id']})" in finding.message
        assert "(the copy)" in finding.message
        assert finding.remedy.startswith(f"remove one of each pair (full list: {tmp_path / 'cache'}")
        assert "--set corpus.duplicates=group" in finding.remedy
    assert found(result, "near_duplicate", f"{split}/train").value == 1.0


@pytest.mark.parametrize("split", ["validation", "test"])
def test_two_hundred_tokens_of_a_held_out_document_in_train_are_refused_and_named(rows, tmp_path, split):
    planted, host = of_split(rows, split, 3), of_split(rows, "train", 7)
    tokens = tokenized_rows(tmp_path, rows, BPE)
    file = tokens.splits[split]
    start = int(file.document_starts[3]) + 100
    from moe.tokenizer import load_directory

    passage = load_directory(tokens.tokenizer_dir).decode(file.tokens[start : start + 200])
    host["text"] = host["text"][:500] + passage + host["text"][500:]
    (tmp_path / "planted").mkdir()
    finding = found(audited(tmp_path / "planted", rows), "common_run_tokens", f"{split}/train")
    assert finding.level == "refuse"
    # The tokens at either end of the passage may be cut otherwise in their new place.
    assert 190 <= finding.value <= 210
    assert f"({planted['id']})" in finding.message
    assert f"({host['id']})" in finding.message


def test_a_held_out_document_rewritten_word_by_word_is_a_near_duplicate(rows, tmp_path):
    planted = of_split(rows, "test", 1)
    words = planted["text"].split(" ")
    rng = random.Random(0)
    for place in range(0, len(words), 40):
        words[place] = "changed" + str(rng.randrange(1000))
    rows.append({"id": "the rewriting", "split": "train", "text": " ".join(words)})
    result = audited(tmp_path, rows)
    finding = found(result, "near_duplicate", "test/train")
    assert finding.level == "refuse"
    assert finding.message.startswith(f"rows.jsonl row 26 ({planted['id']}) of test has ")
    assert "(the rewriting) of train" in finding.message


def test_every_document_with_a_run_too_long_is_named(rows, tmp_path):
    planted = [of_split(rows, "test", number) for number in (0, 2, 4)]
    for number, row in enumerate(planted):
        of_split(rows, "train", number)["text"] += " " + row["text"]
    result = audited(tmp_path, rows)
    message = found(result, "common_run_tokens", "test/train").message
    assert message.startswith("train and test share copied text: ")
    assert message.endswith("(limit 128), and 2 more documents share too much")
    result.write_list(tmp_path)
    lines = (tmp_path / "shared_text.tsv").read_text().splitlines()
    assert lines[0] == "document\tsplit\talso_in\tother_split\tamount"
    for number, row in enumerate(planted):
        pairs = [line for line in lines if f"({row['id']})" in line]
        assert len(pairs) == 2  # a run of tokens, and all of its text
        assert all(f"(train-{number})\ttrain\t" in line for line in pairs)
    assert len(lines) == 7


def test_documents_of_the_two_held_out_splits_are_compared_too(rows, tmp_path):
    rows.append({"id": "twice", "split": "test", "text": of_split(rows, "validation", 1)["text"]})
    assert found(audited(tmp_path, rows), "near_duplicate", "test/validation").level == "refuse"


def test_a_common_run_below_the_limit_is_shown_and_passes(rows, tmp_path):
    text = of_split(rows, "test")["text"]
    of_split(rows, "train")["text"] += " " + " ".join(text.split(" ")[10:70])
    finding = found(audited(tmp_path, rows), "common_run_tokens", "test/train")
    assert finding.level == "ok"
    assert 64 <= finding.value < 128


def test_runs_of_single_bytes_are_measured_four_times_as_long(rows, tmp_path):
    text = of_split(rows, "test")["text"]
    of_split(rows, "train")["text"] += " " + " ".join(text.split(" ")[10:50])
    finding = found(audited(tmp_path, rows, TokenizerConfig(kind="bytes")), "common_run_tokens", "test/train")
    assert finding.threshold == 512
    assert finding.level == "ok"


def test_without_a_split_column_a_repeated_document_never_stands_in_two_splits(rows, tmp_path):
    for row in rows:
        del row["split"]
    copies = [{"id": f"copy-{row['id']}", "text": row["text"]} for row in rows]
    result = audited(tmp_path, rows + copies, validation_share=0.25, test_share=0.25)
    assert result.refusals == ()


LICENCE = prose(120, 4_321)  # above 128 tokens


@pytest.fixture(scope="module")
def found_texts(tmp_path_factory):
    """A folder as people have it: every third file begins with one licence, others are copies of each other."""
    folder = tmp_path_factory.mktemp("found") / "texts"
    for i in range(90):
        text = prose(150, i)
        if i % 3 == 0:
            text = f"{LICENCE} {text}"
        if i % 10 == 9:
            text = prose(150, i - 4) + " and a few more words"
        (folder / f"part{i % 4}").mkdir(parents=True, exist_ok=True)
        (folder / f"part{i % 4}" / f"{i}.rst").write_text(text)
    (folder / "picture.png").write_bytes(b"\x89PNG")
    return folder


@pytest.mark.parametrize("duplicates", ["refuse", "group", "drop"])
def test_found_text_that_is_refused_passes_when_copies_are_grouped_or_dropped(found_texts, duplicates):
    shares = {"validation_share": 0.1, "test_share": 0.1}
    corpus = CorpusConfig(kind="files", paths=(str(found_texts),), duplicates=duplicates, **shares)
    tokens = prepare(corpus, BPE, cache_dir=found_texts.parent / "cache", train_tokens_needed=1)
    exam = build_exam(tokens, block_len=128, common_len=32, rows_validation=4, rows_test=4)
    result = audit(tokens, exam, arms=ARMS, budget_tokens=1024)
    assert bool(result.refusals) == (duplicates == "refuse")
    assert bool(result.shared) == (duplicates == "refuse")
    names = {split: set(file.document_names) for split, file in tokens.splits.items()}
    listed = tokens.folder / "copied_text.tsv"
    assert listed.exists() == (duplicates != "refuse")
    [left_out, *copied] = tokens.notes
    assert left_out.startswith("1 file is no text (UTF-8 without NUL) and left out (full list: ")
    if duplicates == "group":
        assert copied == [f"documents that share text: 42 kept in train (full list: {listed})"]
        assert sum(map(len, names.values())) == 90
        assert len(listed.read_text().splitlines()) == 43
    if duplicates == "drop":
        assert copied[0].startswith("documents that share text: 9 dropped, 26 cut")
        assert sum(map(len, names.values())) == 81
    for split in ("validation", "test"):
        # Of the text that may be held out, as much as was asked for of all text.
        share = tokens.splits[split].n_tokens / sum(file.n_tokens for file in tokens.splits.values())
        assert share == pytest.approx(0.1, abs=0.05)


def test_files_of_one_folder_stand_in_one_split(tmp_path):
    for i in range(60):
        (tmp_path / "texts" / f"{i % 12}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / f"{i % 12}" / f"{i}.py").write_text(prose(100, i))
    corpus = CorpusConfig(kind="files", paths=(str(tmp_path / "texts"),), group_column="folder")
    tokens = prepare(corpus, BPE, cache_dir=tmp_path / "cache", train_tokens_needed=1)
    folders = {split: {name.split("/")[0] for name in file.document_names} for split, file in tokens.splits.items()}
    assert sum(map(len, folders.values())) == 12
    assert set(tokens.splits["test"].document_groups.values()) == folders["test"]


def test_what_thousands_of_documents_share_is_not_compared_in_pairs(monkeypatch):
    """300 documents against 600, all with one header: 180,000 pairs for each of its shingles."""
    header = np.random.default_rng(9).integers(0, 50_000, 100)
    file, other = token_file([300] * 300, seed=1), token_file([300] * 600, seed=2)
    for tokens in (file.tokens, other.tokens):
        tokens.reshape(-1, 300)[:, 50:150] = header
    # One document of either is a copy of the other but for some words.
    file.tokens[300 * 7 : 300 * 8] = other.tokens[300 * 500 : 300 * 501]
    file.tokens[300 * 7 + 40 :: 60][:4] = 1
    monkeypatch.setattr("moe.near_duplicates.MOST_DOCUMENTS_OF_A_SHINGLE", 8)
    counted = []
    count = near_duplicates_module._shared_shingles

    def listen(*arguments):
        shared = count(*arguments)
        counted.append(sum(shared.values()))
        return shared

    monkeypatch.setattr("moe.near_duplicates._shared_shingles", listen)
    closest = near_duplicates(file, other)[0]
    assert (closest.name, closest.other_name) == ("train-7", "train-500")
    assert sum(counted) < 50_000


def brute_force_runs(tokens, other, run_len):
    runs = {tuple(other[start : start + run_len]) for start in range(other.size - run_len + 1)}
    return [tuple(tokens[start : start + run_len]) in runs for start in range(tokens.size - run_len + 1)]


@pytest.mark.parametrize("run_len", [2, 3, 4, 7, 8])
@pytest.mark.parametrize("chunk", [2**22, 50])
def test_common_runs_are_those_that_comparing_every_pair_finds(monkeypatch, run_len, chunk):
    monkeypatch.setattr("moe.run_overlap._CHUNK_TOKENS", chunk)
    # Three different tokens, so that runs repeat often.
    tokens, other = (np.random.default_rng(seed).integers(0, 3, 400).astype(np.uint16) for seed in (0, 1))
    got, where = RunIndex(tokens, run_len=run_len).found_in(other)
    expected = brute_force_runs(tokens, other, run_len)
    assert got[: len(expected)].tolist() == expected
    assert not got[len(expected) :].any()
    for start in np.flatnonzero(got):
        assert np.array_equal(tokens[start : start + run_len], other[where[start] : where[start] + run_len])


def test_equal_runs_hash_equally_and_different_ones_differ_whatever_their_place_and_width():
    tokens = np.random.default_rng(0).integers(0, 2000, 20_000)
    hashes = run_hashes(tokens.astype(np.uint16), 64)
    assert np.array_equal(hashes[500:600], run_hashes(tokens[500:663].astype(np.uint32), 64))
    assert np.unique(hashes).size == hashes.size
    assert np.unique(run_hashes(np.sort(tokens).astype(np.uint16)[::-1], 2)).size > 1900


def test_a_common_run_is_measured_to_its_last_token():
    file, other = token_file([400, 400], seed=1), token_file([300, 900], seed=2)
    other.tokens[500:700] = file.tokens[150:350]
    other.tokens[50:150] = file.tokens[600:700]
    runs = common_runs(file, other, at_least=64)
    assert [(run.start, run.other_start, run.length) for run in runs] == [(150, 500, 200), (600, 50, 100)]
    assert common_runs(file, other, at_least=256) == []


def test_containment_is_the_share_of_a_document_that_another_holds():
    file, other = token_file([4000, 4000], seed=1), token_file([8000, 3000], seed=2)
    other.tokens[100:2100] = file.tokens[:2000]
    other.tokens[8500:9500] = file.tokens[2000:3000]
    pairs = near_duplicates(file, other)
    assert [(pair.name, pair.other_name) for pair in pairs] == [("train-0", "train-0")]
    # A sample of some 250 of its 500 shingles: 0.03 is two standard deviations of the share.
    assert pairs[0].containment == pytest.approx(0.5, abs=0.07)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embedded")
    return prepare(CorpusConfig(), TokenizerConfig(vocab_size=2048), cache_dir=folder, train_tokens_needed=1)


@pytest.mark.slow
def test_the_embedded_corpus_has_no_leak_and_its_exam_rows_are_of_single_documents(embedded):
    exam = build_exam(embedded, block_len=1024, common_len=64, rows_validation=24, rows_test=32)
    assert not exam.packed
    result = audit(embedded, exam, arms={}, budget_tokens=524_288)
    assert result.refusals == result.warnings == ()
    for subject in ("validation/train", "test/train", "test/validation"):
        assert found(result, "common_run_tokens", subject).value < 100
        assert found(result, "near_duplicate", subject).value < 0.05
    for split in ("validation", "test"):
        assert found(result, "overlap_share", split).value == 0.0
