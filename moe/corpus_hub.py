"""A data set of the Hugging Face hub as a corpus, streamed through ``datasets`` up to the tokens needed.

The hub is asked first, with a deadline of its own, because ``datasets`` and ``transformers`` try for half a minute to
reach a network that is not there. Code of a repository is never run (``trust_remote_code`` stays off). A directory in
the hub's own layout (README.md with ``configs``, data files) stands for a data set: a local mirror.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from moe.corpus import CorpusConfig, CorpusSource, Document
from moe.corpus_rows import RowReader, quiet_builders
from moe.errors import CorpusAway, CorpusError

PROBE_TIMEOUT_S = 3.0
# The client's timeout bounds connecting and reading each; a name server that is silent is bounded by this alone.
PROBE_DEADLINE_S = 6.0
_TRUE_WORDS = frozenset({"1", "ON", "YES", "TRUE"})
WAYS_OUT = "use `--set corpus=embedded`, or local files with `--set corpus=files:PATH`"


def hub_source(config: CorpusConfig) -> CorpusSource:
    """The rows of ``config.dataset``; the network is not asked before the first document.

    A cache that was built from the hub is therefore found and used without a network. Without a ``revision`` the
    newest one is resolved when the cache is built, and stays what it was.
    """
    resolved: dict[str, Any] = {}
    local = _is_mirror(config)
    identity = {
        "kind": "hub",
        "dataset": Path(str(config.dataset)).name if local else config.dataset,
        "mirror": _mirror_files(Path(str(config.dataset))) if local else None,
        "name": config.name,
        "split": config.split,
        "revision": config.revision,
        "text_column": config.text_column,
        "split_column": config.split_column,
        "group_column": config.group_column,
    }
    return CorpusSource(
        identity=identity,
        description=f"hub ({config.dataset}{'/' + config.name if config.name else ''})",
        documents=lambda: _documents(config, resolved),
        total_bytes=None,
        resolved=resolved,
    )


def require_hub(id_: str, *, kind: Literal["dataset", "tokenizer"], revision: str | None) -> str:
    """The commit that ``revision`` (or the newest one) of a repository is at, if the hub answers within seconds.

    Raises:
        CorpusAway: one line with the id, the reason and the ways out, in under ten seconds.
    """
    if offline():
        raise CorpusAway(
            f"{kind} {id_} is not in the local cache and HF_HUB_OFFLINE forbids to fetch it; unset it, or {WAYS_OUT}"
        )
    answer: dict[str, Any] = {}
    # A daemon, because nothing interrupts a thread that waits for a name server.
    probe = threading.Thread(target=_probe, args=(id_, kind, revision, answer), daemon=True)
    probe.start()
    probe.join(PROBE_DEADLINE_S)
    if "commit" in answer:
        return str(answer["commit"])
    reason = answer.get("reason", f"the hub did not answer within {PROBE_DEADLINE_S:.0f} s")
    raise CorpusAway(f"{kind} {id_} cannot be had: {reason}; fix that, or {WAYS_OUT}")


def offline() -> bool:
    """Whether the environment forbids to ask the hub (``HF_HUB_OFFLINE``, as its client reads it)."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE_WORDS


def _probe(id_: str, kind: str, revision: str | None, answer: dict[str, Any]) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        api = HfApi()
        ask = api.dataset_info if kind == "dataset" else api.model_info
        answer["commit"] = ask(id_, revision=revision, timeout=PROBE_TIMEOUT_S).sha
    except GatedRepoError:
        answer["reason"] = "its owner asks for consent (accept its terms on the hub, then `hf auth login`)"
    except RevisionNotFoundError:
        answer["reason"] = f"it has no revision {revision!r}"
    except RepositoryNotFoundError:
        answer["reason"] = "no such repository, or a private one (then `hf auth login`)"
    except Exception as error:  # noqa: BLE001 - the client's HTTP library has errors of its own; the reason is shown
        answer["reason"] = f"{type(error).__name__}: {_one_line(error)}"


def _documents(config: CorpusConfig, resolved: dict[str, Any]) -> Iterator[Document]:
    dataset = str(config.dataset)
    place = f"{dataset}{'/' + config.name if config.name else ''}"
    commit = None
    if not _is_mirror(config):
        commit = config.revision if offline() else require_hub(dataset, kind="dataset", revision=config.revision)
    resolved["revision"] = commit
    from datasets import load_dataset

    quiet_builders()
    try:
        rows = load_dataset(
            dataset,
            config.name,
            split=config.split,
            revision=commit,
            # Offline only what `datasets` has prepared before can be read, and that is not a stream.
            streaming=not offline() or _is_mirror(config),
        )
        yield from RowReader(config).documents(rows, place=place)
    except CorpusError:
        raise
    except (ValueError, OSError, EOFError) as error:
        if offline() and isinstance(error, ConnectionError | FileNotFoundError):
            raise CorpusAway(
                f"dataset {place} is not in the local cache and HF_HUB_OFFLINE forbids to fetch it; unset it, "
                f"or {WAYS_OUT}"
            ) from error
        raise CorpusError(f"dataset {place} cannot be read: {_one_line(error)}; fix that, or {WAYS_OUT}") from error


def _is_mirror(config: CorpusConfig) -> bool:
    return Path(str(config.dataset)).is_dir()


def _mirror_files(folder: Path) -> list[list[str]]:
    from moe.token_file import file_digest

    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [[path.relative_to(folder).as_posix(), file_digest(path)] for path in files]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
