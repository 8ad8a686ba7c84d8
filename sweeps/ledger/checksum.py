"""JSON objects that say when a bit of them has changed.

The last key of an object is ``checksum``: a BLAKE2b hash over all bytes before it. Objects of version 0.1 have none;
whether an object is one of those is recognised although a bit of it has changed, because two words would have to go.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Final

_WORDS: Final = (b'"checksum"', b'"blake2b-128:')
_TRAILER: Final = re.compile(rb',\n "checksum": "blake2b-128:([0-9a-f]{32})"\n\}\n\Z')


class ChecksumError(ValueError):
    """The bytes are not those that were written."""


def with_checksum(value: Mapping[str, object]) -> bytes:
    """A mapping that is not empty as JSON, the checksum as its last key; NaN is refused."""
    body = json.dumps(value, indent=1, allow_nan=False).removesuffix("\n}").encode()
    return body + f',\n "checksum": "blake2b-128:{_digest(body)}"\n}}\n'.encode()


def without_checksum(data: bytes) -> bytes:
    """The JSON without its checksum; raises ChecksumError where that is not the one of these bytes."""
    trailer = _TRAILER.search(data)
    if trailer is None:
        if any(word in data for word in _WORDS):
            raise ChecksumError("its checksum is not whole")
        return data
    body = data[: trailer.start()]
    if _digest(body) != trailer[1].decode():
        raise ChecksumError("its checksum is that of other bytes")
    return body + b"\n}"


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
