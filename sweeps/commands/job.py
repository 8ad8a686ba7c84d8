"""A command that runs elsewhere: RAY_ADDRESS names a job server, and the cluster behind it runs the same words."""

from __future__ import annotations

import os


def is_job(on_end: str | None = None) -> bool:
    """Return whether RAY_ADDRESS names a job server, so that the command itself runs on the cluster.

    Raises BadInputError where a job should run a command at its end: everyone who sees the dashboard would read it.
    """
    from sweeps.cluster.connection import cluster_address, is_job_address
    from sweeps.errors import BadInputError

    found = is_job_address(cluster_address())
    if found and on_end is not None:
        raise BadInputError(
            "--on-end (SWEEPS_ON_END) would stand in Ray's dashboard as a part of the job; "
            "set SWEEPS_ON_END where the cluster's head starts, and leave it out here"
        )
    return found


def words_of(*options: tuple[str, object]) -> list[str]:
    """Return options with their values as words of a command, without those that have no value."""
    return [word for option, value in options if value is not None for word in (option, str(value))]


def flags_of(**flags: bool) -> list[str]:
    """Return the flags that are on, as words of a command."""
    return [f"--{name.replace('_', '-')}" for name, on in flags.items() if on]


def run_there(words: list[str], runs_dir: str, name: str | None) -> int:
    """Run ``sweeps WORDS`` as a job, on a runs folder that all nodes see; return the exit code."""
    from sweeps.cluster.job import JobRequest, run_as_job, shared_runs_uri

    address = os.environ["RAY_ADDRESS"]
    request = JobRequest(arguments=tuple(words), runs_uri=shared_runs_uri(runs_dir, address), sweep=name)
    return run_as_job(address, request)
