"""What the project needs of its pins, and what a machine lacks of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from sweeps.cluster.node_probe import INSTALL_DEADLINE_S, NODE_DEADLINE_S, node_deadline_s
from sweeps.cluster.pinned import LACKING, lacking, project_pins

ROOT = Path(__file__).parents[3]


def test_the_pins_are_those_of_packages_that_the_project_names_however_they_are_spelt(tmp_path: Path) -> None:
    constraints = tmp_path / "constraints.txt"
    constraints.write_text(
        "# pinned\ntorch==2.13.0\nray[tune]==2.60.0\npytest==9\naiohttp==3\n-r other\n"
        "PyArrow==25 ; python_version > '3'\n"
    )
    assert project_pins(constraints) == ["torch==2.13.0", "PyArrow==25"]


def test_the_pins_of_this_project_are_all_but_rays() -> None:
    names = {pin.partition("==")[0] for pin in project_pins(ROOT / "constraints.txt")}
    assert {"torch", "mlflow", "optuna", "typer"} < names
    assert not {"ray", "pytest"} & names


def test_another_version_is_lacking_and_another_build_of_the_same_is_not() -> None:
    import torch

    here = torch.__version__.partition("+")[0]
    assert lacking([f"torch=={here}", f"torch=={here}+cu999", "torch==0.1", "no-such-package==1"]) == [
        "torch==0.1",
        "no-such-package==1",
    ]


def test_a_machine_with_nothing_but_python_can_list_what_it_lacks() -> None:
    words = [sys.executable, "-S", "-m", "sweeps.cluster.pinned", "torch==2.13.0", "mlflow==3.17.2"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == f"{LACKING}{json.dumps(['torch==2.13.0', 'mlflow==3.17.2'])}\n"


def test_a_node_on_which_packages_are_installed_first_may_take_longer_to_answer() -> None:
    def job(runtime_env: object) -> dict[str, str]:
        return {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": runtime_env})}

    assert node_deadline_s({}) == NODE_DEADLINE_S
    assert node_deadline_s(job({"working_dir": "gcs://x.zip"})) == NODE_DEADLINE_S
    assert node_deadline_s(job({"pip": {"packages": ["torch==2.13.0"]}})) == INSTALL_DEADLINE_S
