"""The winner as a registered model: ``models:/NAME@champion`` loads offline, with mlflow, transformers and torch."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps.errors import BadInputError
from sweeps.tracking.projector import answering, find_run
from sweeps.tracking.store import TrackingStore, connect

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

CHAMPION = "champion"
EXAMPLE_PROMPT = "def "  # the embedded corpus is Python source; any text does
GENERATED_TOKENS = 32
DIGEST_TAG = "checkpoint_digest"


@dataclass(frozen=True, kw_only=True)
class RegisteredModel:
    """A version in the registry; ``uri`` is what ``mlflow.transformers.load_model`` and ``mlflow.pyfunc`` take."""

    name: str
    version: str
    is_new: bool

    @property
    def uri(self) -> str:
        """The model by its alias."""
        return f"models:/{self.name}@{CHAMPION}"


def register_champion(
    store: TrackingStore,
    *,
    checkpoint: Path,
    sweep: str,
    sweep_id: str,
    cell_id: str,
    test_loss: float | None,
    description: str,
    tags: Mapping[str, str],
) -> RegisteredModel:
    """Log an exported checkpoint as a model of its cell's run, register it as ``sweep`` and call it champion.

    ``checkpoint`` is a folder that stock ``transformers`` loads, tokenizer included. ``test_loss`` is the exam's
    score in nats per token: the model carries it as a metric and a tag. The same checkpoint registered again only
    moves the alias. Nothing is downloaded.

    Raises:
        BadInputError: the checkpoint lacks a file, or the cell has no run in the store yet.
        TrackingUnavailableError: the store does not answer or refuses.
    """
    checkpoint = checkpoint.resolve()  # a relative path with one slash would be looked up on the hub
    digest = _digest(checkpoint)
    facts = {**tags, "sweep_id": sweep_id, "cell_id": cell_id, DIGEST_TAG: digest}
    if test_loss is not None:
        facts["test_loss"] = repr(test_loss)
    with answering(store, f"sweeps sync {sweep}"):
        client = connect(store)
        run = find_run(client, experiment=sweep, sweep_id=sweep_id, cell_id=cell_id)
        if run is None:
            remedy = f"run `sweeps sync {sweep}` first"
            raise BadInputError(f"cell {cell_id} of {sweep!r} has no run at {store.label}; {remedy}")
        version = _registered_before(client, sweep, facts)
        is_new = version is None
        if version is None:
            model = _logged_before(client, run, facts) or _log_model(client, run, checkpoint, sweep, facts)
            # A local registry looks up `models:/ID` in the process's global store, which is unset here; a server
            # accepts nothing else.
            source = f"models:/{model.model_id}" if store.is_server else str(model.artifact_location)
            version = _register(client, model, source, sweep, facts, description)
        client.set_registered_model_alias(sweep, CHAMPION, version)
    return RegisteredModel(name=sweep, version=version, is_new=is_new)


def unregister(store: TrackingStore, sweep: str, sweep_id: str) -> int:
    """Delete a sweep's versions from the registry, and the model once it is empty; return how many there were.

    Raises:
        TrackingUnavailableError: the store does not answer or refuses.
    """
    with answering(store, f"sweeps rm {sweep}"):
        client = connect(store)
        versions = _versions(client, sweep)
        own = [version for version in versions if version.tags.get("sweep_id") == sweep_id]
        for version in own:
            client.delete_model_version(sweep, version.version)
        if versions and len(own) == len(versions):
            client.delete_registered_model(sweep)
        return len(own)


def _digest(checkpoint: Path) -> str:
    missing = [name for name in ("config.json", "tokenizer.json") if not (checkpoint / name).is_file()]
    weights = sorted(checkpoint.glob("*.safetensors"))
    if missing or not weights:
        lacks = ", ".join([*missing, *([] if weights else ["*.safetensors"])])
        raise BadInputError(f"{checkpoint} is no exported checkpoint: it lacks {lacks}; make one with `sweeps export`")
    digest = hashlib.sha256()
    for path in [checkpoint / "config.json", checkpoint / "tokenizer.json", *weights]:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:32]


def _versions(client: MlflowClient, name: str) -> list[Any]:
    return list(client.search_model_versions(f"name = '{name}'"))


def _registered_before(client: MlflowClient, name: str, facts: Mapping[str, str]) -> str | None:
    wanted = _identity(facts)
    found = [version.version for version in _versions(client, name) if wanted.items() <= version.tags.items()]
    return str(max(found, key=int)) if found else None


def _identity(facts: Mapping[str, str]) -> dict[str, str]:
    return {key: facts[key] for key in ("sweep_id", "cell_id", DIGEST_TAG)}


def _logged_before(client: MlflowClient, run: Run, facts: Mapping[str, str]) -> LoggedModel | None:
    """A model that was uploaded completely but not registered, because the store became unreachable in between."""
    of_the_run = f"source_run_id = '{run.info.run_id}'"
    found = client.search_logged_models([run.info.experiment_id], filter_string=of_the_run)
    complete = [model for model in found if model.status == "READY"]
    return next((model for model in complete if _identity(facts).items() <= model.tags.items()), None)


def _log_model(client: MlflowClient, run: Run, checkpoint: Path, sweep: str, facts: Mapping[str, str]) -> LoggedModel:
    """Save the model in MLflow's form and upload it as the run's; an upload that failed leaves it marked FAILED."""
    from mlflow.models import Model

    params = {key: value for key, value in run.data.params.items() if not key.startswith("optimizer.")}
    logged = client.create_logged_model(
        run.info.experiment_id,
        name=f"{sweep}-{CHAMPION}",
        source_run_id=run.info.run_id,
        tags=dict(facts),
        params=params,
        model_type="qwen3_moe",
    )
    done = False
    try:
        with tempfile.TemporaryDirectory(prefix="sweeps-model-") as folder:
            path = Path(folder) / "model"
            _save(path, checkpoint, Model(run_id=run.info.run_id, model_id=logged.model_id))
            client.log_model_artifacts(logged.model_id, str(path))
        _log_score(client, run, logged.model_id)
        done = True
    finally:
        client.finalize_logged_model(logged.model_id, "READY" if done else "FAILED")
    return logged


def _save(path: Path, checkpoint: Path, mlflow_model: Any) -> None:
    import mlflow
    import torch
    import transformers
    from huggingface_hub import ModelCard
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    from moe.export import without_progress_bars

    with without_progress_bars():
        parts = {
            "model": transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32),
            "tokenizer": transformers.AutoTokenizer.from_pretrained(checkpoint),
        }
        mlflow.transformers.save_model(
            parts,
            str(path),
            task="text-generation",
            mlflow_model=mlflow_model,
            # Given, so that none is requested from the hub.
            model_card=ModelCard("---\nlibrary_name: transformers\n---\n"),
            signature=ModelSignature(Schema([ColSpec("string")]), Schema([ColSpec("string")])),
            input_example=[EXAMPLE_PROMPT],
            # Given, because inferring them runs the model in another process for half a minute.
            pip_requirements=[
                f"mlflow=={mlflow.__version__}",
                f"torch=={torch.__version__.split('+')[0]}",
                f"transformers=={transformers.__version__}",
            ],
            model_config={"max_new_tokens": GENERATED_TOKENS},
        )


def _log_score(client: MlflowClient, run: Run, model_id: str) -> None:
    """Give the model the point that its run has already: of the same step and time, the run gains no second one."""
    from mlflow.entities import Metric

    for point in client.get_metric_history(run.info.run_id, "test_loss"):
        metric = Metric(point.key, point.value, point.timestamp, point.step, model_id=model_id)
        client.log_batch(run.info.run_id, metrics=[metric])


def _register(
    client: MlflowClient, model: LoggedModel, source: str, name: str, facts: Mapping[str, str], description: str
) -> str:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description=f"Winners of the sweep {name}.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    version = client.create_model_version(
        name,
        source=source,
        run_id=model.source_run_id,
        tags=dict(facts),
        description=description,
        model_id=model.model_id,
    )
    return str(version.version)
