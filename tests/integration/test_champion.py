"""The winner's weights leave the house: for ``transformers`` and through MLflow's registry, with the loss on record."""

import json
import subprocess
import sys

import pytest

from tests.integration.sweeping import Sweeps

pytestmark = pytest.mark.slow

# What anyone can do with checkpoints and the exam's tokens; knows nothing of this project.
SCORE = """
import sys, json, numpy as np, torch, torch.nn.functional as F, mlflow
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, registered, exam, seq_len, store = sys.argv[1:]
mlflow.set_tracking_uri(store)
loaded = mlflow.transformers.load_model(registered, return_type="components")
rows = torch.from_numpy(np.load(exam)["test"]).long()
inputs, targets = rows[:, :-1].reshape(-1, int(seq_len)), rows[:, 1:].reshape(-1, int(seq_len))
for model, tokenizer in (
    (AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)),
    (loaded["model"], loaded["tokenizer"]),
):
    with torch.no_grad():
        logits = model.float().eval()(inputs).logits
    loss = F.cross_entropy(logits.flatten(0, 1).double(), targets.flatten())
    made = model.generate(**tokenizer("river", return_tensors="pt"), max_new_tokens=4, do_sample=False)
    print(json.dumps({"loss": loss.item(), "text": tokenizer.decode(made[0])}))
"""


def scored(sweeps: Sweeps, *words: str) -> list[dict[str, object]]:
    """By an exported folder, and by the model that MLflow's registry gives."""
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
    return [json.loads(line) for line in done.stdout.splitlines()[-2:]]


def test_exported_and_registered_weights_have_the_loss_on_record(sweeps: Sweeps, undisturbed: Sweeps) -> None:
    sweeps.copy(undisturbed)
    said = sweeps("export", "first", "--out", "winner")
    sweeps("exam", "first", "--out", "exam.npz")
    sweeps("sync", "first", "--register")
    exported = next(cell for cell in sweeps.outcomes("first").values() if cell["cell_id"] in said)
    shapes = {arm["name"]: arm for arm in sweeps.verdict("first")["strategies"]}
    seq_len = str(shapes[exported["strategy"]]["seq_len"])
    assert exported["test_loss"] in shapes[exported["strategy"]]["losses"]

    store = f"sqlite:///{sweeps.runs}/mlflow.db"
    for answer in scored(sweeps, "winner", "models:/first@champion", "exam.npz", seq_len, store):
        # fp32 in another order of sums: far inside the 1e-3 nats that a reader would care about
        assert answer["loss"] == pytest.approx(exported["test_loss"], abs=1e-4)
        assert str(answer["text"]).startswith("river")
