"""The files in deploy/, by the schemas and parsers of the tools that read them, as far as these are at hand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from sweeps.cluster.facts import declared_growth

DEPLOY = Path(__file__).parents[2] / "deploy"
PINNED_RAY = "2.60.0"


def parsed(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((DEPLOY / name).read_text())
    return content


def test_the_launcher_file_passes_rays_own_validation() -> None:
    pytest.importorskip("jsonschema", reason="the program jsonschema is missing, with which Ray validates")
    from ray.autoscaler._private.util import fillout_defaults, validate_config

    config = fillout_defaults(parsed("ray-cluster.yaml"))
    validate_config(config)


def test_the_launchers_gpu_nodes_start_from_zero_and_its_head_offers_no_cpu_to_trials() -> None:
    config = parsed("ray-cluster.yaml")
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["resources"] == {"CPU": 0}
    workers = [kind for name, kind in types.items() if name != config["head_node_type"]]
    assert all(kind["min_workers"] == 0 and kind["resources"]["GPU"] == 1 for kind in workers)
    assert all(kind["max_workers"] <= config["max_workers"] for kind in workers)


def test_every_file_names_the_pinned_ray_and_one_image() -> None:
    job = parsed("rayjob.yaml")["spec"]["rayClusterSpec"]
    assert job["rayVersion"] == PINNED_RAY
    groups = [job["headGroupSpec"], *job["workerGroupSpecs"]]
    images = {container["image"] for group in groups for container in group["template"]["spec"]["containers"]}
    assert len(images) == 1
    assert f"rayproject/ray:{PINNED_RAY}-py311" in (DEPLOY / "Dockerfile").read_text()
    assert f"rayproject/ray:{PINNED_RAY}-py311" in parsed("ray-cluster.yaml")["docker"]["image"]
    constraints = DEPLOY.parent / "constraints.txt"
    assert f"\nray=={PINNED_RAY}" in "\n" + constraints.read_text()


def test_the_ray_job_scales_its_gpu_group_from_zero_and_declares_that_growth() -> None:
    spec = parsed("rayjob.yaml")["spec"]
    cluster = spec["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is True
    [group] = cluster["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"]) == (0, 0)
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    variables = yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]
    assert all(isinstance(value, str) for value in variables.values()), "Ray takes no number as a variable"
    grown = declared_growth(variables["SWEEPS_CLUSTER_GROWTH"])
    assert len(grown) == group["maxReplicas"]
    assert {(node.cpus, node.gpus) for node in grown} == {(int(limits["cpu"]), int(limits["nvidia.com/gpu"]))}


def test_the_ray_job_resumes_the_sweep_that_it_began() -> None:
    entrypoint = parsed("rayjob.yaml")["spec"]["entrypoint"]
    named = set(re.findall(r"(?:sweeps status|sweeps resume|--name) ([a-z]+)", entrypoint))
    assert named == {"first"}
    assert len(re.findall("sweeps (?:status|resume|run)", entrypoint)) == 3


def test_the_database_password_stands_in_no_address_that_its_signs_could_break() -> None:
    services = parsed("mlflow-compose.yaml")["services"]
    server, database = services["server"]["environment"], services["database"]["environment"]
    assert "PASSWORD" not in server["MLFLOW_BACKEND_STORE_URI"]
    assert server["PGPASSWORD"] in database["POSTGRES_PASSWORD"].replace(":?set MLFLOW_DB_PASSWORD", "")


@pytest.mark.filterwarnings("ignore")  # what mlflow's own import says
def test_every_option_of_the_mlflow_command_is_one_that_mlflow_knows() -> None:
    from mlflow.cli import server

    service = parsed("mlflow-compose.yaml")["services"]["server"]
    assert service["command"][:2] == ["mlflow", "server"]
    known = {option for parameter in server.params for option in parameter.opts}
    assert {word.partition("=")[0] for word in service["command"][2:]} <= known
    variables = {str(parameter.envvar) for parameter in server.params if parameter.envvar}
    assert {"MLFLOW_BACKEND_STORE_URI", "MLFLOW_ARTIFACTS_DESTINATION"} <= variables & service["environment"].keys()
