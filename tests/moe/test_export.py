# B batch, T time, V vocabulary

import json
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from moe.config import ModelConfig
from moe.errors import MoeError
from moe.export import export_checkpoint
from moe.model import MoELanguageModel

CONFIG = ModelConfig(
    vocab_size=60, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_expert=48, n_experts=4, top_k=2, init_std=0.1
)


def make_model(config=CONFIG):
    return MoELanguageModel(config, seed=0)


def train(model, steps=15):
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    tokens_BT = torch.randint(0, 60, (4, 33), generator=generator)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model.loss(tokens_BT[:, :-1], tokens_BT[:, 1:])
        (loss.ce_sum / loss.n_tokens + 0.01 * loss.lb_loss).backward()
        optimizer.step()
    return tokens_BT


def difference(model, folder, tokens_BT):
    stock = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    assert type(stock).__name__ == "Qwen3MoeForCausalLM"
    with torch.no_grad():
        logits = stock(input_ids=tokens_BT).logits
        return float((logits - model(tokens_BT)).abs().max()), float(logits.abs().max())


@pytest.mark.parametrize(
    "changes",
    [{}, {"n_kv_heads": 4, "top_k": 1}, {"rope_theta": 500.0, "norm_eps": 1e-3, "n_heads": 2, "n_kv_heads": 1}],
)
@pytest.mark.parametrize("trained", [False, True], ids=["random", "trained"])
def test_stock_transformers_computes_the_same_logits(tmp_path, changes, trained):
    config = replace(CONFIG, **changes)
    model = make_model(config)
    if trained:
        train(model)
    export_checkpoint(model, config, None, tmp_path / "out")
    tokens_BT = torch.randint(0, 60, (2, 100), generator=torch.Generator().manual_seed(2))
    furthest, largest = difference(model, tmp_path / "out", tokens_BT)
    assert largest > 0.1
    assert furthest < 1e-4


def test_stock_transformers_scores_the_same_loss(tmp_path):
    model = make_model()
    tokens_BT = train(model)
    stock = AutoModelForCausalLM.from_pretrained(export_checkpoint(model, CONFIG, None, tmp_path / "out"))
    with torch.no_grad():
        theirs = float(stock(input_ids=tokens_BT, labels=tokens_BT).loss)
    assert float(model.token_losses(tokens_BT[:, :-1], tokens_BT[:, 1:]).mean()) == pytest.approx(theirs, abs=1e-5)


def test_the_tokenizer_is_exported_beside_the_weights(tmp_path):
    word_level = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    word_level.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=word_level).save_pretrained(tmp_path / "tokenizer")
    out = export_checkpoint(make_model().state_dict(), CONFIG, tmp_path / "tokenizer", tmp_path / "out")
    assert AutoTokenizer.from_pretrained(out, local_files_only=True)("b a").input_ids == [1, 0]
    assert json.loads((out / "config.json").read_text())["model_type"] == "qwen3_moe"
    assert (out / "model.safetensors").is_file()


def test_a_folder_with_files_is_never_written_into(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    with pytest.raises(MoeError, match="not an empty folder; choose another place"):
        export_checkpoint(make_model(), CONFIG, None, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious"]


def test_weights_of_another_config_are_refused_and_nothing_is_left(tmp_path):
    with pytest.raises(MoeError, match=r"missing \['model.layers.2"):
        export_checkpoint(make_model(), replace(CONFIG, n_layers=3), None, tmp_path / "out")
    with pytest.raises(MoeError, match="do not have the shapes"):
        export_checkpoint(make_model(), replace(CONFIG, d_expert=24), None, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
