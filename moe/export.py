"""Trained weights as a folder that stock ``transformers`` loads: Qwen3-MoE's architecture, names and file format."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from moe.config import ModelConfig
from moe.errors import MoeError
from moe.model import MoELanguageModel

if TYPE_CHECKING:
    from transformers import Qwen3MoeConfig

# What Qwen3's own checkpoints state. The positions that a model was trained on are its strategy's seq_len; beyond
# them RoPE goes on, and loss tells how well.
MAX_POSITIONS = 32_768


def qwen3_moe_config(config: ModelConfig) -> Qwen3MoeConfig:
    """The same architecture in the words of ``transformers``."""
    from transformers import Qwen3MoeConfig

    return Qwen3MoeConfig(  # type: ignore[call-arg] # head_dim is no field of it, but is read
        vocab_size=config.vocab_size,
        hidden_size=config.d_model,
        intermediate_size=config.d_expert,
        moe_intermediate_size=config.d_expert,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_kv_heads,
        head_dim=config.head_dim,
        num_experts=config.n_experts,
        num_experts_per_tok=config.top_k,
        norm_topk_prob=True,
        tie_word_embeddings=True,
        decoder_sparse_step=1,
        rms_norm_eps=config.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        max_position_embeddings=MAX_POSITIONS,
        initializer_range=config.init_std,
        router_aux_loss_coef=config.lb_loss_coef,
        dtype="float32",
    )


def export_checkpoint(
    model_or_state: MoELanguageModel | Mapping[str, Tensor], config: ModelConfig, tokenizer_dir: Path | None, out: Path
) -> Path:
    """Write ``config.json``, fp32 weights as safetensors, and the tokenizer's files into ``out``, and return ``out``.

    ``AutoModelForCausalLM`` and ``AutoTokenizer`` load it as Qwen3-MoE, without a network. The folder appears
    complete or not at all.

    Raises:
        MoeError: ``out`` holds files already, ``tokenizer_dir`` is no folder, or the weights are not ``config``'s.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise MoeError(f"{out} is already there and not an empty folder; choose another place to export to")
    if tokenizer_dir is not None and not tokenizer_dir.is_dir():
        raise MoeError(f"tokenizer folder {tokenizer_dir} is missing; prepare the corpus again or export without one")
    state = model_or_state.state_dict() if isinstance(model_or_state, MoELanguageModel) else model_or_state
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as folder:
        unfinished = Path(folder) / "model"
        _write_model(state, config, unfinished)
        if tokenizer_dir is not None:
            shutil.copytree(tokenizer_dir, unfinished, dirs_exist_ok=True)
        unfinished.replace(out)
    return out


def _write_model(state: Mapping[str, Tensor], config: ModelConfig, folder: Path) -> None:
    from transformers import Qwen3MoeForCausalLM

    with torch.device("meta"):
        model = Qwen3MoeForCausalLM(qwen3_moe_config(config))
    weights = {f"model.{name}": weight.detach().to("cpu", torch.float32) for name, weight in state.items()}
    try:
        found = model.load_state_dict(weights, strict=False, assign=True)
    except RuntimeError as error:
        raise MoeError(f"the weights do not have the shapes of the given config: {error}") from error
    missing = set(found.missing_keys) - {"lm_head.weight"}  # tied to the embedding
    if missing or found.unexpected_keys:
        raise MoeError(
            f"the weights are not the given config's: missing {sorted(missing)}, unexpected {found.unexpected_keys}; "
            "export with the config that they were trained with"
        )
    model.tie_weights()
    with without_progress_bars():
        model.save_pretrained(folder)


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """While the block runs ``transformers`` draws none: a file of some megabytes needs none."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
