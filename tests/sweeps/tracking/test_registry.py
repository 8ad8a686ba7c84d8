"""The champion in the registry: loaded in a fresh process it is the model that was exported, token for token."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sweeps.errors import BadInputError
from sweeps.tracking.projection import SweepView
from sweeps.tracking.projector import find_run, sync
from sweeps.tracking.registry import CHAMPION, RegisteredModel, register_champion, unregister
from sweeps.tracking.store import TrackingStore, TrackingUnavailableError, connect, tracking_store
from tests.sweeps import made_up_sweep as made_up
from tests.sweeps.tracking_server import TrackingServer
from tests.sweeps.what_mlflow_holds import assert_shows

CELL_ID = "balanced-0.02-101-confirm"

# Loads the champion as a stranger would, and prints the mean loss of the exam's rows in nats per token.
READER = """
import json, socket, sys
connect = socket.socket.connect
def refuse(self, address):
    if address[0] != "127.0.0.1":
        raise AssertionError(f"the network was asked for {address}")
    return connect(self, address)
socket.socket.connect = refuse
import mlflow, numpy, torch
torch.set_num_threads(1)
mlflow.set_tracking_uri(sys.argv[1]); mlflow.set_registry_uri(sys.argv[1])
pipeline = mlflow.transformers.load_model("models:/first@champion")
rows = torch.from_numpy(numpy.load(sys.argv[2])["test"].astype("int64"))
with torch.no_grad():
    logits = pipeline.model(rows[:, :-1]).logits
loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).double(), rows[:, 1:].flatten()).item()
text = mlflow.pyfunc.load_model("models:/first@champion").predict(["def "])
ours = [name for name in sys.modules if name.split(".")[0] in {"sweeps", "moe", "search_spaces", "ray"}]
print(json.dumps({"loss": loss, "text": text, "ours": ours}))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3-MoE with a byte-level tokenizer, as an export would write it."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM

    folder = tmp_path_factory.mktemp("exported")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=260, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["def f(x): return x + 1\n"] * 9, trainer)
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=tokenizer).save_pretrained(folder)
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 32, "moe_intermediate_size": 32, "head_dim": 16}
    config = Qwen3MoeConfig(
        vocab_size=tokenizer.get_vocab_size(),
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_experts=4,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        tie_word_embeddings=True,
        **shape,
    )
    Qwen3MoeForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exam(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A made-up exam's file and the exported model's own loss on it."""
    import torch
    from transformers import AutoModelForCausalLM

    rows = np.random.default_rng(0).integers(0, 200, size=(4, 33), dtype=np.int32)
    path = tmp_path_factory.mktemp("exam") / "exam.npz"
    np.savez(path, test=rows)
    tokens = torch.from_numpy(rows.astype("int64"))
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)(tokens[:, :-1]).logits
    return path, torch.nn.functional.cross_entropy(logits.flatten(0, 1).double(), tokens[:, 1:].flatten()).item()


@pytest.fixture(scope="module")
def view() -> SweepView:
    return SweepView(results=made_up.finished_sweep(), verdict=made_up.verdict())


@pytest.fixture(scope="module")
def store(view: SweepView, tmp_path_factory: pytest.TempPathFactory) -> TrackingStore:
    made = tracking_store(str(tmp_path_factory.mktemp("runs")), {})
    sync(view, made)
    return made


def register(store: TrackingStore, checkpoint: Path, test_loss: float, **changed: Any) -> RegisteredModel:
    options: dict[str, Any] = {
        "checkpoint": checkpoint,
        "sweep": "first",
        "sweep_id": "feed0001",
        "cell_id": CELL_ID,
        "test_loss": test_loss,
        "description": "balanced learns best.",
        "tags": {"strategy": "balanced", "exam_fingerprint": "e" * 16},
        **changed,
    }
    return register_champion(store, **options)


def read_in_a_fresh_process(store: TrackingStore, exam: Path) -> Any:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", READER, store.uri, str(exam)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def champion(store: TrackingStore, checkpoint: Path, exam: tuple[Path, float]) -> RegisteredModel:
    return register(store, checkpoint, exam[1])


def test_the_champion_loads_offline_in_a_fresh_process_scores_as_registered_and_generates(
    champion: RegisteredModel, store: TrackingStore, exam: tuple[Path, float]
) -> None:
    answer = read_in_a_fresh_process(store, exam[0])
    # The same weights in the same fp32 on the same machine: only the order of sums may differ.
    assert answer["loss"] == pytest.approx(exam[1], abs=1e-6)
    assert answer["text"][0].startswith("def ")
    assert len(answer["text"][0]) > len("def ")
    assert answer["ours"] == []


def test_the_version_carries_its_score_its_cell_its_signature_and_an_example(
    champion: RegisteredModel, store: TrackingStore, exam: tuple[Path, float]
) -> None:
    from mlflow.models import Model

    client = connect(store)
    version = client.get_model_version_by_alias("first", CHAMPION)
    assert str(version.version) == champion.version
    assert float(version.tags["test_loss"]) == exam[1]
    assert version.tags["cell_id"] == CELL_ID
    run = find_run(client, experiment="first", sweep_id="feed0001", cell_id=CELL_ID)
    assert run is not None
    assert version.run_id == run.info.run_id
    logged = client.search_logged_models([run.info.experiment_id])[0]
    assert (str(logged.status), logged.metrics[0].key) == ("READY", "test_loss")
    assert store.artifacts_dir is not None
    info = Model.load(str(store.artifacts_dir / "first" / "models" / logged.model_id / "artifacts"))
    assert info.signature.inputs.to_dict() == [{"type": "string", "required": True}]
    assert info.saved_input_example_info is not None


def test_registering_changes_nothing_in_the_runs(
    champion: RegisteredModel, store: TrackingStore, view: SweepView
) -> None:
    assert_shows(connect(store), view)


def test_the_same_checkpoint_again_makes_no_second_version(
    champion: RegisteredModel, store: TrackingStore, checkpoint: Path
) -> None:
    again = register(store, checkpoint, 5.0)
    assert (again.version, again.is_new, champion.is_new) == (champion.version, False, True)


@pytest.mark.slow
def test_a_server_with_an_artifact_store_keeps_the_report_and_serves_the_champion(
    view: SweepView, checkpoint: Path, exam: tuple[Path, float], tmp_path: Path
) -> None:
    with TrackingServer(f"sqlite:///{tmp_path / 'server.db'}", tmp_path) as server:
        remote = TrackingStore(uri=server.uri, artifacts_dir=None)
        sync(replace(view, attachments={"report.md": b"# Report"}), remote)
        client = connect(remote)
        parent = find_run(client, experiment="first", sweep_id="feed0001", cell_id=None)
        assert parent is not None
        assert [each.path for each in client.list_artifacts(parent.info.run_id)] == ["report.md"]
        register(remote, checkpoint, exam[1])
        answer = read_in_a_fresh_process(remote, exam[0])
        assert answer["loss"] == pytest.approx(exam[1], abs=1e-6)
        assert_shows(client, replace(view, attachments={}))


def test_a_store_that_goes_away_before_the_version_is_made_gets_no_second_upload(
    store: TrackingStore, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    def gone(*_: object, **__: object) -> None:
        raise ConnectionError("the server went away")

    cell_id = "balanced-0.02-103-confirm"
    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "create_model_version", gone)
        with pytest.raises(TrackingUnavailableError):
            register(store, checkpoint, 5.0, sweep="first", cell_id=cell_id)
    made = register(store, checkpoint, 5.0, cell_id=cell_id)
    client = connect(store)
    run = find_run(client, experiment="first", sweep_id="feed0001", cell_id=cell_id)
    assert run is not None
    uploaded = client.search_logged_models(
        [run.info.experiment_id], filter_string=f"source_run_id = '{run.info.run_id}'"
    )
    assert len(uploaded) == 1
    assert made.is_new


def test_a_folder_that_is_no_checkpoint_is_refused_naming_what_it_lacks(store: TrackingStore, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BadInputError, match=r"it lacks tokenizer.json, \*.safetensors; make one with `sweeps export`"):
        register(store, tmp_path, 5.0)


def test_a_cell_that_mlflow_does_not_know_is_refused_with_the_command_that_helps(
    store: TrackingStore, checkpoint: Path
) -> None:
    with pytest.raises(BadInputError, match="run `sweeps sync first` first"):
        register(store, checkpoint, 5.0, cell_id="unknown")


def test_a_registry_that_does_not_answer_is_one_message_without_the_password(checkpoint: Path) -> None:
    away = TrackingStore(uri="http://ada:secret@127.0.0.1:9", artifacts_dir=None)
    with pytest.raises(TrackingUnavailableError, match="repeat `sweeps sync first` when it answers") as caught:
        register(away, checkpoint, 5.0)
    assert "secret" not in str(caught.value)
    with pytest.raises(TrackingUnavailableError, match="repeat `sweeps rm first`"):
        unregister(away, "first", "feed0001")


def test_another_winner_takes_the_alias_and_removing_the_sweep_empties_the_registry(
    champion: RegisteredModel, store: TrackingStore, checkpoint: Path
) -> None:
    other = register(store, checkpoint, 5.1, cell_id="balanced-0.02-102-confirm")
    client = connect(store)
    assert other.version != champion.version
    assert str(client.get_model_version_by_alias("first", CHAMPION).version) == other.version
    versions = client.search_model_versions("name = 'first'")
    assert unregister(store, "first", "another-sweep") == 0
    assert unregister(store, "first", "feed0001") == len(versions)
    assert client.search_registered_models() == []
