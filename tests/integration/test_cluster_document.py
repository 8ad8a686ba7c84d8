"""docs/cluster.md, followed on three machines: every command that it shows is run, or is named here with the reason
why it cannot be run without a cloud.

What is typed otherwise than it stands there is in ``instead``: the head's address, shared storage, the preset and
its size. Everything else, `ray start` and its options included, is the document's own.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from tests.integration.documents import ROOT, block_commands, copy_working_tree, inline_commands
from tests.integration.machines import PROGRAMS, Machine, machines
from tests.integration.ray_cluster import needs_namespaces
from tests.integration.sweeping import PATIENCE_S, clean_environment
from tests.programs import needs

DOCUMENT = "docs/cluster.md"

AT_SMOKE_SIZE = "--set budget_tokens=16384 --set rungs_tokens=[8192] --set seeds.confirm=1 --set resources.workers=3"

ELSEWHERE = {
    "git clone ... moe-sweeps && cd moe-sweeps": "the address is not known; the working tree is copied instead",
    "pip install boto3": "boto3 is there already: tests/integration/test_deploy.py uses it",
    "ray get-auth-token --generate": "makes a file in the home folder; the machines here get their token by variable",
    "ray up deploy/ray-cluster.yaml": "starts machines on AWS; test_deploy.py goes as far as a stand-in for AWS does",
    "ray down deploy/ray-cluster.yaml": "ends machines on AWS",
    "ray dashboard deploy/ray-cluster.yaml": "a tunnel to AWS; the job server is reached on the head itself",
    "kubectl apply -f deploy/rayjob.yaml": "needs Kubernetes; test_deploy.py holds the manifest to KubeRay's schema",
    "sbatch deploy/slurm.sbatch --preset matched --name first": "needs Slurm; test_slurm.py runs the file on one",
    "kubectl port-forward svc/...-head-svc 8265": "needs Kubernetes",
    "MLFLOW_DB_PASSWORD=... MLFLOW_ALLOWED_HOSTS=HOST:5000 docker compose -f deploy/mlflow-compose.yaml up -d": (
        "needs Docker and its images; test_deploy.py holds the file to Compose's schema"
    ),
    "sweeps ui": "a server for a browser, which tests/integration/test_readme.py starts and ends",
    "ray start": "the sentence means the lines of section 3, which are run",
    "sweeps doctor": "the sentence means the line of section 4, which is run",
}

Where = Literal["every machine", "the head", "every other machine"]


@dataclass(frozen=True, kw_only=True)
class Typed:
    """Where a command is typed, the exit code and the words that are expected of it."""

    where: Where = "the head"
    code: int = 0
    says: str = ""
    again: bool = False
    """Whether it is typed again until it says so."""


FOLLOWED = {
    "make doctor": Typed(where="every machine", says="Python"),
    "export RAY_AUTH_MODE=token": Typed(where="every machine"),
    "export RAY_AUTH_TOKEN=LONG_RANDOM_WORD": Typed(where="every machine"),
    "ray start --head --port=6379 --dashboard-host=0.0.0.0 --disable-usage-stats": Typed(says="Ray runtime started"),
    "ray start --address=HEAD:6379 --disable-usage-stats": Typed(
        where="every other machine", says="Ray runtime started"
    ),
    "ray status": Typed(says=r"(?:1 node_\w+\s+){3}", again=True),  # a node is listed a little after its start
    "RAY_ADDRESS=auto sweeps doctor --runs-dir s3://bucket/runs": Typed(says="cluster at auto"),
    "sweeps plan --preset matched --assume-gpu-gib 24": Typed(says="GPU"),
    "RAY_ADDRESS=auto sweeps plan --preset matched": Typed(says="about .* here"),
    'make sweep RAY_ADDRESS=auto PRESET=matched NAME=first ARGS="--runs-dir s3://bucket/runs"': Typed(
        says="(?s)Preflight.*3 trials at once"
    ),
    'make sweep RAY_ADDRESS=http://127.0.0.1:8265 PRESET=matched NAME=first ARGS="--runs-dir s3://bucket/runs"': Typed(
        says="(?s)submitted job raysubmit_.*3 trials at once"
    ),
    "sweeps sync NAME": Typed(),
    "sweeps resume NAME": Typed(says="sweep first is finished; nothing to run"),
    "sweeps gpu-check": Typed(code=4),
}


def instead(command: str, head: Machine, runs: Path) -> str:
    """The command as it is typed here."""
    words = command.replace("HEAD", head.address).replace("s3://bucket/runs", str(runs)).replace("matched", "smoke")
    if words.startswith("make sweep"):
        words = words[:-1] + f' {AT_SMOKE_SIZE}"'
    if "8265" in words:
        words = words.replace("NAME=first", "NAME=second")  # the document means one sweep or the other
    if re.fullmatch(r"sweeps (?:sync|resume) NAME", words):
        words = words.replace("NAME", "first") + f" --runs-dir {runs}"
    return words


def test_every_command_of_the_document_is_followed_or_has_a_reason() -> None:
    shown = [*block_commands(DOCUMENT), *inline_commands(DOCUMENT)]
    assert set(shown) == FOLLOWED.keys() | ELSEWHERE.keys()
    assert not FOLLOWED.keys() & ELSEWHERE.keys()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    copy_working_tree(tmp_path / "moe-sweeps")
    return tmp_path / "moe-sweeps"


@pytest.fixture
def three(tmp_path: Path) -> Iterator[tuple[Machine, ...]]:
    with machines(tmp_path, 3) as made:
        yield made


@pytest.mark.slow
@needs("git", "make", *PROGRAMS)
@needs_namespaces
@pytest.mark.skipif(not (ROOT / ".venv" / ".ready-dev").exists(), reason="no program .venv made by make")
def test_the_document_leads_from_nothing_to_a_sweep_on_three_machines(
    three: tuple[Machine, ...], copy: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    environment = clean_environment(
        PATH=f"{copy / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}",  # as `activate` does
        PYTHONPATH=str(copy),
        SWEEPS_CACHE_DIR=str(tmp_path / "cache"),  # one for all, so that tokens are made once
        COLUMNS="200",
    )
    typists = {"every machine": three, "the head": three[:1], "every other machine": three[1:]}
    for command in [*block_commands(DOCUMENT), *inline_commands(DOCUMENT)]:
        if command in ELSEWHERE:
            continue
        step = FOLLOWED[command]
        if command.startswith("export "):
            name, _, value = command.removeprefix("export ").partition("=")
            environment[name] = value
            continue
        typed = instead(command, three[0], runs)
        for machine in typists[step.where]:
            deadline_s = time.monotonic() + PATIENCE_S
            done = machine.run(typed, environment, copy)
            while step.again and not re.search(step.says, done.stdout) and time.monotonic() < deadline_s:
                time.sleep(1.0)
                done = machine.run(typed, environment, copy)
            assert done.returncode == step.code, f"{machine.name}: {typed}\n{done.stdout}"
            assert re.search(step.says, done.stdout), f"{machine.name}: {typed}\n{done.stdout}"
    for name in ("first", "second"):
        verdict = json.loads((runs / name / "verdict.json").read_text())
        assert verdict["outcome"] == "exploratory"
        assert len(verdict["strategies"]) == 3
    assert decided_by(runs / "first") == decided_by(runs / "second"), "one sweep, typed in two ways"


def decided_by(folder: Path) -> list[list[float]]:
    """The losses that a verdict rests on, by arm."""
    return [arm["losses"] for arm in json.loads((folder / "verdict.json").read_text())["strategies"]]
