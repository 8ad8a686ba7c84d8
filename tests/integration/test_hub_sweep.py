"""A sweep on a data set and a tokenizer of a hub, which moves on while the sweep does not."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moe.tokenizer import train_bpe
from sweeps.ledger.storage import Storage
from tests.integration.conftest import sweeps_in
from tests.integration.sweeping import AT_ONCE
from tests.moe.tiny_hub import NEXT_SHA, SHA, move_on, served

pytestmark = pytest.mark.slow

SOURCES = ("--set", "corpus=hub:tiny/stories", "--set", "tokenizer=hub:tiny/tokenizer")


def data_set(folder: Path, texts: list[str]) -> Path:
    """A repository of one file of rows."""
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"text": texts}), folder / "train.parquet")
    return folder


def test_an_extended_sweep_trains_on_what_it_began_with(tmp_path: Path, corpus: Path) -> None:
    texts = [path.read_text() for path in sorted(corpus.iterdir())]
    hub = tmp_path / "hub"
    stories = data_set(hub / "datasets" / "tiny" / "stories", texts)
    tokenizer = hub / "models" / "tiny" / "tokenizer"
    train_bpe(texts, vocab_size=300).save(tokenizer)
    with sweeps_in(tmp_path, corpus, tmp_path / "cache") as sweeps:
        with served(hub) as endpoint:
            sweeps.environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home"), "no_proxy": "127.0.0.1"}
            sweeps("run", "--space", "space.toml", "--name", "first", *AT_ONCE, *SOURCES)
        facts = Storage(str(sweeps.runs)).child("first").read_json("sweep.json")["corpus_facts"]
        assert (facts["revision"], facts["tokenizer_revision"]) == (SHA, SHA)
        move_on(stories, data_set(tmp_path / "newer", [text.upper() for text in texts]))
        train_bpe(texts[:9], vocab_size=280).save(tmp_path / "merges")
        move_on(tokenizer, tmp_path / "merges")
        with served(hub, newest=NEXT_SHA) as endpoint:
            elsewhere = {"SWEEPS_CACHE_DIR": str(tmp_path / "cache-2"), "HF_HOME": str(tmp_path / "home-2")}
            sweeps.environment |= {"HF_ENDPOINT": endpoint, **elsewhere}
            before = sweeps.outcomes("first")
            sweeps("extend", "first", "--seeds", "2")
        assert len(sweeps.outcomes("first")) > len(before)
