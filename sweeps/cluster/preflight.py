"""Before the first trial on a cluster: does every node have what a trial needs? One table, every problem at once.

One pinned Ray task per node reports its state; ``judge``, a pure function, decides what follows. Without this, trials
would meet these problems one by one, in the middle of the night.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.cluster.node_probe import OK, NodeAnswer, ask_nodes, node_deadline_s
from sweeps.errors import SweepError
from sweeps.ledger.storage import Storage
from sweeps.shown_commands import with_shown_commands

if TYPE_CHECKING:
    from rich.table import Table

CLOCK_SKEW_S = 5.0
"""Leases compare heartbeats across machines; they are stale after 30 s."""

PROBE_FOLDER = "preflight"


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """The answers of all nodes, the problems to fix before a sweep starts, and warnings."""

    answers: tuple[NodeAnswer, ...]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]


def preflight(
    *,
    storage_uri: str,
    token_cache_dir: Path | None = None,
    tracking_uri: str | None = None,
    deadline_s: float | None = None,
) -> Preflight:
    """Examine every live node of the cluster that Ray is connected to; leave nothing on the storage.

    ``token_cache_dir`` is checked on every node; None for each node's own default. ``tracking_uri`` is checked from
    here, the driver, because trials never use it. ``deadline_s`` is how long a node may take to answer; by default
    90 s, or the time that an installation needs.
    """
    from sweeps.cluster.reachability import tracking_problem

    token = secrets.token_hex(6)
    storage = Storage(storage_uri).child(PROBE_FOLDER).child(token)
    try:
        storage_problem = _write_mark(storage)
        timeout_s = node_deadline_s(os.environ) if deadline_s is None else deadline_s
        answers = ask_nodes(storage.uri, None if token_cache_dir is None else str(token_cache_dir), timeout_s)
        answers = tuple(_with_mark_seen(storage, answer) for answer in answers)
    finally:
        _clean(Storage(storage_uri), token)
    problems, warnings = judge(answers, storage_uri=storage_uri)
    # the ledger is the sweep and MLflow a view of it: a server that is down delays the view and nothing else
    tracking = tracking_problem(tracking_uri) if tracking_uri else None
    return Preflight(
        answers=answers,
        problems=tuple(filter(None, (storage_problem, *problems))),
        warnings=tuple(map(with_shown_commands, filter(None, (*warnings, tracking)))),
    )


def judge(answers: Sequence[NodeAnswer], *, storage_uri: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the problems and warnings that follow from the answers; versions must be those of the driver's node."""
    problems: list[str] = []
    warnings: list[str] = []
    if not answers:
        return ("the cluster has no live node; start one with `ray start`",), ()
    heard = [answer for answer in answers if answer.error is None]
    problems += [f"node {answer.address}: {answer.error}" for answer in answers if answer.error is not None]
    measures = [answer for answer in heard if answer.is_driver] or heard
    for answer in heard:
        problems += _version_problems(answer, measures[0])
        if answer.storage != OK:
            problems.append(f"node {answer.address}: storage {storage_uri}: {answer.storage}")
        if answer.token_cache != OK:
            problems.append(f"node {answer.address}: token cache {answer.token_cache}")
        if answer.clock_skew_s > CLOCK_SKEW_S:
            warnings.append(
                f"node {answer.address}: its clock is {answer.clock_skew_s:.0f} s away from the driver's, and leases "
                "compare clocks; set it by NTP"
            )
        if answer.gpus and answer.gpu_gib is None:
            warnings.append(
                f"node {answer.address}: Ray counts {answer.gpus} GPU there and nvidia-smi shows none; "
                "without a driver its trials train on the CPU"
            )
    return tuple(problems), tuple(warnings)


def render(result: Preflight) -> Table:
    """Return a table with one row per node, for a rich console."""
    from rich.table import Table

    table = Table(title="Preflight", title_justify="left")
    for column in ("node", "CPU", "GPU", "GPU GiB", "Python", "ray", "torch", "code", "storage", "token cache"):
        table.add_column(column, justify="right" if column in ("CPU", "GPU", "GPU GiB") else "left")
    for answer in result.answers:
        name = f"{answer.address} (driver)" if answer.is_driver else answer.address
        facts = [name, str(answer.cpus), str(answer.gpus)]
        if answer.error is not None:
            table.add_row(*facts, "", *["?"] * 6, style="red")
            continue
        gpu_gib = "" if answer.gpu_gib is None else f"{answer.gpu_gib:.1f}"
        states = ("ok" if state == OK else "[red]no[/red]" for state in (answer.storage, answer.token_cache))
        table.add_row(*facts, gpu_gib, answer.python, answer.ray, answer.torch, answer.code, *states)
    return table


def _version_problems(answer: NodeAnswer, measure: NodeAnswer) -> list[str]:
    remedies: Mapping[str, str] = {
        "python": "use one Python on all nodes, or Ray cannot unpickle",
        "ray": "install the same version there",
        "torch": "install the same version there (constraints.txt names it), or losses are not comparable",
        "code": "update the checkout there, or submit the sweep as a job, which ships the code",
    }
    found = {name: (getattr(answer, name), getattr(measure, name)) for name in remedies}
    return [
        f"node {answer.address}: {name} is {there} and on {measure.address} it is {here}; {remedies[name]}"
        for name, (there, here) in found.items()
        if there != here or there == "missing"
    ]


def _write_mark(storage: Storage) -> str | None:
    try:
        storage.write_bytes("driver", b"driver")
    except SweepError as error:
        return f"driver: storage: {error}"
    return None


def _with_mark_seen(storage: Storage, answer: NodeAnswer) -> NodeAnswer:
    """The answer, with a problem where the node has not written what it says where the driver reads."""
    if answer.storage != OK:
        return answer
    try:
        seen = storage.exists(answer.node_id)
    except SweepError as error:
        return replace(answer, storage=str(error))
    unseen = "what it wrote is not visible to the driver, so it is not shared"
    return answer if seen else replace(answer, storage=unseen)


def _clean(runs: Storage, token: str) -> None:
    with contextlib.suppress(SweepError):  # a storage that cannot be written has been reported already
        runs.delete(f"{PROBE_FOLDER}/{token}")
        if not runs.names(PROBE_FOLDER):
            runs.delete(PROBE_FOLDER)
