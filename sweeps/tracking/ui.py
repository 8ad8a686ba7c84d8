"""MLflow's own UI on the right store, at 127.0.0.1, in this process: however the command ends, no server is left."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress

from sweeps.errors import BadInputError
from sweeps.tracking.projector import answering
from sweeps.tracking.store import TrackingStore, connect
from sweeps.tracking.views import CELLS_VIEW, STRATEGIES_VIEW, report_path, view_path

HOST = "127.0.0.1"
FIRST_PORT = 5000
SHUTDOWN_S = 2  # for requests that are open at Ctrl-C: they only read
NEWEST_SWEEPS = 5


def run_ui(
    store: TrackingStore, say: Callable[[str], None], *, sweep: str | None = None, port: int | None = None
) -> None:
    """Print the pages of MLflow's UI for ``store`` and serve it until Ctrl-C.

    A store that is a server has a UI already: its pages are printed and nothing is started. Without a ``port``, it is
    5000 or whatever is free.

    Raises:
        BadInputError: the port is taken.
        TrackingUnavailableError: the store does not answer or refuses.
    """
    if store.is_server:
        _print_pages(store, store.label, sweep, say)
        return
    with listening(port) as listener, suppress(KeyboardInterrupt):
        _print_pages(store, f"http://{HOST}:{listener.getsockname()[1]}", sweep, say)
        say("It answers in a few seconds; Ctrl-C ends it.")
        _serve(store, listener)


def pages(store: TrackingStore, base_url: str, sweep: str | None = None) -> dict[str, str]:
    """Return addresses by what they show: of ``sweep``, or of the newest sweeps; the list of experiments without any.

    Raises:
        TrackingUnavailableError: the store does not answer or refuses.
    """
    found = {}
    with answering(store, "sweeps ui"):
        client = connect(store)  # creates a default store that is not there yet
        experiments = client.search_experiments(
            filter_string=f"name = '{sweep}'" if sweep else None,
            max_results=NEWEST_SWEEPS,
            order_by=["creation_time DESC"],
        )
        for name, number in ((each.name, each.experiment_id) for each in experiments if "sweep" in each.tags):
            found[f"{name}, curves by strategy"] = view_path(number, CELLS_VIEW)
            if sweep:
                found[f"{name}, mean curves of the confirm seeds"] = view_path(number, STRATEGIES_VIEW)
                for decided in client.search_runs(
                    [number], "tags.phase = 'sweep' and tags.outcome != ''", max_results=1
                ):
                    found[f"{name}, report"] = report_path(number, decided.info.run_id)
    return {text: f"{base_url}/{path}" for text, path in (found or {"experiments": "#/experiments"}).items()}


def listening(port: int | None = None) -> socket.socket:
    """Return a socket that listens on ``port``; without one on 5000 or, where that is taken, on a free port.

    Raises:
        BadInputError: the port is taken.
    """
    for candidate in (FIRST_PORT, 0) if port is None else (port,):
        with suppress(OSError):
            return socket.create_server((HOST, candidate))
    raise BadInputError(f"port {port} of {HOST} is taken; give another --port, or none for a free one")


def _print_pages(store: TrackingStore, base_url: str, sweep: str | None, say: Callable[[str], None]) -> None:
    for text, url in pages(store, base_url, sweep).items():
        say(f"{text}: {url}")


def _serve(store: TrackingStore, listener: socket.socket) -> None:
    """Run MLflow's application as ``mlflow server`` does, but in this process, and without its job runners."""
    from mlflow.server.constants import ARTIFACT_ROOT_ENV_VAR, BACKEND_STORE_URI_ENV_VAR, REGISTRY_STORE_URI_ENV_VAR

    os.environ.update({BACKEND_STORE_URI_ENV_VAR: store.uri, REGISTRY_STORE_URI_ENV_VAR: store.uri})
    if store.artifacts_dir is not None:
        os.environ[ARTIFACT_ROOT_ENV_VAR] = store.artifacts_dir.as_uri()
    # They are for other uses of MLflow: seven processes and 800 MB.
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    import uvicorn
    from mlflow.server.fastapi_app import app  # after the environment, which it reads when it is imported

    config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=SHUTDOWN_S)
    uvicorn.Server(config).run(sockets=[listener])
