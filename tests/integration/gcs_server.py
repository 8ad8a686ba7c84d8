"""A local server that speaks as much of Google Cloud Storage's JSON API as pyarrow asks for, kept in memory.

After https://docs.cloud.google.com/storage/docs/json_api/v1/objects and .../docs/resumable-uploads.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from email import message_from_bytes
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.integration.local_server import Handler, served

_BUCKETS = re.compile(r"/storage/v1/b/(?P<bucket>[^/]+)")
_OBJECTS = re.compile(r"/storage/v1/b/(?P<bucket>[^/]+)/o(?:/(?P<name>.+))?")
_UPLOADS = re.compile(r"/upload/storage/v1/b/(?P<bucket>[^/]+)/o")
_RANGE = re.compile(r"bytes (?:\*|\d+-\d+)/(?P<size>\*|\d+)")


@dataclass(frozen=True, kw_only=True)
class Stored:
    """An object: its content, and what its writer says of it."""

    data: bytes
    generation: int
    metadata: dict[str, str]


class GcsServer:
    """The objects, by bucket and name, and the uploads that are not complete."""

    def __init__(self) -> None:
        self.buckets: dict[str, dict[str, Stored]] = {}
        self.uploads: dict[str, tuple[str, str, bytearray]] = {}
        self.locked: set[str] = set()  # buckets that ask for other credentials
        self.completed: dict[str, dict[str, Any]] = {}  # by upload: who lost the answer asks again
        self.numbers = itertools.count(1)
        self.address = ""  # while it is served

    def environment(self, address: str = "") -> dict[str, str]:
        """Variables with which pyarrow uses it, or what stands before it at ``address``."""
        return {"CLOUD_STORAGE_EMULATOR_ENDPOINT": address or self.address}

    def make_bucket(self, name: str) -> str:
        """An empty bucket; returns a URI that asks for no credentials."""
        self.buckets[name] = {}
        return f"gs://anonymous@{name}"

    def put(self, bucket: str, name: str, data: bytes, metadata: dict[str, str] | None = None) -> dict[str, Any]:
        """Store a whole object; returns what describes it."""
        stored = Stored(data=data, generation=next(self.numbers), metadata=metadata or {})
        self.buckets[bucket][name] = stored
        return described(bucket, name, stored)

    def listed(self, bucket: str, prefix: str, delimiter: str) -> dict[str, Any]:
        """Objects under a prefix, and the prefixes that the delimiter cuts off."""
        items, prefixes = [], set()
        for name, stored in sorted(self.buckets[bucket].items()):
            if not name.startswith(prefix):
                continue
            head, cut, rest = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
            if cut:
                prefixes.add(f"{prefix}{head}{delimiter}")
            if not cut or not rest:  # as ``includeTrailingDelimiter`` asks: a folder's own object too
                items.append(described(bucket, name, stored))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)}


def described(bucket: str, name: str, stored: Stored) -> dict[str, Any]:
    """An object's resource."""
    return {
        "kind": "storage#object",
        "bucket": bucket,
        "name": name,
        "size": str(len(stored.data)),
        "generation": str(stored.generation),
        "metageneration": "1",
        "metadata": stored.metadata,
        "timeCreated": "2026-01-01T00:00:00Z",
        "updated": "2026-01-01T00:00:00Z",
    }


def _handler(server: GcsServer) -> type[Handler]:
    class Serves(Handler):
        def _serve(self) -> None:
            body = self.body()
            where, asked = (
                urlsplit(self.path),
                {key: found[0] for key, found in parse_qs(urlsplit(self.path).query).items()},
            )
            if any(f"/b/{bucket}/" in self.path for bucket in server.locked):
                self._answer(401)
            elif found := _UPLOADS.fullmatch(where.path):
                self._upload(found["bucket"], asked, body)
            elif (found := _OBJECTS.fullmatch(where.path)) and found["bucket"] in server.buckets:
                self._object(found["bucket"], unquote(found["name"] or ""), asked)
            elif (found := _BUCKETS.fullmatch(where.path)) and found["bucket"] in server.buckets:
                self._answer(200, {"kind": "storage#bucket", "name": found["bucket"]})
            else:
                self._answer(404)

        do_GET = do_POST = do_PUT = do_DELETE = _serve

        def _object(self, bucket: str, name: str, asked: dict[str, str]) -> None:
            if not name:
                self._answer(200, server.listed(bucket, asked.get("prefix", ""), asked.get("delimiter", "")))
            elif name not in server.buckets[bucket]:
                self._answer(404)
            elif self.command == "DELETE":
                server.buckets[bucket].pop(name, None)
                self._answer(204)
            elif asked.get("alt") == "media":
                stored = server.buckets[bucket][name]
                self._answer(200, stored.data, {"x-goog-generation": str(stored.generation)})
            else:
                self._answer(200, described(bucket, name, server.buckets[bucket][name]))

        def _upload(self, bucket: str, asked: dict[str, str], body: bytes) -> None:
            if bucket not in server.buckets:
                self._answer(404)
                return
            if asked.get("uploadType") == "multipart":
                if asked.get("ifGenerationMatch") == "0" and asked["name"] in server.buckets[bucket]:
                    self._answer(412)
                    return
                parts = message_from_bytes(
                    b"Content-Type: " + self.headers["Content-Type"].encode() + b"\r\n\r\n" + body
                )
                said, media = (part.get_payload(decode=True) for part in parts.get_payload())
                self._answer(200, server.put(bucket, asked["name"], media, json.loads(said).get("metadata")))
                return
            if "upload_id" not in asked:
                number = str(next(server.numbers))
                server.uploads[number] = bucket, asked["name"], bytearray()
                where = f"http://{self.headers['Host']}{urlsplit(self.path).path}?upload_id={number}"
                self._answer(200, headers={"Location": where})
                return
            number = asked["upload_id"]
            if number not in server.completed:
                bucket, name, data = server.uploads[number]
                data += body
                found = _RANGE.fullmatch(self.headers.get("Content-Range", ""))
                if found is None or found["size"] == "*" or len(data) < int(found["size"]):
                    self._answer(308, headers={"Range": f"bytes=0-{len(data) - 1}"} if data else {})
                    return
                server.completed[number] = server.put(bucket, name, bytes(data))
                del server.uploads[number]
            self._answer(200, server.completed[number])

        def _answer(
            self, status: int, body: dict[str, Any] | bytes = b"", headers: dict[str, str] | None = None
        ) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response_only(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            if status != 204:
                self.send_header("Content-Length", str(len(data)))
            self.send_body(data)

    return Serves


@contextlib.contextmanager
def gcs_server() -> Iterator[GcsServer]:
    """A server on a free port of 127.0.0.1, until the block ends."""
    server = GcsServer()
    with served(_handler(server)) as server.address:
        yield server
