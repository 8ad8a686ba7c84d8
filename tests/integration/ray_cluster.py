"""Real Ray nodes as separate processes with addresses of their own: what a cluster test runs against.

As root every node has a network namespace, joined by a bridge, so that it has its own ports, its own route and can lose
both. Otherwise nodes are told apart by loopback addresses. Every process is ended by its pid; nothing is left behind.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import string
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.integration.sweeping import PATIENCE_S, clean_environment

GCS_PORT = 6379
DASHBOARD_PORT = 8265
REPOSITORY = Path(__file__).parents[2]

_LETTERS = itertools.cycle(string.ascii_lowercase)

# A node that is gone refuses connections and is noticed in about 4 s; one that is only slow, on a busy machine, is not.
_HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "30000",
    "RAY_health_check_failure_threshold": "3",
}


@dataclass(kw_only=True)
class Node:
    """One ``ray start``: its address, its processes, and the words that run a command where it runs."""

    name: str
    address: str
    temporary_dir: Path
    process: subprocess.Popen[bytes]
    prefix: tuple[str, ...] = ()
    _family: list[psutil.Process] = field(default_factory=list)

    def processes(self) -> list[psutil.Process]:
        """The node's daemons and workers."""
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self.process.pid)
            self._family = list({*self._family, parent, *parent.children(recursive=True)})
        return [process for process in self._family if _is_alive(process)]

    def first_process(self) -> psutil.Process:
        """The first process of a node that has processes of its own."""
        return next(process for process in self.processes() if process.name() not in ("unshare", "sh", "ip"))

    def signal(self, number: int) -> None:
        """Send a signal to every process of the node."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL to every process of the node at once, as when its machine loses power."""
        while alive := self.processes():
            for process in alive:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)
            time.sleep(0.05)  # until the kernel has ended them
        self.process.wait()


class RayCluster:
    """A head and workers. Use ``ray_cluster(...)``, which ends them."""

    def __init__(self, folder: Path, *, uses_namespaces: bool) -> None:
        self.folder = folder
        self.uses_namespaces = uses_namespaces
        self.nodes: list[Node] = []
        self._tag = f"sw{os.getpid() % 100_000}{next(_LETTERS)}"  # the kernel takes a namespace away some time later
        self._subnet = f"10.77.{os.getpid() % 250}"
        self._namespaces: list[str] = []

    @property
    def head(self) -> Node:
        """The node with the control service; drivers run beside it."""
        return self.nodes[0]

    @property
    def address(self) -> str:
        """What ``RAY_ADDRESS`` is set to."""
        return f"{self.head.address}:{GCS_PORT}"

    @property
    def dashboard(self) -> str:
        """The job server's address, when the head has one."""
        return f"http://{self.head.address}:{DASHBOARD_PORT}"

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """Variables of a driver."""
        return {**_base_environment(), "RAY_ADDRESS": self.address, **(more or {})}

    def run(
        self, words: Sequence[str], variables: Mapping[str, str] | None = None, *, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the head's machine, with ``RAY_ADDRESS`` and ``variables`` set."""
        return subprocess.run(
            [*self.head.prefix, *words],
            env=self.environment(variables),
            cwd=cwd or self.folder,
            capture_output=True,
            text=True,
            check=False,
        )

    def popen(self, words: Sequence[str], variables: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start a command on the head's machine; its output is one pipe."""
        return subprocess.Popen(
            [*self.head.prefix, *words],
            env=self.environment(variables),
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def start(
        self,
        *,
        num_cpus: int = 1,
        num_gpus: int = 0,
        with_dashboard: bool = False,
        private_folder: Path | None = None,
        has_own_processes: bool = False,
        environment: Mapping[str, str] | None = None,
        python: str = sys.executable,
    ) -> Node:
        """Start one more node; the first is the head.

        ``private_folder`` is empty and seen by this node alone, as an unshared disk is; with ``has_own_processes`` it
        has mounts and process numbers of its own, as another host has (both: namespaces only).
        """
        number = len(self.nodes) + 1
        address = f"{self._subnet}.{number}" if self.uses_namespaces else f"127.0.0.{number}"
        prefix = self.namespace()[0] if self.uses_namespaces else ()
        temporary_dir = Path(tempfile.mkdtemp(prefix=f"{self._tag}-{number}-", dir="/tmp"))  # sockets need short paths
        words = [
            *(_with_private(private_folder) if private_folder else ()),
            *(("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc") if has_own_processes else ()),
            *(python, "-m", "ray.scripts.scripts", "start", "--block"),
            f"--node-ip-address={address}",
            f"--num-cpus={num_cpus}",
            f"--num-gpus={num_gpus}",
            "--object-store-memory=100000000",
            "--disable-usage-stats",
            f"--temp-dir={temporary_dir}",
        ]
        if self.nodes:
            words.append(f"--address={self.address}")
        else:
            words += ["--head", f"--port={GCS_PORT}", f"--include-dashboard={str(with_dashboard).lower()}"]
            words += [f"--dashboard-host={address}", f"--dashboard-port={DASHBOARD_PORT}"] if with_dashboard else []
        with (self.folder / f"node-{number}.log").open("wb") as log:
            process = subprocess.Popen(
                [*prefix, *words],
                env={**_base_environment(), **_HEALTH_CHECKS, **(environment or {})},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        node = Node(name=f"node-{number}", address=address, temporary_dir=temporary_dir, process=process, prefix=prefix)
        self.nodes.append(node)
        return node

    def wait_for(self, count: int) -> None:
        """Return once ``count`` nodes are up."""
        script = (
            "import ray, sys, time; ray.init(logging_level='error')\n"
            f"end_s = time.monotonic() + {PATIENCE_S}\n"
            "while time.monotonic() < end_s:\n"
            f"    if sum(node['Alive'] for node in ray.nodes()) >= {count}: sys.exit(0)\n"
            "    time.sleep(0.2)\n"
            "sys.exit(3)"
        )
        deadline_s = time.monotonic() + PATIENCE_S
        asked = self.run([sys.executable, "-c", script])
        while asked.returncode not in (0, 3) and time.monotonic() < deadline_s:  # the head itself is not up yet
            time.sleep(0.5)
            asked = self.run([sys.executable, "-c", script])
        if asked.returncode != 0:
            logs = "\n".join(path.read_text() for path in sorted(self.folder.glob("node-*.log")))
            raise TimeoutError(f"{count} Ray nodes did not come up: {asked.stdout}{asked.stderr}\n{logs}")

    def cut(self, node: Node) -> None:
        """Take a node off the network; what it shares of the disk stays (namespaces only)."""
        _ip("link", "set", f"{self._tag}v{self.nodes.index(node) + 1}", "down")

    def close(self) -> None:
        """End every process and namespace, and delete the nodes' folders."""
        for node in reversed(self.nodes):
            node.kill()
            shutil.rmtree(node.temporary_dir, ignore_errors=True)
        for number, namespace in enumerate(self._namespaces, start=1):
            subprocess.run(["ip", "link", "del", f"{self._tag}v{number}"], check=False, capture_output=True)
            subprocess.run(["ip", "netns", "del", namespace], check=False, capture_output=True)
        if self._namespaces:
            subprocess.run(["ip", "link", "del", self._tag], check=False, capture_output=True)

    def namespace(self) -> tuple[tuple[str, ...], str]:
        """One more network namespace: the words that run a command in it, and its address.

        It has one link to the bridge; its default route leads nowhere and only names its address.
        """
        if not self._namespaces:
            _ip("link", "add", self._tag, "type", "bridge")
            _ip("link", "set", self._tag, "up")
        number = len(self._namespaces) + 1
        name, address = f"{self._tag}n{number}", f"{self._subnet}.{number}"
        outer, inner = f"{self._tag}v{number}", f"{self._tag}i{number}"
        _ip("netns", "add", name)
        self._namespaces.append(name)
        _ip("link", "add", outer, "type", "veth", "peer", "name", inner)
        _ip("link", "set", inner, "netns", name)
        _ip("link", "set", outer, "master", self._tag)
        _ip("link", "set", outer, "up")
        _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", name, "address", "add", f"{address}/24", "dev", inner)
        _ip("-n", name, "link", "set", inner, "up")
        _ip("-n", name, "route", "add", "default", "dev", inner)
        return ("ip", "netns", "exec", name), address


@contextlib.contextmanager
def ray_cluster(folder: Path) -> Iterator[RayCluster]:
    """A cluster without nodes, whose nodes are all ended when the block ends, however it ends."""
    cluster = RayCluster(folder, uses_namespaces=can_use_namespaces())
    try:
        yield cluster
    finally:
        cluster.close()


def python_without_project(folder: Path) -> str:
    """A Python of its own in ``folder`` with every package of this one but the project: what is not shipped is missing.

    It is small, because it only points at this one's packages, and Ray may copy it.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    [packages] = folder.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n")  # its .pth files are not followed
    python = str(folder / "bin" / "python")
    found = subprocess.run(
        [python, "-c", "import sweeps"],
        env=os.environ | {"PYTHONPATH": ""},
        capture_output=True,
        check=False,
        cwd="/",
    )
    assert found.returncode != 0, "the project is installed among the packages, not as `make` does it (pip install -e)"
    return python


def on_path(python: str) -> dict[str, str]:
    """Variables of a node on which ``python`` is that one, and nothing of the project is at hand."""
    return {"PYTHONPATH": "", "PATH": f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}"}


def can_use_namespaces() -> bool:
    """Whether this user may make network namespaces, and has ``ip`` for it."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    probe = f"sw{os.getpid() % 100_000}p"
    made = subprocess.run(["ip", "netns", "add", probe], check=False, capture_output=True).returncode == 0
    if made:
        _ip("netns", "del", probe)
    return made


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _with_private(folder: Path) -> tuple[str, ...]:
    """Words that run a command with an empty, private file system at ``folder``."""
    return ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs none "{folder}" && exec "$@"', "sh")


def _base_environment() -> dict[str, str]:
    return clean_environment(
        PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        PYTHONPATH=str(REPOSITORY),
        RAY_AUTH_MODE="disabled",
        RAY_USAGE_STATS_ENABLED="0",
        OMP_NUM_THREADS="1",
    )


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


needs_namespaces = pytest.mark.skipif(
    not can_use_namespaces(), reason="a network of one's own needs root and the program ip (iproute2)"
)
