"""The Makefile: what it takes on its command line, and what it refuses."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping

import pytest

from tests.integration.documents import ROOT
from tests.integration.sweeping import clean_environment
from tests.programs import needs

pytestmark = needs("make")


def looked_up(*words: str, environment: Mapping[str, str] | None = None) -> tuple[int, str]:
    """What make would do, and its exit code; nothing is done."""
    done = subprocess.run(
        ["make", "-n", *words],
        cwd=ROOT,
        env=dict(clean_environment() if environment is None else environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("name", ["preset", "name", "space", "hours", "args", "only", "python"])
def test_a_variable_in_lower_case_is_refused_with_the_one_that_was_meant(name: str) -> None:
    code, said = looked_up("sweep", f"{name}=smoke")
    assert code == 2
    assert f"{name}=smoke is not a variable of this Makefile; write {name.upper()}=smoke" in said
    assert "sweeps run" not in said


def test_all_unknown_variables_are_named_at_once_with_those_there_are() -> None:
    code, said = looked_up("plan", "PRESETS=smoke", "PRESET=smoke", "space=a b.toml")
    assert code == 2
    assert "PRESETS=smoke is not a variable of this Makefile; choose one of PRESET SPACE NAME HOURS ARGS" in said
    assert "or set it in the environment: PRESETS=... make plan" in said
    assert "space=a b.toml is not a variable of this Makefile; write SPACE=a b.toml" in said


@pytest.mark.parametrize(
    ("words", "does"),
    [
        (["sweep", "PRESET=smoke", "NAME=a", "RAY_ADDRESS=auto"], "sweeps run --preset 'smoke' --name 'a'"),
        (["sweep", "HOURS=0.5"], "sweeps run --hours '0.5'"),
        (["plan", "SPACE=my.toml", "ARGS=--set x=1"], "sweeps plan --space 'my.toml' --set x=1"),
        (["resume", "NAME=a"], "sweeps resume a"),
        (["bench", "ONLY=step"], "python -m bench --only 'step'"),
        (["test", "ARGS=tests/moe -k windows"], "--no-loadscope-reorder -m 'not slow' tests/moe -k windows"),
        (["test-all", "ARGS=--durations=5"], "--no-loadscope-reorder --durations=5"),
        (["test-faults"], "SWEEPS_FAULTS=full .venv/bin/python -m pytest -m 'faults'"),
    ],
)
def test_a_target_hands_its_variables_on(words: list[str], does: str) -> None:
    code, said = looked_up(*words)
    assert code == 0, said
    assert does in " ".join(said.split())


def test_variables_of_the_make_that_runs_the_tests_do_not_reach_the_makes_that_tests_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"MAKEFLAGS": " -- ARGS=--durations=5 NAME=leaked", "MAKELEVEL": "1"}.items():
        monkeypatch.setenv(name, value)
    assert "--durations=5" in looked_up("sweep", environment=os.environ)[1], "make would take them"
    code, said = looked_up("sweep")
    assert code == 0, said
    assert "sweeps run" in said
    assert "durations" not in said
    assert "leaked" not in said
