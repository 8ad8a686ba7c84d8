"""Connections to Ray: to a cluster that runs already, with this project's sources on every node, and a private one."""

from __future__ import annotations

import logging
import os
import secrets
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

from sweeps.cluster.shipping import cluster_runtime_env
from sweeps.errors import BadInputError, WorldError

OBJECT_STORE_BYTES = 100_000_000  # nothing of size goes through Ray: tokens and checkpoints are files

T = TypeVar("T")

_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # the last report of a segment says only how it ended
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the driver handles signals
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "120",  # a slow clean-up must not abort the next trial
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def live_nodes() -> list[dict[str, Any]]:
    """Ray's entries of the live nodes, ordered by address. Ray must be connected."""
    import ray

    return sorted((node for node in ray.nodes() if node["Alive"]), key=lambda node: str(node["NodeManagerAddress"]))


def cluster_address() -> str | None:
    """``RAY_ADDRESS``: the cluster or job server to use, None for this machine alone."""
    return os.environ.get("RAY_ADDRESS") or None


def is_job_address(address: str | None) -> bool:
    """Whether ``RAY_ADDRESS`` names a job server rather than a cluster to connect to."""
    return address is not None and address.startswith(("http://", "https://"))


_CLOSED_PORTS = {
    "RAY_enable_metrics_collection": "0",
    "AUTOSCALER_METRIC_PORT": "-1",
    "DASHBOARD_METRIC_PORT": "-1",
}
"""Ray serves its metrics on all interfaces and to everyone; a private Ray serves none."""


@cache
def _private_token() -> str:
    return secrets.token_hex(32)


def private_ray() -> Any:
    """The module ``ray``, set up so that a Ray started from this process obeys this process alone.

    ``ray.init(address="local")`` listens on all interfaces. Without a token its job API on port 52365 and its control
    service run anyone's program, so a random token is set, whatever the user's environment says. It lives in the
    environment of this process and of Ray's own processes, never in a file.
    """
    os.environ.update(_CLOSED_PORTS, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=_private_token())
    ray = quiet_ray()
    from ray._raylet import Config  # type: ignore[attr-defined]  # compiled

    Config.initialize("")  # what was read from the environment when ray was first imported, as Ray's own set-up does it
    return ray


@contextmanager
def local_ray(*, cpus: int, declared_gpus: int | None) -> Iterator[None]:
    """A private Ray on this machine until the block ends; the handler of SIGTERM stays as it was."""
    ray = private_ray()
    on_sigterm = signal.getsignal(signal.SIGTERM)
    ray.init(
        address="local",
        num_cpus=cpus,
        num_gpus=declared_gpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=OBJECT_STORE_BYTES,
    )
    signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield
    finally:
        ray.shutdown()


def in_a_worker(function: Callable[..., T], *arguments: object, gpus: float, deadline_s: float) -> T:
    """Return what ``function`` returns in a worker of its own of the Ray that is connected, with so many GPUs.

    Raises what it raises, as Ray wraps it; a worker that is too late is ended, and so is one that waits for a GPU.
    """
    import ray

    # max_calls ends the worker with its task, so that no context stays on the GPU
    task = ray.remote(num_gpus=gpus, num_cpus=1, max_retries=0, max_calls=1)(function)
    pending = task.remote(*arguments)
    try:
        found: T = ray.get(pending, timeout=deadline_s)
    except Exception:
        ray.cancel(pending, force=True)
        raise
    return found


def quiet_ray() -> Any:
    """The module ``ray``, imported under this project's settings; variables that the user has set stay."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    return ray


def choose_auth_mode() -> None:
    """Where the user has set no RAY_AUTH_MODE: token mode with a RAY_AUTH_TOKEN, else none.

    Ray itself would switch to token mode for any ``~/.ray/auth_token``, whatever the cluster is in.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token" if os.environ.get("RAY_AUTH_TOKEN") else "disabled")


@contextmanager
def joined_ray(address: str) -> Iterator[None]:
    """The cluster at ``address`` until the block ends; a block inside another one uses the connection that is there.

    Raises BadInputError for an impossible address, WorldError where no cluster answers.
    """
    choose_auth_mode()
    ray = quiet_ray()
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(
            address=address,
            runtime_env=cluster_runtime_env(os.environ),
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except ValueError as error:
        raise BadInputError(
            f"RAY_ADDRESS={address} is no address of a Ray cluster ({error}); give `auto` on one of its nodes, "
            "HOST:6379, http://HOST:8265 for its job server, or unset RAY_ADDRESS to use this machine alone"
        ) from error
    except (ConnectionError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise WorldError(
            f"no Ray cluster answers at RAY_ADDRESS={address} ({reason}); start one (`ray start --head`), run on "
            "one of its nodes, or unset RAY_ADDRESS to use this machine alone"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()
