"""A local server that speaks S3, in a process of its own."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

from tests.integration.sweeping import PATIENCE_S


@dataclass(frozen=True, kw_only=True)
class S3Server:
    """Where it listens. Everything in it is gone when it ends."""

    address: str

    def environment(self, address: str = "") -> dict[str, str]:
        """Variables with which pyarrow, boto and Ray use it, or what stands before it at ``address``."""
        return {
            "AWS_ENDPOINT_URL": address or self.address,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def make_bucket(self, name: str) -> str:
        """An empty bucket; returns its URI."""
        request = urllib.request.Request(f"{self.address}/{name}", method="PUT")
        with urllib.request.urlopen(request, timeout=10):
            return f"s3://{name}"


@contextlib.contextmanager
def s3_server() -> Iterator[S3Server]:
    """A server on a free port of 127.0.0.1, until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    words = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    server = S3Server(address=f"http://127.0.0.1:{port}")
    try:
        _wait_for(server, process)
        yield server
    finally:
        process.kill()
        process.wait()


def _wait_for(server: S3Server, process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        assert process.poll() is None, "the S3 server ended at once; is moto[server] installed?"
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(server.address, timeout=2):
            return
        time.sleep(0.1)
    raise TimeoutError("the S3 server did not answer")
