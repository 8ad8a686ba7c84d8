"""A sweep as a Ray job: ``RAY_ADDRESS=http://head:8265`` ships the code to the cluster and streams the job's output.

The job is the same command, run on the cluster. Ctrl-C here ends only the streaming, and prints how to attach again and
how to stop the job.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sweeps.cluster.connection import choose_auth_mode
from sweeps.cluster.node_probe import INSTALL_DEADLINE_S
from sweeps.cluster.pinned import LACKING, project_pins
from sweeps.cluster.shipping import CONSTRAINTS, UPLOAD_EXCLUDES, forwarded_environment, stage
from sweeps.errors import EXIT_RESUMABLE, BadInputError, WorldError
from sweeps.shown_commands import SHOWN_AS, shown_on, shown_script

STOP_WAIT_S = 20
"""Ray kills a stopped job after 3 s; a sweep saves its cells within 20."""

POLL_S = 1.0
LOOK_DEADLINE_S = 180.0
"""Until the cluster has listed its packages: it unpacks the sources and starts a Python."""

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")

_VERBOSE_LOGGERS = (
    "ray.dashboard.modules.job.sdk",
    "ray.dashboard.modules.dashboard_sdk",
    "ray._private.runtime_env.packaging",
)
_FINAL_STATES = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """A command for the cluster: the words after ``sweeps``, and where the sweep is kept."""

    arguments: tuple[str, ...]
    runs_uri: str
    sweep: str | None = None


def shared_runs_uri(runs_dir: str, address: str) -> str:
    """Return where a job keeps its sweep, as every node can name it.

    Raises:
        BadInputError: a relative path on another machine, which would lie in the job's temporary folder.
    """
    if "://" in runs_dir or Path(runs_dir).is_absolute():
        return runs_dir
    if urlsplit(address).hostname in LOCAL_HOSTS:
        return str(Path(runs_dir).absolute())
    raise BadInputError(
        f"--runs-dir {runs_dir} is relative, and the job runs on {urlsplit(address).hostname}; "
        "give a path that all nodes share, or s3://bucket/folder or gs://bucket/folder"
    )


def run_as_job(
    address: str,
    request: JobRequest,
    *,
    constraints: Path = Path(CONSTRAINTS),
    environment: Mapping[str, str] | None = None,
    say: Callable[[str], None] = print,
) -> int:
    """Submit a job, or attach to the running job of this sweep; stream its output and return its exit code.

    Ctrl-C detaches and returns 130. Where the cluster lacks what ``constraints`` pins, Ray first installs it on every
    node that the job uses.

    Raises:
        BadInputError: nothing answers at ``address``, or a file to be shipped is not there.
        WorldError: the cluster went away while the job ran.
    """
    client = _connected(address)
    job_id = _running_job(client, request)
    if job_id is not None:
        say(f"job {job_id} of this sweep is running already: following it from its start")
    else:
        variables = forwarded_environment(os.environ if environment is None else environment)
        with tempfile.TemporaryDirectory(prefix="moe-sweeps-job-") as folder:
            job_id = _submit(client, request, Path(folder), constraints, variables, say)
        say(f"submitted job {job_id} to {address}; Ctrl-C stops following it, not the job")
    try:
        return _exit_code(asyncio.run(_followed(client, job_id)))
    except KeyboardInterrupt:
        say(detached_message(address, job_id, request))
        return EXIT_RESUMABLE


def detached_message(address: str, job_id: str, request: JobRequest) -> str:
    """Return the commands that show the job again, stop it, and resume its sweep."""
    ray = shlex.quote(shown_script("ray"))
    again = f"  follow it again:  {ray} job logs --address {address} --follow {job_id}"
    stop = f"  stop it:          {ray} job stop --address {address} {job_id}"
    lines = [f"detached; job {job_id} goes on at {address}", again, stop]
    if request.sweep:
        resume = f"{shown_on(address)} {shlex.join(['resume', request.sweep, '--runs-dir', request.runs_uri])}"
        lines.append(f"  or, attaching to it while it runs and resuming it when it does not:\n    {resume}")
    return "\n".join(lines)


def _connected(address: str) -> Any:
    choose_auth_mode()
    from ray.job_submission import JobSubmissionClient

    for name in _VERBOSE_LOGGERS:  # each sets a level of its own
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError) as error:
        raise BadInputError(
            f"no Ray job server answers at RAY_ADDRESS={address} ({_first_line(error)}); start the cluster, check the "
            "port (8265, a tunnel perhaps) and RAY_AUTH_TOKEN, or use RAY_ADDRESS=auto on the head node"
        ) from error


def _running_job(client: Any, request: JobRequest) -> str | None:
    """The job of this sweep that has not ended yet."""
    same = {"sweep": request.sweep, "runs_uri": request.runs_uri}
    for job in client.list_jobs() if request.sweep else ():
        if same.items() <= (job.metadata or {}).items() and job.status not in _FINAL_STATES:
            return str(job.submission_id)
    return None


def _submit(
    client: Any,
    request: JobRequest,
    folder: Path,
    constraints: Path,
    variables: Mapping[str, str],
    say: Callable[[str], None],
) -> str:
    """Ship the project from ``folder`` and start the command on the cluster; returns the job's id."""
    arguments = stage(folder, request.arguments, constraints)
    runtime_env: dict[str, Any] = {
        "working_dir": str(folder),  # Ray uploads it once for both jobs
        "excludes": list(UPLOAD_EXCLUDES),
        "env_vars": {**variables, "PYTHONUNBUFFERED": "1", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)},
    }
    runtime_env["env_vars"][SHOWN_AS] = shown_on(client.get_address())
    pins = project_pins(constraints) if constraints.is_file() else []
    lacking = _lacking(client, runtime_env, pins) if pins else []
    python = _interpreter(client)
    if lacking:
        some = ", ".join(lacking[:3]) + (f" and {len(lacking) - 3} more" if len(lacking) > 3 else "")
        say(f"the cluster lacks {some}: Ray installs what {constraints} pins first (minutes, once per node)")
        under = f"-c ${{RAY_RUNTIME_ENV_CREATE_WORKING_DIR}}/{CONSTRAINTS}"
        # no check: other packages of the image may need other versions than the project's, and are not used
        runtime_env["pip"] = {"packages": [*pins, under], "pip_check": False}
        runtime_env["config"] = {"setup_timeout_seconds": round(INSTALL_DEADLINE_S)}
        python = "python"  # the name of the environment's, of which this Python is no part
    words = shlex.join(["-m", "sweeps", *arguments, "--runs-dir", request.runs_uri])
    metadata = {"sweep": request.sweep or "", "runs_uri": request.runs_uri}
    return _start(client, f"{python} {words}", runtime_env, metadata)


def _start(client: Any, entrypoint: str, runtime_env: Mapping[str, Any], metadata: Mapping[str, str]) -> str:
    try:
        return str(client.submit_job(entrypoint=entrypoint, runtime_env=dict(runtime_env), metadata=dict(metadata)))
    except RuntimeError as error:
        raise BadInputError(f"the cluster refused the job: {_first_line(error)}") from error


def _lacking(client: Any, runtime_env: Mapping[str, Any], pins: Sequence[str]) -> list[str]:
    """Those of the pins that the cluster lacks, as a small job on its head finds.

    Raises BadInputError where that cannot run, as the sweep's own job could not.
    """
    words = shlex.join(["-m", "sweeps.cluster.pinned", *pins])
    job_id = _start(client, f"{_interpreter(client)} {words}", runtime_env, {"purpose": "list packages"})
    deadline_s = time.monotonic() + LOOK_DEADLINE_S
    while (details := _details(client, job_id)).status not in _FINAL_STATES:
        if time.monotonic() > deadline_s:
            client.stop_job(job_id)
            raise BadInputError(
                f"the cluster did not start a small job within {LOOK_DEADLINE_S:.0f} s (it is {details.status}); look "
                "at `ray status` on the head node"
            )
        time.sleep(POLL_S)
    answers = [line for line in client.get_job_logs(job_id).splitlines() if line.startswith(LACKING)]
    client.delete_job(job_id)
    if not answers:
        raise BadInputError(f"the cluster cannot run a job: {details.status}: {details.message}")
    found: list[str] = json.loads(answers[-1].removeprefix(LACKING))
    return found


def _interpreter(client: Any) -> str:
    """Shell words for this very Python where the cluster is this machine, else for ``python``.

    A local address may also be a tunnel's end, so the job itself looks whether this Python is there.
    """
    if urlsplit(client.get_address()).hostname not in LOCAL_HOSTS:
        return "python"
    return f"$(command -v {shlex.quote(sys.executable)} || echo python)"


async def _followed(client: Any, job_id: str) -> Any:
    """Print the job's output until it ends; returns Ray's entry of it.

    A connection that breaks is made again. Ray then repeats the output from its start, so what was shown is left out.
    """
    import aiohttp

    shown = 0
    while True:
        position = 0
        # whether the job or only the connection has ended is asked next
        with suppress(RuntimeError, ConnectionError, aiohttp.ClientError):
            async for chunk in client.tail_job_logs(job_id):
                _show(chunk[max(0, shown - position) :])
                position += len(chunk)
                shown = max(shown, position)
        details = _details(client, job_id)
        if details.status in _FINAL_STATES:
            _show(client.get_job_logs(job_id)[shown:])
            return details
        await asyncio.sleep(POLL_S)


def _details(client: Any, job_id: str) -> Any:
    """Ray's entry of the job; raises WorldError where the cluster does not answer any more."""
    try:
        return client.get_job_info(job_id)
    except (ConnectionError, RuntimeError) as error:
        raise WorldError(
            f"the cluster went away while job {job_id} ran ({_first_line(error)}); its sweep can be resumed"
        ) from error


def _exit_code(details: Any) -> int:
    """The command's own exit code; Ray knows none where the job was stopped, or died before it started."""
    if details.status == "SUCCEEDED":
        return 0
    if details.driver_exit_code is not None and details.driver_exit_code > 0:
        return int(details.driver_exit_code)
    _show(f"job {details.submission_id}: {details.status}: {details.message}\n")
    return EXIT_RESUMABLE


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
