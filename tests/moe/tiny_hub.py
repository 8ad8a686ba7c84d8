"""A hub of one's own: the few addresses that `datasets` and `transformers` ask for, answered from folders."""

import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SHA = "f" * 40
NEXT_SHA = "e" * 40
INFO = re.compile(r"/api/(?P<kind>datasets|models)/(?P<id>\w+/\w+)(/revision/(?P<at>\w+))?")
TREE = re.compile(r"/api/(?P<kind>datasets|models)/(?P<id>\w+/\w+)/tree/(?P<at>\w+)(/(?P<name>.+))?")
FILE = re.compile(r"/(?P<kind>datasets/)?(?P<id>\w+/\w+)/resolve/(?P<at>\w+)/(?P<name>.+)")


@contextmanager
def served(folder: Path, *, newest: str = SHA) -> Iterator[str]:
    """Serves the repositories in ``folder`` (datasets/OWNER/NAME and models/OWNER/NAME); yields the endpoint.

    They are at the commit ``newest``; a folder NAME@COMMIT beside one is what it was before (``move_on``).
    """
    handler = type("TinyHub", (Handler,), {"folder": folder, "newest": newest})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def move_on(repository: Path, newer: Path) -> None:
    """Let a repository, which is at ``SHA``, have the content of ``newer`` from now on."""
    repository.rename(repository.with_name(f"{repository.name}@{SHA}"))
    newer.rename(repository)


class Handler(http.server.BaseHTTPRequestHandler):
    folder: Path
    newest: str
    commit: str

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0]
        for pattern, reply in ((INFO, self.info), (TREE, self.tree), (FILE, self.file)):
            match = pattern.fullmatch(path)
            if match:
                kind = (match["kind"] or "models").strip("/")
                repository = self.folder / kind / match["id"]
                self.commit = self.newest
                if match["at"] not in (None, "main", self.newest):
                    repository, self.commit = repository.with_name(f"{repository.name}@{match['at']}"), match["at"]
                if repository.is_dir():
                    return reply(repository, match.groupdict().get("name") or "")
        return self.missing()

    def info(self, repository, name):
        names = [path.relative_to(repository).as_posix() for path in sorted(repository.rglob("*")) if path.is_file()]
        siblings = [{"rfilename": name} for name in names]
        owner_and_name = "/".join(repository.parts[-2:]).partition("@")[0]
        self.answer(json.dumps({"id": owner_and_name, "sha": self.commit, "siblings": siblings, "tags": []}).encode())

    def tree(self, repository, name):
        if not (repository / name).is_dir():
            return self.missing()
        entries = [
            {
                "type": "directory" if path.is_dir() else "file",
                "path": path.relative_to(repository).as_posix(),
                "oid": "0" * 40,
                "size": path.stat().st_size,
            }
            for path in sorted((repository / name).iterdir())
        ]
        return self.answer(json.dumps(entries).encode())

    def file(self, repository, name):
        if not (repository / name).is_file():
            return self.missing()
        return self.answer((repository / name).read_bytes())

    def missing(self):
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()

    def answer(self, content):
        first, last = 0, len(content) - 1
        wanted = self.headers.get("Range")
        if wanted:
            low, _, high = wanted.removeprefix("bytes=").partition("-")
            first, last = int(low), min(int(high or last), last)
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(last - first + 1))
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        # The client keeps one copy per tag, whatever the name.
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.commit)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[first : last + 1])

    def log_message(self, *args):
        """Silence: the tests' output is pytest's."""
