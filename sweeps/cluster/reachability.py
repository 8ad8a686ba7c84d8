"""Whether the servers of a sweep answer: the tracking server, and the hub of data sets.

Each request has a short deadline, because the libraries' own retries last up to 47 seconds without a network.
"""

from __future__ import annotations

import base64
import os
import socket
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sweeps.cluster.addresses import impossible_store, without_credentials

PROBE_TIMEOUT_S = 3.0

DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


def tracking_problem(uri: str, *, timeout_s: float = PROBE_TIMEOUT_S) -> str | None:
    """Return why MLflow cannot use the store at ``uri``, and what to do; None where it can.

    A server must answer on ``/health``, a database on a named host on its port, and a sqlite file's folder must be
    writable.
    """
    parts = urlsplit(uri)
    scheme = parts.scheme.partition("+")[0]
    shown = without_credentials(uri)
    if scheme in ("http", "https"):
        return _http_problem(uri, timeout_s)
    if scheme in DATABASE_PORTS:
        if parts.hostname is None:  # a socket of this machine, or whatever the driver takes by default
            return None
        return _port_problem(parts.scheme, parts.hostname, parts.port or DATABASE_PORTS[scheme], timeout_s)
    if scheme == "sqlite":
        return _folder_problem(shown, Path(parts.path.removeprefix("/")).expanduser().absolute().parent)
    return impossible_store(uri)


def hub_problem(dataset_id: str | None = None, *, timeout_s: float = PROBE_TIMEOUT_S) -> str | None:
    """Return why the Hugging Face hub (or this data set on it) cannot be used, and what to do; None where it can."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "HF_HUB_OFFLINE is set, so only what is in the local cache can be used; unset it to reach the hub"
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    page = f"{endpoint}/api/datasets/{dataset_id}" if dataset_id else f"{endpoint}/api/datasets?limit=1"
    try:
        with urllib.request.urlopen(page, timeout=timeout_s):  # noqa: S310 - the scheme is the user's own endpoint
            return None
    except urllib.error.HTTPError as error:
        error.close()
        return f"{page} answered {error.code} {error.reason}; check the id, or log in with `hf auth login`"
    except (OSError, ValueError) as error:
        return f"{endpoint} does not answer ({_reason(error)}); corpus = 'embedded' and 'files:...' need no hub"


def _http_problem(uri: str, timeout_s: float) -> str | None:
    remedy = (
        "start it, correct MLFLOW_TRACKING_URI, or unset it for the local store (`sweeps sync NAME` catches up later)"
    )
    shown = without_credentials(uri)
    try:
        with urllib.request.urlopen(_request(f"{uri.rstrip('/')}/health"), timeout=timeout_s):  # noqa: S310 - scheme was checked
            return None
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (401, 403):
            return f"tracking server {shown} refuses access ({error.code}); set MLFLOW_TRACKING_USERNAME and _PASSWORD"
        return f"tracking server {shown} answers {error.code} {error.reason} to /health; {remedy}"
    except (OSError, ValueError) as error:
        return f"tracking server {shown} does not answer ({_reason(error)}); {remedy}"


def _request(address: str) -> urllib.request.Request:
    """A request with the user's credentials as MLflow would send them: from the address, or from its own variables."""
    parts = urlsplit(address)
    user = unquote(parts.username) if parts.username else os.environ.get("MLFLOW_TRACKING_USERNAME")
    password = unquote(parts.password) if parts.password else os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    request = urllib.request.Request(without_credentials(address))  # noqa: S310 - its scheme was checked
    if user:
        secret = base64.b64encode(f"{user}:{password}".encode()).decode()
        request.add_header("Authorization", f"Basic {secret}")
    elif token:
        request.add_header("Authorization", f"Bearer {token}")
    return request


def _port_problem(scheme: str, host: str, port: int, timeout_s: float) -> str | None:
    try:
        with socket.create_connection((host, port), timeout=timeout_s):
            return None
    except OSError as error:
        return (
            f"tracking database {scheme}://{host}:{port} does not answer ({_reason(error)}); "
            "start it or correct MLFLOW_TRACKING_URI"
        )


def _folder_problem(uri: str, folder: Path) -> str | None:
    existing = existing_folder(folder)
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        return None
    return f"tracking store {uri} cannot be written ({existing} is not writable); choose another --runs-dir"


def existing_folder(folder: Path) -> Path:
    """Return the folder, or the nearest one above that exists."""
    return next(each for each in (folder, *folder.parents) if each.exists())


def _reason(error: Exception) -> str:
    """The bare reason: urllib wraps it once."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, TimeoutError):
        return "timed out"
    return reason.strerror or str(reason) if isinstance(reason, OSError) else str(reason)
