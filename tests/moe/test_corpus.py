import pytest

from moe.corpus import CorpusConfig, Document, SplitAssigner
from moe.errors import CorpusError
from tests.moe.synthetic_corpora import prose


def assigned(documents, *, validation_share=0.06, test_share=0.06):
    assigner = SplitAssigner(validation_share=validation_share, test_share=test_share)
    return [assigner.assign(document) for document in documents]


def documents(n, *, group=lambda i: None):
    return [Document(name=f"d{i}", text=prose(20 + 37 * i % 200, i), group=group(i)) for i in range(n)]


def test_shares_of_text_come_out_as_asked():
    several = documents(400)
    splits = assigned(several, validation_share=0.1, test_share=0.2)
    total = sum(len(document.text) for document in several)
    for split, share in (("train", 0.7), ("validation", 0.1), ("test", 0.2)):
        size = sum(len(document.text) for document, got in zip(several, splits, strict=True) if got == split)
        # Each split is off by at most one document, and none here holds more than 1% of the text.
        assert abs(size / total - share) < 0.01


def test_reading_further_moves_no_document():
    several = documents(200)
    assert assigned(several)[:80] == assigned(several[:80])


def test_a_group_stands_in_one_split():
    several = documents(300, group=lambda i: f"author-{i % 40}")
    splits_of_group = {}
    for document, split in zip(several, assigned(several), strict=True):
        splits_of_group.setdefault(document.group, set()).add(split)
    assert all(len(splits) == 1 for splits in splits_of_group.values())
    assert {"train", "validation", "test"} == set.union(*splits_of_group.values())


def test_documents_of_equal_text_stand_in_one_split():
    several = documents(100)
    copies = [Document(name=f"copy of {document.name}", text=document.text) for document in several]
    splits = assigned([*several, *copies])
    assert splits[:100] == splits[100:]


def test_a_stated_split_is_kept():
    stated = [Document(name=f"d{i}", text=prose(50, i), split="test") for i in range(20)]
    assert set(assigned(stated)) == {"test"}


def test_all_problems_of_a_corpus_are_named_at_once():
    with pytest.raises(CorpusError) as error:
        CorpusConfig(kind="files", validation_share=0.7, max_common_run_tokens=8, max_epochs=0.0)
    message = str(error.value)
    assert "has no paths" in message
    assert "validation_share=0.7 must lie between 0 and 0.5" in message
    assert "max_common_run_tokens=8 must be at least 64" in message
    assert "max_epochs=0.0 must be above 0" in message


def test_a_hub_corpus_without_an_id_is_refused():
    with pytest.raises(CorpusError, match=r'corpus kind "hub" has no dataset; give its id'):
        CorpusConfig(kind="hub")
