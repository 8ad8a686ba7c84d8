"""A sweep kept in a bucket: run, killed, resumed and reported, with nothing but the bucket in between."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweeps.ledger.storage import Storage
from tests.integration.ray_cluster import REPOSITORY
from tests.integration.s3_server import S3Server, s3_server
from tests.integration.sweeping import PATIENCE_S, command, curves, decided, losses, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(900)]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with s3_server() as started:
        for name, value in started.environment().items():
            monkeypatch.setenv(name, value)
        yield started


def test_a_storage_in_a_bucket_puts_gets_lists_and_deletes(server: S3Server) -> None:
    storage = Storage(f"{server.make_bucket('things')}/runs")
    assert storage.names() == []
    storage.write_bytes("a/b.json", b"{}")
    large = bytes(range(256)) * 80_000  # beyond one part of a multipart upload
    storage.write_bytes("a/large", large)
    assert storage.names("a") == ["b.json", "large"]
    assert storage.read_bytes("a/large") == large
    storage.write_bytes("a/b.json", b"[]")
    assert storage.read_json("a/b.json") == []
    storage.delete("a")
    assert not storage.exists("a/b.json")
    with pytest.raises(FileNotFoundError):
        storage.read_bytes("a/b.json")


def test_a_sweep_in_a_bucket_that_was_killed_ends_as_one_on_a_disk_that_was_not(
    server: S3Server, tmp_path: Path
) -> None:
    runs, undisturbed = f"{server.make_bucket('sweeps')}/runs", str(tmp_path / "undisturbed")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "SWEEPS_CACHE_DIR": str(tmp_path / "cache")}
    environment = {name: value for name, value in environment.items() if not name.startswith("RAY_")}

    def run(*words: str, runs_dir: str = runs) -> str:
        done = subprocess.run(
            command(*words, "--runs-dir", runs_dir),
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    words = ("run", "--preset", "smoke", "--name", "first")
    run(*words, runs_dir=undisturbed)
    sweep = subprocess.Popen(
        command(*words, "--runs-dir", runs),
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for(lambda: len(losses(runs, "first")) >= 2, "two cells with an outcome", sweep)
    sweep.send_signal(signal.SIGKILL)
    sweep.communicate()
    before = losses(runs, "first")
    assert len(before) < len(losses(undisturbed, "first")), "it was killed in the middle"

    run("resume", "first")
    after = losses(runs, "first")
    assert before.items() <= after.items(), "what had an outcome was not run again"
    assert after == losses(undisturbed, "first")
    assert curves(runs, "first") == curves(undisturbed, "first")
    assert decided(runs, "first") == decided(undisturbed, "first")
    assert decided(runs, "first")["outcome"] == "exploratory"

    folder = Storage(runs).child("first")
    folder.delete("report.html")
    run("report", "first")
    assert folder.exists("report.html")
