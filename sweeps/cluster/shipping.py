"""What travels from this machine to a cluster: the sources of the project, settings, and pinned versions.

Nothing else of the project's folder travels, so that no run, environment or git history can.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from sweeps.cluster.addresses import without_credentials
from sweeps.errors import BadInputError

CONSTRAINTS = "constraints.txt"
SHIPPED_PACKAGES = ("search_spaces", "moe", "sweeps")

FORWARDED_PREFIXES = ("SWEEPS_", "MLFLOW_", "HF_", "AWS_", "GOOGLE_")

SECRET_WORDS = ("PASS", "TOKEN", "SECRET", "KEY", "CREDENTIALS")
"""Ray's dashboard shows a job's variables to everyone who can open it: secrets travel only when they are named."""

UPLOAD_EXCLUDES = ("__pycache__", "*.pyc", ".?*")
"""``.*`` would leave out the uploaded folder itself, which Ray calls ``.``, and all that is in it."""

JOB_MARKER = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray in a job's driver, whose workers inherit the code that the job was submitted with."""


def cluster_runtime_env(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the ``runtime_env`` for ``ray.init`` that runs this very code on every node; None inside a job.

    The sources go to every node as ``py_modules``, so that only the driver's machine needs the project; packages such
    as torch must be there already, and preflight compares their versions.
    """
    if JOB_MARKER in environment:
        return None
    return {
        "py_modules": [str(files(package)) for package in SHIPPED_PACKAGES],
        "excludes": list(UPLOAD_EXCLUDES),
        "env_vars": forwarded_environment(environment),
    }


def stage(folder: Path, arguments: Sequence[str], constraints: Path) -> tuple[str, ...]:
    """Copy what a job needs into ``folder``; return the arguments as they read there.

    That is the three packages, the pinned versions where they are found, and a ``--space`` file.

    Raises:
        BadInputError: the space file is not there.
    """
    for package in SHIPPED_PACKAGES:
        shutil.copytree(str(files(package)), folder / package, ignore=shutil.ignore_patterns(*UPLOAD_EXCLUDES))
    if constraints.is_file():
        shutil.copy(constraints, folder / CONSTRAINTS)
    staged: list[str] = []
    words = iter(arguments)
    for word in words:
        option, equals, value = word.partition("=")
        if option != "--space":
            staged.append(word)
            continue
        path = Path(value if equals else next(words, ""))
        if not path.is_file():
            raise BadInputError(f"--space {path} is not a file; give the path of a TOML file")
        shutil.copy(path, folder / path.name)
        staged += ["--space", path.name]
    return tuple(staged)


def forwarded_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that travel.

    These are settings of this project, of MLflow, the hub and the storage, without secrets, and addresses without user
    and password. ``SWEEPS_JOB_ENV`` names those that travel as they are (``AWS_SECRET_ACCESS_KEY,HF_TOKEN``), which
    Ray's dashboard then shows.
    """
    named = [name.strip() for name in environment.get("SWEEPS_JOB_ENV", "").split(",") if name.strip()]
    found = {
        name: without_credentials(value)
        for name, value in environment.items()
        if name.startswith(FORWARDED_PREFIXES) and not any(word in name for word in SECRET_WORDS)
    }
    found.update({name: environment[name] for name in named if name in environment})
    # a runs folder travels as an argument, a cache folder of this machine means nothing elsewhere, and the command that
    # is told how a session ended may hold an address with a secret
    for name in ("SWEEPS_RUNS_DIR", "SWEEPS_JOB_ENV", "SWEEPS_CACHE_DIR", "SWEEPS_ON_END"):
        if name not in named:
            found.pop(name, None)
    return found
