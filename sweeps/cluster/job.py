"""A sweep as a Ray job: ``RAY_ADDRESS=http://head:8265`` ships the code to the cluster, starts it and follows its logs.

The job is the same command, run on the cluster. Ctrl-C here ends only the following; the words printed then say how to
come back and how to stop the job.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sweeps.cluster.node_probe import INSTALL_DEADLINE_S
from sweeps.cluster.pinned import LACKING, pins_of_first_rank, pins_of_project
from sweeps.cluster.shipping import UPLOAD_EXCLUDES, forwarded_environment, stage
from sweeps.errors import EXIT_RESUMABLE, BadInputError, WorldError

STOP_WAIT_S = 20
"""Ray kills a stopped job after 3 s; a sweep saves its cells within 20."""

POLL_S = 1.0
LOOK_DEADLINE_S = 180.0
"""Until the cluster has said which packages it has: it unpacks the sources and starts a Python."""

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")

_TALKATIVE = (
    "ray.dashboard.modules.job.sdk",
    "ray.dashboard.modules.dashboard_sdk",
    "ray._private.runtime_env.packaging",
)
_FINAL_STATES = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """What is asked of the cluster: the words after ``sweeps``, and where the sweep is kept."""

    arguments: tuple[str, ...]
    runs_uri: str
    sweep: str | None = None


def shared_runs_uri(runs_dir: str, address: str) -> str:
    """Where a job keeps its sweep, as every node can name it.

    Raises BadInputError for a relative path on another machine: it would land in the job's own temporary folder.
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
    constraints: Path = Path("constraints.txt"),
    environment: Mapping[str, str] | None = None,
    say: Callable[[str], None] = print,
) -> int:
    """Submit, or find the running job of this sweep; follow its logs to its end, and return its exit code.

    A second call for a sweep whose job still runs attaches to that job. Ctrl-C detaches and returns 130. Where the
    cluster lacks what ``constraints`` pins, Ray first installs it on every node that the job uses.

    Raises:
        BadInputError: nothing answers at ``address``, or a file to be shipped is not there.
        WorldError: the cluster went away while the job ran.
    """
    client = _connected(address)
    job_id = _running_job(client, request)
    if job_id is not None:
        say(f"job {job_id} of this sweep is running already: following it from its start")
    else:
        with tempfile.TemporaryDirectory(prefix="moe-sweeps-job-") as folder:
            staged = _Staged(client, Path(folder), os.environ if environment is None else environment)
            job_id = staged.submit(request, constraints, say)
        say(f"submitted job {job_id} to {address}; Ctrl-C stops following it, not the job")
    try:
        return _follow(client, job_id)
    except KeyboardInterrupt:
        say(detached_message(address, job_id, request))
        return EXIT_RESUMABLE


def detached_message(address: str, job_id: str, request: JobRequest) -> str:
    """What to type to see the job again, to stop it, and to go on with its sweep."""
    again = f"  follow it again:  ray job logs --address {address} --follow {job_id}"
    stop = f"  stop it:          ray job stop --address {address} {job_id}"
    lines = [f"detached; job {job_id} goes on at {address}", again, stop]
    if request.sweep:
        resume = f"RAY_ADDRESS={address} sweeps resume {request.sweep} --runs-dir {request.runs_uri}"
        lines.append(f"  or, attaching to it while it runs and resuming it when it does not:\n    {resume}")
    return "\n".join(lines)


def _connected(address: str) -> Any:
    import logging

    from ray.job_submission import JobSubmissionClient

    for name in _TALKATIVE:  # they set levels of their own
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError) as error:
        raise BadInputError(
            f"no Ray job server answers at RAY_ADDRESS={address} ({_first_line(error)}); start the cluster, check the "
            "port (8265, a tunnel perhaps), or use RAY_ADDRESS=auto on the head node"
        ) from error


def _running_job(client: Any, request: JobRequest) -> str | None:
    """The job of this sweep that has not ended yet."""
    if request.sweep is None:
        return None
    for job in client.list_jobs():
        metadata = job.metadata or {}
        same = metadata.get("sweep") == request.sweep and metadata.get("runs_uri") == request.runs_uri
        if same and job.status not in _FINAL_STATES:
            return str(job.submission_id)
    return None


@dataclass(frozen=True)
class _Staged:
    """The project in a folder from which jobs are submitted; Ray uploads it once, however many there are."""

    client: Any
    folder: Path
    environment: Mapping[str, str]

    def submit(self, request: JobRequest, constraints: Path, say: Callable[[str], None]) -> str:
        """Ship the project and start the command on the cluster; returns the job's id."""
        arguments = stage(self.folder, request.arguments, constraints)
        packages = self._packages_to_install(constraints, say)
        # an environment that Ray makes is entered by the name `python`, and this Python is outside of it
        interpreter = "python" if packages else _interpreter(self.client)
        words = shlex.join(["-m", "sweeps", *arguments, "--runs-dir", request.runs_uri])
        metadata = {"sweep": request.sweep or "", "runs_uri": request.runs_uri}
        return self._start(f"{interpreter} {words}", metadata, packages)

    def _packages_to_install(self, constraints: Path, say: Callable[[str], None]) -> Sequence[str]:
        """All pins of the project where the cluster lacks one of the packages that it names; none where it has them."""
        if not constraints.is_file():
            return ()
        words = shlex.join(["-m", "sweeps.cluster.pinned", *pins_of_first_rank(constraints)])
        job_id = self._start(f"{_interpreter(self.client)} {words}", metadata={"purpose": "look at packages"})
        lacking = _answer_of(self.client, job_id)
        if not lacking:
            return ()
        some = ", ".join(lacking[:3]) + (f" and {len(lacking) - 3} more" if len(lacking) > 3 else "")
        say(f"the cluster lacks {some}: Ray installs what {constraints} pins first (minutes, once per node)")
        return pins_of_project(constraints)

    def _start(self, entrypoint: str, metadata: Mapping[str, str], packages: Sequence[str] = ()) -> str:
        runtime_env: dict[str, Any] = {
            "working_dir": str(self.folder),
            "excludes": list(UPLOAD_EXCLUDES),
            "env_vars": {
                **forwarded_environment(self.environment),
                "PYTHONUNBUFFERED": "1",
                "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S),
            },
        }
        if packages:
            # what the image has besides may wish for other versions than the project's, and nothing of it is used
            runtime_env["pip"] = {"packages": list(packages), "pip_check": False}
            runtime_env["config"] = {"setup_timeout_seconds": round(INSTALL_DEADLINE_S)}
        try:
            started = self.client.submit_job(entrypoint=entrypoint, runtime_env=runtime_env, metadata=dict(metadata))
        except RuntimeError as error:
            raise BadInputError(f"the cluster refused the job: {_first_line(error)}") from error
        return str(started)


def _answer_of(client: Any, job_id: str) -> list[str]:
    """What the job that looks at the cluster's packages found lacking; once it has answered it is deleted.

    Raises BadInputError where it could not run, as the sweep's own job could not.
    """
    deadline_s = time.monotonic() + LOOK_DEADLINE_S
    while (details := _details(client, job_id)).status not in _FINAL_STATES:
        if time.monotonic() > deadline_s:
            client.stop_job(job_id)
            raise BadInputError(
                f"the cluster did not begin a small job within {LOOK_DEADLINE_S:.0f} s (it is {details.status}); look "
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
    """Words of the shell for this very Python where the cluster is this machine, else for ``python``.

    A local address may also be a tunnel's end, so the job itself looks whether this Python is there.
    """
    if urlsplit(client.get_address()).hostname not in LOCAL_HOSTS:
        return "python"
    return f"$(command -v {shlex.quote(sys.executable)} || echo python)"


def _follow(client: Any, job_id: str) -> int:
    """Print the job's logs until it ends; returns its exit code.

    A connection that breaks is made again. Ray replays logs from their start then, so what was shown is left out.
    """
    shown = 0
    while True:
        shown = asyncio.run(_tail(client, job_id, shown))
        details = _details(client, job_id)
        if details.status in _FINAL_STATES:
            _show(client.get_job_logs(job_id)[shown:])
            return _exit_code(details)
        # the logs ended before the job: it has not begun, or the connection broke
        asyncio.run(asyncio.sleep(POLL_S))


def _details(client: Any, job_id: str) -> Any:
    """Ray's own entry of the job; raises WorldError where the cluster does not answer any more."""
    try:
        return client.get_job_info(job_id)
    except (ConnectionError, RuntimeError) as error:
        raise WorldError(
            f"the cluster went away while job {job_id} ran ({_first_line(error)}); its sweep can be resumed"
        ) from error


async def _tail(client: Any, job_id: str, shown: int) -> int:
    """Print what follows the first ``shown`` characters; returns how many have been shown in all."""
    import aiohttp

    position = 0
    try:
        async for chunk in client.tail_job_logs(job_id):
            position += len(chunk)
            if position > shown:
                _show(chunk[len(chunk) - (position - shown) :])
                shown = position
    except (RuntimeError, ConnectionError, aiohttp.ClientError):
        return shown  # whether the job or only the connection ended is asked next
    return shown


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
