import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from moe.__main__ import main
from moe.device import Device
from moe.precision import resolve_precision
from moe.single_run import newest_checkpoint, parse_corpus, parse_tokenizer
from moe.trainer import Trainer

SMALL = {
    "--tokenizer": "bytes",
    "--micro-batch-size": 4,
    "--seq-len": 32,
    "--d-model": 16,
    "--n-layers": 1,
    "--d-expert": 16,
    "--n-experts": 4,
    "--budget-tokens": 2048,
    "--exam-tokens": 128,
    "--report-every-tokens": 512,
    "--device": "cpu",
}


@pytest.fixture
def train(tmp_path):
    """Trains the smallest model on a corpus of its own; returns the exit code."""
    words = random.Random(0)
    for i in range(40):
        text = " ".join(words.choice(("one", "two", "three", "four")) for _ in range(200))
        (tmp_path / f"document-{i}.txt").write_text(f"{text} {i}")

    def run(*arguments):
        corpus = f"files:{tmp_path}/*.txt"
        small = [str(word) for option in SMALL.items() for word in option]
        return main(["train", "--corpus", corpus, "--cache-dir", str(tmp_path / "cache"), *small, *arguments])

    return run


def test_help_answers_without_importing_torch():
    code = "import sys, moe.__main__; assert 'torch' not in sys.modules; moe.__main__.main(['train', '--help'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert "the same command resumes an interrupted run" in " ".join(done.stdout.split())


def test_training_prints_a_falling_curve_and_a_test_loss(train, capsys):
    assert train() == 0
    out = capsys.readouterr().out
    assert f"precision  {resolve_precision('auto', Device.resolve('cpu')).reason}" in out
    assert "guessing   5.5" in out
    losses = [float(line.split()[1]) for line in out.splitlines() if "█" in line]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    assert "test loss" in out


def test_everything_is_kept_in_the_out_folder(train, tmp_path):
    out = tmp_path / "run"
    assert train("--out", str(out)) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "checkpoint-2048",
        "records.json",
        "run.json",
        "scores.json",
        "tokenizer",
    ]
    records = json.loads((out / "records.json").read_text())
    assert [record["tokens_seen"] for record in records] == [512, 1024, 1536, 2048]
    assert json.loads((out / "scores.json").read_text())["test_loss"] > 0.0
    assert json.loads((out / "run.json").read_text())["config"]["model"]["d_model"] == 16


def test_the_same_command_resumes_an_interrupted_run(train, tmp_path, capsys, monkeypatch):
    assert train("--out", str(tmp_path / "whole")) == 0
    run = Trainer.run

    def interrupted(self, until_tokens=None):
        for report in run(self, until_tokens):
            if report.tokens_seen > 1024:
                raise KeyboardInterrupt
            yield report

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run", interrupted)
        assert train("--out", str(tmp_path / "half")) == 130
    assert "the same command resumes" in capsys.readouterr().err
    assert train("--out", str(tmp_path / "half")) == 0
    assert "resumed at 1,024 tokens" in capsys.readouterr().out
    whole, half = ((tmp_path / name / "scores.json").read_text() for name in ("whole", "half"))
    assert whole == half
    assert train("--out", str(tmp_path / "half")) == 0


def test_another_command_in_the_same_folder_is_refused(train, tmp_path, capsys):
    assert train("--out", str(tmp_path / "run")) == 0
    assert train("--out", str(tmp_path / "run"), "--lr", "0.5") == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert "optimizer.lr was 0.02 and is now 0.5" in message


def test_a_folder_of_something_else_is_not_touched(train, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "letter.txt").write_text("dear")
    assert train("--out", str(tmp_path / "run")) == 2
    assert "is not empty and is no training run; choose another --out" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["letter.txt"]


def test_all_bad_values_are_named_in_one_message(train, capsys):
    assert train("--top-k", "9", "--n-heads", "3") == 2
    message = capsys.readouterr().err
    assert "top_k=9 exceeds n_experts=4" in message
    assert "d_model=16 is not a multiple of n_heads=3" in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--threads", "0"), "threads=0 must be at least 1"),
        (("--seq-len", "0"), "seq_len=0 must be at least 1"),
        (("--block-len", "48"), "block_len=48 is not a multiple of seq_len=32"),
        (("--block-len", "0"), "block_len=0 must be at least 1"),
        (("--grad-accum-steps", "0"), "grad_accum_steps=0 must be at least 1"),
        (
            ("--budget-tokens", "0"),
            "budget_tokens=0 is not a positive multiple of the 128 tokens of a step; choose 128",
        ),
        (("--exam-tokens", "-5"), "exam_tokens=-5 must be at least 1"),
        (("--warmup-share", "nan"), "warmup_share=nan must lie between 0 and 1"),
        (("--adamw-lr", "0"), "adamw_lr=0.0 must be finite and above 0"),
        (("--n-kv-heads", "0"), "n_kv_heads=0 must be at least 1"),
        (("--seed", "-1"), "seed=-1 is not from 0 to 2^63 - 1"),
        (("--tokenizer", "bpe:²"), "tokenizer='bpe:²' is not understood"),
    ],
)
def test_a_value_that_cannot_work_is_refused_before_any_text_is_read(train, tmp_path, capsys, option, message):
    assert train(*option) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {message}")
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("option", ["--out", "--cache-dir"])
@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_path_that_is_no_folder_is_named_in_one_line(train, tmp_path, capsys, option, place):
    (tmp_path / "file").write_text("a letter")
    assert train(option, str(tmp_path / place)) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert str(tmp_path / "file") in said
    assert len(said.splitlines()) == 1
    assert (tmp_path / "file").read_text() == "a letter"


def test_an_interrupted_export_promises_no_resuming(train, tmp_path, capsys, monkeypatch):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr("moe.single_run.export", interrupted)
    assert main(["export", str(tmp_path), "--out", str(tmp_path / "exported")]) == 130
    assert capsys.readouterr().err == "interrupted; nothing is kept\n"


def test_folders_that_only_look_like_checkpoints_are_passed_over(tmp_path):
    for name in ("checkpoint-64", "checkpoint-512", "checkpoint-old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.pt").touch()
    (tmp_path / "checkpoint-1024").mkdir()
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-512"


def test_a_diverged_run_says_where_it_ended(train, capsys):
    assert train("--lr", "1e30") == 3
    assert "ended at" in capsys.readouterr().err


def test_corpora_and_tokenizers_are_written_as_short_words():
    assert parse_corpus("embedded").kind == "embedded"
    assert parse_corpus("files:books/*.txt").paths == ("books/*.txt",)
    assert (parse_corpus("hub:owner/set/name").dataset, parse_corpus("hub:owner/set/name").name) == (
        "owner/set",
        "name",
    )
    assert (parse_corpus("hub:owner/set").dataset, parse_corpus("hub:owner/set").name) == ("owner/set", None)
    assert parse_tokenizer("bpe:4096").vocab_size == 4096
    assert parse_tokenizer("bytes").kind == "bytes"
    assert parse_tokenizer("directory:tok").path == "tok"
    assert parse_tokenizer("hub:owner/tok").id == "owner/tok"


@pytest.mark.parametrize("text", ["", "book", "files:", "hub:", "embedded:x"])
def test_an_unknown_corpus_is_refused_with_the_words_that_are_known(text):
    with pytest.raises(ValueError, match=r"write embedded, files:GLOB or hub:ID\[/NAME\]"):
        parse_corpus(text)


@pytest.mark.parametrize("text", ["", "bpe", "bpe:many", "bytes:1"])
def test_an_unknown_tokenizer_is_refused_with_the_words_that_are_known(text):
    with pytest.raises(ValueError, match="write bpe:VOCAB, bytes, directory:PATH or hub:ID"):
        parse_tokenizer(text)


def test_a_trained_model_is_exported_for_transformers(train, tmp_path, capsys):
    run, exported = tmp_path / "run", tmp_path / "exported"
    assert train("--out", str(run)) == 0
    assert main(["export", str(run), "--out", str(exported)]) == 0
    assert json.loads((exported / "config.json").read_text())["model_type"] == "qwen3_moe"
    assert (exported / "tokenizer.json").is_file()
    assert "checkpoint-2048" in capsys.readouterr().out


def test_exporting_what_is_no_run_is_refused(tmp_path, capsys):
    assert main(["export", str(tmp_path), "--out", str(tmp_path / "exported")]) == 2
    assert "holds no checkpoint; name the --out folder of a training run" in capsys.readouterr().err
