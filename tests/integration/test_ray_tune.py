"""Ray Tune as the engine, without a sweep around it: what a worker does to the next one, and what it packs where.

Its GPUs are only declared.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from search_spaces import load_space
from sweeps.cluster.connection import local_ray
from sweeps.cluster.machines import Machines
from sweeps.packing.shares import Share, pack, trials_per_gpu
from sweeps.running.ray_tune import run_trials
from sweeps.trial.device_load import device_name, running_trial
from tests.integration.desk import Desk

pytestmark = pytest.mark.slow

GPUS = 2
SEGMENTS_PER_ARM = 8
SEGMENT_S = 0.3
CELLS = ["cell-0", "cell-1", "cell-2"]
CLEAN_UP_S = 4.0  # longer than the two seconds that Ray Tune grants the thread of a trial that it has stopped
PEAKS_GIB = {"large_batch": 12.0, "balanced": 9.3}  # of 24 GiB: a whole GPU, and half of one


@pytest.fixture(scope="module")
def declared() -> Iterator[None]:
    with local_ray(cpus=4, declared_gpus=GPUS):
        yield


@pytest.mark.faults
def test_a_trial_whose_clean_up_is_slow_costs_the_next_one_nothing_but_time(declared: None, tmp_path: Path) -> None:
    folder = str(tmp_path)

    def slow_to_clean_up(config: dict[str, Any]) -> None:
        from ray import tune

        try:
            Path(folder, config["cell_id"]).touch()
            tune.report({"ended": "done"})
        finally:
            time.sleep(CLEAN_UP_S)

    desk = Desk(CELLS)
    run_trials(desk, Share(threads=1, gpu_fraction=0.0), slots=1, storage_uri=None, trainable=slow_to_clean_up)
    assert desk.ended == [(cell_id, "done") for cell_id in CELLS]
    assert sorted(path.name for path in tmp_path.iterdir()) == CELLS


@pytest.mark.faults
def test_a_worker_that_stands_still_is_ended_and_its_place_is_free_again(declared: None, tmp_path: Path) -> None:
    folder = str(tmp_path)

    def stop_itself(config: dict[str, Any]) -> None:
        import os
        import signal

        from ray import tune

        if config["cell_id"] == CELLS[1]:
            Path(folder, "pid").write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)
        tune.report({"ended": "done"})

    class Watchful(Desk):
        def hung(self, at_work: Collection[str]) -> Collection[str]:
            stopped = Path(folder, "pid").exists() and state_of(int(Path(folder, "pid").read_text() or 0)) == "stopped"
            return {CELLS[1]} & set(at_work) if stopped else ()

    desk = Watchful(CELLS)
    run_trials(desk, Share(threads=1, gpu_fraction=0.0), slots=1, storage_uri=None, trainable=stop_itself)
    assert desk.ended == [(CELLS[0], "done"), (CELLS[1], None), (CELLS[2], "done")]
    assert state_of(int(Path(folder, "pid").read_text())) in (None, "zombie")


def state_of(pid: int) -> str | None:
    try:
        return str(psutil.Process(pid).status())
    except psutil.NoSuchProcess:
        return None


@pytest.mark.parametrize("arm", PEAKS_GIB)
def test_as_many_trials_share_a_gpu_at_every_moment_as_planned(arm: str, declared: None, tmp_path: Path) -> None:
    space = load_space(preset="smoke")
    arms = tuple(strategy for strategy in space.strategies if strategy.name in PEAKS_GIB)
    machines = Machines.of(cpus=4, gpus=GPUS, gpu_gib=24.0)
    plan = pack(space.model_copy(update={"strategies": arms}), PEAKS_GIB, machines)
    fraction = plan.gpu_fraction[arm]
    assert fraction is not None
    folder, slots = str(tmp_path), plan.slots[arm]

    def record_where_it_runs(config: dict[str, Any]) -> None:
        import os
        import time

        from ray import tune

        started_s = time.time()
        with running_trial(Path(folder, "cache"), device_name(fraction)) as count_trials:
            Path(folder, f"worker-{os.getpid()}").touch()
            while len(list(Path(folder).glob("worker-*"))) < slots:  # workers start seconds apart: all or none
                time.sleep(0.02)
            time.sleep(SEGMENT_S / 2)
            counted = count_trials()
            time.sleep(SEGMENT_S / 2)
        facts = {"gpu": os.environ["CUDA_VISIBLE_DEVICES"], "started_s": started_s, "ended_s": time.time()}
        facts["counted"] = counted
        Path(folder, f"{config['cell_id']}.json").write_text(json.dumps(facts))
        tune.report({"ended": "done"})

    desk = Desk(f"{arm}-{number}" for number in range(SEGMENTS_PER_ARM))
    run_trials(
        desk,
        Share(threads=1, gpu_fraction=fraction),
        slots=slots,
        storage_uri=None,
        trainable=record_where_it_runs,
    )

    assert [ended for _, ended in desk.ended] == ["done"] * SEGMENTS_PER_ARM
    by_gpu: dict[str, list[tuple[float, float]]] = defaultdict(list)
    counted = set()
    for path in tmp_path.glob("*.json"):
        facts = json.loads(path.read_text())
        by_gpu[facts["gpu"]].append((facts["started_s"], facts["ended_s"]))
        counted.add(facts["counted"])
    assert set(by_gpu) == {"0", "1"}
    assert max(counted) == trials_per_gpu(fraction), "a trial counts those on its own GPU"
    for spans in by_gpu.values():
        together = max(sum(start <= moment < end for start, end in spans) for moment, _ in spans)
        assert together == trials_per_gpu(fraction)


def test_a_ray_of_our_own_has_its_token_even_where_this_process_used_a_cluster_without_one() -> None:
    code = (
        "import os; os.environ['RAY_AUTH_MODE'] = 'disabled'\n"
        "import ray\n"
        "ray.init(address='local', num_cpus=1, include_dashboard=False, log_to_driver=False); ray.shutdown()\n"
        "from sweeps.cluster.connection import local_ray\n"
        "with local_ray(cpus=1, declared_gpus=None):\n"
        "    print('tokens', os.environ['RAY_AUTH_MODE'], ray.get(ray.remote(lambda: 7).remote()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.endswith("tokens token 7\n"), done.stdout + done.stderr
