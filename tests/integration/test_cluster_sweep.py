"""A whole sweep on real nodes, with a worker node lost, and with the head lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.ray_cluster import Node, RayCluster, ray_cluster
from tests.integration.sweeping import Sweeps, command, decided, holders, how_it_ends, losses, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.faults]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def cluster(folder: Path, token_cache: Path) -> Iterator[RayCluster]:
    """Three nodes; the first test loses the third, the second one the head."""
    with ray_cluster(folder) as made:
        start(made, 3, token_cache)
        yield made


def start(cluster: RayCluster, nodes: int, token_cache: Path) -> None:
    for _ in range(nodes):
        cluster.start(environment={"SWEEPS_CACHE_DIR": str(token_cache)})
    cluster.wait_for(nodes)


def run(undisturbed: Sweeps, runs: Path) -> list[str]:
    """The sweep that ``undisturbed`` is of, elsewhere."""
    return command("run", "--space", str(undisturbed.folder / "space.toml"), "--name", "first", "--runs-dir", str(runs))


def works(node: Node, runs: Path) -> bool:
    """Whether a process of the node holds a cell now."""
    return bool({process.pid for process in node.processes()} & holders(str(runs), "first").keys())


def test_a_plan_times_steps_on_the_nodes(cluster: RayCluster, undisturbed: Sweeps, token_cache: Path) -> None:
    words = ["plan", "--space", str(undisturbed.folder / "space.toml"), "--hours", "1", "--json"]
    plan = cluster.popen(command(*words), {"SWEEPS_CACHE_DIR": str(token_cache)})
    said, _ = plan.communicate()
    assert plan.returncode == 0, said
    found = json.loads(said[said.index("{") :])
    assert found["hours_source"] == "measured by some steps of each arm"
    assert 0 < found["hours"] <= 1
    assert found["budget_tokens"] > 16384, "more than the space asked for fits in an hour"
    assert found["budget_reason"].startswith("--hours 1: budgets of ")


def test_a_sweep_uses_every_node_survives_the_loss_of_one_and_ends_as_if_nothing_had_happened(
    cluster: RayCluster, folder: Path, undisturbed: Sweeps, token_cache: Path
) -> None:
    runs = folder / "node-lost"
    sweep = cluster.popen(run(undisturbed, runs), {"SWEEPS_CACHE_DIR": str(token_cache)})
    seen: set[str] = set()

    def all_have_worked_and_the_third_does() -> bool:
        seen.update(node.name for node in cluster.nodes if works(node, runs))
        return len(seen) == 3 and works(cluster.nodes[2], runs)

    wait_for(all_have_worked_and_the_third_does, "work on every node", sweep)
    cluster.nodes[2].kill()
    said, _ = sweep.communicate()
    assert sweep.returncode == 0, said
    assert how_it_ends(str(runs), "first") == undisturbed.end_of("first")
    assert decided(str(runs), "first") == decided(str(undisturbed.runs), "first")


@dataclass(frozen=True, kw_only=True)
class OwnPlaces:
    """A node's own token cache and temporary folder, until they are taken away."""

    folder: Path

    def environment(self, token_cache: Path) -> dict[str, str]:
        shutil.copytree(token_cache, self.folder / "cache")
        (self.folder / "tmp").mkdir()
        return {"SWEEPS_CACHE_DIR": str(self.folder / "cache"), "TMPDIR": str(self.folder / "tmp")}

    def take_away(self) -> None:
        """Its workers can make no checkpoint from now on, and new ones find no tokens."""
        self.folder.rename(self.folder.with_name(f"{self.folder.name}-moved"))
        self.folder.touch()


def test_a_node_that_has_become_unfit_is_left_alone(folder: Path, undisturbed: Sweeps, token_cache: Path) -> None:
    runs, own = folder / "unfit", OwnPlaces(folder=folder / "own")
    with ray_cluster(folder) as made:
        start(made, 2, token_cache)
        unfit = made.start(environment=own.environment(token_cache))
        made.wait_for(3)
        sweep = made.popen(run(undisturbed, runs), {"SWEEPS_CACHE_DIR": str(token_cache)})
        wait_for(lambda: works(unfit, runs), "work on the third node", sweep)
        own.take_away()
        said, _ = sweep.communicate()
    assert sweep.returncode == 0, said
    _, found, after = said.partition(f"node {unfit.address} is left alone until the next resume")
    assert found, said
    assert "is tried again" not in after, "a segment ran there all the same"
    assert how_it_ends(str(runs), "first") == undisturbed.end_of("first")


def test_a_sweep_ends_resumable_when_no_node_is_left(folder: Path, undisturbed: Sweeps, token_cache: Path) -> None:
    runs, own = folder / "none-left", OwnPlaces(folder=folder / "own-of-head")
    with ray_cluster(folder) as made:
        unfit = made.start(environment=own.environment(token_cache))
        fit = made.start(environment={"SWEEPS_CACHE_DIR": str(token_cache)})
        made.wait_for(2)
        words = [*run(undisturbed, runs), "--set", "seeds.confirm=40"]
        sweep = made.popen(words, {"SWEEPS_CACHE_DIR": str(token_cache)})
        wait_for(lambda: works(unfit, runs), "work on the head", sweep)
        own.take_away()
        assert sweep.stdout is not None
        said = next((line for line in sweep.stdout if "left alone" in line), "")
        assert f"node {unfit.address} is left alone until the next resume" in said
        fit.kill()
        said, _ = sweep.communicate()
    assert sweep.returncode == 130, said
    assert f"no node is left: cells in succession failed on {unfit.address}, and no other node is up" in said
    assert "failed after" not in said


def test_a_sweep_whose_head_was_lost_is_resumed_on_a_new_cluster(
    cluster: RayCluster, folder: Path, undisturbed: Sweeps, token_cache: Path
) -> None:
    runs = folder / "head-lost"
    sweep = cluster.popen(run(undisturbed, runs), {"SWEEPS_CACHE_DIR": str(token_cache)})
    wait_for(lambda: len(losses(str(runs), "first")) >= 2, "two cells with an outcome", sweep)
    sweep.kill()  # the driver runs on the head's machine, and goes with it
    sweep.communicate()
    cluster.close()
    before = losses(str(runs), "first")
    with ray_cluster(folder) as fresh:
        start(fresh, 2, token_cache)
        resumed = fresh.run(command("resume", "first", "--runs-dir", str(runs)), {"SWEEPS_CACHE_DIR": str(token_cache)})
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert len(before) < len(losses(str(runs), "first")), "the head was lost in the middle"
    assert before.items() <= losses(str(runs), "first").items(), "what had an outcome was not run again"
    assert how_it_ends(str(runs), "first") == undisturbed.end_of("first")
    assert decided(str(runs), "first") == decided(str(undisturbed.runs), "first")
