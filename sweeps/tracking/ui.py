"""MLflow's own UI on the right store, at 127.0.0.1, until Ctrl-C."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO

from sweeps.cluster.addresses import without_credentials
from sweeps.errors import BadInputError, WorldError
from sweeps.tracking.projector import answering
from sweeps.tracking.store import QUIET_ENVIRONMENT, TrackingStore, connect
from sweeps.tracking.views import CELLS_VIEW, CONFIRM_VIEW, EXPLORE_VIEW, TREE_VIEW, view_path

HOST = "127.0.0.1"
FIRST_PORT = 5000
READY_WITHIN_S = 120.0  # it starts in about 6 s on an idle core
STOP_WITHIN_S = 3.0  # it only reads: there is nothing to finish


class UserInterfaceError(WorldError):
    """MLflow's UI did not start; its last words are in the message."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """A page worth opening: what it shows and its address."""

    text: str
    url: str


def free_port(wanted: int | None = None) -> int:
    """Return ``wanted``, else 5000 or, where that is taken, a port that the system picks.

    Raises:
        BadInputError: the wanted port is taken.
    """
    for port in (FIRST_PORT, 0) if wanted is None else (wanted,):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind((HOST, port))
                return int(probe.getsockname()[1])
    raise BadInputError(f"port {wanted} of {HOST} is taken; name another, or none to have one picked")


def links(store: TrackingStore, base_url: str, sweep: str | None = None) -> list[Link]:
    """Return the pages of ``sweep``, or of the newest sweeps in the store; the list of experiments where there is none.

    Raises:
        TrackingUnavailableError: the store does not answer or refuses.
    """
    with answering(store, "sweeps ui"):
        experiments = connect(store).search_experiments(
            filter_string=f"name = '{sweep}'" if sweep else None,
            max_results=1 if sweep else 5,
            order_by=["creation_time DESC"],
        )
    found = [experiment for experiment in experiments if "sweep" in experiment.tags]
    pages = []
    for experiment in found:
        views = [
            ("the sweep and its cells", TREE_VIEW, False),
            ("cells, best test loss first", CELLS_VIEW, False),
            ("loss by tokens, confirm", CONFIRM_VIEW, True),
            ("loss by tokens, explore", EXPLORE_VIEW, True),
        ]
        pages += [
            Link(
                text=f"{experiment.name}: {text}",
                url=f"{base_url}/{view_path(experiment.experiment_id, view, charts=charts)}",
            )
            for text, view, charts in (views if sweep else views[:1])
        ]
    return pages or [Link(text="experiments", url=f"{base_url}/#/experiments")]


def run_ui(
    store: TrackingStore,
    say: Callable[[str], None],
    *,
    sweep: str | None = None,
    port: int | None = None,
    until: Callable[[], bool] = lambda: False,
) -> None:
    """Serve MLflow's UI for ``store`` and say where it is; return on Ctrl-C, or when ``until`` says so.

    A store that is a server already has a UI: its links are said and nothing is started. Without a ``port``, it is
    5000 or whatever is free.

    Raises:
        BadInputError: the port is taken.
        UserInterfaceError: the server ended by itself, or was not ready in time.
    """
    if store.is_server:
        _say_links(store, store.label, sweep, say)
        return
    chosen = free_port(port)
    with answering(store, "sweeps ui"):
        connect(store)  # creates a default store that is not there yet
    base_url = f"http://{HOST}:{chosen}"
    with _termination_as_interrupt(), tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = _start(store, chosen, log)
        try:
            _wait_until_ready(process, base_url, log)
            _say_links(store, base_url, sweep, say)
            say("Ctrl-C ends it.")
            while not until():
                _check_alive(process, log)
                time.sleep(0.2)
        except KeyboardInterrupt:
            say("")  # the terminal has just printed ^C
        finally:
            _stop(process)


@contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """Let SIGTERM end the server as Ctrl-C does: it is in a session of its own and would live on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say_links(store: TrackingStore, base_url: str, sweep: str | None, say: Callable[[str], None]) -> None:
    for link in links(store, base_url, sweep):
        say(f"{link.text}: {link.url}")


def _start(store: TrackingStore, port: int, log: IO[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    if store.artifacts_dir is not None:
        command += ["--default-artifact-root", store.artifacts_dir.as_uri()]
    # The store's address may hold a password, which every user of the machine could read on a command line.
    store_address = {"MLFLOW_BACKEND_STORE_URI": store.uri}
    # Its job runners are for other uses of MLflow: seven processes and 800 MB.
    no_jobs = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return subprocess.Popen(  # noqa: S603 - our own interpreter and words
        command,
        env={**os.environ, **QUIET_ENVIRONMENT, **store_address, **no_jobs},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        text=True,
        start_new_session=True,  # so that Ctrl-C reaches us alone, and we end it with its workers
    )


def _wait_until_ready(process: subprocess.Popen[str], base_url: str, log: IO[str]) -> None:
    until = time.monotonic() + READY_WITHIN_S
    while True:
        _check_alive(process, log)
        with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(f"{base_url}/health", timeout=2):  # noqa: S310 - our own http address
            return
        if time.monotonic() > until:
            raise UserInterfaceError(f"MLflow's UI was not ready within {READY_WITHIN_S:g} s: {_last_words(log)}")
        time.sleep(0.2)


def _check_alive(process: subprocess.Popen[str], log: IO[str]) -> None:
    if process.poll() is not None:
        raise UserInterfaceError(f"MLflow's UI ended by itself (exit code {process.returncode}): {_last_words(log)}")


def _last_words(log: IO[str]) -> str:
    log.seek(0)
    return without_credentials("".join(log.readlines()[-3:])).strip() or "it said nothing"


def _stop(process: subprocess.Popen[str]) -> None:
    """End the server and its workers, which are a process group of their own."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_WITHIN_S)
            break
    with suppress(ProcessLookupError):  # a worker that outlived the server
        os.killpg(process.pid, signal.SIGKILL)
