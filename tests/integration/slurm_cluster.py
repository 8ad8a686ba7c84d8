"""A Slurm cluster of machines that are namespaces of this one: its own daemons, configuration, ports and spool folders.

Nothing of it outlives the block, and a Slurm or MUNGE that runs on this machine already is not touched.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.integration.machines import Machine, machines
from tests.integration.sweeping import PATIENCE_S

PROGRAMS = ("munged", "sbatch", "scancel", "scontrol", "sinfo", "slurmctld", "slurmd", "srun")

# What makes minutes of waiting seconds: a node that is lost, a job that ends, a job that waits to be started again.
CONFIGURATION = """
ClusterName={cluster}
SlurmctldHost={controller.name}({controller.address})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
FirstJobId={first_job}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
SlurmdTimeout=10
KillWait=10
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=5,batch_sched_delay=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=usual Nodes=ALL PriorityTier=1 Default=YES
PartitionName=urgent Nodes=ALL PriorityTier=2
"""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What Slurm says of a job."""

    state: str
    restarts: int
    exit_code: int
    nodes: str


@dataclass(frozen=True, kw_only=True)
class SlurmCluster:
    """A controller and nodes. Use ``slurm_cluster(...)``, which ends them."""

    folder: Path
    controller: Machine
    nodes: tuple[Machine, ...]
    environment: Mapping[str, str]

    def run(self, *words: str) -> str:
        """What a command prints that a user types on the controller."""
        done = subprocess.run(
            [*self.controller.prefix, *words],
            env=dict(self.environment),
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, *words: str) -> int:
        """The id of a job that ``sbatch WORDS`` submits."""
        return int(self.run("sbatch", "--parsable", *words).strip())

    def job(self, number: int) -> Job:
        """What Slurm says of a job now."""
        said = dict(re.findall(r"(\w+)=(\S*)", self.run("scontrol", "show", "job", str(number))))
        return Job(
            state=said["JobState"],
            restarts=int(said["Restarts"]),
            exit_code=int(said["ExitCode"].partition(":")[0]),
            nodes=said["NodeList"],
        )


@contextmanager
def slurm_cluster(folder: Path, *, nodes: int, cpus: int, environment: Mapping[str, str]) -> Iterator[SlurmCluster]:
    """A controller and ``nodes`` nodes of ``cpus`` CPUs, whose jobs see ``environment``, until the block ends."""
    with machines(folder, nodes + 1) as (controller, *others), ExitStack() as stack:
        made = SlurmCluster(
            folder=folder,
            controller=controller,
            nodes=tuple(others),
            environment={**environment, "SLURM_CONF": str(folder / "slurm.conf")},
        )
        first_job = secrets.randbelow(10**6) + 10**6  # as long as on a cluster in its prime, and nobody's folders
        stack.callback(_delete_folders, first_job)
        _configure(made, first_job, cpus)
        _munge(folder, stack)
        daemons = [_start([*controller.prefix, "slurmctld", "-D", "-i"], made, stack)]
        daemons += [_start([*node.prefix, "slurmd", "-D", "-N", node.name], made, stack) for node in others]
        deadline_s = time.monotonic() + PATIENCE_S
        while len(re.findall("^idle$", _states(made), flags=re.MULTILINE)) < nodes:
            all_run = all(daemon.poll() is None for daemon in daemons)
            assert all_run and time.monotonic() < deadline_s, f"{_states(made)}\n{_logs(made)}"
            time.sleep(0.5)
        yield made


def _configure(made: SlurmCluster, first_job: int, cpus: int) -> None:
    """Write what Slurm reads, and let the machines know each other's names."""
    text = CONFIGURATION.format(
        cluster=f"test{os.getpid()}", controller=made.controller, folder=made.folder, first_job=first_job
    )
    lines = [f"NodeName={node.name} NodeAddr={node.address} CPUs={cpus} State=UNKNOWN" for node in made.nodes]
    head, partitions = text.split("PartitionName", maxsplit=1)
    (made.folder / "slurm.conf").write_text("\n".join([head, *lines, f"PartitionName{partitions}"]))
    version = subprocess.run(["slurmctld", "-V"], capture_output=True, text=True, check=True).stdout
    knows_disabled = int(version.split()[-1].partition(".")[0]) >= 24
    (made.folder / "cgroup.conf").write_text(f"CgroupPlugin={'disabled' if knows_disabled else 'cgroup/v1'}\n")
    hosts = made.folder / "hosts"
    machines_here = (made.controller, *made.nodes)
    names = [f"{machine.address} {machine.name}\n" for machine in machines_here]
    hosts.write_text("".join(["127.0.0.1 localhost\n", *names]))  # without the first, Ray asks a name server each time
    for machine in machines_here:
        subprocess.run([*machine.prefix, "mount", "--bind", str(hosts), "/etc/hosts"], check=True)
    (made.folder / "state").mkdir()


def _munge(folder: Path, stack: ExitStack) -> None:
    """One MUNGE for all: a socket is found by its path, whatever the network."""
    own = folder / "munge"
    own.mkdir(mode=0o755)
    (own / "key").write_bytes(secrets.token_bytes(64))
    (own / "key").chmod(0o600)
    files = [f"--{option}={own / option.removesuffix('-file')}" for option in _MUNGE_FILES]
    words = ["munged", "--foreground", "--force", "--origin=127.0.0.1", *files]
    with (own / "said").open("wb") as said:
        process = subprocess.Popen(words, stdout=said, stderr=said)
    stack.callback(_end, process)
    deadline_s = time.monotonic() + PATIENCE_S
    while not (own / "socket").exists():
        assert process.poll() is None and time.monotonic() < deadline_s, (own / "said").read_text()
        time.sleep(0.1)


_MUNGE_FILES = ("key-file", "socket", "pid-file", "log-file", "seed-file")


def _start(words: Sequence[str], made: SlurmCluster, stack: ExitStack) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        words, env=dict(made.environment), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=made.folder
    )
    stack.callback(_end, process)
    return process


def _logs(made: SlurmCluster) -> str:
    """The end of what each daemon wrote."""
    return "\n".join(f"{path.name}: {path.read_text()[-2000:]}" for path in sorted(made.folder.glob("*.log")))


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()  # of a daemon in a machine this is only `nsenter`; the daemon ends with the machine
    process.wait()


def _states(made: SlurmCluster) -> str:
    """Every node's state, a line each; what is wrong while the controller does not answer yet."""
    words = [*made.controller.prefix, "sinfo", "--noheader", "--Node", "--partition=usual", "--format=%T"]
    return subprocess.run(words, env=dict(made.environment), capture_output=True, text=True, check=False).stdout


def _delete_folders(first_job: int) -> None:
    """What jobs left in ``/tmp`` on machines that were switched off."""
    for number in range(first_job, first_job + 20):
        for left in Path("/tmp").glob(f"ray-{number}-*"):
            shutil.rmtree(left, ignore_errors=True)
