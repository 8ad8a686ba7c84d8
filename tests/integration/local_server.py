"""HTTP servers of the tests: on a free port of 127.0.0.1, in a thread."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Keeps connections open, reads bodies of either kind, and says nothing of requests."""

    protocol_version = "HTTP/1.1"

    def body(self) -> bytes:
        """The whole body of the request."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while length := int(self.rfile.readline().partition(b";")[0], 16):
            body += self.rfile.read(length)
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            continue
        return body

    def send_body(self, data: bytes) -> None:
        """End the headers and send the body; who asked may be gone."""
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(data)

    def log_message(self, *_words: object) -> None:
        """Nothing."""


@contextlib.contextmanager
def served(handler: type[Handler]) -> Iterator[str]:
    """Answer requests until the block ends; gives the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
