"""How fast each arm trains here: some real steps of it, in as many processes at once as the sweep will have trials.

``python -m sweeps.cluster.speed SPACE.json`` times the arms of a resolved space and prints seconds per token by arm.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Final

from search_spaces import Space

MOST_PROCESSES: Final = 8
"""Enough for trials to compete for caches and memory bus; more would only delay a plan."""
UNTIMED_STEPS: Final = 2
"""CUDA code is loaded in the first, and on a CPU every tensor of the first two is watched (``moe.trainer``)."""
TIMED_S: Final = 0.3
DEADLINE_S: Final = 120.0


def seconds_per_token(space: Space, *, processes: int, on_gpus: bool) -> dict[str, float] | None:
    """Seconds of training per token of each arm while ``processes`` trials run at once; None where that failed.

    The token files are in the cache already. Exams are not timed.
    """
    count = min(processes, MOST_PROCESSES)
    return _means(_from_new_processes(space, count) if on_gpus else _from_forks(space, count))


def _from_forks(space: Space, count: int) -> list[dict[str, float]]:
    """Forks of this process are spared the seconds of its imports; a context on a GPU would not survive that."""
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    started = [fork.Process(target=_tell, args=(sender, space), daemon=True) for _ in range(count)]
    for process in started:
        process.start()
    sender.close()
    deadline_s = time.monotonic() + DEADLINE_S
    answers: list[dict[str, float]] = []
    try:
        while len(answers) < count and receiver.poll(max(0.0, deadline_s - time.monotonic())):
            answers.append(receiver.recv())
    except EOFError:
        pass  # the others have failed
    finally:
        for process in started:
            process.kill()
            process.join()
    return answers


def _tell(sender: Connection, space: Space) -> None:
    with Path(os.devnull).open("w") as nowhere:  # what fails here fails in the trials too, and is told there
        os.dup2(nowhere.fileno(), 2)
    sender.send(timed_arms(space))


def _from_new_processes(space: Space, count: int) -> list[dict[str, float]]:
    with TemporaryDirectory(prefix="moe-sweeps-speed-") as folder:
        order = Path(folder) / "space.json"
        order.write_text(json.dumps(space.resolved()), encoding="utf-8")
        words = [sys.executable, "-m", "sweeps.cluster.speed", str(order)]
        started = [
            subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)  # noqa: S603 - this Python
            for _ in range(count)
        ]
        try:
            answers = [_answer(process) for process in started]
        finally:
            for process in started:
                process.kill()
                process.wait()
    return [answer for answer in answers if answer is not None]


def seconds_per_token_on_cluster(space: Space, *, processes: int, gpus: int) -> dict[str, float] | None:
    """The same on the cluster that Ray is connected to, in tasks of ``gpus`` GPUs spread over its nodes.

    None where any of them failed, or no node had room for it in time. The token files are made where they are missing.
    """
    import ray

    threads = space.resources.threads_per_trial
    # max_calls ends the worker with its task, so that no context stays on the GPU
    task = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=0, max_calls=1, scheduling_strategy="SPREAD")(
        timed_arms
    )
    pending = [task.remote(space) for _ in range(min(processes, MOST_PROCESSES))]
    try:
        return _means(ray.get(pending, timeout=DEADLINE_S))
    except Exception:  # noqa: BLE001 - what cannot be measured is unknown, and the sweep runs all the same
        for each in pending:
            ray.cancel(each, force=True)  # one that still waits for room must not take it from the trials
        return None


def _answer(process: subprocess.Popen[str]) -> dict[str, float] | None:
    try:
        printed, _ = process.communicate(timeout=DEADLINE_S)
    except subprocess.TimeoutExpired:
        return None
    if process.returncode != 0:
        return None
    found: dict[str, float] = json.loads(printed)
    return found


def _means(answers: Sequence[Mapping[str, float]]) -> dict[str, float] | None:
    if not answers:
        return None
    return {arm: mean(answer[arm] for answer in answers) for arm in answers[0]}


def timed_arms(space: Space) -> dict[str, float]:
    """Seconds of training per token of each arm, measured in this process one arm after another."""
    from moe.device import set_threads
    from sweeps.training_config import any_cell, train_config
    from sweeps.training_data import load_training_data

    set_threads(space.resources.threads_per_trial)
    data = load_training_data(space)
    found = {}
    for arm in space.strategies:
        config = train_config(space, any_cell(space, arm.name), vocab_size=data.tokens.vocab_size)
        config = replace(config, exam_at_tokens=(), report_every_tokens=arm.tokens_per_step)
        spent_s: list[float] = []
        started_s = time.perf_counter()
        for report in data.trainer(config).run():
            spent_s.append(arm.tokens_per_step / report.tokens_per_s)
            if report.step == UNTIMED_STEPS:
                started_s = time.perf_counter()
            if report.step > UNTIMED_STEPS and time.perf_counter() - started_s > TIMED_S:
                break
        found[arm.name] = median(spent_s[UNTIMED_STEPS:] or spent_s[-1:]) / arm.tokens_per_step
    return found


if __name__ == "__main__":
    print(json.dumps(timed_arms(Space.from_resolved(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))))
