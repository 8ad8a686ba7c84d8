import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

import moe.token_build
from moe.corpus import CorpusSource, Document
from moe.errors import CorpusError
from moe.token_cache import prepare
from moe.tokenizer import TokenizerConfig, load_directory
from tests.moe.synthetic_corpora import (
    BYTES,
    files_corpus,
    prose,
    rows_with_splits,
    tokenized_rows,
    write_jsonl,
)

BPE = TokenizerConfig(vocab_size=300)


@pytest.fixture
def corpus(tmp_path):
    return files_corpus(write_jsonl(tmp_path / "rows.jsonl", rows_with_splits()))


def prepared(corpus, folder: Path, tokenizer=BYTES, **settings):
    said = []
    tokens = prepare(corpus, tokenizer, cache_dir=folder, train_tokens_needed=1, on_progress=said.append, **settings)
    return tokens, said


def messages(said):
    return [progress.message for progress in said if progress.message is not None]


def test_every_document_comes_back_from_its_tokens(tmp_path):
    rows = rows_with_splits()
    tokens = tokenized_rows(tmp_path, rows, BPE)
    tokenizer = load_directory(tokens.tokenizer_dir)
    for split, file in tokens.splits.items():
        texts = [row["text"] for row in rows if row["split"] == split]
        assert file.n_documents == len(texts)
        ends = np.append(file.document_starts[1:], file.n_tokens)
        for text, start, end in zip(texts, file.document_starts, ends, strict=True):
            assert tokenizer.decode(file.tokens[start : end - 1]) == text
            assert file.tokens[end - 1] == tokens.separator_id
        assert file.bytes_total == sum(len(text.encode()) for text in texts)


def test_a_second_call_builds_nothing(corpus, tmp_path):
    first, said = prepared(corpus, tmp_path / "cache")
    assert {progress.stage for progress in said} >= {"read", "tokenize"}
    second, said = prepared(corpus, tmp_path / "cache")
    assert said == []
    assert second.fingerprint == first.fingerprint


BUILD = """
import sys
from pathlib import Path
from moe.corpus import CorpusConfig
from moe.tokenizer import TokenizerConfig
from moe.token_cache import prepare
stages = []
corpus = CorpusConfig(kind="files", paths=(sys.argv[1],), validation_share=0.2, test_share=0.2)
tokens = prepare(corpus, TokenizerConfig(vocab_size=300),
    cache_dir=Path(sys.argv[2]), train_tokens_needed=1, on_progress=lambda progress: stages.append(progress.stage))
print("built" if "tokenize" in stages else "found", tokens.fingerprint, tokens.corpus_fingerprint,
    tokens.tokenizer_fingerprint)
"""


def write_texts(folder: Path):
    """Text files, which are read without the seconds that importing `datasets` takes."""
    folder.mkdir(parents=True)
    for number in range(20):
        (folder / f"{number}.txt").write_text(prose(300, number))
    return folder


def start_build(texts: Path, cache: Path, *, threads: str = "1"):
    environment = {**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", BUILD, str(texts), str(cache)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def answer(process):
    out, _ = process.communicate()
    assert process.returncode == 0
    return out.split()


def test_one_process_builds_while_the_others_wait(tmp_path):
    texts = write_texts(tmp_path / "texts")
    answers = [answer(process) for process in [start_build(texts, tmp_path / "cache") for _ in range(3)]]
    assert sorted(said[0] for said in answers) == ["built", "found", "found"]
    assert len({said[1] for said in answers}) == 1


def test_a_process_that_waits_says_so(corpus, tmp_path):
    folder = prepared(corpus, tmp_path / "cache")[0].folder
    shutil.rmtree(folder)
    said, waits = [], threading.Event()

    def listen(progress):
        said.append(progress.stage)
        if progress.stage.startswith("wait"):
            waits.set()

    with FileLock(tmp_path / "cache" / "locks" / f"{folder.name}.lock"):
        arguments = {"cache_dir": tmp_path / "cache", "train_tokens_needed": 1, "on_progress": listen}
        waiting = threading.Thread(target=prepare, args=(corpus, BYTES), kwargs=arguments)
        waiting.start()
        assert waits.wait(20)
        assert said == ["wait for another process that builds it"]
        assert not folder.exists()
    waiting.join(20)
    assert folder.is_dir()


def test_clean_folders_and_other_thread_counts_have_equal_fingerprints(tmp_path):
    machines = []
    for machine, threads in (("one", "1"), ("two", "4")):
        texts = write_texts(tmp_path / machine / "texts")
        machines.append(start_build(texts, tmp_path / machine / "cache", threads=threads))
    one, two = [answer(machine) for machine in machines]
    assert one == two
    assert one[0] == "built"


def changed_byte(path: Path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_short(path: Path):
    path.write_bytes(path.read_bytes()[:-3])


def an_empty_list(path: Path):
    path.write_text("[]")


@pytest.mark.faults
@pytest.mark.parametrize(
    "damage",
    [changed_byte, cut_short, an_empty_list, Path.unlink],
    ids=["changed", "cut short", "replaced", "missing"],
)
@pytest.mark.parametrize(
    "name",
    ["train.tokens", "test.tokens", "validation.document_starts.npy", "tokenizer/tokenizer.json", "sidecar.json"],
)
def test_a_damaged_cache_is_found_and_built_again_with_a_message(corpus, tmp_path, name, damage):
    before, _ = prepared(corpus, tmp_path / "cache")
    damage(before.folder / name)
    after, said = prepared(corpus, tmp_path / "cache")
    assert len(messages(said)) == 1
    assert f"the token cache {before.folder} is damaged: " in messages(said)[0]
    assert name in messages(said)[0]
    assert messages(said)[0].endswith("building it again")
    assert after.fingerprint == before.fingerprint
    assert prepared(corpus, tmp_path / "cache")[1] == []


@pytest.mark.faults
def test_a_build_that_fails_leaves_nothing_that_looks_finished(corpus, tmp_path, monkeypatch):
    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(moe.token_build._Writer, "_write", full_disk)
        with pytest.raises(OSError, match="No space left"):
            prepared(corpus, tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["locks"]
    tokens, _ = prepared(corpus, tmp_path / "cache")
    assert tokens.splits["train"].n_documents == 12


@pytest.mark.faults
def test_what_a_killed_builder_left_is_cleared_away(corpus, tmp_path):
    folder = prepared(corpus, tmp_path / "cache")[0].folder
    leftover = folder.with_name(f"{folder.name}.building-dead")
    folder.rename(leftover)
    tokens, said = prepared(corpus, tmp_path / "cache")
    assert tokens.folder == folder
    assert "tokenize" in {progress.stage for progress in said}
    assert not leftover.exists()


def test_a_changed_character_changes_the_fingerprint_of_the_corpus_alone(tmp_path):
    rows = rows_with_splits()
    before = tokenized_rows(tmp_path, rows)
    rows[0]["text"] += "!"
    after = tokenized_rows(tmp_path, rows)
    assert after.corpus_fingerprint != before.corpus_fingerprint
    assert after.tokenizer_fingerprint == before.tokenizer_fingerprint


def test_limits_of_the_audit_do_not_ask_for_another_cache(corpus, tmp_path):
    first, _ = prepared(corpus, tmp_path / "cache")
    other, said = prepared(replace(corpus, max_overlap_share=0.5, max_epochs=9.0), tmp_path / "cache")
    assert said == []
    assert other.folder == first.folder


def test_a_large_vocabulary_takes_wider_numbers(tmp_path, monkeypatch):
    made = moe.token_build.make_tokenizer
    monkeypatch.setattr(
        moe.token_build, "make_tokenizer", lambda *arguments: replace(made(*arguments), vocab_size=70_000)
    )
    tokens = tokenized_rows(tmp_path, rows_with_splits())
    assert tokens.splits["train"].tokens.dtype == np.uint32


def test_a_pickled_token_file_is_a_path_and_not_a_copy(corpus, tmp_path):
    file = prepared(corpus, tmp_path / "cache")[0].splits["train"]
    content = pickle.dumps(file)
    assert len(content) < 1000
    assert np.array_equal(pickle.loads(content).tokens, file.tokens)


OPEN = """
import sys
from pathlib import Path
from moe.token_file import TokenFile
print(ascii(TokenFile.open(Path(sys.argv[1]), "train", dtype="uint16").document_names[0]))
"""


def test_names_are_read_as_they_were_written_whatever_the_locale(tmp_path):
    rows = rows_with_splits()
    rows[0]["id"] = "na\u00efve"
    folder = tokenized_rows(tmp_path, rows).folder
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", OPEN, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "'rows.jsonl row 0 (na\\xefve)'\n"


def test_the_sidecar_names_no_place_and_no_time(corpus, tmp_path):
    tokens, _ = prepared(corpus, tmp_path / "cache")
    sidecar = (tokens.folder / "sidecar.json").read_text()
    assert str(tmp_path) not in sidecar
    assert json.loads(sidecar)["facts"]["documents"] == {"train": 12, "validation": 3, "test": 3}


def stream(monkeypatch, *, n_documents: int):
    """A corpus of ``n_documents`` that counts how many were asked for."""
    taken = []

    def documents():
        for number in range(n_documents):
            taken.append(number)
            yield Document(name=f"d{number}", text=prose(120, number))

    source = CorpusSource(
        identity={"stream": n_documents}, description="a stream", documents=documents, total_bytes=None
    )
    monkeypatch.setattr("moe.token_cache.open_corpus", lambda config: source)
    return taken


def test_a_stream_is_left_when_every_split_has_its_tokens(corpus, tmp_path, monkeypatch):
    taken = stream(monkeypatch, n_documents=100_000)
    monkeypatch.setattr("moe.token_cache.MIN_TOKENS_READ", 2**17)
    monkeypatch.setattr("moe.token_build.BATCH_BYTES", 2**14)
    tokens, _ = prepared(corpus, tmp_path / "cache", held_out_tokens_needed=2**13)
    assert len(taken) < 2000
    assert tokens.splits["train"].n_tokens >= 2**17
    for split in ("validation", "test"):
        # Enough tokens are there much sooner: more documents are read for the sake of the exam's variety.
        assert tokens.splits[split].n_documents >= 64
        assert tokens.splits[split].n_tokens >= 2**13
    assert tokens.facts["read_to_its_end"] is False


def test_a_larger_budget_keeps_every_document_in_its_split(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("moe.token_build.BATCH_BYTES", 2**14)
    found = {}
    for power in (17, 18):
        stream(monkeypatch, n_documents=100_000)
        monkeypatch.setattr("moe.token_cache.MIN_TOKENS_READ", 2**power)
        tokens, _ = prepared(corpus, tmp_path / str(power))
        found[power] = {split: list(file.document_names) for split, file in tokens.splits.items()}
    for split, names in found[17].items():
        assert found[18][split][: len(names)] == names


def test_a_split_without_documents_is_refused(tmp_path):
    with pytest.raises(CorpusError) as error:
        tokenized_rows(tmp_path, rows_with_splits(validation=0, test=0))
    assert "has 12 documents and none for validation and test" in str(error.value)


def test_the_text_that_a_bpe_learns_from_is_bounded(corpus, tmp_path, monkeypatch):
    stream(monkeypatch, n_documents=400)
    monkeypatch.setattr("moe.token_build.BPE_TRAINING_BYTES", 2**14)
    learned = []
    made = moe.token_build.make_tokenizer

    def listen(config, texts):
        texts = list(texts)
        learned.extend(texts)
        return made(config, texts)

    monkeypatch.setattr(moe.token_build, "make_tokenizer", listen)
    tokens, _ = prepared(corpus, tmp_path / "cache", BPE)
    assert 2**14 <= sum(map(len, learned)) < 2**15
    assert sum(file.n_documents for file in tokens.splits.values()) == 400


def test_groups_of_test_documents_are_kept_where_the_corpus_names_their_column(tmp_path):
    rows = [{**row, "author": f"author of {row['id']}"} for row in rows_with_splits()]
    test = tokenized_rows(tmp_path, rows, group_column="author").splits["test"]
    assert {test.document_groups[name] for name in test.document_names} == {f"author of test-{i}" for i in (15, 16, 17)}
    (tmp_path / "plain").mkdir()
    assert tokenized_rows(tmp_path / "plain", rows).splits["test"].document_groups == {}
