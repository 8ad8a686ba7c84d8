"""Bad inputs and bad worlds: what a user is told, and the exit code, for everything that can be wrong outside.

Every row runs the command line in this process (a few in one of their own) and asserts the essential words of its
message: the value, the rule, the remedy. Nothing here starts Ray or trains.
"""

from __future__ import annotations

import io
import json
import shlex
import shutil
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from search_spaces import load_space
from sweeps import material
from sweeps.beginning import begin
from sweeps.cli import main
from sweeps.ledger.storage import Storage
from sweeps.ledger.sweep_folder import Ledger
from tests.integration.conftest import TINY_SPACE, Sweeps

EVERYTHING_WRONG = """
budget_tokens = 4100
rungs_tokens = [2048, 8192]
precision = "bf61"
learning_rates = [0.1]
early_stopping = { kind = "asha", keep = [1] }

[[strategies]]
name = "same"
micro_batch_size = 4
seq_len = 16

[[strategies]]
name = "same"
micro_batch_size = 1
seq_len = 64

[[strategies]]
name = "no/slash"
micro_batch_size = 0
seq_len = 48

[rates]
lr = [-0.01, 0.02, 0.02]
adamw_ratio = 0.3
adamw_fixed = 0.001

[seeds]
confirm = "three"

[model]
d_model = 18
n_layers = 1.5
n_heads = 6
d_expert = 16
n_experts = 2
top_k = 3
dropout = 0.1

[corpus]
kind = "fils"
max_epochs = 0

[tokenizer]
kind = "bpe"

[schedule]
warmup_share = 0.6
decay_share = 0.6

[exam]
rows_test = 0

[resources]
workers = "many"

[verdict]
alpha = 0.7
"""

PROBLEMS_SEEN_IN_THE_FILE = (
    "budget_tokens=4100 must be a multiple of 64",
    "choose 4096 or 4160",
    "rungs_tokens[1]=8192 must lie below the budget (4100 tokens)",
    "precision=\"bf61\" must be one of auto, fp32, bf16, fp16; did you mean 'bf16'?",
    "early_stopping.keep=[1] must have one entry per rung (2 in rungs_tokens)",
    'strategies.1.name="same" is already the name of strategies.0',
    'strategies.no/slash.name="no/slash" must match [A-Za-z0-9]',
    "strategies.no/slash.micro_batch_size=0 must be at least 1",
    "strategies.no/slash.seq_len=48 must divide the longest seq_len (64)",
    "rates.lr[0]=-0.01 must be greater than 0",
    "rates decides AdamW's rate more than once: rates.adamw_ratio, rates.adamw_fixed; keep one of them",
    'seeds.confirm="three" must be a whole number',
    "model.n_layers=1.5 must be a whole number",
    "model.n_heads=6 makes heads of 3 channels, and RoPE needs an even number",
    "model.top_k=3 exceeds model.n_experts (2); choose top_k <= 2",
    "model.dropout=0.1 is not a key of model; leave it out; known keys:",
    "corpus.kind=\"fils\" must be one of embedded, files, hub; did you mean 'files'?",
    "corpus.max_epochs=0 must be greater than 0",
    "tokenizer.vocab_size is missing, and a tokenizer of kind 'bpe' needs it",
    "schedule.decay_share=0.6 leaves no room for schedule.warmup_share (0.6)",
    "exam.rows_test=0 must be at least 1",
    'resources.workers="many" must be "auto" or a whole number of at least 1',
    "verdict.alpha=0.7 must be less than 0.5",
    "learning_rates=[0.1] is not a key of a space; did you mean 'rates.lr'?",
)

COLUMNS = "strategy,lr,seed,phase,outcome,tokens_seen,val_loss,test_loss\n"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One bad input or world: the words after ``sweeps``, the exit code, what must be said."""

    words: str
    says: tuple[str, ...]
    code: int = 2
    environment: Mapping[str, str] = field(default_factory=dict)


TABLE = {
    # a space that cannot be read
    "preset misspelt": Row(words="plan --preset laptpo", says=('preset="laptpo" is not a preset', "mean 'laptop'?")),
    "preset and space": Row(
        words="plan --preset smoke --space space.toml", says=("both were given; name exactly one",)
    ),
    "space missing": Row(words="run --space nowhere.toml", says=("nowhere.toml does not exist", "`sweeps new`")),
    "space not TOML": Row(
        words="plan --space not.toml", says=("not.toml is not valid TOML", "line 2", "correct that line")
    ),
    "space not UTF-8": Row(words="plan --space latin.toml", says=("latin.toml is not UTF-8 text; save it as UTF-8",)),
    "space a folder": Row(words="run --space folder", says=("folder cannot be read (Is a directory)", "TOML file")),
    "space empty": Row(
        words="run --space empty.toml",
        says=("budget_tokens is missing", "strategies is missing", "model is missing", "`sweeps new` writes"),
    ),
    # --set
    "set without equals": Row(
        words="plan --preset smoke --set budget_tokens",
        says=("--set=budget_tokens must be key=value; write it like --set seeds.confirm=3",),
    ),
    "set of an unknown key": Row(
        words="plan --preset smoke --set budgt_tokens=3",
        says=("budgt_tokens=3 is not a key of a space; did you mean 'budget_tokens'?",),
    ),
    "set of an unknown arm": Row(
        words="run --space space.toml --set strategies.shrot.seq_len=8",
        says=("--set strategies.shrot names none of the strategies; did you mean 'short'?",),
    ),
    "set of half a list": Row(
        words="run --space space.toml --set rates.lr=[0.1",
        says=("--set rates.lr=[0.1 is not a TOML value", "quote it as TOML"),
    ),
    "every set wrong at once": Row(
        words="run --space space.toml --set x --set budget_tokens=100 --set verdict.alpha=2 --set seeds.confirm=0",
        says=(
            "5 problems in space.toml",
            "--set=x",
            "budget_tokens=100 must be a multiple of 64",
            "verdict.alpha=2",
            "seeds.confirm=0",
        ),
    ),
    # the command line
    "command misspelt": Row(words="ressume first", says=("No such command 'ressume'", "Did you mean 'resume'?")),
    "option misspelt": Row(words="run --presset smoke", says=("No such option: --presset", "--preset")),
    "option without value": Row(words="run --preset", says=("Option '--preset' requires an argument",)),
    "number that is none": Row(words="extend first --lr fast", says=("Invalid value for '--lr'", "valid number")),
    "GPU of no memory": Row(
        words="plan --space space.toml --assume-gpu-gib 0",
        says=("Invalid value for '--assume-gpu-gib'", "greater than or equal to 0.1"),
    ),
    "port beyond ports": Row(words="ui --port 70000", says=("Invalid value for '--port'", "65535")),
    # names
    "name with a slash": Row(
        words="run --space space.toml --name a/b",
        says=("name='a/b' must be 1 to 64 letters, digits", "for example: --name first"),
    ),
    "name too long": Row(words=f"run --space space.toml --name {'x' * 65}", says=("must be 1 to 64 letters",)),
    "name empty": Row(words="run --space space.toml --name ''", says=("name='' must be 1 to 64 letters",)),
    "name taken": Row(
        words="run --space space.toml --name first",
        says=(
            "'first' is there already and is never overwritten",
            "sweeps resume first",
            "sweeps extend first",
            "--name",
        ),
    ),
    **{
        f"{command.partition(' ')[0]} of no sweep": Row(
            words=command, says=(f"there is no sweep '{command.split()[1]}' in", "did you mean 'first'?")
        )
        for command in (
            "resume frist",
            "status frist",
            "verdict fisrt",
            "report frst",
            "export firts --out x",
            "exam firs --out x.npz",
            "sync firrst",
            "rm First --yes",
            "extend fist --lr 0.1",
            "ui firstt",
        )
    },
    "a sweep like no other": Row(
        words="status elsewhere", says=("there is no sweep 'elsewhere'", "`sweeps status` lists those that are there")
    ),
    "no sweep at all": Row(words="resume --runs-dir nothing", says=("there is no sweep in", "`sweeps run` begins one")),
    "list of no sweep": Row(words="status --runs-dir nothing", code=0, says=("No sweep in nothing yet",)),
    # where sweeps live
    "runs-dir a file": Row(
        words="run --space space.toml --name a --runs-dir file",
        says=("file is a file, so nothing can be written in it; choose another --runs-dir",),
    ),
    "list in a file": Row(words="status --runs-dir file", says=("file is a file, not a folder; name another",)),
    "number in a file": Row(words="run --space space.toml --runs-dir file", says=("file is a file, not a folder",)),
    "s3 of nothing": Row(
        words="run --space space.toml --runs-dir s3://", says=("s3:// names no bucket or folder", "s3://bucket/folder")
    ),
    "s3 without bucket": Row(
        words="status first --runs-dir s3:///a", says=("s3:///a", "is not a storage that can be opened", "bucket")
    ),
    "storage of no kind": Row(
        words="run --space space.toml --runs-dir ftp://host/runs",
        says=("ftp://host/runs is not a storage that can be opened", "give a path, s3://bucket/folder or gs://..."),
    ),
    # extend and resume
    "extend by nothing": Row(
        words="extend first", says=("nothing to extend by; give --lr, --adamw-lr, --strategy or --seeds",)
    ),
    "extend by half an arm": Row(
        words="extend first --strategy medium",
        says=("--strategy 'medium' is not NAME=MICRO_BATCHxSEQ_LEN", "medium=16x128"),
    ),
    "extend by an arm of nothing": Row(
        words="extend first --strategy 'a b=0x16'",
        says=("2 problems in --strategy a b=0x16", 'name="a b" must match', "micro_batch_size=0 must be at least 1"),
    ),
    "extend by fewer seeds": Row(
        words="extend first --seeds 1",
        says=("--seeds=1 is the total of confirm seeds, and the sweep has 3 already; choose more than 3",),
    ),
    "extend beyond the blocks": Row(
        words="extend first --strategy wide=1x128",
        says=("seq_len=128 is longer than the longest arm (64 tokens)", "choose 16 <= seq_len <= 64"),
    ),
    "extend by three wrongs": Row(
        words="extend first --lr -1 --adamw-lr 0.1 --seeds 2",
        says=(
            "3 problems in the extension",
            "--lr=-1.0 must be a positive",
            "--adamw-lr=[0.1] has no grid",
            "--seeds=2",
        ),
    ),
    "extend by a known arm": Row(
        words="extend first --strategy short=2x16", says=('name="short" is already the name of', "a name of its own")
    ),
    "resume with another budget": Row(
        words="resume first --set budget_tokens=8192",
        says=("budget_tokens=8192 was 4096 when the sweep began", "leave it, extend the sweep, or start one"),
    ),
    "resume with a misspelt wish": Row(
        words="resume first --set resourcs.workers=1", says=("resourcs", "did you mean 'resources'?")
    ),
    # verdict and records
    "verdict of nothing": Row(words="verdict", says=("name one sweep, or one file with --records",)),
    "verdict of both": Row(words="verdict first --records a.csv", says=("name one sweep, or one file with --records",)),
    "records missing": Row(
        words="verdict --records nowhere.csv",
        says=("nowhere.csv: 1 problem", "cannot be read: No such file", "check the path"),
    ),
    "records empty": Row(
        words="verdict --records empty.csv", says=("missing columns 'strategy'", "the columns are strategy,lr")
    ),
    "records without rows": Row(words="verdict --records bare.csv", says=("has no rows; write one row per cell",)),
    "records of other columns": Row(
        words="verdict --records columns.csv", says=("missing column", "'val_loss'", "unknown column 'loss'")
    ),
    "records full of wrongs": Row(
        words="verdict --records wrong.csv --json",
        says=(
            "line 2: seed='one' must be a whole number",
            "line 3: lr='fast' must be a positive number",
            "line 3: test_loss='low' must be a number, or empty",
            "line 4: phase='final' must be one of explore, confirm",
            "lines 5 and 6: a at lr 0.01, seed 1, phase confirm stands there 2 times; keep one",
            "one arm only (a); a verdict compares two or more",
        ),
    ),
    "records not text": Row(words="verdict --records binary.csv", says=("is not a CSV file in UTF-8",)),
    "records a folder": Row(words="verdict --records folder", says=("folder: 1 problem", "Is a directory")),
    # corpus and tokenizer
    "corpus missing": Row(
        words="run --space space.toml --set corpus=files:nowhere/*.txt",
        says=("nowhere/*.txt matches no file; give a path, a directory or a glob that does",),
    ),
    "corpus empty": Row(
        words="run --space space.toml --set corpus=files:empty.txt",
        says=("files (empty.txt) has 0 documents and none for train", "give more documents"),
    ),
    "corpus of one document": Row(
        words="run --space space.toml --set corpus=files:one.txt", says=("none for validation and test", "split column")
    ),
    "corpus binary": Row(
        words="run --space space.toml --set corpus=files:binary.txt",
        says=("binary.txt is not UTF-8 at byte 128; convert it (`iconv -t utf-8`) or leave it out",),
    ),
    "corpus of no known kind": Row(
        words="run --space space.toml --set corpus=files:paper.pdf",
        says=("paper.pdf is of no known kind; known are .txt",),
    ),
    "corpus without text": Row(
        words="run --space space.toml --set corpus=files:body.jsonl",
        says=("body.jsonl row 0 has no column 'text', only body", "--set corpus.text_column="),
    ),
    "corpus of numbers": Row(
        words="run --space space.toml --set corpus=files:numbers.jsonl", says=("column 'text' holds int, not text",)
    ),
    "corpus of half a line": Row(
        words="run --space space.toml --set corpus=files:half.jsonl",
        says=("half.jsonl cannot be read as json", "mend the file or leave it out"),
    ),
    "corpus no parquet": Row(
        words="run --space space.toml --set corpus=files:fake.parquet", says=("fake.parquet cannot be read as parquet",)
    ),
    "corpus missing in a plan": Row(
        words="plan --space space.toml --set corpus=files:nowhere.txt --assume-gpu-gib 24",
        code=0,
        says=("warning: planned without the corpus (no cell ids, no audit)", "matches no file"),
    ),
    "tokenizer missing": Row(
        words="run --space space.toml --set tokenizer=directory:nowhere",
        says=("nowhere holds no tokenizer (no tokenizer.json)", "`save_pretrained`"),
    ),
    "tokenizer damaged": Row(
        words="run --space space.toml --set tokenizer=directory:damaged-tokenizer",
        says=("damaged-tokenizer cannot be read", "save it again"),
    ),
    "tokenizer offline": Row(
        words="run --space space.toml --set tokenizer=hub:nobody/nothing",
        environment={"HF_HUB_OFFLINE": "1"},
        says=(
            "tokenizer nobody/nothing is not in the local cache and HF_HUB_OFFLINE forbids",
            "--set corpus=files:PATH",
        ),
    ),
    # the second round: what only the corpus can tell
    "three misfits with the corpus": Row(
        words="run --space space.toml --set strategies.long.seq_len=4096 --set budget_tokens=8192 "
        "--set rungs_tokens=[4096] --set exam.rows_test=9000 --set tokenizer=bpe:60000",
        says=(
            "4 problems in the space with its corpus",
            "strategies.long.seq_len=4096 exceeds the longest document (",
            'another corpus, or corpus.longer_windows = "warn"',
            "exam.rows_validation=4 asks for 16388 tokens, and the validation split has",
            "exam.rows_test=9000 asks for",
            "tokenizer.vocab_size=60000 is more than the train split yields (",
        ),
    ),
    "an exam too large for a plan": Row(
        words="plan --space space.toml --set exam.rows_test=9000 --json",
        says=("exam.rows_test=9000 asks for 585000 tokens", "choose rows_test <= 137"),
    ),
    # places to write
    "cache a file": Row(
        words="run --space space.toml --name a",
        environment={"SWEEPS_CACHE_DIR": "file"},
        says=("the token cache cannot be kept in file (Not a directory", "set SWEEPS_CACHE_DIR to a folder"),
    ),
    "cache a file in a plan": Row(
        words="plan --space space.toml", environment={"SWEEPS_CACHE_DIR": "file"}, says=("set SWEEPS_CACHE_DIR",)
    ),
    "new over a file": Row(
        words="new space.toml", says=("space.toml is already there and is not overwritten; choose another",)
    ),
    "new inside a file": Row(words="new file/space.toml", says=("file is a file, so nothing can be written in it",)),
    "export to a full folder": Row(
        words="export first --out full", says=("full is already there and not empty; choose another --out",)
    ),
    "export to a file": Row(words="export first --out file", says=("file is a file", "choose another --out")),
    "export too early": Row(
        words="export first --out x", says=("first has no completed confirm cell yet; nothing can be exported",)
    ),
    "export of no cell": Row(
        words="export first --cell nope --out x", says=("has no cell 'nope'", "`sweeps status first --json` lists them")
    ),
    "exam to a folder": Row(words="exam first --out full", says=("full is a folder; choose a file for --out",)),
    "comparison into a file": Row(
        words="report first first --out file", says=("file is a file", "choose another --out")
    ),
    # damaged sweeps
    "sweep cut short": Row(
        words="status cut --runs-dir damaged",
        says=("cut/sweep.json is damaged: it is not JSON", "restore it from a copy"),
    ),
    "sweep of tomorrow": Row(
        words="resume tomorrow --runs-dir damaged",
        says=("sweep 'tomorrow' has schema 99, this program reads 1; use the program that wrote it",),
    ),
    "sweep that is a list": Row(
        words="verdict list --runs-dir damaged", says=("list/sweep.json is damaged: it is not a JSON object",)
    ),
    "sweep without keys": Row(
        words="resume bare --runs-dir damaged",
        says=("bare/sweep.json is damaged: it has no sweep_id and no created_s",),
    ),
    "page cut short": Row(
        words="resume page --runs-dir damaged", says=("page/plan/0001.json is damaged: it is not JSON", "restore it")
    ),
    "page without cells": Row(
        words="status empty-page --runs-dir damaged",
        says=("plan/0001.json is damaged: it has no extension and no cells",),
    ),
    "outcome cut short": Row(
        words="report outcome --runs-dir damaged", says=("outcome.json is damaged: it is not JSON", "restore it")
    ),
    "damaged among sound ones": Row(
        words="status --runs-dir damaged", code=0, says=("sound", "4 queued", "cut/sweep.json is damaged", "schema 99")
    ),
    # servers and devices
    "tracking of no kind": Row(
        words="sync first",
        environment={"MLFLOW_TRACKING_URI": "foo://me:secret@bar"},
        says=("tracking store foo://bar is of no kind that MLflow knows", "use sqlite:///FILE", "or unset it"),
    ),
    "tracking of no kind in a run": Row(
        words="run --space space.toml --name a",
        environment={"MLFLOW_TRACKING_URI": "foo://bar"},
        says=("tracking store foo://bar is of no kind that MLflow knows",),
    ),
    "tracking in a folder": Row(
        words="ui",
        environment={"MLFLOW_TRACKING_URI": "mlruns"},
        says=("mlruns is a folder of files, which MLflow no longer",),
    ),
    "tracking server down": Row(
        words="sync first",
        code=130,
        environment={"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"},
        says=("MLflow at http://127.0.0.1:9 does not answer", "nothing is lost: repeat `sweeps sync first`"),
    ),
    "gpu-check without a GPU": Row(
        words="gpu-check",
        code=4,
        says=("torch sees no CUDA device here; run it on a machine with a GPU", "`sweeps doctor`"),
    ),
    "rm with nobody to answer": Row(
        words="rm first", says=("Delete sweep first", "nobody answered, so nothing was done; --yes answers beforehand")
    ),
}


Ask = Callable[..., tuple[int, str]]


@pytest.fixture(scope="session")
def begun(tmp_path_factory: pytest.TempPathFactory, corpus: Path, token_cache: Path) -> Path:
    """A folder with a sweep that was begun and not run, and with sweeps that were damaged since."""
    folder = tmp_path_factory.mktemp("begun")
    (folder / "space.toml").write_text(TINY_SPACE.format(budget=4096, rung=2048, corpus=corpus))
    space = load_space(path=folder / "space.toml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SWEEPS_CACHE_DIR", str(token_cache))
        made = material.material_for(space)
    first = Ledger(Storage(str(folder / "runs")), "first")
    begin(first, space, made, audit={}, peaks_gib={}, command=None)
    sound = folder / "runs" / "first"
    text = (sound / "sweep.json").read_text()
    cell_id = first.planned_cells()[0].cell_id
    changes = {
        "sound": ("sweep.json", text),
        "cut": ("sweep.json", text[:300]),
        "tomorrow": ("sweep.json", json.dumps({**json.loads(text), "schema": 99})),
        "list": ("sweep.json", "[1]"),
        "bare": ("sweep.json", '{"schema": 1}'),
        "page": ("plan/0001.json", '{"cells": ['),
        "empty-page": ("plan/0001.json", '{"schema": 1}'),
        "outcome": (f"cells/{cell_id}/outcome.json", '{"outcome"'),
    }
    for name, (where, content) in changes.items():
        shutil.copytree(sound, folder / "damaged" / name)
        (folder / "damaged" / name / where).parent.mkdir(parents=True, exist_ok=True)
        (folder / "damaged" / name / where).write_text(content)
    return folder


@pytest.fixture
def world(tmp_path: Path, begun: Path, token_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of this test alone, full of files that are wrong in one way each."""
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    for folder in ("folder", "full", "damaged-tokenizer"):
        (tmp_path / folder).mkdir()
    texts = {
        "file": "",
        "full/a": "",
        "damaged-tokenizer/tokenizer.json": "{",
        "everything.toml": EVERYTHING_WRONG,
        "not.toml": "rungs_tokens = []\nbudget_tokens = = 3\n",
        "empty.toml": "",
        "empty.txt": "",
        "one.txt": "to be or not to be " * 100,
        "paper.pdf": "%PDF",
        "body.jsonl": '{"body": "a"}\n',
        "numbers.jsonl": '{"text": 3}\n',
        "half.jsonl": '{"text": "a"\n{{{\n',
        "fake.parquet": "PAR1 or not",
        "empty.csv": "",
        "bare.csv": COLUMNS,
        "columns.csv": COLUMNS.replace("val_loss", "loss") + "a,0.01,1,confirm,completed,64,2,2\n",
        "wrong.csv": COLUMNS
        + "a,0.01,one,confirm,completed,64,2,2\n"
        + "a,fast,2,confirm,completed,64,2,low\n"
        + "a,0.01,3,final,completed,64,2,2\n"
        + "a,0.01,1,confirm,completed,64,2,2\n" * 2,
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    for name in ("binary.txt", "binary.csv", "latin.toml"):
        (tmp_path / name).write_bytes(bytes(range(256)))
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SWEEPS_RUNS_DIR", "runs")
    monkeypatch.setenv("SWEEPS_CACHE_DIR", str(token_cache))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    return tmp_path


@pytest.fixture
def ask(world: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Ask:
    """Run ``sweeps WORDS`` in this process; returns the exit code and all that was said, on one line."""

    def run(words: str, *, answer: str = "", **environment: str) -> tuple[int, str]:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["sweeps", *shlex.split(words)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        material._tokens.cache_clear()
        material._material.cache_clear()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, " ".join((said.out + said.err).replace("│", " ").split())

    return run


@pytest.mark.parametrize("row", TABLE.values(), ids=[name.replace(" ", "-") for name in TABLE])
def test_a_bad_input_gets_its_exit_code_and_one_message_with_the_remedy(row: Row, ask: Ask) -> None:
    code, said = ask(row.words, **row.environment)
    assert [words for words in row.says if words not in said] == [], said
    assert code == row.code
    assert "Traceback" not in said


def test_the_table_has_at_least_forty_rows_and_every_exit_code_of_a_refusal() -> None:
    assert len(TABLE) >= 40
    assert {row.code for row in TABLE.values()} == {0, 2, 4, 130}


def test_a_refusal_leaves_nothing_behind(ask: Ask, world: Path) -> None:
    before = sorted(path.relative_to(world) for path in world.rglob("*"))
    for words in ("run --space everything.toml --name a", "run --space space.toml --set exam.rows_test=9000 --name a"):
        assert ask(words)[0] == 2
    assert sorted(path.relative_to(world) for path in world.rglob("*")) == before


def test_everything_that_can_be_seen_in_the_file_is_said_in_one_message(ask: Ask) -> None:
    code, said = ask("run --space everything.toml")
    assert [words for words in PROBLEMS_SEEN_IN_THE_FILE if words not in said] == [], said
    assert said.count("problems in everything.toml:") == 1
    assert code == 2
    assert "Traceback" not in said


def test_a_port_that_is_taken_is_named_before_anything_starts(ask: Ask) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, said = ask(f"ui --port {port}")
    assert f"port {port} of 127.0.0.1 is taken; name another, or none to have one picked" in said
    assert code == 2


def test_rm_that_is_answered_no_deletes_nothing(ask: Ask, world: Path) -> None:
    code, said = ask("rm first", answer="n\n")
    assert "Nothing was deleted." in said
    assert code == 0
    assert (world / "runs" / "first" / "sweep.json").exists()


def test_a_finished_sweep_with_failed_cells_ends_with_3_and_says_how_to_try_again(ask: Ask, world: Path) -> None:
    ledger = Ledger(Storage("runs"), "first")
    for planned in ledger.planned_cells():
        ledger.cell_folder(planned.cell_id).write_outcome(planned.cell, "failed", reason="the disk smelled of smoke")
    assert ask("verdict first")[0] == 0
    code, said = ask("resume first")
    assert said.count("failed: the disk smelled of smoke") == 4
    assert "Run them again with: sweeps resume first --retry-failed" in said
    assert code == 3


def test_a_message_is_all_that_a_process_of_its_own_says_on_standard_error(sweeps: Sweeps) -> None:
    said = sweeps("plan", "--preset", "laptpo", "--json", code=2)
    assert said.splitlines() == [
        "sweeps: 1 problem in the command line:",
        "  preset=\"laptpo\" is not a preset; did you mean 'laptop'? Presets: "
        "smoke, laptop, matched, tutorial, published",
    ]


def test_a_data_set_that_is_not_in_the_cache_is_refused_at_once_when_offline(sweeps: Sweeps) -> None:
    sweeps.environment["HF_HUB_OFFLINE"] = "1"  # the hub's client reads it once, when it is imported
    said = sweeps("run", "--space", "space.toml", "--set", "corpus=hub:nobody/nothing", code=2)
    assert "dataset nobody/nothing is not in the local cache and HF_HUB_OFFLINE forbids to fetch it; unset it" in said
    assert "--set corpus=embedded" in said
    assert "Traceback" not in said
