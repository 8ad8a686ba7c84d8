"""Ray Tune as the engine, without a sweep around it: what a worker does to the next one."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sweeps.packing.shares import Share
from sweeps.running.ray_tune import local_ray, run_trials
from tests.integration.desk import Desk

pytestmark = [pytest.mark.slow, pytest.mark.faults]

CELLS = ["cell-0", "cell-1", "cell-2"]
CLEAN_UP_S = 4.0  # longer than the two seconds that Ray Tune grants the thread of a trial that it has stopped


def test_a_trial_whose_clean_up_is_slow_costs_the_next_one_nothing_but_time(tmp_path: Path) -> None:
    folder = str(tmp_path)

    def slow_to_clean_up(config: dict[str, Any]) -> None:
        from ray import tune

        try:
            Path(folder, config["cell_id"]).touch()
            tune.report({"ended": "done"})
        finally:
            time.sleep(CLEAN_UP_S)

    desk = Desk(CELLS)
    with local_ray(cpus=1, declared_gpus=None):
        run_trials(desk, Share(threads=1, gpu_fraction=0.0), slots=1, storage_uri=None, trainable=slow_to_clean_up)
    assert desk.ended == [(cell_id, "done") for cell_id in CELLS]
    assert sorted(path.name for path in tmp_path.iterdir()) == CELLS


def test_a_ray_of_our_own_has_its_token_even_where_this_process_used_a_cluster_without_one() -> None:
    code = (
        "import os; os.environ['RAY_AUTH_MODE'] = 'disabled'\n"
        "import ray\n"
        "ray.init(address='local', num_cpus=1, include_dashboard=False, log_to_driver=False); ray.shutdown()\n"
        "from sweeps.running.ray_tune import local_ray\n"
        "with local_ray(cpus=1, declared_gpus=None):\n"
        "    print('tokens', os.environ['RAY_AUTH_MODE'], ray.get(ray.remote(lambda: 7).remote()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.endswith("tokens token 7\n"), done.stdout + done.stderr
