"""What the doctor sees, and that every finding that is not well says what to do."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from sweeps.cluster.gpus import Gpu, gpu_memories_gib, lowest_compute_capability, visible_gpus
from sweeps.cluster.machines import local_machine, usable_cpus
from sweeps.cluster.reachability import hub_problem, tracking_problem
from sweeps.commands import doctor
from sweeps.commands.doctor import (
    Row,
    check_disk,
    check_storage,
    check_tracking,
    check_versions,
    examine,
    leftover_rows,
    read_constraints,
    render,
)


class Answering(BaseHTTPRequestHandler):
    """Answers /health like an MLflow server, /locked/health like one with a login."""

    def do_GET(self) -> None:
        allowed = "locked" not in self.path or self.headers.get("Authorization") == "Basic bWU6c2VjcmV0"
        known = self.path.endswith("/health") or self.path.startswith("/api/datasets?")
        self.send_response(200 if allowed and known else 401 if known else 404)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Silent."""


@pytest.fixture
def server() -> Iterator[str]:
    http = HTTPServer(("127.0.0.1", 0), Answering)
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rows_of(rows: list[Row]) -> list[tuple[str, str]]:
    return [(row.what, row.level) for row in rows]


def test_the_whole_examination_names_every_subject_and_a_remedy_for_whatever_is_not_well(tmp_path: Path) -> None:
    rows = examine(
        runs_dir=str(tmp_path / "runs"),
        tracking_uri=f"sqlite:///{tmp_path}/runs/mlflow.db",
        constraints=tmp_path / "constraints.txt",
        hub=False,
    )
    assert {
        "Python",
        "CPU and memory",
        "versions",
        "torch",
        "device",
        "Ray",
        "storage",
        "tracking",
    } <= {row.what for row in rows}
    assert all(row.remedy for row in rows if row.level != "ok")
    assert not (tmp_path / "runs").exists(), "the doctor leaves nothing behind"
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(render(rows))
    console.file.close()
    assert "a private one per sweep" in console.export_text()


def test_versions_that_differ_from_the_pins_are_named(tmp_path: Path) -> None:
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("pytest==0.1\nno-such-package-here==1.0\n")
    [row] = check_versions(constraints)
    assert row.level == "warn"
    assert row.found.startswith("1 of 2 differ: pytest ")
    assert "instead of 0.1" in row.found


def test_a_local_build_of_the_pinned_version_is_the_pinned_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "installed_version", lambda package: "2.13.0+cpu")
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("torch==2.13.0\n")
    assert rows_of(check_versions(constraints)) == [("versions", "ok")]


def test_constraints_are_read_without_comments_markers_and_options() -> None:
    lines = [
        "# all",
        "--index-url x",
        "torch==2.13.0  # cpu",
        "ray[tune]==2.60.0",
        "tomli==2 ; python_version < '3'",
        "",
    ]
    assert list(read_constraints(lines)) == [("torch", "2.13.0"), ("ray", "2.60.0"), ("tomli", "2")]


def test_a_storage_that_cannot_be_written_is_bad(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    [row] = check_storage(str(tmp_path / "file" / "runs"))
    assert row.level == "bad"
    assert "cannot write" in row.found
    assert "another --runs-dir" in row.remedy


def test_low_disk_space_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rows_of(check_disk(str(tmp_path / "not" / "yet"))) == [("disk for runs", "ok"), ("disk for Ray", "ok")]
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=2**20))
    assert rows_of(check_disk("s3://bucket/runs")) == [("disk for Ray", "warn")]


def test_leftovers_of_ray_are_named_with_their_pids() -> None:
    rows = leftover_rows(
        daemons=[(41, "gcs_server"), (42, "raylet")],
        current_cluster=True,
        auth_token=True,
        environment={},
        uses_cluster=False,
    )
    assert rows[0].found == "running: gcs_server (pid 41), raylet (pid 42)"
    assert rows[1].remedy.startswith("export RAY_AUTH_MODE=token and one RAY_AUTH_TOKEN on all nodes, or "), (
        "safest first"
    )


@pytest.mark.parametrize("chosen", [{"RAY_AUTH_MODE": "token"}, {"RAY_AUTH_TOKEN": "secret"}])
def test_a_cluster_in_use_is_no_leftover_and_a_stale_file_is_one(chosen: dict[str, str]) -> None:
    def rows(daemons: list[tuple[int, str]], *, uses_cluster: bool) -> list[Row]:
        return leftover_rows(
            daemons=daemons, current_cluster=True, auth_token=True, environment=chosen, uses_cluster=uses_cluster
        )

    assert rows([(1, "raylet")], uses_cluster=True) == []
    [row] = rows([], uses_cluster=False)
    assert row.remedy == "delete that file"


def test_a_cluster_address_that_does_not_answer_is_bad(closed_port: int) -> None:
    rows = doctor.check_ray(f"127.0.0.1:{closed_port}")
    [row] = [row for row in rows if row.what == "Ray cluster"]
    assert row.level == "bad"
    assert "unset RAY_ADDRESS" in row.remedy


@pytest.mark.parametrize(
    ("address", "port"), [("10.0.0.1", 6379), ("http://h:8265", 8265), ("http://h", 80), ("https://h", 443)]
)
def test_an_address_without_a_port_is_asked_where_ray_would_ask(
    address: str, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def refuse(where: tuple[str, int], timeout: float) -> None:
        asked.append(where[1])
        raise OSError("refused")

    monkeypatch.setattr(socket, "create_connection", refuse)
    doctor.check_ray(address)
    assert asked == [port]


def test_a_tracking_server_that_answers_is_well_with_and_without_a_login(server: str) -> None:
    assert tracking_problem(server) is None
    locked = server.replace("http://", "http://me:secret@") + "/locked"
    assert tracking_problem(locked) is None


def test_a_tracking_server_that_refuses_or_is_down_says_what_to_do(server: str, closed_port: int) -> None:
    refused = tracking_problem(f"{server}/locked")
    assert refused is not None
    assert "set MLFLOW_TRACKING_USERNAME and _PASSWORD" in refused
    down = tracking_problem(f"http://me:secret@127.0.0.1:{closed_port}")
    assert down is not None
    assert down.startswith(
        f"tracking server http://127.0.0.1:{closed_port} does not answer (Connection refused); start it"
    )
    assert "secret" not in down
    database = tracking_problem(f"postgresql+psycopg2://me:secret@127.0.0.1:{closed_port}/mlflow")
    assert database is not None
    assert "does not answer (Connection refused)" in database
    assert "secret" not in database
    assert tracking_problem("postgresql:///mlflow?host=/run/postgresql") is None, "a socket has no port to be asked"
    [row] = check_tracking(f"http://127.0.0.1:{closed_port}")
    assert (row.level, row.remedy.partition(",")[0]) == ("warn", "start it")


def test_a_folder_of_files_is_no_tracking_store_and_sqlite_needs_a_writable_folder(tmp_path: Path) -> None:
    refused = tracking_problem(str(tmp_path / "mlruns"))
    assert refused is not None
    assert "use sqlite:///FILE" in refused
    assert tracking_problem(f"sqlite:///{tmp_path}/a/b/mlflow.db") is None
    (tmp_path / "file").write_text("")
    blocked = tracking_problem(f"sqlite:///{tmp_path}/file/mlflow.db")
    assert blocked is not None
    assert "is not writable" in blocked


def test_the_hub_is_asked_once_and_briefly(server: str, closed_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", server)
    assert hub_problem() is None
    missing = hub_problem("nobody/nothing")
    assert missing is not None
    assert "answered 404" in missing
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port}")
    down = hub_problem()
    assert down is not None
    assert down.endswith("corpus = 'embedded' and 'files:...' need no hub")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    offline = hub_problem()
    assert offline is not None
    assert offline.startswith("HF_HUB_OFFLINE is set")


def nvidia_smi(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_gpu_memory_is_what_nvidia_smi_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tmp_path, "echo 0, GPU-1a2b, 24576; echo 1, GPU-1c3d, 81920", monkeypatch)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpu_memories_gib() == (24.0, 80.0)
    [node] = local_machine().nodes
    assert (node.gpus, node.gpu_gib) == (2, 24.0)


def test_the_lowest_compute_capability_is_what_nvidia_smi_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tmp_path, "echo 10.0; echo 7.5; echo '[N/A]'", monkeypatch)
    assert lowest_compute_capability() == (7, 5)
    nvidia_smi(tmp_path, "echo 'Field \"compute_cap\" is not a valid field to query.'; exit 2", monkeypatch)
    assert lowest_compute_capability() is None


@pytest.mark.parametrize("shown", ["1", "GPU-1c", "GPU-1c3d", "1,GPU-lost,0"])
def test_the_memory_of_a_hidden_gpu_counts_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: str
) -> None:
    nvidia_smi(tmp_path, "echo 0, GPU-1a2b, 24576; echo 1, GPU-1c3d, 81920", monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    [node] = local_machine().nodes
    assert (node.gpus, node.gpu_gib) == (1, 80.0)
    assert gpu_memories_gib() == (24.0, 80.0), "a task of Ray's that holds no GPU sees all of the machine's"


def test_the_list_of_visible_gpus_is_read_as_cuda_reads_it() -> None:
    gpus = [Gpu(index=i, uuid=f"GPU-{name}", memory_gib=i) for i, name in enumerate(("1a", "1b", "2c"))]

    def shown(visible_devices: str | None) -> list[int]:
        return [gpu.index for gpu in visible_gpus(gpus, visible_devices)]

    assert shown(None) == [0, 1, 2]
    assert shown("") == []
    assert shown("2, 0") == [2, 0]
    assert shown("GPU-2,GPU-1a") == [2, 0]
    assert shown("0,GPU-1,2") == [0], "a beginning that two GPUs share names neither, and ends the list"
    assert shown("0,-1,2") == [0]


def test_a_slice_of_a_gpu_has_the_memory_that_cuda_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tmp_path, "echo 0, GPU-1a2b, 81920", monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-5e6f")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    slice_of_it = SimpleNamespace(total_memory=10 * 2**30)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda number: slice_of_it)
    [node] = local_machine().nodes
    assert (node.gpus, node.gpu_gib) == (1, 10.0)


def test_a_driver_that_fails_shows_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tmp_path, "echo 'NVIDIA-SMI has failed because it could not communicate'; exit 9", monkeypatch)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu_memories_gib() == ()
    [row] = [row for row in doctor.check_devices() if row.what == "device"]
    assert (row.level, row.found) == ("warn", "nvidia-smi shows 0 GPU, torch sees none")


def test_declared_gpus_stand_for_real_ones_and_cpus_follow_the_affinity() -> None:
    facts = local_machine().declaring(2)
    assert facts.gpus == 2
    assert facts.nodes[0].cpus == usable_cpus() >= 1
