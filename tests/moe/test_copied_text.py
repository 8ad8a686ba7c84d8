"""Copies and copied passages are found before documents are split, and never stand in two splits."""

import random

import pytest

from moe.copied_text import find_copies
from moe.corpus import CorpusConfig, Document
from moe.errors import CorpusError
from tests.moe.synthetic_corpora import prose

PASSAGE_BYTES = 192  # for max_common_run_tokens = 128
HEADER = prose(100, 777)  # some 800 bytes


def copies_of(texts, *, drop=False, groups=None):
    documents = [
        Document(name=f"d{i}", text=text, group=None if groups is None else groups[i]) for i, text in enumerate(texts)
    ]
    return find_copies(documents, CorpusConfig(kind="files", paths=("x",), duplicates="drop" if drop else "group"))


def own_texts(n):
    return [prose(200, i) for i in range(n)]


def test_documents_that_share_nothing_are_left_alone():
    found = copies_of(own_texts(20))
    assert (found.in_train, found.dropped, found.cuts, found.rows) == (frozenset(), frozenset(), {}, ())


@pytest.mark.parametrize("start", range(0, 64, 7))
def test_a_passage_of_the_length_stated_is_never_missed(start):
    texts = own_texts(6)
    passage = texts[2][start : start + PASSAGE_BYTES]
    texts[4] = texts[4][:500] + passage + texts[4][500:]
    assert copies_of(texts).in_train == {2, 4}


def test_a_passage_of_half_that_length_is_nobodys_copy():
    texts = own_texts(6)
    texts[4] = texts[4][:500] + texts[2][100:196] + texts[4][500:]
    assert copies_of(texts).in_train == frozenset()


def test_a_rewriting_without_a_long_passage_is_a_copy_too():
    texts = own_texts(6)
    words = texts[3].split(" ")
    rng = random.Random(0)
    for place in range(0, len(words), 20):
        words[place] = f"changed{rng.randrange(1000)}"
    texts.append(" ".join(words))
    assert copies_of(texts).in_train == {3, 6}


def test_what_stands_in_one_group_only_may_be_held_out_with_it():
    texts = own_texts(6)
    texts[1] += HEADER
    texts[2] += HEADER
    texts[4] += texts[5]
    groups = ["a", "b", "b", "c", "d", "e"]
    assert copies_of(texts, groups=groups).in_train == {4, 5}
    # One document of a group that shares text keeps all of it in train.
    assert copies_of(texts, groups=["a", "b", "b", "c", "d", "a"]).in_train == {0, 4, 5}


def test_a_document_too_short_to_be_looked_at_is_never_held_out():
    texts = [*own_texts(3), "short"]
    found = copies_of(texts)
    assert found.in_train == {3}
    assert found.rows == ()


def test_of_copies_the_longest_is_kept_and_of_equal_ones_the_first():
    texts = own_texts(6)
    texts[0] = texts[5][:1000]
    texts.append(texts[3])
    found = copies_of(texts, drop=True)
    assert found.dropped == {0, 6}
    assert found.in_train == frozenset()
    assert [row[:2] for row in found.rows] == [("d0", "dropped"), ("d6", "dropped")]
    assert [row[-1] for row in found.rows] == ["d5", "d3"]


def test_a_family_of_copies_keeps_one():
    text = prose(300, 99)
    assert len(copies_of([*own_texts(3), *([text] * 50)], drop=True).dropped) == 49


def test_a_copied_passage_is_cut_from_all_but_one_document():
    texts = [f"{HEADER} {text}" for text in own_texts(8)]
    found = copies_of(texts, drop=True)
    assert found.dropped == frozenset()
    assert len(found.cuts) == 7
    for i, own in enumerate(own_texts(8)):
        rest = found.without_copies(i, texts[i])
        assert own[60:] in rest
        assert len(rest) < len(own) + 200 or i not in found.cuts
    assert found.in_train == frozenset()


def test_a_cut_keeps_words_and_characters_whole():
    header = "".join(chr(0x4E00 + random.Random(i).randrange(9000)) for i in range(400))
    texts = [f"{header}{text}" for text in own_texts(4)]
    found = copies_of(texts, drop=True)
    for i in found.cuts:
        assert "\ufffd" not in found.without_copies(i, texts[i])
    texts = [f"{text} {HEADER} {text[::-1]}" for text in own_texts(4)]
    found = copies_of(texts, drop=True)
    words = set(" ".join(texts).split())
    assert all(set(found.without_copies(i, texts[i]).split()) <= words for i in range(4))


def test_where_most_is_copied_the_rest_is_held_out_more_often():
    texts = own_texts(10)
    texts[:8] = [text + HEADER for text in texts[:8]]
    found = copies_of(texts)
    free = sum(len(text) for text in texts[8:]) / sum(len(text) for text in texts)
    assert found.free_share == pytest.approx(free)


def test_more_text_than_memory_is_meant_for_is_refused(monkeypatch):
    monkeypatch.setattr("moe.copied_text.MAX_BYTES", 5000)
    with pytest.raises(CorpusError, match=r"more than 5,000 bytes .* corpus\.duplicates=refuse"):
        copies_of(own_texts(6))


def test_chunks_of_a_long_document_change_nothing(monkeypatch):
    texts = own_texts(6)
    texts[4] += texts[1][100:700]
    whole = copies_of(texts)
    monkeypatch.setattr("moe.copied_text._CHUNK_BYTES", 100)
    assert copies_of(texts) == whole
