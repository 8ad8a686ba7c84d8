"""Rules between values of one section. Each yields a ``Problem`` per breach and assumes values sound by themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from search_spaces.arithmetic import nearest_divisors
from search_spaces.problems import Problem, as_toml
from search_spaces.sections import GridSearch, OptunaSearch


def experts_suffice(top_k: int, n_experts: int) -> Iterator[Problem]:
    """A token cannot go to more experts than there are."""
    if top_k > n_experts:
        yield Problem(
            where="model.top_k",
            value=str(top_k),
            rule=f"exceeds model.n_experts ({n_experts})",
            remedy=f"choose top_k <= {n_experts}",
        )


def heads_divide_width(d_model: int, n_heads: int) -> Iterator[Problem]:
    """Heads share the width equally, and RoPE turns pairs of its channels."""
    if d_model % n_heads:
        yield Problem(
            where="model.n_heads",
            value=str(n_heads),
            rule=f"must divide model.d_model ({d_model})",
            remedy=f"choose {nearest_divisors(n_heads, d_model)}, or another d_model",
        )
    elif d_model // n_heads % 2:
        yield Problem(
            where="model.n_heads",
            value=str(n_heads),
            rule=f"makes heads of {d_model // n_heads} channels, and RoPE needs an even number",
            remedy="choose n_heads so that d_model / n_heads is even",
        )


def groups_divide_heads(n_heads: int, n_kv_heads: int) -> Iterator[Problem]:
    """Every key-value head serves the same number of query heads."""
    if n_heads % n_kv_heads:
        yield Problem(
            where="model.n_kv_heads",
            value=str(n_kv_heads),
            rule=f"must divide model.n_heads ({n_heads})",
            remedy=f"choose {nearest_divisors(n_kv_heads, n_heads)}",
        )


def shares_fit_budget(warmup_share: float, decay_share: float) -> Iterator[Problem]:
    """Warm-up ends before decay begins."""
    if warmup_share + decay_share > 1 + 1e-12:
        yield Problem(
            where="schedule.decay_share",
            value=str(decay_share),
            rule=f"leaves no room for schedule.warmup_share ({warmup_share}): together they exceed the budget",
            remedy=f"choose decay_share <= {1 - warmup_share:.6g}",
        )


def train_split_remains(validation_share: float, test_share: float) -> Iterator[Problem]:
    """Something must be left to train on."""
    if validation_share + test_share >= 1:
        yield Problem(
            where="corpus.test_share",
            value=str(test_share),
            rule=f"together with corpus.validation_share ({validation_share}) leaves nothing to train on",
            remedy="choose shares that add up to less than 1",
        )


def corpus_is_named(kind: str, paths: Sequence[str], dataset: str | None) -> Iterator[Problem]:
    """Each kind of corpus is found in its own way."""
    if kind == "files" and not paths:
        yield Problem(
            where="corpus.paths",
            rule="is missing, and a corpus of kind 'files' needs it",
            remedy='add paths = ["texts/*.txt"] or write corpus = "files:texts/*.txt"',
        )
    if kind == "hub" and dataset is None:
        yield Problem(
            where="corpus.dataset",
            rule="is missing, and a corpus of kind 'hub' needs it",
            remedy='add dataset = "OWNER/ID" or write corpus = "hub:OWNER/ID"',
        )
    if kind != "files" and paths:
        yield _out_of_place("corpus.paths", paths, f"a corpus of kind {kind!r}", "files")
    if kind != "hub" and dataset is not None:
        yield _out_of_place("corpus.dataset", dataset, f"a corpus of kind {kind!r}", "hub")


def tokenizer_is_named(
    kind: str, vocab_size: int | None, path: str | None, repository: str | None
) -> Iterator[Problem]:
    """Each kind of tokenizer is found in its own way."""
    given = {"vocab_size": vocab_size, "path": path, "id": repository}
    needed = {"bpe": "vocab_size", "directory": "path", "hub": "id"}
    examples = {"bpe": "bpe:2048", "directory": "directory:PATH", "hub": "hub:OWNER/ID"}
    if kind in needed and given[needed[kind]] is None:
        yield Problem(
            where=f"tokenizer.{needed[kind]}",
            rule=f"is missing, and a tokenizer of kind {kind!r} needs it",
            remedy=f'add it or write tokenizer = "{examples[kind]}"',
        )
    for key, value in given.items():
        if value is not None and needed.get(kind) != key:
            home = next(owner for owner, owned in needed.items() if owned == key)
            yield _out_of_place(f"tokenizer.{key}", value, f"a tokenizer of kind {kind!r}", home)


def rates_differ(lr: Sequence[float], adamw_grid: Sequence[float] | None) -> Iterator[Problem]:
    """A rate that stands twice would be the same cell twice."""
    for where, grid in (("rates.lr", lr), ("rates.adamw_grid", adamw_grid or ())):
        if len(set(grid)) < len(grid):
            yield Problem(
                where=where,
                value=as_toml(grid),
                rule="names a rate twice",
                remedy=f"write {as_toml(list(dict.fromkeys(grid)))}",
            )


def grid_has_rates(search: GridSearch | OptunaSearch, lr: Sequence[float]) -> Iterator[Problem]:
    """A grid is searched at its rates."""
    if isinstance(search, GridSearch) and not lr:
        yield Problem(
            where="rates.lr",
            rule="must name at least one learning rate for a grid",
            remedy="add lr = [0.005, 0.01, 0.02] under [rates] or search with optuna",
        )


def grid_has_a_ratio(search: GridSearch | OptunaSearch, lr: Sequence[float], max_widenings: int) -> Iterator[Problem]:
    """A grid is widened by its own ratio, which takes two rates."""
    if isinstance(search, GridSearch) and len(lr) == 1 and max_widenings > 0:
        yield Problem(
            where="rates.max_widenings",
            value=str(max_widenings),
            rule="needs two rates in rates.lr, since a grid is widened by the ratio between its rates",
            remedy="add a rate or set max_widenings = 0",
        )


def one_adamw_choice(
    search: GridSearch | OptunaSearch, ratio: float | None, fixed: float | None, grid: Sequence[float] | None
) -> Iterator[Problem]:
    """AdamW's rate is decided in exactly one way."""
    choices = {"rates.adamw_ratio": ratio, "rates.adamw_fixed": fixed, "rates.adamw_grid": grid}
    given = [where for where, value in choices.items() if value is not None]
    searched = isinstance(search, OptunaSearch) and search.searches_adamw_ratio
    if searched:
        given.append("search.adamw_ratio_low and adamw_ratio_high")
    if len(given) > 1:
        yield Problem(
            where="rates",
            rule=f"decides AdamW's rate more than once: {', '.join(given)}",
            remedy="keep one of them",
        )
    elif not given:
        yield Problem(
            where="rates",
            rule="does not say what AdamW's rate is",
            remedy="add exactly one of adamw_ratio = 0.3, adamw_fixed = 0.001, adamw_grid = [0.001, 0.003]",
        )
    elif isinstance(search, OptunaSearch) and grid is not None:
        yield Problem(
            where="rates.adamw_grid",
            value=as_toml(grid),
            rule="is a grid, and search.kind is optuna",
            remedy="set search.adamw_ratio_low and search.adamw_ratio_high, or adamw_ratio",
        )


def search_bounds_are_ordered(search: GridSearch | OptunaSearch) -> Iterator[Problem]:
    """A range has a lower and a higher end."""
    if not isinstance(search, OptunaSearch):
        return
    if search.lr_low >= search.lr_high:
        yield _inverted("search.lr_low", search.lr_low, "search.lr_high", search.lr_high)
    low, high = search.adamw_ratio_low, search.adamw_ratio_high
    if low is not None and high is not None and low >= high:
        yield _inverted("search.adamw_ratio_low", low, "search.adamw_ratio_high", high)
    if (low is None) != (high is None):
        missing = "search.adamw_ratio_low" if low is None else "search.adamw_ratio_high"
        yield Problem(where=missing, rule="is missing beside the other bound", remedy="give both bounds or neither")


def fitting_is_asked_for(fit_memory_gib: float | None, fitted: bool) -> Iterator[Problem]:
    """``fitted`` is the planner's mark."""
    if fitted and fit_memory_gib is None:
        yield Problem(
            where="fitted",
            value="true",
            rule="is set by the planner after it has fitted the arms to fit_memory_gib, which is missing",
            remedy="leave it out",
        )


def _inverted(where: str, low: float, other: str, high: float) -> Problem:
    return Problem(
        where=where, value=str(low), rule=f"must be less than {other} ({high})", remedy="swap or spread them"
    )


def _out_of_place(where: str, value: object, subject: str, home: str) -> Problem:
    section = where.partition(".")[0]
    whole = {"corpus": "corpus=embedded", "tokenizer": "tokenizer=bytes"}[section]
    return Problem(
        where=where,
        value=as_toml(value),
        rule=f"has no meaning for {subject}",
        remedy=f'leave it out, set kind = "{home}", or replace the whole table as --set {whole} does',
    )
