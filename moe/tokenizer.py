"""Tokenizers: a byte-level BPE trained on the train split, plain bytes, a saved directory, or one from the hub.

All of them are ``tokenizers`` objects with a separator token, which stands after every document, and all are saved as
a directory that ``transformers.AutoTokenizer`` loads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from moe.errors import CorpusError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SEPARATOR = "<|endoftext|>"
# 256 bytes and the separator: below that a byte-level BPE has no merge to learn.
MIN_BPE_VOCAB = 257


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """How text becomes tokens. ``path`` belongs to ``directory``, ``id`` and ``revision`` to ``hub``."""

    kind: Literal["bpe", "bytes", "directory", "hub"] = "bpe"
    vocab_size: int = 2048
    path: str | None = None
    id: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        if self.kind == "bpe" and self.vocab_size < MIN_BPE_VOCAB:
            raise CorpusError(
                f"vocab_size={self.vocab_size} is below {MIN_BPE_VOCAB}, the 256 bytes and the separator; "
                'choose a larger one or the tokenizer "bytes"'
            )
        if self.kind == "directory" and not self.path:
            raise CorpusError('tokenizer kind "directory" has no path; give the directory of a saved tokenizer')
        if self.kind == "hub" and not self.id:
            raise CorpusError('tokenizer kind "hub" has no id; give one, for example HuggingFaceTB/SmolLM-135M')


@dataclass(frozen=True, kw_only=True)
class TextTokenizer:
    """A tokenizer ready to use. ``vocab_size`` is what the model's embedding needs (ids lie below it).

    ``commit`` is the one of the hub that it was read at; None where it is from elsewhere.
    """

    backend: Tokenizer
    separator: str
    separator_id: int
    vocab_size: int
    fingerprint: str
    commit: str | None = None

    def encode(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        """Token ids of each text, without any special token; equal for every number of threads."""
        encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(encoding.ids, dtype=np.uint32) for encoding in encodings]

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of ``tokens``, separators included."""
        return str(self.backend.decode([int(token) for token in tokens], skip_special_tokens=False))

    def save(self, folder: Path) -> None:
        """Writes ``tokenizer.json`` and what ``AutoTokenizer`` reads beside it into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        self.backend.save(str(folder / "tokenizer.json"))
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": self.separator,
            "bos_token": self.separator,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 1_000_000_000,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
        special = {"eos_token": self.separator, "bos_token": self.separator}
        (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2, sort_keys=True) + "\n")


def train_bpe(texts: Iterable[str], *, vocab_size: int) -> TextTokenizer:
    """A byte-level BPE (Radford et al. 2019) of ``texts``, the same on every machine and thread count.

    A corpus with fewer merges than asked for leaves the highest ids unused; ``vocab_size`` stays as asked, so that
    the model's shape is known before the corpus is read.
    """
    from tokenizers import models, trainers
    from tokenizers.pre_tokenizers import ByteLevel

    backend = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[SEPARATOR],
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return _wrap(backend, separator=SEPARATOR, vocab_size=vocab_size)


def byte_tokenizer() -> TextTokenizer:
    """Every byte is its own token (id = value of the byte), the separator is 256."""
    from tokenizers import AddedToken, models

    vocab = {character: byte for byte, character in enumerate(_characters_of_bytes())}
    backend = _byte_level(models.BPE(vocab=vocab, merges=[]))
    backend.add_special_tokens([AddedToken(SEPARATOR, normalized=False, special=True)])
    return _wrap(backend, separator=SEPARATOR, vocab_size=257)


def load_directory(path: Path) -> TextTokenizer:
    """The tokenizer saved in ``path``; its separator is its EOS token.

    Raises:
        CorpusError: there is none, it has no fast form, or it has no EOS token.
    """
    if not (path / "tokenizer.json").is_file() and not (path / "tokenizer_config.json").is_file():
        raise CorpusError(f"{path} holds no tokenizer (no tokenizer.json); give a directory made by `save_pretrained`")
    try:
        return _from_auto(str(path), shown=str(path), options={"local_files_only": True})
    except CorpusError:
        raise
    except Exception as error:  # `tokenizers` raises bare Exceptions for files that it cannot read
        raise CorpusError(
            f"the tokenizer in {path} cannot be read: {' '.join(str(error).split())[:300]}; "
            "save it again with `save_pretrained`"
        ) from error


def load_pretrained(id_: str, *, revision: str | None) -> TextTokenizer:
    """The tokenizer of the hub repository ``id_``: from the local cache, else from the network if it answers in 3 s.

    Raises:
        CorpusError: it cannot be had, with the reason and the two ways out.
    """
    from moe.corpus_hub import require_hub

    options: dict[str, Any] = {} if revision is None else {"revision": revision}
    try:
        found = _from_auto(id_, shown=id_, options={**options, "local_files_only": True})
        return replace(found, commit=_cached_commit(id_, revision))
    except CorpusError:
        raise
    except (OSError, ValueError):
        pass  # not in the local cache: the hub is asked, and its answer is what is said
    require_hub(id_, kind="tokenizer", revision=revision)
    try:
        found = _from_auto(id_, shown=id_, options=options)
        return replace(found, commit=_cached_commit(id_, revision))
    except CorpusError:
        raise
    except (OSError, ValueError) as error:
        raise CorpusError(
            f"tokenizer {id_} cannot be read: {' '.join(str(error).split())[:300]}; choose another one, or train one "
            "with `--set tokenizer=bpe:8192`"
        ) from error


def _cached_commit(id_: str, revision: str | None) -> str | None:
    """The commit whose files the hub's client has kept for ``revision`` (or the newest one)."""
    from huggingface_hub import try_to_load_from_cache

    for name in ("tokenizer.json", "tokenizer_config.json"):
        file = try_to_load_from_cache(id_, name, revision=revision)
        if isinstance(file, str):
            return Path(file).parent.name
    return None


def make_tokenizer(config: TokenizerConfig, train_texts: Iterable[str]) -> TextTokenizer:
    """The tokenizer that ``config`` names; only ``bpe`` looks at ``train_texts``."""
    if config.kind == "bpe":
        return train_bpe(train_texts, vocab_size=config.vocab_size)
    if config.kind == "bytes":
        return byte_tokenizer()
    if config.kind == "directory":
        return load_directory(Path(str(config.path)))
    return load_pretrained(str(config.id), revision=config.revision)


def tokenizer_identity(config: TokenizerConfig) -> dict[str, Any]:
    """What decides the tokens, for the name of a cache: the settings, or the content of a saved directory.

    Raises:
        CorpusError: the directory is not there.
    """
    if config.kind == "bpe":
        return {"kind": "bpe", "vocab_size": config.vocab_size}
    if config.kind == "bytes":
        return {"kind": "bytes"}
    if config.kind == "directory":
        return {"kind": "directory", "fingerprint": load_directory(Path(str(config.path))).fingerprint}
    return {"kind": "hub", "id": config.id, "revision": config.revision}


def _from_auto(source: str, *, shown: str, options: dict[str, Any]) -> TextTokenizer:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, use_fast=True, **options)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise CorpusError(f"tokenizer {shown} has no fast form (tokenizer.json); choose another or train one with bpe")
    separator = tokenizer.eos_token or tokenizer.sep_token
    if separator is None:
        raise CorpusError(
            f"tokenizer {shown} has no EOS token to put between documents; set `eos_token` in its tokenizer_config.json"
        )
    return _wrap(backend, separator=str(separator), vocab_size=0)


def _byte_level(model: Any) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, pre_tokenizers

    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _characters_of_bytes() -> list[str]:
    """The printable character that stands for each byte in byte-level vocabularies (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    character_of = {byte: chr(byte) for byte in printable}
    for shift, byte in enumerate(byte for byte in range(256) if byte not in character_of):
        character_of[byte] = chr(256 + shift)
    return [character_of[byte] for byte in range(256)]


def _wrap(backend: Tokenizer, *, separator: str, vocab_size: int) -> TextTokenizer:
    # A document that happens to contain the separator's name must not end there.
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    separator_id = backend.token_to_id(separator)
    assert separator_id is not None
    highest = max(backend.get_vocab(with_added_tokens=True).values())
    content = hashlib.blake2b(backend.to_str().encode(), digest_size=16)
    content.update(separator.encode())
    return TextTokenizer(
        backend=backend,
        separator=separator,
        separator_id=separator_id,
        vocab_size=max(vocab_size, highest + 1),
        fingerprint=content.hexdigest(),
    )
