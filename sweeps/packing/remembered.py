"""What takes seconds to find and is the same every time, peaks of memory and audits: kept in the cache of tokens."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sweeps.ledger.provenance import code_fingerprint
from sweeps.training_data import cache_dir


def remembered(kind: str, decides: object, find: Callable[[], Any]) -> Any:
    """Return what ``find`` found before for the same ``decides``, torch and sources of ``moe``, else what it finds now.

    It is a value of JSON; ``repr(decides)`` holds all else that it depends on. None is not remembered, and a cache that
    cannot be read or written costs the time only.
    """
    told = repr((decides, version("torch"), code_fingerprint()))
    kept = cache_dir() / kind / f"{hashlib.sha256(told.encode()).hexdigest()[:32]}.json"
    try:
        return json.loads(kept.read_text(encoding="utf-8"))["found"]
    except (OSError, ValueError, KeyError, TypeError):
        found = find()
    if found is not None:
        _keep(kept, found)
    return found


def _keep(kept: Path, found: Any) -> None:
    temporary = kept.with_name(f".{kept.name}-{os.getpid()}")
    with suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"found": found}), encoding="utf-8")
        temporary.replace(kept)
