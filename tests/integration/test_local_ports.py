"""What a plain local sweep shows to another machine on its network: ports that take no command and give no data."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.integration.ray_cluster import RayCluster, needs_namespaces, ray_cluster
from tests.integration.sweeping import TINY_SPACE, clean_environment, command, end_with_children, holders, wait_for
from tests.programs import needs

pytestmark = [pytest.mark.slow, needs_namespaces, needs("ss")]

PROBER = Path(__file__).with_name("port_prober.py")
HARMLESS = {"GET /api/healthz", "GET /api/local_raylet_healthz", "grpc.health.v1.Health/Check"}
"""Whether a process is up: these answer anyone, and say no more than that."""


@pytest.fixture
def network(tmp_path: Path) -> Iterator[RayCluster]:
    with ray_cluster(tmp_path) as made:
        yield made


def listening_ports(prefix: tuple[str, ...]) -> list[int]:
    """TCP ports of a machine that other machines can reach."""
    listed = subprocess.run([*prefix, "ss", "-Hltn"], check=True, capture_output=True, text=True).stdout
    addresses = [line.split()[3].rpartition(":") for line in listed.splitlines()]
    return sorted({int(port) for host, _, port in addresses if not host.startswith(("127.", "[::1]"))})


def test_no_port_of_a_local_sweep_takes_a_command_or_gives_data_without_the_token(
    network: RayCluster, tmp_path: Path, corpus: Path, token_cache: Path
) -> None:
    (here, address), (elsewhere, _) = network.namespace(), network.namespace()
    space = tmp_path / "space.toml"
    space.write_text(TINY_SPACE.format(budget=262144, rung=131072, corpus=corpus))
    words = command("run", "--space", str(space), "--name", "first", "--runs-dir", str(tmp_path / "runs"))
    sweep = subprocess.Popen(
        [*here, *words],
        env=clean_environment(SWEEPS_CACHE_DIR=str(token_cache), OMP_NUM_THREADS="1"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_for(lambda: bool(holders(str(tmp_path / "runs"), "first")), "a running trial", sweep)
        ports = listening_ports(here)
        asked = subprocess.run(
            [*elsewhere, sys.executable, str(PROBER), address, *map(str, ports)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert sweep.poll() is None, "the sweep ended while it was being asked"
        family = psutil.Process(sweep.pid).children(recursive=True)
        words = [" ".join(process.cmdline()) for process in family]
        tokens = {process.environ()["RAY_AUTH_TOKEN"] for process in family if process.name() == "raylet"}
    finally:
        end_with_children(sweep)
    assert asked.returncode == 0, asked.stderr
    answers = json.loads(asked.stdout)
    assert {"401"} < {answer["status"] for answer in answers}, "the job API was there, and refused"
    assert {"UNAUTHENTICATED"} < {answer["status"] for answer in answers}, "the control service was there, and refused"
    granted = [answer for answer in answers if answer["status"] in ("200", "OK") and answer["asked"] not in HARMLESS]
    assert granted == []
    [token] = tokens
    assert len(token) == 64
    assert not any(token in line for line in words), "every user of the machine can read a command line"
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert not any(token.encode() in path.read_bytes() for path in files)
