"""The files in deploy/, by the schemas, parsers and dry runs of the tools that read them."""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml  # type: ignore[import-untyped]

from sweeps.cluster.machines import declared_growth
from tests.integration.schemas import closed, problems, schema

DEPLOY = Path(__file__).parents[2] / "deploy"
PINNED_RAY = "2.60.0"


def parsed(name: str) -> dict[str, Any]:
    """The file's content; of a file with several resources the first."""
    content: dict[str, Any] = next(yaml.safe_load_all((DEPLOY / name).read_text()))
    return content


def network_policy() -> dict[str, Any]:
    _, policy = yaml.safe_load_all((DEPLOY / "rayjob.yaml").read_text())
    return dict(policy)


def changed(name: str, change: Callable[[Any], object]) -> dict[str, Any]:
    """The file's content after a change that its schema must refuse."""
    content = deepcopy(parsed(name))
    change(content)
    return content


def validate_as_ray_does(config: dict[str, Any]) -> None:
    """What ``ray up`` does before it asks a cloud: defaults and Docker filled in, then ray-schema.json."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(config))


def test_the_launcher_file_passes_rays_own_validation() -> None:
    validate_as_ray_does(parsed("ray-cluster.yaml"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.update(idle_timeout="10"), "'idle_timeout' was unexpected"),
        (lambda file: file.update(max_workers="4"), "'4' is not of type 'integer'"),
        (lambda file: file["docker"].update(images="x"), "'images' was unexpected"),
        (lambda file: file["available_node_types"]["gpu_spot"].update(min=0), "'min' was unexpected"),
        (lambda file: file["provider"].pop("type"), "'type' is a required property"),
    ],
)
def test_a_wrong_field_in_the_launcher_file_is_refused(change: Callable[[Any], object], message: str) -> None:
    content = changed("ray-cluster.yaml", change)
    with pytest.raises(jsonschema.ValidationError, match=re.escape(message)):
        if "type" in content["provider"]:
            validate_as_ray_does(content)
        else:  # the defaults depend on it
            from ray.autoscaler._private.util import validate_config

            validate_config(content)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what the stand-in for AWS and Ray's launcher say of each other
def test_the_launcher_finds_what_it_asks_for_in_a_stand_in_for_aws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``ray up`` as far as the moment before it starts a machine: moto answers for EC2 and IAM in this process."""
    import boto3
    from moto import mock_aws
    from ray.autoscaler._private.commands import _bootstrap_config

    (tmp_path / ".ssh").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))  # the launcher makes a key there
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none")
    file = parsed("ray-cluster.yaml")
    kinds = file["available_node_types"]
    with mock_aws():
        [profile] = {kind["node_config"]["IamInstanceProfile"]["Name"] for kind in kinds.values()}
        boto3.client("iam", region_name=file["provider"]["region"]).create_instance_profile(InstanceProfileName=profile)
        made = _bootstrap_config(file, no_config_cache=True)["available_node_types"]
    assert made.keys() == kinds.keys()
    for name, kind in made.items():
        assert kinds[name]["node_config"].items() <= kind["node_config"].items(), "nothing of ours was replaced"
        assert {"ImageId", "KeyName", "SubnetIds", "SecurityGroupIds"} <= kind["node_config"].keys()
    assert made["head"]["resources"] == {"CPU": 0}
    assert made["gpu_spot"]["resources"]["GPU"] == 1
    assert made["gpu_spot"]["resources"]["accelerator_type:A10G"] == 1, "the instance type has the GPU that is declared"


STRICT = {"rayjob.yaml": "kuberay-rayjob", "mlflow-compose.yaml": "compose-spec"}


@pytest.mark.parametrize(("name", "rules"), STRICT.items())
def test_a_deployment_file_passes_its_tools_schema_and_has_no_field_that_is_not_in_it(name: str, rules: str) -> None:
    assert problems(parsed(name), closed(schema(rules))) == []


def test_the_network_policy_passes_kubernetes_schema_and_a_wrong_field_is_named() -> None:
    rules = closed(schema("network-policy"))
    policy = network_policy()
    assert problems(policy, rules) == []
    policy["spec"]["ingres"] = policy["spec"].pop("ingress")
    [found] = problems(policy, rules)
    assert re.match("spec: .*'ingres' was unexpected", found)


def worker(file: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = file["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    return found


def container(file: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = worker(file)["template"]["spec"]["containers"][0]
    return found


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("rayjob.yaml", lambda file: file["spec"].update(entrypont="x"), "spec: .*'entrypont' was unexpected"),
        ("rayjob.yaml", lambda file: file.update(specs={}), ": .*'specs' was unexpected"),
        ("rayjob.yaml", lambda file: worker(file).update(maxReplicas="4"), ".*/maxReplicas: '4' is not of type 'int"),
        ("rayjob.yaml", lambda file: worker(file).pop("groupName"), ".*/0: 'groupName' is a required property"),
        ("rayjob.yaml", lambda file: container(file).update(images="x"), ".*/containers/0: .*'images' was unexpected"),
        ("rayjob.yaml", lambda file: container(file)["volumeMounts"].append({"name": "a"}), ".*'mountPath' is a requ"),
        (
            "rayjob.yaml",
            lambda file: container(file)["volumeMounts"].append({"name": "b", "mountPath": "/dev/shm"}),
            r".*/volumeMounts: \('/dev/shm',\) stands 2 times",
        ),
        (
            "mlflow-compose.yaml",
            lambda file: file["services"]["server"].update(command_line=[]),
            "services/server: 'command_line' does not match any",
        ),
        (
            "mlflow-compose.yaml",
            lambda file: file["services"]["database"]["healthcheck"].update(interval=5),
            ".*/interval: 5 is not of type 'string'",
        ),
    ],
)
def test_a_wrong_field_in_a_deployment_file_is_named(name: str, change: Callable[[Any], object], problem: str) -> None:
    [found] = problems(changed(name, change), closed(schema(STRICT[name])))
    assert re.match(problem, found), found


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


def groups_of(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Pod templates of the head and of every group of workers."""
    cluster = job["spec"]["rayClusterSpec"]
    return [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def test_clusters_ask_for_a_token() -> None:
    assert parsed("rayjob.yaml")["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    launcher = parsed("ray-cluster.yaml")
    starts = [*launcher["head_start_ray_commands"], *launcher["worker_start_ray_commands"]]
    assert all("RAY_AUTH_MODE=token" in start for start in starts if "ray start" in start)
    assert launcher["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"


def test_only_the_clusters_pods_the_submitter_and_the_operator_reach_it() -> None:
    job, policy = parsed("rayjob.yaml"), network_policy()["spec"]
    own = policy["podSelector"]["matchLabels"]
    assert all(own.items() <= pods["metadata"]["labels"].items() for pods in groups_of(job))
    among_themselves, with_token = policy["ingress"]
    assert among_themselves == {"from": [{"podSelector": {"matchLabels": own}}]}
    assert [port["port"] for port in with_token["ports"]] == [8265]
    submitter, operator = with_token["from"]
    assert submitter == {"podSelector": {"matchLabels": {"job-name": job["metadata"]["name"]}}}
    assert operator["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "kuberay-operator"}


def test_no_container_runs_as_root_or_gains_rights() -> None:
    job = parsed("rayjob.yaml")
    for pods in groups_of(job):
        user = pods["spec"]["securityContext"]
        assert user["runAsNonRoot"]
        assert user["runAsUser"] > 0
        for each in pods["spec"]["containers"]:
            assert each["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert re.search(r"^USER 1000:100$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    services = parsed("mlflow-compose.yaml")["services"]
    assert services["database"]["user"] == "postgres"
    assert "\nUSER 10001\n" in services["server"]["build"]["dockerfile_inline"]
    for service in services.values():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_every_image_has_a_digest_or_an_exact_version() -> None:
    services = parsed("mlflow-compose.yaml")["services"]
    digest = r"[\w./-]+:\d+\.\d+(\.\d+)?-\w+(-\w+)?@sha256:[0-9a-f]{64}"
    [base] = re.findall("^FROM (.*)$", services["server"]["build"]["dockerfile_inline"], re.MULTILINE)
    assert re.fullmatch(digest, base)
    assert re.fullmatch(digest, services["database"]["image"])
    installed = re.search("pip install --no-cache-dir (.*)", services["server"]["build"]["dockerfile_inline"])
    assert installed is not None
    assert all("==" in package for package in installed[1].split())


def test_the_mlflow_server_answers_named_hosts_only() -> None:
    [allowed] = [word for word in parsed("mlflow-compose.yaml")["services"]["server"]["command"] if "allowed" in word]
    assert allowed.startswith("--allowed-hosts=${MLFLOW_ALLOWED_HOSTS:?"), "required, so that it never becomes '*'"


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
