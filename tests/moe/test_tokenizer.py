import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from moe.errors import CorpusError
from moe.tokenizer import SEPARATOR, TokenizerConfig, byte_tokenizer, load_directory, train_bpe
from tests.moe.synthetic_corpora import prose, rows_with_splits, tokenized_rows

TEXTS = [prose(400, seed) for seed in range(8)]
AWKWARD = "naïve café — \u0000 \t\r\n  日本語 🙂 ﬁ <|endoftext|> end"


@pytest.fixture(scope="module")
def bpe():
    return train_bpe(TEXTS, vocab_size=320)


def test_the_same_text_gives_the_same_bytes_for_every_number_of_threads(tmp_path: Path):
    program = (
        "import sys; from pathlib import Path; from moe.tokenizer import train_bpe;"
        "from tests.moe.synthetic_corpora import prose;"
        "train_bpe([prose(400, s) for s in range(8)], vocab_size=320).save(Path(sys.argv[1]))"
    )
    for threads in ("1", "3"):
        environment = {**os.environ, "RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "true"}
        environment["PYTHONPATH"] = str(Path(__file__).parents[2])
        subprocess.run([sys.executable, "-c", program, str(tmp_path / threads)], check=True, env=environment)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes()


@pytest.mark.parametrize("text", [AWKWARD, TEXTS[0], ""])
def test_every_text_comes_back_whole(bpe, text):
    for tokenizer in (bpe, byte_tokenizer()):
        (tokens,) = tokenizer.encode([text])
        assert tokenizer.decode(tokens) == text


def test_a_text_that_spells_the_separator_does_not_end_there(bpe):
    for tokenizer in (bpe, byte_tokenizer()):
        (tokens,) = tokenizer.encode([f"before{SEPARATOR}after"])
        assert tokenizer.separator_id not in tokens


def test_bytes_are_their_own_tokens():
    tokenizer = byte_tokenizer()
    (tokens,) = tokenizer.encode([AWKWARD])
    assert np.array_equal(tokens, np.frombuffer(AWKWARD.encode(), dtype=np.uint8))
    assert (tokenizer.separator_id, tokenizer.vocab_size) == (256, 257)


def test_a_saved_tokenizer_is_loaded_by_autotokenizer_with_its_separator(bpe, tmp_path):
    from transformers import AutoTokenizer

    bpe.save(tmp_path)
    loaded = AutoTokenizer.from_pretrained(str(tmp_path), local_files_only=True)
    assert loaded.eos_token_id == bpe.separator_id
    assert loaded(TEXTS[0])["input_ids"] == bpe.encode([TEXTS[0]])[0].tolist()


def test_a_saved_directory_gives_the_same_tokens_again(bpe, tmp_path):
    bpe.save(tmp_path)
    loaded = load_directory(tmp_path)
    assert np.array_equal(loaded.encode([AWKWARD])[0], bpe.encode([AWKWARD])[0])
    assert loaded.separator_id == bpe.separator_id


def test_a_corpus_with_few_merges_leaves_the_vocabulary_as_asked():
    tokenizer = train_bpe(["ab ab"], vocab_size=1000)
    assert tokenizer.vocab_size == 1000
    assert max(tokenizer.encode(["ab ab"])[0]) < 1000


def test_the_bpe_learns_from_the_train_split_alone(tmp_path):
    fingerprints = []
    for name, held_out in (("a", "held out text"), ("b", "quite another " * 200)):
        (tmp_path / name).mkdir()
        rows = rows_with_splits()
        for row in rows:
            if row["split"] != "train":
                row["text"] = held_out + row["text"]
        tokens = tokenized_rows(tmp_path / name, rows, TokenizerConfig(vocab_size=300))
        fingerprints.append((tokens.tokenizer_fingerprint, tokens.corpus_fingerprint))
    assert fingerprints[0][0] == fingerprints[1][0]
    assert fingerprints[0][1] != fingerprints[1][1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocab_size": 100}, "vocab_size=100 is below 257"),
        ({"kind": "directory"}, 'tokenizer kind "directory" has no path'),
        ({"kind": "hub"}, 'tokenizer kind "hub" has no id'),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(CorpusError, match=message):
        TokenizerConfig(**settings)


def test_a_directory_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(CorpusError, match=r"holds no tokenizer \(no tokenizer\.json\)"):
        load_directory(tmp_path)


def test_a_tokenizer_without_an_end_token_is_refused(bpe, tmp_path):
    bpe.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (tmp_path / "special_tokens_map.json").unlink()
    with pytest.raises(CorpusError, match="has no EOS token to put between documents"):
        load_directory(tmp_path)
