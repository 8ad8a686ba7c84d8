import gzip
import json
import lzma
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moe.corpus_sources import open_corpus
from moe.errors import CorpusAway, CorpusError
from tests.moe.synthetic_corpora import files_corpus, write_jsonl

ROWS = [{"text": "first text"}, {"text": "second text"}]


@pytest.fixture(autouse=True)
def own_hub_home(tmp_path_factory, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


def read(*paths: Path, **settings):
    return list(open_corpus(files_corpus(*paths, **settings)).documents())


def texts(documents):
    return [document.text for document in documents]


def write_lines(path: Path, opener=open):
    with opener(path, "wt") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in ROWS)
    return path


def write_array(path: Path, opener=open):
    with opener(path, "wt") as stream:
        json.dump(ROWS, stream)
    return path


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.jsonl", write_lines),
        ("a.json", write_array),
        ("a.jsonl.xz", lambda path: write_lines(path, lzma.open)),
        ("a.json.xz", lambda path: write_array(path, lzma.open)),
        ("a.jsonl.gz", lambda path: write_lines(path, gzip.open)),
        ("a.parquet", lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path)),
    ],
)
def test_every_kind_of_table_gives_a_document_per_row(tmp_path, name, write):
    write(tmp_path / name)
    assert texts(read(tmp_path / name)) == ["first text", "second text"]


def test_a_text_file_is_one_document_under_its_name(tmp_path):
    (tmp_path / "b.md").write_text("# Title\n\nbody\n")
    (tmp_path / "a.txt").write_text("two\nlines\n")
    documents = read(tmp_path / "b.md", tmp_path / "a.txt")
    assert [(document.name, document.text) for document in documents] == [
        ("a.txt", "two\nlines\n"),
        ("b.md", "# Title\n\nbody\n"),
    ]


def test_a_directory_is_searched_through_for_whatever_is_text_and_the_rest_is_counted(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "a.py").write_text("deep")
    for name in ("a.rst", "b.tex", "Makefile"):
        (tmp_path / name).write_text(name)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / "deep" / "latin.txt").write_bytes(b"caf\xe9 au lait")
    (tmp_path / "nul.txt").write_bytes(b"a\0b")
    (tmp_path / "log.gz").write_bytes(gzip.compress(b"compressed text"))
    (tmp_path / "empty.jsonl").touch()
    write_lines(tmp_path / "b.jsonl")
    assert texts(read(tmp_path)) == ["Makefile", "a.rst", "first text", "second text", "b.tex", "deep"]
    left_out = ("deep/latin.txt", "log.gz", "nul.txt", "picture.png")
    assert open_corpus(files_corpus(tmp_path)).left_out == left_out
    assert open_corpus(files_corpus(tmp_path / "*.rst", tmp_path / "*.tex", tmp_path)).left_out == left_out


def test_hidden_files_and_folders_are_not_searched(tmp_path):
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("[core]")
    (tmp_path / ".hidden.txt").write_text("hidden")
    (tmp_path / "a.txt").write_text("seen")
    assert texts(read(tmp_path)) == ["seen"]
    assert texts(read(tmp_path / ".hidden.txt")) == ["hidden"]


def test_json_found_in_a_folder_is_a_table_where_its_rows_hold_text(tmp_path):
    write_array(tmp_path / "a.json")
    (tmp_path / "b.json").write_text('{"indent": 4}')
    (tmp_path / "c.json").write_text("[1, 2]")
    (tmp_path / "d.json").write_text("{{ template }}")
    (tmp_path / "e.json.gz").write_bytes(gzip.compress(b'{"indent": 4}'))
    write_lines(tmp_path / "f.json")
    rows = ["first text", "second text"]
    assert texts(read(tmp_path)) == [*rows, '{"indent": 4}', "[1, 2]", "{{ template }}", *rows]
    # A pattern that names the kind asks for tables.
    with pytest.raises(CorpusError, match=r"b\.json row 0 has no column 'text', only indent"):
        read(tmp_path / "*.json")


def test_files_are_grouped_by_their_folder(tmp_path):
    for name in ("top.txt", "a/one.py", "a/two.py", "a/b/three.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    write_jsonl(tmp_path / "a" / "rows.jsonl", [{"text": "row"}])
    write_jsonl(tmp_path / "a" / "rows2.jsonl", [{"text": "row", "folder": "its own"}])
    found = {document.name: document.group for document in read(tmp_path, group_column="folder")}
    assert found == {
        "a/b/three.py": "a/b",
        "a/one.py": "a",
        "a/rows.jsonl row 0": "a",
        "a/rows2.jsonl row 0": "its own",
        "a/two.py": "a",
        "top.txt": ".",
    }


def test_another_column_to_group_texts_by_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(CorpusError) as error:
        read(tmp_path, group_column="author")
    assert "group_column='author' names a column of tables, and every file found is one text" in str(error.value)
    assert 'write "folder"' in str(error.value)


def test_globs_match_and_a_file_matched_twice_is_read_once(tmp_path):
    for name in ("a.txt", "b.txt", "c.md"):
        (tmp_path / name).write_text(name)
    assert texts(read(tmp_path / "*.txt", tmp_path / "a.txt")) == ["a.txt", "b.txt"]
    assert texts(read(tmp_path / "**")) == ["a.txt", "b.txt", "c.md"]


def test_documents_are_named_by_file_row_and_id(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"id": "novel-7", "text": "x"}, {"text": "y"}])
    assert [document.name for document in read(tmp_path / "a.jsonl")] == ["a.jsonl row 0 (novel-7)", "a.jsonl row 1"]


def test_rows_without_text_are_left_out(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": None}, {"text": "here"}])
    assert texts(read(tmp_path / "a.jsonl")) == ["here"]


def test_a_column_named_split_is_used_when_its_words_are_splits(tmp_path):
    words = ["train", "val", "Validation", "test"]
    write_jsonl(tmp_path / "a.jsonl", [{"text": word, "split": word} for word in words])
    splits = [document.split for document in read(tmp_path / "a.jsonl")]
    assert splits == ["train", "validation", "validation", "test"]


def test_a_column_named_split_that_means_something_else_is_left_alone(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": "x", "split": "banana"}, {"text": "y", "split": "screen"}])
    assert [document.split for document in read(tmp_path / "a.jsonl")] == [None, None]


def test_a_split_column_can_be_switched_off(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": "x", "split": "test"}])
    assert read(tmp_path / "a.jsonl", split_column=None)[0].split is None


def test_a_word_that_names_no_split_is_refused_with_its_row(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": "x", "part": "train"}, {"text": "y", "part": "spare"}])
    with pytest.raises(CorpusError) as error:
        read(tmp_path / "a.jsonl", split_column="part")
    assert "a.jsonl row 1: column 'part' holds 'spare', which names no split" in str(error.value)
    assert "--set corpus.split_column=none" in str(error.value)


def test_a_group_column_is_carried(tmp_path):
    authors = ("A", "B", None)
    write_jsonl(tmp_path / "a.jsonl", [{"text": f"{author}'s", "author": author} for author in authors])
    # Nobody knows that all rows without an author have the same one.
    assert [document.group for document in read(tmp_path / "a.jsonl", group_column="author")] == ["A", "B", None]


def test_a_missing_text_column_names_the_columns_that_are_there(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"body": "x", "title": "t"}])
    with pytest.raises(CorpusError) as error:
        read(tmp_path / "a.jsonl")
    assert "a.jsonl row 0 has no column 'text', only body, title" in str(error.value)
    assert "--set corpus.text_column=" in str(error.value)


def test_a_text_column_of_numbers_is_refused(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": 7}])
    with pytest.raises(CorpusError, match="column 'text' holds int, not text"):
        read(tmp_path / "a.jsonl")


def test_every_path_that_cannot_be_used_is_named_at_once(tmp_path):
    for name in ("a.pdf", "b.bin", "c.bin"):
        (tmp_path / name).write_bytes(b"%PDF \0")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    names = ("nothing-*.txt", "a.pdf", "*.bin", "empty", "link", "pipe")
    with pytest.raises(CorpusError) as error:
        open_corpus(files_corpus(*(tmp_path / name for name in names)))
    said = str(error.value)
    for name in ("nothing-*.txt", "empty", "link", "pipe"):
        assert f"{name} matches no file; give a path, a directory or a glob that does" in said
    assert "a.pdf is no text (byte 5 is NUL); convert it to UTF-8 (`iconv -t utf-8`) or leave it out" in said
    assert "*.bin matches 2 files and none is text (UTF-8 without NUL); convert them" in said


def test_a_file_that_is_not_utf8_is_named_with_the_byte(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(CorpusError, match=r"latin\.txt is no text \(byte 3 is not UTF-8\); convert it"):
        read(tmp_path / "latin.txt")


def test_a_corpus_may_be_on_another_machine_only_where_its_folder_is_not_here(tmp_path):
    (tmp_path / "here").mkdir()
    with pytest.raises(CorpusAway, match=r"away/\*\.txt matches no file"):
        open_corpus(files_corpus(tmp_path / "away" / "*.txt"))
    for patterns in (("here/*.txt",), ("here",), ("typo.txt",), ("away/*.txt", "here")):
        with pytest.raises(CorpusError, match="matches no file") as error:
            open_corpus(files_corpus(*(tmp_path / pattern for pattern in patterns)))
        assert not isinstance(error.value, CorpusAway)


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("a")

    def forbidden(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(CorpusError, match=r"a\.txt cannot be read \(Permission denied\); allow it, or leave it out$"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["cut.jsonl", "cut.parquet", "cut.jsonl.xz"])
def test_a_broken_table_is_named(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b'{"text": "fine"}\n{"text": broken}\n')
    with pytest.raises(CorpusError, match=f"{name} cannot be read as"):
        read(path)


def test_the_same_files_elsewhere_are_the_same_corpus(tmp_path):
    for folder in ("here", "there/below"):
        (tmp_path / folder).mkdir(parents=True)
        write_lines(tmp_path / folder / "a.jsonl")
        (tmp_path / folder / "b.txt").write_text("b")
    here, there = (open_corpus(files_corpus(tmp_path / folder)).identity for folder in ("here", "there/below"))
    assert here == there


def test_a_changed_byte_makes_another_corpus(tmp_path):
    write_lines(tmp_path / "a.jsonl")
    before = open_corpus(files_corpus(tmp_path)).identity
    shutil.copy(tmp_path / "a.jsonl", tmp_path / "copy")
    content = (tmp_path / "a.jsonl").read_text()
    (tmp_path / "a.jsonl").write_text(content.replace("first", "First"))
    assert open_corpus(files_corpus(tmp_path)).identity != before
