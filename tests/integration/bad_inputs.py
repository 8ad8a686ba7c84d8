"""What a user can type or hand in that is wrong, and the essential words of the message: value, rule, remedy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Row:
    """One bad input or world: the words after ``sweeps``, the exit code, what must be said."""

    words: str
    says: tuple[str, ...]
    code: int = 2
    environment: Mapping[str, str] = field(default_factory=dict)


BAD_INPUTS = {
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
    "space nested without end": Row(
        words="plan --space deep.toml", says=("deep.toml is nested too deeply", "`sweeps new` writes")
    ),
    "space of too many keys": Row(
        words="run --space keys.toml",
        says=("key_0=1 is not a key of a space", "the space has 2,956 more problems; correct those above first"),
    ),
    "space a pipe": Row(words="plan --space pipe", says=("pipe is not a regular file; save the space in a file",)),
    "space a broken link": Row(
        words="plan --space link", says=("link is a link to nowhere.toml, which does not exist; check the path",)
    ),
    "space with a NUL": Row(words="plan --space nul.toml", says=("nul.toml is not valid TOML", "correct that line")),
    "space with a name too long": Row(
        words=f"plan --space {'x' * 5_000}", says=("cannot be read (File name too long); name a readable TOML file",)
    ),
    # values that moe or a machine would refuse later, or that would fill the memory first
    **{
        f"{override.partition('=')[0]} beyond reason": Row(
            words=f"run --space space.toml --set {override}", says=(says,)
        )
        for override, says in {
            "model.n_layers=100000000": "model.n_layers=100000000 must be at most 512; choose a value <= 512",
            "model.n_experts=100000000": "model.n_experts=100000000 must be at most 1024",
            "model.d_model=1000000000000": "model.d_model=1000000000000 must be at most 65536",
            "seeds.confirm=100000000": "seeds.confirm=100000000 must be at most 1000",
            "seeds.explore=100000000": "seeds.explore=100000000 must be at most 100",
            "tokenizer.vocab_size=1000000000": "tokenizer.vocab_size=1000000000 must be at most 1048576",
            "tokenizer=bpe:²": 'tokenizer.vocab_size="²" must be a whole number',
            "exam.rows_test=100000000": "exam.rows_test=100000000 must be at most 1000000",
            "resources.threads_per_trial=100000": "resources.threads_per_trial=100000 must be at most 1024",
            "resources.gpu_per_trial=2": 'must be "auto", 0, a share of one GPU from 0.01 to 1',
            "corpus.validation_share=0.6": "corpus.validation_share=0.6 must be less than 0.5; choose a value < 0.5",
            "strategies.².seq_len=8": "--set strategies.² names none of the strategies",
            "optimizer.kind=sgd": "optimizer.kind=\"sgd\" must be one of muon, adamw; write 'muon'",
            "optimizer.name=adamw": 'optimizer.name="adamw" is not a key of optimizer; leave it out (the optimizers',
            "strategies.long.corpus=bytes": 'strategies.long.corpus="bytes" is what the comparison rests on',
            "strategies.long.model.top_k=9": "strategies.long.model.top_k=9 exceeds model.n_experts (2)",
        }.items()
    },
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
            "'first' exists already and is never overwritten",
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
            "records frist --out x.csv",
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
    "no sweep at all": Row(
        words="resume --runs-dir nothing", says=("there is no sweep in", "`sweeps run --runs-dir nothing` starts one")
    ),
    "list of no sweep": Row(words="status --runs-dir nothing", code=0, says=("No sweep in nothing yet",)),
    # extend and resume
    "extend by nothing": Row(
        words="extend first", says=("nothing to extend by; give --lr, --adamw-lr, --strategy, --budget or --seeds",)
    ),
    "extend by half an arm": Row(
        words="extend first --strategy medium",
        says=("--strategy 'medium' is not NAME=MICRO_BATCHxSEQ_LEN", "medium=16x128"),
    ),
    "extend by an arm of nothing": Row(
        words="extend first --strategy 'a b=0x16'",
        says=("2 problems in --strategy a b=0x16", 'name="a b" must match', "micro_batch_size=0 must be at least 1"),
    ),
    "extend by an arm in superscript": Row(
        words="extend first --strategy medium=²x16", says=("--strategy 'medium=²x16' is not NAME=MICRO_BATCHxSEQ_LEN",)
    ),
    "extend by seeds beyond reason": Row(
        words="extend first --seeds 99999999999",
        says=("seeds.confirm=99999999999 must be at most 1000; choose a value <= 1000",),
    ),
    "extend by a rate beyond reason": Row(
        words="extend first --lr 1e300",
        says=("--lr=1e+300 must be a rate from 1e-12 to 1000",),
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
            "--lr=-1.0 must be a rate from",
            "--adamw-lr=[0.1] has no grid",
            "--seeds=2",
        ),
    ),
    "extend by a known arm": Row(
        words="extend first --strategy short=2x16", says=('name="short" is already the name of', "its own name")
    ),
    "resume with another budget": Row(
        words="resume first --set budget_tokens=8192",
        says=("budget_tokens=8192 was 4096 when the sweep started", "leave it, extend the sweep, or start another one"),
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
            "lines 5 and 6: a at lr 0.01, seed 1, phase confirm appears 2 times; keep one",
            "one arm only (a); a verdict compares two or more",
        ),
    ),
    "records not text": Row(words="verdict --records binary.csv", says=("is not a CSV file in UTF-8",)),
    "records of no Parquet": Row(words="verdict --records fake.parquet", says=("is not a Parquet file",)),
    "records out in no known form": Row(
        words="records first --out a.xlsx", says=("--out a.xlsx must end in .csv or .parquet; choose one of them",)
    ),
    "records out over a file": Row(
        words="records first --out empty.csv", says=("empty.csv exists already and is not overwritten",)
    ),
    "records out in no folder": Row(
        words="records first --out nowhere/a.csv", says=("the folder nowhere does not exist; create it",)
    ),
    "records out of an untrained sweep": Row(
        words="records first --out a.csv", says=("sweep first has no record that counts yet; `sweeps resume first`",)
    ),
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
        says=("binary.txt is no text (byte 0 is NUL); convert it to UTF-8 (`iconv -t utf-8`) or leave it out",),
    ),
    "corpus of pictures": Row(
        words="run --space space.toml --set corpus=files:pictures",
        says=("pictures matches 2 files and none is text (UTF-8 without NUL); convert them to UTF-8",),
    ),
    "corpus grouped by a column that texts lack": Row(
        words="run --space space.toml --set corpus=files:one.txt --set corpus.group_column=author",
        says=("group_column='author' names a column of tables", 'write "folder" to group texts by their folder'),
    ),
    "corpus of copies": Row(
        words="run --space space.toml --set corpus=files:copies.jsonl",
        says=(
            "corpus: train and test share copied text: ",
            "tokens of copies.jsonl row 5 also stand in copies.jsonl row ",
            "(limit 512), and 3 more documents share too much; remove one of each pair (full list: ",
            "shared_text.tsv), keep them in one split (--set corpus.duplicates=group), or keep one of them (=drop)",
        ),
    ),
    "corpus of copies that a column separates": Row(
        words="plan --space space.toml --set corpus=files:copies.jsonl --set corpus.duplicates=group",
        says=("share copied text", "or let no column split them (--set corpus.split_column=none)"),
    ),
    "copies in a data set of the hub": Row(
        words="run --space space.toml --set corpus=hub:a/b --set corpus.duplicates=drop",
        says=("corpus.duplicates=\"drop\" has no meaning for a corpus of kind 'hub': copies are looked for in files",),
    ),
    "copies dealt with in no known way": Row(
        words="run --space space.toml --set corpus.duplicates=grop",
        says=("corpus.duplicates=\"grop\" must be one of refuse, group, drop; did you mean 'group'?",),
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
        says=("half.jsonl cannot be read as json", "repair the file or leave it out"),
    ),
    "corpus no parquet": Row(
        words="run --space space.toml --set corpus=files:fake.parquet", says=("fake.parquet cannot be read as parquet",)
    ),
    "corpus missing in a plan": Row(
        words="plan --space space.toml --set corpus=files:/nowhere/*.txt --assume-gpu-gib 24",
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
            "exam.rows_validation=4 needs 16388 tokens, and the validation split has",
            "exam.rows_test=9000 needs",
            "tokenizer.vocab_size=60000 is more than the train split yields (",
        ),
    ),
    "an exam too large for a plan": Row(
        words="plan --space space.toml --set exam.rows_test=9000 --json",
        says=("exam.rows_test=9000 needs 585000 tokens", "choose rows_test <= 137"),
    ),
    # what a run would refuse, a plan refuses too
    "corpus missing in a plan for this machine": Row(
        words="plan --space space.toml --set corpus=files:/nowhere/a.txt",
        says=(
            "nowhere/a.txt matches no file; give a path",
            "`sweeps plan --assume-gpu-gib GIB` plans for another machine",
        ),
    ),
    "corpus of an empty folder": Row(
        words="plan --space space.toml --set corpus=files:folder --assume-gpu-gib 24",
        says=("folder matches no file; give a path, a directory or a glob that does",),
    ),
    "corpus misspelt in a plan for another machine": Row(
        words="plan --space space.toml --set corpus=files:onne.txt --assume-gpu-gib 24",
        says=("onne.txt matches no file; give a path",),
    ),
    "threads that no machine has": Row(
        words="plan --space space.toml --set resources.threads_per_trial=1000 --json",
        says=("a trial of short, long needs 1,000 CPU, and this machine has", "lower resources.threads_per_trial"),
    ),
    "an infinite price": Row(
        words="plan --space space.toml --price-per-hour inf --json",
        says=("--price-per-hour=inf must be a finite number", "for example --price-per-hour 24"),
    ),
    "runs-dir of 5,000 characters": Row(
        words=f"status --runs-dir {'x' * 5000}",
        says=("(5,000 characters) cannot be a path (File name too long)", "choose another --runs-dir"),
    ),
    "runs-dir with a NUL": Row(
        words="run --space space.toml --runs-dir 'a\0b'",
        says=("'a\\x00b' cannot be a path", "choose another --runs-dir"),
    ),
    "export to a name too long": Row(
        words=f"export first --out {'x' * 5000}", says=("cannot be a path (File name too long); choose another --out",)
    ),
    "no folder for temporary files": Row(
        words="status", environment={"TMPDIR": "nowhere"}, says=("TMPDIR=nowhere is not a folder; create it, or unset",)
    ),
}

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
    "model.dropout=0.1 is not a key of model; leave it out (the architecture is fixed: Qwen3-MoE's); known keys:",
    "corpus.kind=\"fils\" must be one of embedded, files, hub; did you mean 'files'?",
    "corpus.max_epochs=0 must be greater than 0",
    "tokenizer.vocab_size is missing, and a tokenizer of kind 'bpe' needs it",
    "schedule.decay_share=0.6 leaves no room for schedule.warmup_share (0.6)",
    "exam.rows_test=0 must be at least 1",
    'resources.workers="many" must be "auto" or a whole number of at least 1',
    "verdict.alpha=0.7 must be less than 0.5",
    "learning_rates=[0.1] is not a key of a space; did you mean 'rates.lr'?",
)
