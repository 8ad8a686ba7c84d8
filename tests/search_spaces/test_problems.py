"""All problems of a space come at once, each with its place, value, rule and remedy."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import pytest

from search_spaces import Problem, Space, SpaceErrors, parse_space


def problems_of(text: str, overrides: Sequence[str] = ()) -> list[Problem]:
    with pytest.raises(SpaceErrors) as caught:
        parse_space(text, overrides)
    return caught.value.problems


def messages_of(text: str, overrides: Sequence[str] = ()) -> list[str]:
    return [str(problem) for problem in problems_of(text, overrides)]


EVERYTHING_WRONG = """
budget_tokens = 4100
rungs_tokens = [8192, 1024]
precision = "bf61"
controls = "yes"
early_stopping = { kind = "asha", keep = [1, 2] }
learning_rates = [0.1]

[[strategies]]
name = "same"
micro_batch_size = 8
seq_len = 8

[[strategies]]
name = "same"
micro_batch_size = 8
seq_len = 8

[[strategies]]
name = "no/slash"
micro_batch_size = 0
seq_len = 64

[[strategies]]
name = "odd"
micro_batch_size = 1
seq_len = 48
grad_accum_steps = 1.0

[rates]
lr = [-0.01, 0.02, 0.02, inf]
adamw_ratio = 0.3
adamw_fixed = 0.001

[seeds]
confirm = 0

[model]
d_model = 18
n_layers = 1
n_heads = 4
n_kv_heads = 3
d_expert = 16
n_experts = 4
top_k = 0
topk = 2

[corpus]
kind = "hub"

[tokenizer]
kind = "bpe"

[schedule]
warmup_share = 0.6
decay_share = 0.5

[resources]
workers = 0
gpu_per_trial = 1.5

[verdict]
alpha = 0.5
"""


def test_one_wrong_value_of_each_kind_is_reported_in_one_message() -> None:
    assert messages_of(EVERYTHING_WRONG) == [
        "budget_tokens=4100 must be a multiple of 64, the least common multiple of every arm's tokens per step (64); "
        "choose 4096 or 4160",
        "rungs_tokens[0]=8192 must lie below the budget (4100 tokens); choose a rung below 4100 or leave it out",
        "rungs_tokens=[8192, 1024] must increase strictly; write [1024, 8192]",
        "precision=\"bf61\" must be one of auto, fp32, bf16, fp16; did you mean 'bf16'?",
        'controls="yes" must be true or false; write true or false without quotes',
        "strategies.no/slash.name=\"no/slash\" must match [A-Za-z0-9][A-Za-z0-9._-]{0,63}; use letters, digits, '.', "
        "'_' and '-', and start with a letter or a digit",
        "strategies.no/slash.micro_batch_size=0 must be at least 1; choose a value >= 1",
        "strategies.odd.grad_accum_steps=1.0 must be a whole number; write 1",
        'strategies.1.name="same" is already the name of strategies.0; give every arm its own name',
        "strategies.1 has the same shape 8 x 8, accumulate 1 as strategies.0, so both would be the same cells; "
        "change one of them or leave it out",
        "strategies.odd.seq_len=48 must divide the longest seq_len (64), from whose blocks every arm's windows are "
        "cut; choose 32 or 64",
        "rates.lr[0]=-0.01 must be greater than 0; choose a value > 0",
        "rates.lr[3]=inf must be a finite number; choose a finite value",
        "rates decides AdamW's rate more than once: rates.adamw_ratio, rates.adamw_fixed; keep one of them",
        "seeds.confirm=0 must be at least 1; choose a value >= 1",
        "model.top_k=0 must be at least 1; choose a value >= 1",
        "model.topk=2 is not a key of model; did you mean 'top_k'?",
        "model.n_heads=4 must divide model.d_model (18); choose 3 or 6, or another d_model",
        "model.n_kv_heads=3 must divide model.n_heads (4); choose 2 or 4",
        "corpus.dataset is missing, and a corpus of kind 'hub' needs it; "
        'add dataset = "OWNER/ID" or write corpus = "hub:OWNER/ID"',
        "tokenizer.vocab_size is missing, and a tokenizer of kind 'bpe' needs it; "
        'add it or write tokenizer = "bpe:2048"',
        "schedule.decay_share=0.5 leaves no room for schedule.warmup_share (0.6): together they exceed the budget; "
        "choose decay_share <= 0.4",
        'resources.workers=0 must be "auto" or a whole number of at least 1; write "auto" or a number such as 2',
        'resources.gpu_per_trial=1.5 must be "auto", 0, a share of one GPU from 0.01 to 1 (a trial trains on one '
        'GPU), or a table of shares by arm; write "auto", 0.25, or { large_batch = 0.5, ... }',
        "verdict.alpha=0.5 must be less than 0.5; choose a value < 0.5",
        "learning_rates=[0.1] is not a key of a space; did you mean 'rates.lr'?",
    ]


def test_the_message_counts_the_problems_and_names_the_source(tiny_text: str) -> None:
    with pytest.raises(SpaceErrors, match=r"^2 problems in mine\.toml:\n  budget_tokens=0 .*\n  seeds\.confirm=0 "):
        parse_space(tiny_text, ["budget_tokens=0", "seeds.confirm=0"], source="mine.toml")


def test_a_missing_table_and_its_misspelling_are_both_named(tiny_text: str) -> None:
    assert messages_of(tiny_text.replace("[model]", "[modell]")) == [
        "model is missing; add 'model' (the template that `sweeps new` writes shows how)",
        "modell={d_model = 16, n_layers = 1, n_heads = 2, d_expert = 16, n_experts = 4, top_k... "
        "is not a key of a space; did you mean 'model'?",
    ]


def test_a_key_at_the_wrong_place_is_told_where_it_belongs(tiny_text: str) -> None:
    assert messages_of("adamw_fixed = 0.001\n" + tiny_text) == [
        "adamw_fixed=0.001 is not a key of a space; did you mean 'rates.adamw_fixed'?"
    ]


def test_a_key_like_no_other_is_shown_the_known_ones(tiny_text: str) -> None:
    assert messages_of(tiny_text, ["seeds.zzz=1"]) == [
        "seeds.zzz=1 is not a key of seeds; leave it out; known keys: explore, confirm"
    ]


def test_a_key_that_several_tables_have_is_not_looked_for_in_one_of_them(tiny_text: str) -> None:
    assert messages_of(tiny_text, ['optimizer.name="adamw"']) == [
        'optimizer.name="adamw" is not a key of optimizer; leave it out (the optimizers are fixed: Muon or AdamW '
        "(kind) for the hidden matrices, AdamW for all else); known keys: kind, betas_at_tokens_per_step, "
        "muon_momentum, muon_weight_decay, adamw_betas, adamw_eps, adamw_weight_decay, clip_grad_norm"
    ]


def test_a_value_in_the_place_of_a_table_is_refused(tiny_text: str) -> None:
    assert messages_of(tiny_text, ["verdict=3", "search=4"]) == [
        "search=4 must be a table; write it as a [table] with its keys",
        "verdict=3 must be a table; write it as a [table] with its keys",
    ]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.top_k=5"], "model.top_k=5 exceeds model.n_experts (4); choose top_k <= 4"),
        (
            ["model.n_heads=16"],
            "model.n_heads=16 makes heads of 1 channels, and RoPE needs an even number; "
            "choose n_heads so that d_model / n_heads is even",
        ),
        (["rates.lr=[]"], "rates.lr must name at least one learning rate for a grid; add lr = [0.005, 0.01, 0.02]"),
        (["rates.lr=[0.01, 0.01]"], "rates.lr=[0.01, 0.01] names a rate twice; write [0.01]"),
        (["rates.lr=[0.01]"], "rates.max_widenings=1 needs two rates in rates.lr, since a grid is widened by"),
        (["rungs_tokens=[1000, 2048]"], "rungs_tokens[0]=1000 must be a multiple of 64"),
        (["rungs_tokens=[64, 64]"], "rungs_tokens=[64, 64] must increase strictly; write [64]"),
        (["budget_tokens=4000"], "choose 3968 or 4032"),
        (["early_stopping.keep=[1]"], "early_stopping.keep=[1] must have one entry per rung (2 in rungs_tokens)"),
        (["early_stopping.keep=[1, 2]"], "early_stopping.keep=[1, 2] must not increase (of 2 it keeps [1, 2])"),
        (["early_stopping.keep=[0.5, 0]"], "early_stopping.keep[1]=0 must be a count of at least 1, or a fraction"),
        (["early_stopping.kind=none"], 'has no meaning with early_stopping.kind="none"'),
        (["rungs_tokens=[]"], "rungs_tokens=[] must name at least one rung for early stopping to decide at"),
        (["corpus=files"], "corpus.paths is missing, and a corpus of kind 'files' needs it"),
        (["corpus=embeded"], "corpus.kind=\"embeded\" must be one of embedded, files, hub; did you mean 'embedded'?"),
        (["corpus.dataset=a/b"], "corpus.dataset=\"a/b\" has no meaning for a corpus of kind 'embedded'; leave it out"),
        (["corpus.validation_share=0.6"], "corpus.validation_share=0.6 must be less than 0.5; choose a value < 0.5"),
        (["tokenizer=bpe:many"], 'tokenizer.vocab_size="many" must be a whole number'),
        (["tokenizer=bpe:100"], "tokenizer.vocab_size=100 must be at least 257; choose a value >= 257"),
        (["tokenizer.path=x"], "has no meaning for a tokenizer of kind 'bpe'; leave it out, set kind = \"directory\""),
        (["resources.gpu_per_trial={large_batch=0.5, lon_seq=1}"], "names no arm; did you mean 'long_seq'?"),
        (["resources.gpu_per_trial={large_batch=0.5}"], "resources.gpu_per_trial.long_seq is missing from the table"),
        (["resources.gpu_per_trial=-1"], "resources.gpu_per_trial=-1 must be"),
        (["verdict.margin=-0.1"], 'verdict.margin=-0.1 must be "auto" or a positive number'),
        (["controls=true", "strategies.large_batch.seq_len=64"], "controls=true needs an arm shorter than the longest"),
        (
            ["fit_memory_gib=24"],
            "fit_memory_gib=24 is not a key of a space; leave it out; `sweeps new FILE --fit GIB` writes",
        ),
        (["model.d_model=true"], "model.d_model=true must be a whole number"),
        (["model.d_model=16.0"], "model.d_model=16.0 must be a whole number; write 16"),
        (["rates.adamw_grid=[]"], "rates.adamw_grid=[] must not be empty"),
        (["optimizer.adamw_betas=[0.9]"], "optimizer.adamw_betas[1] is missing; write the whole list"),
        (["search.trials_per_arm=3"], "belongs to the search of kind 'optuna'; leave it out or set search.kind"),
        (["search={kind='optuna', lr_low=0.1, lr_high=0.01}"], "search.lr_low=0.1 must be less than search.lr_high"),
        (["search.kind=optuna", "search.adamw_ratio_low=0.1"], "search.adamw_ratio_high is missing beside the other"),
        (
            ["search.kind=optuna", "rates.adamw_grid=[0.1]"],
            "rates.adamw_grid=[0.1] is a grid, and search.kind is optuna",
        ),
        (["search.kind=random"], "search.kind=\"random\" must be one of grid, optuna; write 'grid'"),
    ],
)
def test_a_broken_rule_names_value_rule_and_remedy(tiny_text: str, overrides: list[str], message: str) -> None:
    assert message in "\n".join(messages_of(tiny_text, overrides))


def test_a_single_arm_is_no_comparison(tiny_text: str) -> None:
    start = tiny_text.index('[[strategies]]\nname = "long_seq"')
    alone = tiny_text[:start] + tiny_text[tiny_text.index("[rates]") :]
    assert messages_of(alone) == [
        "strategies=1 given must hold at least two arms, since a comparison needs two; add a [[strategies]] table"
    ]


def test_no_choice_of_adamws_rate_is_as_wrong_as_two(tiny_text: str) -> None:
    assert messages_of(tiny_text.replace("adamw_ratio = 0.3", "")) == [
        "rates does not say what AdamW's rate is; "
        "add exactly one of adamw_ratio = 0.3, adamw_fixed = 0.001, adamw_grid = [0.001, 0.003]"
    ]


def test_text_that_is_not_toml_is_refused_with_its_line(tiny_text: str) -> None:
    (message,) = messages_of("budget_tokens = = 3")
    assert message.startswith("the space is not valid TOML: Invalid value (at line 1, column 17)")


WEIRD: list[object] = [
    None,
    True,
    -1,
    0,
    3,
    10**30,
    0.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "x:y",
    [],
    [[]],
    {},
    {"a": 1},
]


def test_no_value_anywhere_ends_in_anything_but_a_space_or_its_problems(tiny: Space) -> None:
    resolved = tiny.resolved()
    places: list[tuple[str, ...]] = [(key,) for key in resolved]
    places += [(key, inner) for key, value in resolved.items() if isinstance(value, dict) for inner in value]
    for place in places:
        for weird in WEIRD:
            table = deepcopy(resolved)
            (table if len(place) == 1 else table[place[0]])[place[-1]] = weird
            try:
                Space.from_resolved(table)
            except SpaceErrors as error:
                assert all(problem.where and problem.remedy for problem in error.problems)
