"""What is wrong in one way each: spaces, texts, tables and tokenizers, and sweeps that were damaged."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from search_spaces import load_space
from sweeps import training_data as material
from sweeps.ledger.storage import Storage
from sweeps.ledger.sweep_folder import Ledger
from sweeps.running.begin import begin
from tests.integration.bad_inputs import EVERYTHING_WRONG
from tests.integration.sweeping import TINY_SPACE

COLUMNS = "strategy,lr,seed,phase,outcome,tokens_seen,val_loss,test_loss\n"


def begin_and_damage(folder: Path, corpus: Path, token_cache: Path) -> None:
    """Write a space, ``runs`` with a sweep that was begun and not run, and ``damaged`` with what became of copies."""
    (folder / "space.toml").write_text(TINY_SPACE.format(budget=4096, rung=2048, corpus=corpus))
    space = load_space(path=folder / "space.toml", overrides=["precision=fp32"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SWEEPS_CACHE_DIR", str(token_cache))
        made = material.load_training_data(space)
    first = Ledger(Storage(str(folder / "runs")), "first")
    begin(first, space, made, audit={}, peaks_gib={}, command=None)
    sound = folder / "runs" / "first"
    text = (sound / "sweep.json").read_text()
    cell_id = first.planned_cells()[0].cell_id
    changes = {
        "sound": ("sweep.json", text),
        "cut": ("sweep.json", text[:300]),
        "tomorrow": ("sweep.json", json.dumps({**first.storage.read_json("sweep.json"), "schema": 99})),
        "list": ("sweep.json", "[1]"),
        "bare": ("sweep.json", '{"schema": 1}'),
        "page": ("plan/0001.json", '{"cells": ['),
        "empty-page": ("plan/0001.json", '{"schema": 1}'),
        "outcome": (f"cells/{cell_id}/outcome.json", '{"outcome"'),
    }
    for name, (where, content) in changes.items():
        shutil.copytree(sound, folder / "damaged" / name)
        (folder / "damaged" / name / where).parent.mkdir(parents=True, exist_ok=True)
        (folder / "damaged" / name / where).write_text(content)


def write_wrong_files(folder: Path) -> None:
    """Write files and folders that each are wrong in the way that their name tells."""
    for name in ("folder", "full", "damaged-tokenizer", "pictures"):
        (folder / name).mkdir()
    texts = {
        "file": "",
        "full/a": "",
        "damaged-tokenizer/tokenizer.json": "{",
        "everything.toml": EVERYTHING_WRONG,
        "not.toml": "rungs_tokens = []\nbudget_tokens = = 3\n",
        "empty.toml": "",
        "deep.toml": "x = " + "[" * 3_000,
        "nul.toml": "budget_tokens = 3\0",
        "keys.toml": "".join(f"key_{number} = 1\n" for number in range(3_000)),
        "empty.txt": "",
        "one.txt": "to be or not to be " * 100,
        "body.jsonl": '{"body": "a"}\n',
        "copies.jsonl": "".join(
            json.dumps({"split": split, "text": f"{'a copied line. ' * 60}{split}"}) + "\n"
            for split in ("train", "validation", "test") * 4
        ),
        "numbers.jsonl": '{"text": 3}\n',
        "half.jsonl": '{"text": "a"\n{{{\n',
        "fake.parquet": "PAR1 or not",
        "empty.csv": "",
        "bare.csv": COLUMNS,
        "columns.csv": COLUMNS.replace("val_loss", "loss") + "a,0.01,1,confirm,completed,64,2,2\n",
        "wrong.csv": COLUMNS
        + "a,0.01,one,confirm,completed,64,2,2\n"
        + "a,fast,2,confirm,completed,64,2,low\n"
        + "a,0.01,3,final,completed,64,2,2\n"
        + "a,0.01,1,confirm,completed,64,2,2\n" * 2,
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to("nowhere.toml")
    for name in ("binary.txt", "binary.csv", "latin.toml", "pictures/a.png", "pictures/b.png"):
        (folder / name).write_bytes(bytes(range(256)))
