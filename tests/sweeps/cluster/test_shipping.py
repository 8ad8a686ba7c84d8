"""What travels to a cluster, and what does not."""

from __future__ import annotations

from pathlib import Path
from zipfile import ZipFile

import pytest

from sweeps.cluster.shipping import UPLOAD_EXCLUDES, cluster_runtime_env, forwarded_environment, stage
from sweeps.errors import BadInputError


def test_only_packages_constraints_and_the_space_file_are_shipped(tmp_path: Path) -> None:
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("torch==2.13.0\n")
    space = tmp_path / "mine.toml"
    space.write_text('description = "mine"\n')
    for spelling in (["--space", str(space)], [f"--space={space}"]):
        folder = tmp_path / f"staged-{len(spelling)}"
        arguments = stage(folder, ["run", *spelling, "--name", "x"], constraints)
        assert arguments == ("run", "--space", "mine.toml", "--name", "x")
        assert sorted(path.name for path in folder.iterdir()) == [
            "constraints.txt",
            "mine.toml",
            "moe",
            "search_spaces",
            "sweeps",
        ]
        assert (folder / "mine.toml").read_text() == space.read_text()
        assert (folder / "search_spaces" / "presets" / "__init__.py").is_file()
        assert not list(folder.rglob("__pycache__"))


def test_what_ray_uploads_of_a_folder_is_its_files_without_the_hidden_ones(tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import create_package

    for name in ("moe/a.py", "moe/__pycache__/a.pyc", ".git/config", ".env", "constraints.txt"):
        (tmp_path / "staged" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "staged" / name).write_text("1")
    package = tmp_path / "package.zip"
    create_package(str(tmp_path / "staged"), package, include_gitignore=True, excludes=list(UPLOAD_EXCLUDES))
    assert sorted(ZipFile(package).namelist()) == ["constraints.txt", "moe/a.py"]


def test_a_space_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"--space nowhere.toml is not a file; give the path of a TOML file"):
        stage(tmp_path, ["run", "--space", "nowhere.toml"], tmp_path / "none.txt")


def test_secrets_travel_only_when_they_are_named() -> None:
    environment = {
        "HOME": "/home/me",
        "MLFLOW_TRACKING_URI": "http://mlflow:5000",
        "MLFLOW_TRACKING_PASSWORD": "p",
        "AWS_ENDPOINT_URL": "http://s3:9000",
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_ACCESS_KEY_ID": "k",
        "HF_TOKEN": "t",
        "GOOGLE_API_KEY": "g",
        "MLFLOW_CRYPTO_KEK_PASSPHRASE": "q",
        "SWEEPS_RUNS_DIR": "runs",
        "SWEEPS_CACHE_DIR": "/home/me/.cache",
        "SWEEPS_ON_END": "curl https://example.org/hook/secret",
    }
    plain = forwarded_environment(environment)
    assert plain == {
        "MLFLOW_TRACKING_URI": "http://mlflow:5000",
        "AWS_ENDPOINT_URL": "http://s3:9000",
    }
    named = forwarded_environment({**environment, "SWEEPS_JOB_ENV": "AWS_SECRET_ACCESS_KEY, HF_TOKEN,SWEEPS_CACHE_DIR"})
    assert named == {
        **plain,
        "AWS_SECRET_ACCESS_KEY": "s",
        "HF_TOKEN": "t",
        "SWEEPS_CACHE_DIR": "/home/me/.cache",
    }


def test_an_address_travels_without_its_password_unless_it_is_named() -> None:
    environment = {"MLFLOW_TRACKING_URI": "https://ada:secret@mlflow:5000"}
    assert forwarded_environment(environment) == {"MLFLOW_TRACKING_URI": "https://mlflow:5000"}
    assert forwarded_environment({**environment, "SWEEPS_JOB_ENV": "MLFLOW_TRACKING_URI"}) == environment


def test_a_driver_ships_its_sources_and_a_job_inherits_what_it_was_submitted_with() -> None:
    shipped = cluster_runtime_env({"HF_HUB_OFFLINE": "1"})
    assert shipped is not None
    assert [Path(module).name for module in shipped["py_modules"]] == ["search_spaces", "moe", "sweeps"]
    assert shipped["env_vars"] == {"HF_HUB_OFFLINE": "1"}
    assert cluster_runtime_env({"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}) is None
