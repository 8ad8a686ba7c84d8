from collections import Counter
from pathlib import Path

import pytest

from moe.embedded import (
    TEST_SUBPACKAGES,
    TOTAL_BYTES,
    VALIDATION_SUBPACKAGES,
    embedded_source,
    read_checked,
    split_of,
)
from moe.errors import CorpusError


@pytest.fixture(scope="module")
def embedded():
    return list(embedded_source().documents())


def test_the_embedded_corpus_has_the_documents_and_bytes_that_are_stated(embedded):
    assert len(embedded) == 307
    assert sum(len(document.text.encode()) for document in embedded) == TOTAL_BYTES
    assert [document.name for document in embedded] == sorted(document.name for document in embedded)


def test_its_splits_hold_whole_subpackages(embedded):
    splits_of_subpackage = {}
    for document in embedded:
        splits_of_subpackage.setdefault(document.group, set()).add(document.split)
    assert all(len(splits) == 1 for splits in splits_of_subpackage.values())
    assert Counter(document.split for document in embedded) == {"train": 229, "validation": 26, "test": 52}


def test_subpackages_that_repeat_each_other_train_together():
    family = ("functions", "ntheory", "core", "logic", "sets", "series", "external")
    assert {split_of(name) for name in family} == {"train"}
    assert not TEST_SUBPACKAGES & VALIDATION_SUBPACKAGES


def test_another_version_of_the_files_is_refused(tmp_path: Path):
    package = tmp_path / "sympy"
    package.mkdir()
    (package / "changed.py").write_text("# changed\n" * 2000)
    with pytest.raises(CorpusError) as error:
        read_checked(package, version="9.9")
    assert "sympy 9.9 gives 1 documents" in str(error.value)
    assert "pip install --force-reinstall sympy==1.14.0" in str(error.value)


def test_tests_benchmarks_and_short_files_are_no_documents(tmp_path: Path):
    package = tmp_path / "sympy"
    for folder in ("tests", "benchmarks", "good"):
        (package / "core" / folder).mkdir(parents=True)
        (package / "core" / folder / "long.py").write_text("x = 1\n" * 3000)
    (package / "core" / "short.py").write_text("x = 1\n")
    with pytest.raises(CorpusError, match="gives 1 documents"):
        read_checked(package, version="1.14.0")
