"""``sweeps doctor``: what this machine, cluster, hub and tracking server can do, and what to do where they cannot."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from sweeps.cluster.pinned import installed_version, public, read_constraints

if TYPE_CHECKING:
    from rich.table import Table

GIB = 2**30
LOW_DISK_GIB = 2.0
"""A laptop sweep writes some hundred MB; checkpoints of the published size are about 1 GiB each."""

LOW_SHARED_MEMORY_GIB = 0.2
RAY_TEMPORARY_DIR = Path("/tmp/ray")  # noqa: S108 - Ray's own folder, which is only read
RAY_DAEMONS = ("gcs_server", "raylet")

Level = Literal["ok", "warn", "bad"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One finding: ``what`` was looked at, what was ``found``, and the ``remedy`` where the level is not ok."""

    what: str
    found: str
    level: Level = "ok"
    remedy: str = ""


def examine(
    *,
    runs_dir: str,
    tracking_uri: str,
    ray_address: str | None = None,
    constraints: Path = Path("constraints.txt"),
    hub: bool = True,
) -> tuple[Row, ...]:
    """Return the findings of every check, in the order of the table. Takes about 10 s; without ``hub`` no network."""
    checks: list[Callable[[], Sequence[Row]]] = [
        check_python,
        lambda: check_versions(constraints),
        check_devices,
        lambda: check_ray(ray_address),
        lambda: check_storage(runs_dir),
        lambda: check_disk(runs_dir),
        lambda: check_tracking(tracking_uri),
    ]
    if hub:
        checks.append(check_hub)
    return tuple(row for check in checks for row in check())


def render(rows: Sequence[Row]) -> Table:
    """Return the rows for a rich console."""
    from rich.table import Table
    from rich.text import Text

    from sweeps.shown_commands import with_shown_commands

    marks = {"ok": Text("ok", "green"), "warn": Text("warn", "yellow"), "bad": Text("bad", "red")}
    table = Table(show_header=True, header_style="bold")
    for column in ("what", "", "found", "what to do"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(row.what, marks[row.level], Text(row.found), Text(with_shown_commands(row.remedy)))
    return table


def check_python() -> list[Row]:
    """Check the interpreter; report the machine's cores and memory."""
    import psutil

    from sweeps.cluster.machines import usable_cpus

    is_new = sys.version_info >= (3, 11)
    memory = psutil.virtual_memory()
    return [
        Row(
            what="Python",
            level="ok" if is_new else "bad",
            found=f"{platform.python_version()} on {platform.system()} {platform.machine()}",
            remedy="" if is_new else "install Python 3.11 or newer",
        ),
        Row(
            what="CPU and memory",
            found=f"{usable_cpus()} CPU, {memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free",
        ),
    ]


def check_versions(constraints: Path) -> list[Row]:
    """Compare installed packages with the pinned ones, where ``constraints`` is found."""
    if not constraints.is_file():
        shown = ", ".join(f"{name} {installed_version(name) or 'missing'}" for name in ("torch", "ray", "mlflow"))
        found = f"{shown}; no {constraints.name} here to compare with"
        return [Row(what="versions", level="warn", found=found, remedy="run in the project's folder")]
    pinned = dict(read_constraints(constraints.read_text().splitlines()))
    wrong = [
        f"{name} {there} instead of {wanted}"
        for name, wanted in pinned.items()
        if (there := installed_version(name)) is not None and public(there) != public(wanted)
    ]
    if wrong:
        found = f"{len(wrong)} of {len(pinned)} differ: {', '.join(wrong[:5])}{' ...' if len(wrong) > 5 else ''}"
        return [Row(what="versions", level="warn", found=found, remedy="`make clean` and any target, or pip -c")]
    return [Row(what="versions", found=f"as pinned in {constraints.name} ({len(pinned)} packages)")]


def check_devices() -> list[Row]:
    """Report torch, the device a trial would train on, and its precision."""
    import torch

    from moe.device import Device
    from moe.precision import resolve_precision
    from sweeps.cluster.gpus import gpu_memories_gib

    device = Device.resolve("auto")
    precision = resolve_precision("auto", device)
    memories_gib = gpu_memories_gib()
    rows = [Row(what="torch", found=f"{torch.__version__}, {torch.get_num_threads()} threads")]
    if device.kind == "cpu" and (memories_gib or shutil.which("nvidia-smi")):
        seen = f"nvidia-smi shows {len(memories_gib)} GPU, torch sees none"
        remedy = "install a CUDA build of torch, or repair the driver (`nvidia-smi` must list the GPU)"
        return [*rows, Row(what="device", level="warn", found=seen, remedy=remedy)]
    sizes = ", ".join(f"{memory_gib:.1f} GiB" for memory_gib in memories_gib)
    named = f"{device.name} ({sizes})" if sizes else device.name
    return [*rows, Row(what="device", found=f"{named}; training in {precision.reason}")]


def check_ray(address: str | None) -> list[Row]:
    """Report Ray's version and the cluster to use; check that it answers, and for what earlier ones left behind."""
    import psutil

    found = f"{installed_version('ray')}, {f'cluster at {address}' if address else 'a private one per sweep'}"
    rows = [Row(what="Ray", found=found)]
    if address and address != "auto":
        rows.append(_cluster_row(address))
    processes = [(each.info["pid"], each.info["name"]) for each in psutil.process_iter(["pid", "name"])]
    rows += leftover_rows(
        daemons=[(pid, name) for pid, name in processes if name in RAY_DAEMONS],
        current_cluster=(RAY_TEMPORARY_DIR / "ray_current_cluster").is_file(),
        auth_token=(Path.home() / ".ray" / "auth_token").is_file(),
        environment=os.environ,
        uses_cluster=address is not None,
    )
    shared_memory = Path("/dev/shm")  # noqa: S108 - looked at and not written
    if shared_memory.is_dir() and (free_gib := shutil.disk_usage(shared_memory).free / GIB) < LOW_SHARED_MEMORY_GIB:
        remedy = "start the container with --shm-size=1g"
        rows.append(Row(what="shared memory", level="warn", found=f"{free_gib:.2f} GiB in /dev/shm", remedy=remedy))
    return rows


def leftover_rows(
    *,
    daemons: Sequence[tuple[int, str]],
    current_cluster: bool,
    auth_token: bool,
    environment: Mapping[str, str],
    uses_cluster: bool,
) -> list[Row]:
    """Return what an earlier Ray left on this machine that can mislead the next one (docs/cluster.md, at its end)."""
    rows = []
    if daemons and not uses_cluster:
        found = "running: " + ", ".join(f"{name} (pid {pid})" for pid, name in daemons[:4])
        remedy = "if no sweep runs here: end them by pid, or `ray stop` where nobody else uses Ray"
        rows.append(Row(what="Ray leftovers", level="warn", found=found, remedy=remedy))
    if current_cluster and not daemons:
        found = f"{RAY_TEMPORARY_DIR}/ray_current_cluster names a cluster that is gone"
        rows.append(Row(what="Ray leftovers", level="warn", found=found, remedy="delete that file"))
    if auth_token and not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} & environment.keys():
        found = "~/.ray/auth_token exists and RAY_AUTH_MODE is not set: a head may require a token that workers lack"
        remedy = "export RAY_AUTH_MODE=token and one RAY_AUTH_TOKEN on all nodes, or RAY_AUTH_MODE=disabled on all"
        rows.append(Row(what="Ray", level="warn", found=found, remedy=remedy))
    return rows


def check_storage(runs_dir: str) -> list[Row]:
    """Write, read and delete one small object where sweeps are kept."""
    import secrets

    from sweeps.errors import SweepError
    from sweeps.ledger.storage import Storage

    name = f".doctor-{secrets.token_hex(6)}"
    data = secrets.token_bytes(64)
    storage = Storage(runs_dir)
    existed = not storage.is_local or storage.path.exists()
    try:
        started_s = time.perf_counter()
        storage.write_bytes(name, data)
        took_s = time.perf_counter() - started_s
        intact = storage.read_bytes(name) == data
        storage.delete(name)
        if not existed:
            with contextlib.suppress(OSError):  # a sweep may have started there meanwhile
                storage.path.rmdir()
    except (SweepError, FileNotFoundError) as error:
        remedy = "check the path and its permissions" if storage.is_local else "check bucket, region and credentials"
        return [Row(what="storage", level="bad", found=str(error), remedy=f"{remedy}, or choose another --runs-dir")]
    if not intact:
        found = f"{storage.uri} returned other bytes than were written"
        return [Row(what="storage", level="bad", found=found, remedy="choose another --runs-dir")]
    return [Row(what="storage", found=f"{storage.uri}: written and read, {took_s * 1000:.0f} ms a write")]


def check_disk(runs_dir: str) -> list[Row]:
    """Check the free space where sweeps are kept, when that is a disk of this machine, and where Ray works."""
    from tempfile import gettempdir

    from sweeps.cluster.reachability import existing_folder

    places = {"disk for Ray": Path(gettempdir())}
    if "://" not in runs_dir:
        places = {"disk for runs": existing_folder(Path(runs_dir).expanduser().absolute()), **places}
    rows = []
    for what, folder in places.items():
        free_gib = shutil.disk_usage(folder).free / GIB
        low = free_gib < LOW_DISK_GIB
        remedy = f"free some space; below {LOW_DISK_GIB:g} GiB checkpoints may not fit" if low else ""
        rows.append(Row(what=what, level="warn" if low else "ok", found=f"{free_gib:.1f} GiB free", remedy=remedy))
    return rows


def check_tracking(uri: str) -> list[Row]:
    """Check whether MLflow can use its store. A sweep runs without it, and is shown later."""
    from sweeps.cluster.addresses import without_credentials
    from sweeps.cluster.reachability import tracking_problem

    return [_server_row("tracking", tracking_problem(uri), f"{without_credentials(uri)} answers or can be made")]


def check_hub() -> list[Row]:
    """Check whether the Hugging Face hub answers within 3 s; only hub corpora and tokenizers need it."""
    from sweeps.cluster.reachability import hub_problem

    return [_server_row("hub", hub_problem(), "answers")]


def _server_row(what: str, problem: str | None, well: str) -> Row:
    if problem is None:
        return Row(what=what, found=well)
    found, _, remedy = problem.partition("; ")
    return Row(what=what, level="warn", found=found, remedy=remedy)


def _cluster_row(address: str) -> Row:
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    host, port = parts.hostname or "localhost", parts.port or {"http": 80, "https": 443}.get(parts.scheme, 6379)
    try:
        socket.create_connection((host, port), timeout=3.0).close()
    except OSError as error:
        remedy = "start the cluster, open that port, or unset RAY_ADDRESS to use this machine"
        return Row(what="Ray cluster", level="bad", found=f"{host}:{port} does not answer ({error})", remedy=remedy)
    return Row(what="Ray cluster", found=f"{host}:{port} answers")
