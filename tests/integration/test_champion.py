"""The winner's weights leave the house: for ``transformers`` and through MLflow's registry, with the loss on record."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.sweeping import Sweeps

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# What anyone can do with a checkpoint and the exam's tokens; knows nothing of this project.
SCORE = """
import sys, json, numpy as np, torch, torch.nn.functional as F
source, exam, seq_len = sys.argv[1], sys.argv[2], int(sys.argv[3])
if source.startswith("models:"):
    import mlflow
    mlflow.set_tracking_uri(sys.argv[4])
    loaded = mlflow.transformers.load_model(source, return_type="components")
    model, tokenizer = loaded["model"], loaded["tokenizer"]
else:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    model, tokenizer = AutoModelForCausalLM.from_pretrained(source), AutoTokenizer.from_pretrained(source)
rows = torch.from_numpy(np.load(exam)["test"]).long()
inputs, targets = rows[:, :-1].reshape(-1, seq_len), rows[:, 1:].reshape(-1, seq_len)
with torch.no_grad():
    logits = model.float().eval()(inputs).logits
loss = F.cross_entropy(logits.flatten(0, 1).double(), targets.flatten())
made = model.generate(**tokenizer("river", return_tensors="pt"), max_new_tokens=4, do_sample=False)
print(json.dumps({"loss": loss.item(), "text": tokenizer.decode(made[0])}))
"""


def scored(sweeps: Sweeps, *words: str) -> dict[str, object]:
    environment = {**sweeps.environment, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCORE, *words],
        capture_output=True,
        text=True,
        env=environment,
        cwd=sweeps.folder,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_exported_and_registered_weights_have_the_loss_on_record(sweeps: Sweeps, tmp_path: Path) -> None:
    sweeps("run", "--space", "space.toml", "--name", "first")
    said = sweeps("export", "first", "--out", "winner")
    sweeps("exam", "first", "--out", "exam.npz")
    sweeps("sync", "first", "--register")
    exported = next(cell for cell in sweeps.outcomes("first").values() if cell["cell_id"] in said)
    verdict = json.loads((sweeps.runs / "first" / "verdict.json").read_text())
    shapes = {arm["name"]: arm for arm in verdict["strategies"]}
    seq_len = str(shapes[exported["strategy"]]["seq_len"])
    assert exported["test_loss"] in shapes[exported["strategy"]]["losses"]

    by_transformers = scored(sweeps, "winner", "exam.npz", seq_len)
    store = f"sqlite:///{sweeps.runs}/mlflow.db"
    by_mlflow = scored(sweeps, "models:/first@champion", "exam.npz", seq_len, store)
    for answer in (by_transformers, by_mlflow):
        # fp32 in another order of sums: far inside the 1e-3 nats that a reader would care about
        assert answer["loss"] == pytest.approx(exported["test_loss"], abs=1e-4)
        assert str(answer["text"]).startswith("river")
