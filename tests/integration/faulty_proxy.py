"""Between a program and a server of objects: a switch for what a network and a busy server do to requests."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException
from typing import Literal
from urllib.parse import urlsplit

from tests.integration.local_server import Handler, served

Fault = Literal["answers 503", "loses answers"]

_OF_THE_CONNECTION = {"connection", "expect", "keep-alive", "transfer-encoding", "content-length"}


class FaultyProxy:
    """Passes requests on to ``target``; while a fault strikes it answers 503, or lets a put take effect and hangs up.

    What reads, or only prepares an upload, is answered all the same where answers are lost: else no put would begin.
    """

    def __init__(self, target: str) -> None:
        self.struck = 0  # requests that a fault met
        self._target = urlsplit(target)
        self._fault: Fault | None = None
        self.address = ""  # while it is served

    def strike(self, fault: Fault, for_s: float) -> None:
        """Let a fault meet every request from now on, for so long."""
        self._fault = fault
        time.sleep(for_s)
        self._fault = None

    def handler(self) -> type[Handler]:
        """What answers for it."""
        proxy = self

        class PassesOn(Handler):
            def _pass_on(self) -> None:
                body = self.body()
                fault = proxy._fault
                if fault == "answers 503":
                    proxy.struck += 1
                    self._answer(503, {}, b"")
                    return
                status, headers, data = self._asked(body)
                if fault == "loses answers" and self._takes_effect():
                    proxy.struck += 1
                    self.close_connection = True
                    return
                self._answer(status, headers, data)

            def _takes_effect(self) -> bool:
                prepares = any(f"{word}=" in self.path for word in ("uploads", "partNumber", "uploadType"))
                return self.command not in ("GET", "HEAD") and not prepares

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on

            def _asked(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
                connection = HTTPConnection(str(proxy._target.netloc), timeout=60)
                kept = {name: value for name, value in self.headers.items() if name.lower() not in _OF_THE_CONNECTION}
                try:
                    connection.request(self.command, self.path, body, {**kept, "Content-Length": str(len(body))})
                    answer = connection.getresponse()
                    return answer.status, dict(answer.getheaders()), answer.read()
                except (OSError, HTTPException) as error:
                    return 502, {}, str(error).encode()
                finally:
                    connection.close()

            def _answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
                self.send_response_only(status)
                lengths = [value for name, value in headers.items() if name.lower() == "content-length"]
                for name, value in headers.items():
                    if name.lower() not in _OF_THE_CONNECTION:
                        self.send_header(name, value)
                self.send_header("Content-Length", lengths[0] if self.command == "HEAD" and lengths else str(len(data)))
                self.send_body(data)

        return PassesOn


@contextlib.contextmanager
def faulty_proxy(target: str) -> Iterator[FaultyProxy]:
    """A proxy on a free port of 127.0.0.1, until the block ends."""
    proxy = FaultyProxy(target)
    with served(proxy.handler()) as proxy.address:
        yield proxy
