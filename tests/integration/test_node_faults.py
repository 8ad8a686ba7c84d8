"""What happens to one of three nodes, and what it costs: a partition, a pause, a full ``/tmp``, a mount that goes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from sweeps.ledger.lease import CELL_LEASE
from sweeps.ledger.storage import Storage
from tests.integration.conftest import NoteCost
from tests.integration.counting import Strike
from tests.integration.ray_cluster import Node, RayCluster, needs_namespaces, ray_cluster
from tests.integration.sweeping import Sweeps, command, decided, holder_of, how_it_ends, wait_for
from tests.programs import needs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.faults,
    pytest.mark.timeout(900),
    needs_namespaces,
    needs("unshare", "nsenter", "mount"),
    pytest.mark.skipif(
        os.environ.get("SWEEPS_FAULTS") != "full",
        reason="minutes a fault; SWEEPS_FAULTS=full (make test-faults) has them",
    ),
]

TRIES = 3
QUICK_HEALTH_CHECKS = {"RAY_health_check_timeout_ms": "1000", "RAY_health_check_failure_threshold": "6"}
"""The head takes a node that does not answer for lost after some 6 s, as docs/cluster.md has it."""
LIVES_ON = {"RAY_gcs_rpc_server_reconnect_timeout_s": "600"}
"""A node that does not reach the head ends itself after a minute; where heads may come back (KubeRay), after ten."""
PAUSED_FOR_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Three nodes, a sweep on them, and the node that is struck, with its own folder for what is temporary."""

    cluster: RayCluster
    struck: Node
    temporary: Path
    runs: Path

    def inside(self, line: str) -> None:
        """Run a shell's line with the mounts of the struck node."""
        target = str(self.struck.first_process().pid)
        subprocess.run(["nsenter", "--target", target, "--mount", "sh", "-c", line], check=True, capture_output=True)

    def cell_at_work(self) -> str | None:
        """The cell that the struck node has been training for a moment, if any."""
        own = Path(f"/proc/{self.struck.first_process().pid}/ns/pid").readlink()
        for cell in (self.runs / "first" / "cells").glob("*"):
            lease = holder_of(Storage(str(cell)), CELL_LEASE)
            began = [path.stat().st_mtime for path in (cell / "commits").glob("0001.json")]  # its first: nothing new
            is_its_own = lease is not None and lease["pid_namespace"] == str(own)
            if is_its_own and began and time.time() - began[0] > 0.5 and not (cell / "outcome.json").exists():
                return cell.name
        return None


def fill_tmp(scene: Scene) -> None:
    """A full ``/tmp``: no checkpoint can be made there."""
    folder = scene.temporary
    scene.inside(f'mount -t tmpfs -o size=64k none "{folder}"; cat /dev/zero > "{folder}/full"; chmod 777 "{folder}"')


def lose_mount(scene: Scene) -> None:
    """The folder that all share is an empty one here, as it is where a mount went."""
    scene.inside(f'mount -t tmpfs none "{scene.runs}"')


def pause(scene: Scene) -> None:
    """All that runs there stands still, as where a machine is moved or sleeps, and goes on after a minute."""
    scene.struck.signal(signal.SIGSTOP)


def cut(scene: Scene) -> None:
    """A partition: the node reaches the shared folder, and neither the head nor the driver."""
    scene.cluster.cut(scene.struck)


def cut_and_pause(scene: Scene) -> None:
    """The same, and it sleeps meanwhile: its cell is another one's when it wakes up and writes."""
    cut(scene)
    pause(scene)


FAULTS: dict[str, Callable[[Scene], None]] = {
    "a full /tmp on one of three nodes": fill_tmp,
    "the mount lost on one of three nodes": lose_mount,
    "one of three nodes paused for 60 s": pause,
    "one of three nodes cut off from the head": cut,
    "the same, and paused for 60 s": cut_and_pause,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_sweep_outlives_what_happens_to_one_of_three_nodes(
    fault: str, tmp_path: Path, undisturbed: Sweeps, token_cache: Path, note_cost: NoteCost
) -> None:
    for number in range(TRIES):
        folder = tmp_path / str(number)
        temporary, runs = folder / "tmp", folder / "runs"
        temporary.mkdir(parents=True)
        runs.mkdir()
        with ray_cluster(folder) as cluster:
            cache = {"SWEEPS_CACHE_DIR": str(token_cache)}
            cluster.start(environment={**cache, **QUICK_HEALTH_CHECKS})
            cluster.start(environment=cache, has_own_processes=True)
            own = {"TMPDIR": str(temporary), **LIVES_ON}
            struck = cluster.start(environment={**cache, **own}, has_own_processes=True)
            cluster.wait_for(3)
            scene = Scene(cluster=cluster, struck=struck, temporary=temporary, runs=runs)
            words = ["--space", str(undisturbed.folder / "space.toml"), "--name", "first", "--runs-dir", str(runs)]
            sweep = cluster.popen(command("run", *words), cache)
            wait_for(lambda: scene.cell_at_work() is not None, "work on the third node", sweep)  # noqa: B023 - at once
            strike = Strike(str(runs), "first", scene.cell_at_work())
            FAULTS[fault](scene)
            strike.wait_for_progress(sweep)
            if FAULTS[fault] in (pause, cut_and_pause):
                time.sleep(max(0.0, PAUSED_FOR_S - strike.seconds))
                struck.signal(signal.SIGCONT)
            said, _ = sweep.communicate()
            assert sweep.returncode == 0, said
            assert "two cannot work on it at once" not in said, "a worker waited for one that was lost"
            note_cost(fault, strike)
            assert how_it_ends(str(runs), "first") == undisturbed.end_of("first")
            assert decided(str(runs), "first") == decided(str(undisturbed.runs), "first")
