import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import transformers

import moe.corpus_hub
from moe.corpus import CorpusConfig
from moe.corpus_hub import require_hub
from moe.corpus_sources import open_corpus
from moe.errors import CorpusError
from moe.token_cache import prepare
from moe.tokenizer import TokenizerConfig, make_tokenizer, train_bpe
from tests.moe.synthetic_corpora import BYTES, prose
from tests.moe.tiny_hub import NEXT_SHA, SHA, move_on, served

PAIR = {"dataset": "HuggingFaceTB/smollm-corpus", "name": "cosmopedia-v2"}
CARD = """---
configs:
- config_name: stories
  data_files:
  - split: train
    path: stories/train-*
- config_name: other
  data_files:
  - split: train
    path: other/train-*
---
"""


@pytest.fixture(autouse=True)
def own_hub_home(tmp_path_factory, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


@pytest.fixture
def no_network(monkeypatch):
    """A hub that cannot be reached; whoever calls anything else of the network fails the test."""

    def unreachable(*args, **kwargs):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)


@pytest.fixture
def mirror(tmp_path):
    """A small data set in the hub's own layout: a card with configs, parquet files."""
    folder = tmp_path / "mirror"
    for config, first in (("stories", 0), ("other", 1000)):
        (folder / config).mkdir(parents=True)
        texts = [prose(150, first + number) for number in range(60)]
        pq.write_table(pa.table({"text": texts, "n": range(60)}), folder / config / "train-00000-of-00001.parquet")
    (folder / "README.md").write_text(CARD)
    return folder


def hub_corpus(**settings):
    return CorpusConfig(kind="hub", **{**PAIR, **settings})


def prepared(corpus, folder, tokenizer=BYTES):
    return prepare(corpus, tokenizer, cache_dir=folder, train_tokens_needed=1)


def test_a_mirror_in_the_hubs_layout_is_read_by_config_name(mirror):
    documents = list(open_corpus(hub_corpus(dataset=str(mirror), name="stories")).documents())
    assert [document.text for document in documents] == [prose(150, number) for number in range(60)]
    assert documents[3].name == f"{mirror}/stories row 3"


def test_an_unknown_config_says_which_there_are(mirror):
    with pytest.raises(CorpusError) as error:
        list(open_corpus(hub_corpus(dataset=str(mirror), name="poems")).documents())
    assert "'poems' not found. Available: ['stories', 'other']" in str(error.value)


def test_without_a_network_one_line_names_id_reason_and_ways_out(no_network, tmp_path):
    with pytest.raises(CorpusError) as error:
        prepared(hub_corpus(), tmp_path, TokenizerConfig(kind="hub", id="HuggingFaceTB/SmolLM-135M"))
    message = str(error.value)
    assert message.count("\n") == 0
    assert message.startswith("dataset HuggingFaceTB/smollm-corpus cannot be had: ")
    assert "Name or service not known" in message
    assert "`--set corpus=embedded`, or local files with `--set corpus=files:PATH`" in message


def test_a_hub_that_never_answers_is_given_up(monkeypatch, tmp_path):
    released = threading.Event()
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *args, **kwargs: released.wait(60))
    monkeypatch.setattr(moe.corpus_hub, "PROBE_DEADLINE_S", 0.2)
    try:
        with pytest.raises(CorpusError, match="the hub did not answer within"):
            prepared(hub_corpus(), tmp_path)
    finally:
        released.set()


def test_the_hub_is_given_three_seconds_and_less_than_ten_in_all(monkeypatch):
    asked = {}

    def info(self, id_, *, revision, timeout):
        asked.update(id=id_, revision=revision, timeout=timeout)
        return SimpleNamespace(sha="abc")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    assert require_hub("some/set", kind="dataset", revision="v2") == "abc"
    assert asked == {"id": "some/set", "revision": "v2", "timeout": 3.0}
    assert moe.corpus_hub.PROBE_DEADLINE_S < 10


def test_offline_mode_is_honoured_without_asking(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *args, **kwargs: pytest.fail("the hub was asked"))
    with pytest.raises(CorpusError, match="tokenizer nobody/nothing is not in the local cache and HF_HUB_OFFLINE"):
        make_tokenizer(TokenizerConfig(kind="hub", id="nobody/nothing"), [])


def test_a_tokenizer_without_network_is_named(no_network):
    with pytest.raises(CorpusError, match="tokenizer nobody/nothing cannot be had: ConnectionError: Name or service"):
        make_tokenizer(TokenizerConfig(kind="hub", id="nobody/nothing"), [])


def test_a_tokenizer_that_the_hub_has_and_nobody_can_read_is_named(monkeypatch):
    def unreadable(*args, **kwargs):
        raise ValueError("Unrecognized model.\nIt needs code of its own")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", unreadable)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *args, **kwargs: SimpleNamespace(sha=SHA))
    with pytest.raises(CorpusError, match=r"tokenizer some/code cannot be read: Unrecognized model\. It needs code"):
        make_tokenizer(TokenizerConfig(kind="hub", id="some/code"), [])


def connected(monkeypatch, rows, *, sha="0123abcd"):
    """A hub that answers, with ``rows`` behind any id; returns what `load_dataset` was called with."""
    calls = []

    def load_dataset(*args, **kwargs):
        calls.append((args, kwargs))
        return rows

    import datasets

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *args, **kwargs: SimpleNamespace(sha=sha))
    return calls


def test_rows_are_streamed_at_the_commit_that_the_probe_found_and_no_code_is_trusted(monkeypatch, tmp_path):
    calls = connected(monkeypatch, [{"text": prose(100, number)} for number in range(80)])
    tokens = prepared(hub_corpus(), tmp_path)
    ((args, settings),) = calls
    assert args == ("HuggingFaceTB/smollm-corpus", "cosmopedia-v2")
    assert settings == {"split": "train", "revision": "0123abcd", "streaming": True}
    assert tokens.facts["revision"] == "0123abcd"


def test_a_cached_corpus_works_without_a_network(monkeypatch, tmp_path):
    with monkeypatch.context() as online:
        connected(online, [{"text": prose(100, number)} for number in range(80)])
        before = prepared(hub_corpus(), tmp_path)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *args, **kwargs: pytest.fail("the hub was asked"))
    assert prepared(hub_corpus(), tmp_path).fingerprint == before.fingerprint


CONNECTED = """
import sys
from pathlib import Path
from moe.corpus import CorpusConfig
from moe.token_cache import HubCommits, prepare
from moe.tokenizer import TokenizerConfig
commits = HubCommits(corpus=sys.argv[2], tokenizer=sys.argv[3]) if sys.argv[2:] else None
tokens = prepare(CorpusConfig(kind="hub", dataset="tiny/stories", name="stories"),
    TokenizerConfig(kind="hub", id="tiny/tokenizer"), cache_dir=Path(sys.argv[1]), train_tokens_needed=1,
    commits=commits)
print(tokens.fingerprint, tokens.facts["revision"], tokens.facts["tokenizer_revision"],
    *(file.n_documents for file in tokens.splits.values()))
"""


def answer_of_another_process(folder, endpoint, *commits, **variables):
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "hub"), **variables}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2]), "no_proxy": "127.0.0.1"}
    command = [sys.executable, "-c", CONNECTED, str(folder / "cache"), *commits]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture
def hub(mirror, tmp_path):
    """A folder to be served, with a data set and a tokenizer."""
    hub = tmp_path / "served"
    (hub / "datasets" / "tiny").mkdir(parents=True)
    mirror.rename(hub / "datasets" / "tiny" / "stories")
    trained = train_bpe([prose(400, seed) for seed in range(4)], vocab_size=300)
    trained.save(hub / "models" / "tiny" / "tokenizer")
    return hub


def test_a_served_pair_of_data_set_and_tokenizer_is_read_and_then_works_offline(hub, tmp_path):
    with served(hub) as endpoint:
        fingerprint, revision, of_tokenizer, *counts = answer_of_another_process(tmp_path, endpoint)
    assert (revision, of_tokenizer) == (SHA, SHA)
    assert sum(map(int, counts)) == 60
    # The server is gone: what was built stands in the cache, and the tokenizer in the hub client's own.
    assert answer_of_another_process(tmp_path, endpoint)[0] == fingerprint
    assert answer_of_another_process(tmp_path, endpoint, HF_HUB_OFFLINE="1")[0] == fingerprint
    assert answer_of_another_process(tmp_path, endpoint, SHA, SHA, HF_HUB_OFFLINE="1")[0] == fingerprint


def hub_moves_on(hub, folder):
    """The data set gets other rows, the tokenizer other merges."""
    (folder / "newer" / "stories").mkdir(parents=True)
    rows = pa.table({"text": [prose(150, 5000 + number) for number in range(60)], "n": range(60)})
    pq.write_table(rows, folder / "newer" / "stories" / "train-00000-of-00001.parquet")
    (folder / "newer" / "README.md").write_text(CARD.partition("- config_name: other")[0] + "---\n")
    move_on(hub / "datasets" / "tiny" / "stories", folder / "newer")
    train_bpe([prose(400, 50)], vocab_size=290).save(folder / "merges")
    move_on(hub / "models" / "tiny" / "tokenizer", folder / "merges")


def test_a_pair_is_read_at_the_commits_asked_for_wherever_the_hub_is_now(hub, tmp_path):
    with served(hub) as endpoint:
        before = answer_of_another_process(tmp_path, endpoint)
    hub_moves_on(hub, tmp_path)
    with served(hub, newest=NEXT_SHA) as endpoint:
        newest = answer_of_another_process(tmp_path / "elsewhere", endpoint)
        assert newest[1:3] == [NEXT_SHA, NEXT_SHA]
        assert newest[0] != before[0]
        assert answer_of_another_process(tmp_path / "elsewhere", endpoint, SHA, SHA) == before
        assert answer_of_another_process(tmp_path / "fresh", endpoint, SHA, SHA) == before
    assert answer_of_another_process(tmp_path / "fresh", endpoint, SHA, SHA, HF_HUB_OFFLINE="1") == before
