"""The rules between the values of a space. What a value must be by itself is in ``sections``.

A rule is a function of the values that ``RULES`` lists beside it, and yields a ``Problem`` per breach. It runs where
all of them are sound by themselves, so that one wrong value hides no other problem. An arm is a table of its sound
values, with ``where`` as ``--set`` addresses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import lcm, prod
from typing import Any

from search_spaces.arm_rules import (
    Arm,
    Arms,
    arms_differ,
    controls_are_wanted,
    controls_have_a_subject,
    gpu_table_names_arms,
    has_shape,
    lengths_nest,
    muon_is_used,
    names_differ,
    rates_of_its_own_are_a_grid,
    two_arms,
    values_of_its_own,
    windows_can_be_grouped,
)
from search_spaces.budget_rules import (
    Problems,
    budget_is_the_largest,
    budget_is_whole,
    budgets_increase,
    keep_fits_rungs,
    keep_never_grows,
    rungs_are_whole,
    rungs_below_budget,
    rungs_increase,
    smaller_budgets_are_whole,
    smaller_budgets_outlast_warmup,
)
from search_spaces.problems import Problem, as_toml, nearest_divisors, problem_at
from search_spaces.sections import ARM_TABLES, SHAPE

Rule = tuple[Callable[..., Problems], tuple[str, ...]]
"""A rule and the paths of the values that it reads, which are its arguments."""
# Each cell has a folder in the ledger, a run in MLflow and a row in the report.
MAX_CELLS = 10_000
# A trial trains on one GPU, and training takes 12 bytes per parameter or more: over a terabyte.
MAX_PARAMETERS = 100_000_000_000


def broken_rules(values: Mapping[str, Any]) -> list[Problem]:
    """Every breach of a rule whose values are all among ``values`` (dotted path to sound value).

    The rules of the tables of which an arm may have values of its own are asked again of each arm that has some.
    """
    common = {**values, **_derived(values)}
    problems = list(_breaches(common, RULES))
    for arm in values.get("strategies", ()):
        own = values_of_its_own(arm)
        as_arm = {**values, **own}
        as_arm |= _derived(as_arm)
        rules = [
            rule
            for rule in RULES
            if _is_about_an_arm(rule[1]) and any(as_arm.get(path) != common.get(path) for path in rule[1])
        ]
        problems += [_of_arm(problem, arm) for problem in _breaches(as_arm, rules)]
    return problems


def _of_arm(problem: Problem, arm: Arm) -> Problem:
    """A problem at the value of an arm; what no arm has for itself stays where it is."""
    if problem.where == "rates.max_widenings":
        return problem
    return replace(problem, where=f"{arm['where']}.{problem.where}")


def _breaches(known: Mapping[str, Any], rules: Sequence[Rule]) -> Iterator[Problem]:
    for rule, reads in rules:
        if all(path in known for path in reads):
            yield from rule(*(known[path] for path in reads))


def _is_about_an_arm(reads: Sequence[str]) -> bool:
    """Whether a rule is about one of the tables of which an arm may have values of its own."""
    return any(path.partition(".")[0] in ARM_TABLES for path in reads) and "strategies" not in reads


def _derived(values: Mapping[str, Any]) -> dict[str, Any]:
    """What several rules need and no key says: how many rates compete, what every arm's steps divide."""
    derived: dict[str, Any] = {}
    if values.get("search.kind") == "optuna":
        if "search.trials_per_arm" in values:
            derived["n_rates"] = values["search.trials_per_arm"]
        if all(bound in values for bound in _RATIO_BOUNDS):
            derived["ratio_is_searched"] = all(values[bound] is not None for bound in _RATIO_BOUNDS)
    elif "search.kind" in values:
        derived["ratio_is_searched"] = False
        if "rates.lr" in values and "rates.adamw_grid" in values:
            derived["n_rates"] = len(values["rates.lr"]) * len(values["rates.adamw_grid"] or (None,))
    if "strategies" in values:
        steps = [prod(arm[key] for key in SHAPE) for arm in values["strategies"] if has_shape(arm)]
        derived["steps_tokens"] = steps
        derived["multiple"] = _multiple_of_steps(steps)
        derived["tables"] = {path: value for path, value in values.items() if path.partition(".")[0] in ARM_TABLES}
    return derived


def _multiple_of_steps(steps: Sequence[int]) -> tuple[int, str]:
    """What budgets and rungs must be a multiple of, in tokens, and why. Arms with unsound numbers are left out."""
    return lcm(*steps), f"every arm's tokens per step ({', '.join(map(str, dict.fromkeys(steps)))})"


def cells_are_bounded(arms: Arms, n_rates: int, explore: int, confirm: int, budgets_tokens: Sequence[int]) -> Problems:
    """A sweep keeps track of every cell."""
    n_cells = len(arms) * (n_rates * explore + confirm) * len(budgets_tokens)
    if n_cells > MAX_CELLS:
        counted = "arms x budgets x (rates x explore seeds + confirm seeds)"
        rule = f"has about {n_cells} cells ({counted}), and may have {MAX_CELLS}"
        yield problem_at("the space", None, rule, "leave out arms, budgets, rates or seeds")


# Rates and search


def rates_differ(lr: Sequence[float], adamw_grid: Sequence[float] | None) -> Problems:
    """A rate that is named twice would be the same cell twice."""
    for where, grid in (("rates.lr", lr), ("rates.adamw_grid", adamw_grid or ())):
        if len(set(grid)) < len(grid):
            yield problem_at(where, grid, "names a rate twice", f"write {as_toml(list(dict.fromkeys(grid)))}")


def grid_has_rates(kind: str, lr: Sequence[float]) -> Problems:
    """A grid is searched at its rates."""
    if kind == "grid" and not lr:
        remedy = "add lr = [0.005, 0.01, 0.02] under [rates] or search with optuna"
        yield problem_at("rates.lr", None, "must name at least one learning rate for a grid", remedy)


def grid_has_a_ratio(kind: str, lr: Sequence[float], max_widenings: int) -> Problems:
    """A grid is widened by its own ratio, which takes two rates."""
    if kind == "grid" and len(lr) == 1 and max_widenings > 0:
        rule = "needs two rates in rates.lr, since a grid is widened by the ratio between its rates"
        yield problem_at("rates.max_widenings", max_widenings, rule, "add a rate or set max_widenings = 0")


def one_adamw_choice(
    kind: str, ratio: float | None, fixed: float | None, grid: Sequence[float] | None, ratio_is_searched: bool
) -> Problems:
    """AdamW's rate is decided in exactly one way."""
    choices = {"rates.adamw_ratio": ratio, "rates.adamw_fixed": fixed, "rates.adamw_grid": grid}
    given = [where for where, value in choices.items() if value is not None]
    given += ["search.adamw_ratio_low and adamw_ratio_high"] if ratio_is_searched else []
    if len(given) > 1:
        yield problem_at("rates", None, f"decides AdamW's rate more than once: {', '.join(given)}", "keep one of them")
    elif not given:
        remedy = "add exactly one of adamw_ratio = 0.3, adamw_fixed = 0.001, adamw_grid = [0.001, 0.003]"
        yield problem_at("rates", None, "does not say what AdamW's rate is", remedy)
    elif kind == "optuna" and grid is not None:
        remedy = "set search.adamw_ratio_low and search.adamw_ratio_high, or adamw_ratio"
        yield problem_at("rates.adamw_grid", grid, "is a grid, and search.kind is optuna", remedy)


def lr_bounds_are_ordered(low: float, high: float) -> Problems:
    """A range has a lower and a higher end."""
    if low >= high:
        yield problem_at("search.lr_low", low, f"must be less than search.lr_high ({high})", "swap or spread them")


def ratio_bounds_are_ordered(low: float | None, high: float | None) -> Problems:
    """A range has a lower and a higher end, and both of them."""
    if low is not None and high is not None:
        if low >= high:
            rule = f"must be less than search.adamw_ratio_high ({high})"
            yield problem_at("search.adamw_ratio_low", low, rule, "swap or spread them")
    elif low is not high:
        missing = "search.adamw_ratio_low" if low is None else "search.adamw_ratio_high"
        yield problem_at(missing, None, "is missing beside the other bound", "give both bounds or neither")


# Model, schedule, corpus, tokenizer


def experts_suffice(top_k: int, n_experts: int) -> Problems:
    """A token cannot go to more experts than there are."""
    if top_k > n_experts:
        yield problem_at("model.top_k", top_k, f"exceeds model.n_experts ({n_experts})", f"choose top_k <= {n_experts}")


def heads_divide_width(d_model: int, n_heads: int) -> Problems:
    """Heads share the width equally, and RoPE turns pairs of its channels."""
    if d_model % n_heads:
        remedy = f"choose {nearest_divisors(n_heads, d_model)}, or another d_model"
        yield problem_at("model.n_heads", n_heads, f"must divide model.d_model ({d_model})", remedy)
    elif d_model // n_heads % 2:
        rule = f"makes heads of {d_model // n_heads} channels, and RoPE needs an even number"
        yield problem_at("model.n_heads", n_heads, rule, "choose n_heads so that d_model / n_heads is even")


def groups_divide_heads(n_heads: int, n_kv_heads: int) -> Problems:
    """Every key-value head serves the same number of query heads."""
    if n_heads % n_kv_heads:
        remedy = f"choose {nearest_divisors(n_kv_heads, n_heads)}"
        yield problem_at("model.n_kv_heads", n_kv_heads, f"must divide model.n_heads ({n_heads})", remedy)


def model_fits_a_device(d_model: int, n_layers: int, n_experts: int, d_expert: int) -> Problems:
    """A trial holds the whole model: experts of three matrices each, and attention's four."""
    parameters = n_layers * (3 * n_experts * d_expert + 4 * d_model) * d_model
    if parameters > MAX_PARAMETERS:
        rule = f"has about {parameters / 1e9:,.0f} billion parameters, and may have {MAX_PARAMETERS // 10**9}"
        yield problem_at("model", None, rule, "choose a smaller d_model, n_layers, n_experts or d_expert")


def shares_fit_budget(warmup_share: float, decay_share: float) -> Problems:
    """Warm-up ends before decay starts."""
    if warmup_share + decay_share > 1 + 1e-12:
        rule = f"leaves no room for schedule.warmup_share ({warmup_share}): together they exceed the budget"
        yield problem_at("schedule.decay_share", decay_share, rule, f"choose decay_share <= {1 - warmup_share:.6g}")


def corpus_is_named(kind: str, paths: Sequence[str], dataset: str | None) -> Problems:
    """Files are found by their paths, a data set of the hub by its id."""
    given = {"files": ("paths", paths or None), "hub": ("dataset", dataset)}
    examples = {"files": ('paths = ["texts/*.txt"]', "texts/*.txt"), "hub": ('dataset = "OWNER/ID"', "OWNER/ID")}
    if kind in given and given[kind][1] is None:
        line, rest = examples[kind]
        yield _missing("corpus", kind, given[kind][0], f'add {line} or write corpus = "{kind}:{rest}"')
    yield from _out_of_place("corpus", kind, given, "embedded")


def copies_are_looked_for_in_files(kind: str, duplicates: str) -> Problems:
    """All documents are read before any is held out: a data set of the hub has no end, the embedded corpus no copy."""
    if kind != "files" and duplicates != "refuse":
        rule = f"has no meaning for a corpus of kind {kind!r}: copies are looked for in files"
        yield problem_at("corpus.duplicates", duplicates, rule, 'leave it out or write corpus = "files:FOLDER"')


def tokenizer_is_named(kind: str, vocab_size: int | None, path: str | None, repository: str | None) -> Problems:
    """A tokenizer is trained to a size, or found by a path or an id."""
    given = {"bpe": ("vocab_size", vocab_size), "directory": ("path", path), "hub": ("id", repository)}
    examples = {"bpe": "2048", "directory": "PATH", "hub": "OWNER/ID"}
    if kind in given and given[kind][1] is None:
        remedy = f'add it or write tokenizer = "{kind}:{examples[kind]}"'
        yield _missing("tokenizer", kind, given[kind][0], remedy)
    yield from _out_of_place("tokenizer", kind, given, "bytes")


def _missing(section: str, kind: str, key: str, remedy: str) -> Problem:
    return problem_at(f"{section}.{key}", None, f"is missing, and a {section} of kind {kind!r} needs it", remedy)


def _out_of_place(section: str, kind: str, given: Mapping[str, tuple[str, object]], plain: str) -> Problems:
    """Values that only another kind than ``kind`` uses."""
    for owner, (key, value) in given.items():
        if owner != kind and value is not None:
            rule = f"has no meaning for a {section} of kind {kind!r}"
            remedy = f'leave it out, set kind = "{owner}", or replace the whole table as --set {section}={plain} does'
            yield problem_at(f"{section}.{key}", value, rule, remedy)


_RATIO_BOUNDS = ("search.adamw_ratio_low", "search.adamw_ratio_high")
_ADAMW = ("rates.adamw_ratio", "rates.adamw_fixed", "rates.adamw_grid", "ratio_is_searched")

RULES: Sequence[Rule] = (
    (budget_is_whole, ("budget_tokens", "multiple")),
    (budgets_increase, ("budgets_tokens",)),
    (budget_is_the_largest, ("budget_tokens", "budgets_tokens")),
    (smaller_budgets_are_whole, ("budgets_tokens", "budget_tokens", "rungs_tokens", "multiple")),
    (smaller_budgets_outlast_warmup, ("budgets_tokens", "budget_tokens", "steps_tokens")),
    (rungs_are_whole, ("rungs_tokens", "multiple")),
    (rungs_below_budget, ("rungs_tokens", "budget_tokens")),
    (rungs_increase, ("rungs_tokens",)),
    (keep_fits_rungs, ("early_stopping.kind", "early_stopping.keep", "rungs_tokens")),
    (keep_never_grows, ("early_stopping.keep", "n_rates")),
    (two_arms, ("strategies",)),
    (names_differ, ("strategies",)),
    (arms_differ, ("strategies", "tables")),
    (lengths_nest, ("strategies",)),
    (controls_are_wanted, ("controls", "strategies")),
    (windows_can_be_grouped, ("strategies",)),
    (controls_have_a_subject, ("strategies", "tables")),
    (muon_is_used, ("optimizer.kind", "strategies")),
    (gpu_table_names_arms, ("resources.gpu_per_trial", "strategies")),
    (cells_are_bounded, ("strategies", "n_rates", "seeds.explore", "seeds.confirm", "budgets_tokens")),
    (rates_of_its_own_are_a_grid, ("search.kind", "strategies")),
    (grid_has_rates, ("search.kind", "rates.lr")),
    (rates_differ, ("rates.lr", "rates.adamw_grid")),
    (grid_has_a_ratio, ("search.kind", "rates.lr", "rates.max_widenings")),
    (one_adamw_choice, ("search.kind", *_ADAMW)),
    (lr_bounds_are_ordered, ("search.lr_low", "search.lr_high")),
    (ratio_bounds_are_ordered, _RATIO_BOUNDS),
    (experts_suffice, ("model.top_k", "model.n_experts")),
    (heads_divide_width, ("model.d_model", "model.n_heads")),
    (groups_divide_heads, ("model.n_heads", "model.n_kv_heads")),
    (model_fits_a_device, ("model.d_model", "model.n_layers", "model.n_experts", "model.d_expert")),
    (shares_fit_budget, ("schedule.warmup_share", "schedule.decay_share")),
    (corpus_is_named, ("corpus.kind", "corpus.paths", "corpus.dataset")),
    (copies_are_looked_for_in_files, ("corpus.kind", "corpus.duplicates")),
    (tokenizer_is_named, ("tokenizer.kind", "tokenizer.vocab_size", "tokenizer.path", "tokenizer.id")),
)
