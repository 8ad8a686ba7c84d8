"""A sweep as a Ray job, against a stand-in for the job server; tests/integration has the real one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sweeps.cluster import job
from sweeps.cluster.connection import is_job_address
from sweeps.cluster.job import (
    JobRequest,
    detached_message,
    run_as_job,
    shared_runs_uri,
)
from sweeps.cluster.pinned import LACKING
from sweeps.errors import BadInputError, WorldError
from sweeps.shown_commands import shown_on

ADDRESS = "http://head:8265"
REQUEST = JobRequest(arguments=("run", "--preset", "smoke", "--name", "first"), runs_uri="s3://b/runs", sweep="first")


class JobServer:
    """Stands in for ``JobSubmissionClient``: one job with these logs, whose state is what ``states`` says next."""

    def __init__(
        self, logs: str = "cell 1\ncell 2\n", *, states: tuple[str, ...] = ("SUCCEEDED",), code: int = 0
    ) -> None:
        self.logs = logs
        self.states = list(states)
        self.code = code
        self.submitted: list[dict[str, Any]] = []
        self.staged: list[str] = []
        self.jobs: list[SimpleNamespace] = []
        self.break_after: int | None = None
        self.interrupt = False
        self.address = ADDRESS
        self.lacking: list[str] = []
        self.looks: list[dict[str, Any]] = []
        self.look_states = ["SUCCEEDED"]
        self.ended: list[str] = []

    def get_address(self) -> str:
        return self.address

    def submit_job(self, **request: Any) -> str:
        if "sweeps.cluster.pinned" in request["entrypoint"]:
            self.looks.append(request)
            return "raysubmit_look"
        self.submitted.append(request)
        folder = Path(request["runtime_env"]["working_dir"])
        self.staged = sorted(path.name for path in folder.iterdir())
        return "raysubmit_1"

    def list_jobs(self) -> list[SimpleNamespace]:
        return self.jobs

    def get_job_info(self, job_id: str) -> SimpleNamespace:
        if job_id == "raysubmit_look":
            state = self.look_states.pop(0) if len(self.look_states) > 1 else self.look_states[0]
            return SimpleNamespace(submission_id=job_id, status=state, message="a message")
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return SimpleNamespace(submission_id=job_id, status=state, driver_exit_code=self.code, message="a message")

    def get_job_logs(self, job_id: str) -> str:
        if job_id == "raysubmit_look":
            ended_well = self.look_states == ["SUCCEEDED"]
            return f"a warning\n{LACKING}{json.dumps(self.lacking)}\n" if ended_well else "no module named sweeps\n"
        return self.logs

    def stop_job(self, job_id: str) -> None:
        self.ended.append(f"stopped {job_id}")

    def delete_job(self, job_id: str) -> None:
        self.ended.append(f"deleted {job_id}")

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        if self.interrupt:
            raise KeyboardInterrupt
        for number, line in enumerate(self.logs.splitlines(keepends=True)):
            if self.break_after is not None and number >= self.break_after:
                self.break_after = None
                raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")
            yield line


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> JobServer:
    server = JobServer()
    monkeypatch.setattr(job, "_connected", lambda address: server)
    monkeypatch.setattr(job, "POLL_S", 0.0)
    return server


def collected() -> tuple[list[str], Callable[[str], None]]:
    said: list[str] = []
    return said, said.append


@pytest.mark.parametrize(
    ("address", "expected"),
    [(None, False), ("auto", False), ("10.0.0.1:6379", False), (ADDRESS, True), ("https://h", True)],
)
def test_only_an_http_address_means_a_job(address: str | None, expected: bool) -> None:
    assert is_job_address(address) is expected


def test_the_job_is_the_same_command_with_an_absolute_runs_folder(
    server: JobServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    said, say = collected()
    code = run_as_job(ADDRESS, REQUEST, constraints=tmp_path / "none.txt", environment={}, say=say)
    assert code == 0
    [submitted] = server.submitted
    assert submitted["entrypoint"] == "python -m sweeps run --preset smoke --name first --runs-dir s3://b/runs"
    assert submitted["metadata"] == {"sweep": "first", "runs_uri": "s3://b/runs"}
    assert "pip" not in submitted["runtime_env"]
    assert submitted["runtime_env"]["env_vars"] == {
        "PYTHONUNBUFFERED": "1",
        "RAY_JOB_STOP_WAIT_TIME_S": "20",
        "SWEEPS_SHOWN_AS": shown_on(ADDRESS),
    }, "commands that the job prints are typed here"
    assert capsys.readouterr().out == "cell 1\ncell 2\n"
    assert said == ["submitted job raysubmit_1 to http://head:8265; Ctrl-C stops following it, not the job"]


@pytest.mark.parametrize(("here", "taken"), [(sys.executable, sys.executable), ("/laptop/.venv/bin/python", "python")])
def test_a_local_address_means_this_python_and_behind_a_tunnel_the_clusters(
    server: JobServer, monkeypatch: pytest.MonkeyPatch, here: str, taken: str
) -> None:
    server.address = "http://127.0.0.1:8265"
    monkeypatch.setattr(sys, "executable", here)
    run_as_job(server.address, REQUEST, environment={}, say=lambda line: None)
    words = ["sh", "-c", f"echo {server.submitted[0]['entrypoint']}"]
    said = subprocess.run(words, capture_output=True, text=True, check=True)
    assert said.stdout == f"{taken} -m sweeps run --preset smoke --name first --runs-dir s3://b/runs\n"


def test_a_cluster_that_has_the_pinned_packages_is_used_as_it_is(server: JobServer) -> None:
    said, say = collected()
    run_as_job(ADDRESS, REQUEST, environment={}, say=say)
    [look], [submitted] = server.looks, server.submitted
    words = look["entrypoint"].split()
    assert words[:3] == ["python", "-m", "sweeps.cluster.pinned"]
    assert any(word.startswith("torch==") for word in words)
    assert not any(word.startswith(("ray==", "pytest==", "aiohttp==")) for word in words)
    assert look["runtime_env"]["working_dir"] == submitted["runtime_env"]["working_dir"], "it is uploaded once"
    assert "pip" not in submitted["runtime_env"]
    assert server.ended == ["deleted raysubmit_look"]
    assert len(said) == 1


def test_a_cluster_that_lacks_one_gets_what_the_project_needs_by_constraints_and_not_its_tools(
    server: JobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.lacking = ["mlflow==3.17.2", "optuna==5.0.0", "torch==2.13.0", "typer==0.29.2"]
    server.address = "http://127.0.0.1:8265"
    said, say = collected()
    run_as_job(server.address, REQUEST, environment={}, say=say)
    [submitted] = server.submitted
    runtime_env = submitted["runtime_env"]
    assert runtime_env["pip"]["pip_check"] is False
    assert runtime_env["config"] == {"setup_timeout_seconds": 1800}
    *pins, under = runtime_env["pip"]["packages"]
    assert under == "-c ${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/constraints.txt", "and all that they need, as pinned"
    assert server.staged.count("constraints.txt") == 1
    names = {pin.partition("==")[0] for pin in pins}
    assert {"torch", "mlflow", "typer"} <= names
    assert not {"ray", "pytest", "mypy", "moto"} & names
    assert submitted["entrypoint"].startswith("python -m sweeps run "), "this Python is outside of that environment"
    assert said[0] == (
        "the cluster lacks mlflow==3.17.2, optuna==5.0.0, torch==2.13.0 and 1 more: "
        "Ray installs what constraints.txt pins first (minutes, once per node)"
    )


def test_a_cluster_that_cannot_list_its_packages_is_refused_with_its_reason(
    server: JobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.look_states = ["PENDING", "FAILED"]
    with pytest.raises(BadInputError, match="the cluster cannot run a job: FAILED: a message"):
        run_as_job(ADDRESS, REQUEST, environment={}, say=lambda line: None)
    server.look_states = ["PENDING"]
    monkeypatch.setattr(job, "LOOK_DEADLINE_S", -1.0)
    with pytest.raises(BadInputError, match=re.escape("a small job within -1 s (it is PENDING); look at `ray status`")):
        run_as_job(ADDRESS, REQUEST, environment={}, say=lambda line: None)
    assert server.ended[-1] == "stopped raysubmit_look"
    assert server.submitted == []


def test_a_relative_runs_folder_is_only_taken_where_the_cluster_is_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert shared_runs_uri("runs", "http://127.0.0.1:8265") == str(tmp_path / "runs")
    assert shared_runs_uri("/shared/runs", ADDRESS) == "/shared/runs"
    assert shared_runs_uri("s3://b/runs", ADDRESS) == "s3://b/runs"
    with pytest.raises(
        BadInputError, match=r"--runs-dir runs is relative, and the job runs on head; give a path that all"
    ):
        shared_runs_uri("runs", ADDRESS)


def test_a_running_job_of_the_same_sweep_is_attached_to(server: JobServer) -> None:
    def listed(job_id: str, status: str, sweep: str) -> SimpleNamespace:
        return SimpleNamespace(
            submission_id=job_id, status=status, metadata={"sweep": sweep, "runs_uri": "s3://b/runs"}
        )

    server.jobs = [
        listed("old", "FAILED", "first"),
        listed("other", "RUNNING", "b"),
        listed("mine", "RUNNING", "first"),
    ]
    said, say = collected()
    assert run_as_job(ADDRESS, REQUEST, environment={}, say=say) == 0
    assert server.submitted == []
    assert said == ["job mine of this sweep is running already: following it from its start"]


def test_ctrl_c_detaches_and_says_how_to_come_back_and_how_to_stop(server: JobServer) -> None:
    server.interrupt = True
    said, say = collected()
    assert run_as_job(ADDRESS, REQUEST, environment={}, say=say) == 130
    assert said[-1] == detached_message(ADDRESS, "raysubmit_1", REQUEST)
    assert "ray job logs --address http://head:8265 --follow raysubmit_1" in said[-1]
    assert "ray job stop --address http://head:8265 raysubmit_1" in said[-1]
    assert f"{shown_on(ADDRESS)} resume first --runs-dir s3://b/runs" in said[-1]


def test_a_broken_connection_is_made_again_and_no_line_is_shown_twice(
    server: JobServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.break_after = 1
    server.states = ["RUNNING", "RUNNING", "SUCCEEDED"]
    assert run_as_job(ADDRESS, REQUEST, environment={}, say=lambda line: None) == 0
    assert capsys.readouterr().out == "cell 1\ncell 2\n"


@pytest.mark.parametrize(("state", "code", "expected"), [("FAILED", 3, 3), ("FAILED", 2, 2), ("STOPPED", -15, 130)])
def test_the_exit_code_is_the_commands_own(server: JobServer, state: str, code: int, expected: int) -> None:
    server.states = [state]
    server.code = code
    assert run_as_job(ADDRESS, REQUEST, environment={}, say=lambda line: None) == expected


def test_a_cluster_that_goes_away_is_no_bad_input(server: JobServer, monkeypatch: pytest.MonkeyPatch) -> None:
    known = server.get_job_info

    def gone(job_id: str) -> SimpleNamespace:
        if job_id == "raysubmit_look":
            return known(job_id)
        raise ConnectionError("refused\nlong trace")

    monkeypatch.setattr(server, "get_job_info", gone)
    with pytest.raises(WorldError, match=r"the cluster went away while job raysubmit_1 ran \(refused\)"):
        run_as_job(ADDRESS, REQUEST, environment={}, say=lambda line: None)


def test_an_address_without_a_job_server_is_refused_with_what_to_try() -> None:
    with pytest.raises(
        BadInputError, match=r"no Ray job server answers at RAY_ADDRESS=http://127.0.0.1:9 .*start the cluster"
    ):
        run_as_job("http://127.0.0.1:9", REQUEST, environment={})
